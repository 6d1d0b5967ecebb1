"""The database file: opened with care, one writer at a time, checked before it is touched."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlmodel import Session, SQLModel

from curator import models
from curator.errors import BadConfig, BadData, Busy, CannotWrite, CuratorError
from curator.words import APPLICATION_ID as APPLICATION_ID

BUSY_MS = 5_000

# SQLite 3.7.0 to 3.51.2 can corrupt a write-ahead log that two connections reset at once; fixed
# in 3.51.3 and, for their lines, in 3.50.7 and 3.44.6. Elsewhere the rollback journal is used.
WAL_FIXED = ((3, 44, 6), (3, 50, 7))


def wal_is_sound(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Tell whether this SQLite library is free of the WAL-reset bug."""
    if version >= (3, 51, 3):
        return True
    return any(version[:2] == fixed[:2] and version >= fixed for fixed in WAL_FIXED)


def journal() -> tuple[str, str]:
    """Return the (journal_mode, synchronous) used; both sync a commit to the disk."""
    return ("WAL", "FULL") if wal_is_sound() else ("DELETE", "EXTRA")


def make_engine(path: Path, foreign_keys: bool = True) -> Engine:
    """Return an engine whose transactions are real ones; see `reading` and `writing`.

    `foreign_keys` is off for a migration alone: inside a transaction it cannot be switched.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)))
    mode, synchronous = journal()

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in (
            f"busy_timeout={BUSY_MS}",
            f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
            f"journal_mode={mode}",
            f"synchronous={synchronous}",
            "trusted_schema=OFF",
            "cell_size_check=ON",
            "mmap_size=0",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.create_function("holds", 2, holds, deterministic=True)

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # A transaction that will write takes the write lock at once: one that starts by reading
        # and then finds another writer ahead fails without waiting.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def casefold(text: str) -> str:
    """Return a text as it compares whatever the case of its letters, accents joined to them."""
    return unicodedata.normalize("NFC", text.casefold())


def holds(text: str | None, folded: str) -> bool:
    """Tell whether a text holds one that `casefold` returned, in any case of letters.

    SQL knows it by this name: SQLite's own lower() knows A to Z alone.
    """
    if text is None or (text.isascii() and not folded.isascii()):
        return False
    return folded in casefold(text)


def create_database(path: Path) -> None:
    """Create a new database with the newest schema. The file must not exist.

    Raises CannotWrite when the disk is full or the place cannot be written.
    """
    engine = make_engine(path)
    with _said_plainly(engine), engine.connect().execution_options(writes=True) as connection:
        connection.exec_driver_sql("SELECT 1")
        SQLModel.metadata.create_all(connection)
        connection.exec_driver_sql(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
        )
        connection.exec_driver_sql(
            f"INSERT INTO alembic_version VALUES ('{models.SCHEMA_VERSION:04d}')"
        )
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version={models.SCHEMA_VERSION}")
        connection.commit()
    engine.dispose()


def open_database(path: Path) -> Engine:
    """Return an engine for an existing database, migrating it first when its schema is behind.

    Raises BadConfig for a newer schema and BadData for a file that is no database of ours;
    both leave the file as it was.
    """
    version = _schema_version(path)
    if version > models.SCHEMA_VERSION:
        raise BadConfig(
            f"{path} has schema {version}; this curator reads {models.SCHEMA_VERSION}. "
            "Use the newer curator that wrote it; nothing was changed."
        )
    if version < models.SCHEMA_VERSION:
        from curator import migrations

        migrations.upgrade(path, version)
    return make_engine(path)


def _schema_version(path: Path) -> int:
    """Read application_id and user_version without writing a byte."""
    if not path.is_file():
        raise BadData(f"{path} is missing. Restore it from a backup.")
    if path.stat().st_size == 0:
        raise BadData(f"{path} is empty: it is damaged. Restore it from a backup.")
    try:
        application, version = _header(path)
    except sqlite3.OperationalError as error:
        raise _plain(str(error), str(path)) from None
    except sqlite3.DatabaseError as error:
        raise BadData(f"{path} cannot be read ({error}). Restore it from a backup.") from None
    if application != APPLICATION_ID:
        raise BadData(f"{path} is a database of another program.")
    return version


def _header(path: Path) -> tuple[int, int]:
    """Return (application_id, user_version).

    A commit that a crash cut short is undone by the next connection that may write; one that may
    only read fails on it. So when reading alone fails, and the schema on the disk is not a newer
    one, whose file must stay as it is, SQLite is let to put its file right.
    """
    uri = path.absolute().as_uri()
    for mode in ("ro", "rw"):
        try:
            where, wait = f"{uri}?mode={mode}", BUSY_MS / 1000
            with closing(sqlite3.connect(where, uri=True, timeout=wait)) as db:
                (application,) = db.execute("PRAGMA application_id").fetchone()
                (version,) = db.execute("PRAGMA user_version").fetchone()
            return int(application), int(version)
        except sqlite3.OperationalError as error:
            with path.open("rb") as file:  # the header of page 1; sqlite.org/fileformat2.html
                on_disk = int.from_bytes(file.read(64)[60:64], "big")
            if mode == "rw" or "locked" in str(error) or on_disk > models.SCHEMA_VERSION:
                raise
    raise AssertionError


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Yield a session for reading; whatever it returns stays usable after it closed."""
    with _said_plainly(engine), Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Yield a session in one write transaction, committed to the disk when the block ends.

    An exception rolls all of it back. Raises CannotWrite (disk full, read-only, input/output
    error), Busy (another writer for over five seconds) or BadData (damaged file).
    """
    with _said_plainly(engine):
        connection = engine.connect().execution_options(writes=True)
        with connection, Session(connection, expire_on_commit=False) as session:
            yield session
            session.commit()


@contextmanager
def _said_plainly(engine: Engine) -> Iterator[None]:
    try:
        yield
    except (OperationalError, DatabaseError) as error:
        if error.orig is None:
            raise
        raise _plain(str(error.orig), str(engine.url.database)) from error


def _plain(problem: str, path: str) -> CuratorError:
    if "disk is full" in problem:
        return CannotWrite(f"the disk is full: {path} was not changed. Free some space and retry.")
    if "readonly" in problem or "read-only" in problem:
        return CannotWrite(f"{path} is read-only: nothing was saved. Check who owns it.")
    if "disk I/O" in problem or "unable to open" in problem:
        return CannotWrite(f"{path} cannot be written ({problem}): nothing was saved.")
    if "locked" in problem or "busy" in problem:
        return Busy(f"{path} is in use by another program. Try again in a moment.")
    if "malformed" in problem or "not a database" in problem:
        return BadData(f"{path} is damaged ({problem}). Restore it from a backup.")
    return CuratorError(f"{path}: {problem}")
