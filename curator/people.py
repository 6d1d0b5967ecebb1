"""Who judges here: read with the standard library alone, as a start needs it first of all."""

from __future__ import annotations

import sqlite3
import unicodedata
from pathlib import Path

from curator.errors import Busy
from curator.glance import looking
from curator.safe_text import bare

# As long as anybody waits for the database (db.BUSY_MS): a wrong guess is another annotator.
WAIT_SECONDS = 5.0
# Whose judgment is the newest comes first; one look-up each, however much was judged.
PEOPLE = """
SELECT a.name FROM annotator AS a
WHERE a.kind = 'human'
ORDER BY coalesce((
  SELECT j.id FROM judgment AS j WHERE j.annotator_id = a.id ORDER BY j.sequence DESC LIMIT 1
), 0) DESC, a.id DESC
"""


def people(database: Path) -> list[str]:
    """Return the names of a workspace's human annotators, whoever judged last first.

    None where the file cannot be read as ours: opening it says why. Raises Busy.
    """
    try:
        with looking(database, WAIT_SECONDS) as connection:
            return [str(name) for (name,) in connection.execute(PEOPLE)]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            said = f"{database} is in use by another program. Try again in a moment."
            raise Busy(said) from None
        return []
    except (sqlite3.Error, OSError, ValueError):
        return []


def known_as(name: str, names: list[str]) -> str | None:
    """Return the one of `names` that `name` is, whatever the case of its letters; None: new."""
    if name in names:
        return name
    return next((each for each in names if _folded(each) == _folded(name)), None)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", bare(name).casefold())
