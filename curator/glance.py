"""The first pair, read with the standard library alone, so that it can be painted at once.

Loading the database layer takes longer than all else a start needs. What is returned here is
looked at, never judged: the seat, taken after the first paint, says which pair it is, and hands it
out. Wherever this reading cannot be sure that the seat will say the same, it says nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from curator.words import (
    APPLICATION_ID,
    FEWEST_BETWEEN,
    POSITION_STEP,
    SCHEMA_VERSION,
    SPREAD_BETWEEN,
    AnnotatorKind,
    Shown,
)

MOST_SECONDS = 0.1

# As in queue.next_pair. Unjudged: nothing that this annotator said of it stands, and of a pair that
# one person judges for all, neither does what another of the same kind said.
STANDS = """
j.verdict <> 'retracted' AND NOT EXISTS (
  SELECT 1 FROM judgment AS n
  WHERE n.pair_id = j.pair_id AND n.annotator_id = j.annotator_id AND n.revision > j.revision)
"""
UNJUDGED = f"""
NOT EXISTS (
  SELECT 1 FROM judgment AS j
  WHERE j.pair_id = p.id AND {STANDS}
    AND (j.annotator_id = :me OR (
      p.purpose IN ('train', 'duel') AND j.verdict <> 'skip'
      AND j.annotator_id IN (SELECT id FROM annotator WHERE kind = :kind))))
AND NOT (p.purpose = 'train' AND EXISTS (
  SELECT 1 FROM pair AS c
  WHERE c.annotator_id = :me AND c.purpose = 'calibration' AND c.repeat_of = p.id))
"""
DUE = f"""
(p.purpose <> 'repeat' OR EXISTS (
  SELECT 1 FROM judgment AS j
  WHERE j.pair_id = p.repeat_of AND j.annotator_id = :me AND {STANDS}
    AND :fewest + p.side_seed % :spread <= (
      SELECT count(*) FROM judgment AS l
      WHERE l.annotator_id = :me AND l.sequence > j.sequence AND l.revision = 1)))
"""
CALIBRATION = f"""
SELECT p.id FROM pair AS p
WHERE p.annotator_id = :me AND p.purpose = 'calibration' AND {UNJUDGED}
ORDER BY p.position LIMIT 1
"""
IN_ROUND = f"""
SELECT p.id FROM pair AS p
WHERE p.round_id = :round AND (p.annotator_id IS NULL OR p.annotator_id = :me)
  AND p.position > coalesce((
    SELECT position FROM bookmark WHERE annotator_id = :me AND round_id = :round), 0)
  AND {UNJUDGED} AND {DUE}
ORDER BY p.position LIMIT 1
"""
BEGUN = """
SELECT EXISTS (SELECT 1 FROM lease WHERE pair_id = :pair)
    OR EXISTS (SELECT 1 FROM draft WHERE pair_id = :pair)
"""
SHOWN = """
SELECT p.id, r.number, m.messages, m.content_label, m.risk_cue, a.text, b.text, p.purpose,
       p.position / :step, m.family
FROM pair AS p
JOIN round AS r ON r.id = p.round_id
JOIN prompt AS m ON m.id = p.prompt_id
JOIN candidate AS a ON a.id = p.left_id
JOIN candidate AS b ON b.id = p.right_id
WHERE p.id = :pair
"""


def first_pair(path: Path, name: str, kind: AnnotatorKind = AnnotatorKind.HUMAN) -> Shown | None:
    """Return the pair an annotator's seat is about to hand out; None where it is not certain.

    Nothing is written. It is not certain for one who never judged here, where another sitting
    holds the pair, where writing was begun on it, in a database that is not this schema's, cannot
    be read, or takes long to look through.
    """
    try:
        with looking(path, 0.05) as database:
            deadline = time.monotonic() + MOST_SECONDS
            database.set_progress_handler(lambda: time.monotonic() > deadline, 2_000)
            return _first_pair(database, name, kind)
    except (sqlite3.Error, OSError, ValueError, TypeError):
        return None


@contextmanager
def looking(path: Path, wait: float) -> Iterator[sqlite3.Connection]:
    """Yield a connection that only reads, waiting `wait` seconds for a writer.

    Raises ValueError where the file is no database of this schema, sqlite3.Error or OSError where
    it cannot be read.
    """
    with path.open("rb") as file:  # sqlite.org/fileformat2.html; opening may write to the file
        header = file.read(72)
    if int.from_bytes(header[60:64], "big") != SCHEMA_VERSION:
        raise ValueError("another schema")
    uri = f"{path.absolute().as_uri()}?mode=rw"  # a log left by a crash is read from, too
    with closing(sqlite3.connect(uri, uri=True, timeout=wait)) as database:
        database.execute("PRAGMA query_only=ON")
        database.execute("PRAGMA trusted_schema=OFF")
        for pragma, value in (("application_id", APPLICATION_ID), ("user_version", SCHEMA_VERSION)):
            if database.execute(f"PRAGMA {pragma}").fetchone() != (value,):
                raise ValueError("no database of this schema")
        yield database


def _first_pair(database: sqlite3.Connection, name: str, kind: AnnotatorKind) -> Shown | None:
    database.execute("BEGIN")
    me = database.execute(
        "SELECT id FROM annotator WHERE name = ? AND kind = ?"
        " AND EXISTS (SELECT 1 FROM judgment WHERE annotator_id = annotator.id)",
        (name, kind.value),
    ).fetchone()
    if me is None:
        return None
    values = {
        "me": me[0], "kind": kind.value, "fewest": FEWEST_BETWEEN, "spread": SPREAD_BETWEEN,
    }  # fmt: skip
    found = database.execute(CALIBRATION, values).fetchone()
    rounds = database.execute("SELECT id FROM round ORDER BY number DESC").fetchall()
    for (each,) in rounds:
        found = found or database.execute(IN_ROUND, {**values, "round": each}).fetchone()
    if found is None:
        return None
    pair = {"pair": found[0], "step": POSITION_STEP}
    if database.execute(BEGUN, pair).fetchone() != (0,):
        return None
    row = database.execute(SHOWN, pair).fetchone()
    pair_id, turn, messages, label, cue, left, right, purpose, place, family = row
    return Shown(
        pair_id, turn, json.loads(messages), label, cue, left, right, purpose, place, family
    )
