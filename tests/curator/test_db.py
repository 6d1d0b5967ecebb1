"""The database file: strict, checked before it is touched, never half-written."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event

from curator import db, models
from curator.errors import BadConfig, BadData, Busy, CannotWrite
from curator.models import Annotator, Setting
from curator.workspace import DATABASE, Workspace, create_workspace, open_workspace


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_table_is_strict_and_named_in_the_singular(workspace: Workspace) -> None:
    with sqlite3.connect(workspace.path / DATABASE) as connection:
        tables = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        )
    tables.pop("alembic_version")
    assert set(tables) == {
        "annotator", "prompt", "adapter", "round", "run", "candidate", "pair", "judgment",
        "lease", "bookmark", "draft", "erasure", "setting",
    }  # fmt: skip
    assert all(sql.rstrip().endswith("STRICT") for sql in tables.values())
    assert all("CASCADE" not in sql for sql in tables.values())


def test_pragmas_of_every_connection(workspace: Workspace) -> None:
    with workspace.engine.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("foreign_keys", "busy_timeout", "synchronous", "journal_mode",
                         "trusted_schema", "application_id", "user_version")
        }  # fmt: skip
    mode, synchronous = db.journal()
    assert values == {
        "foreign_keys": 1, "busy_timeout": 5000, "trusted_schema": 0,
        "journal_mode": mode.lower(), "synchronous": {"FULL": 2, "EXTRA": 3}[synchronous],
        "application_id": db.APPLICATION_ID, "user_version": models.SCHEMA_VERSION,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "sound"),
    [((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 0), False),
     ((3, 50, 6), False), ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True),
     ((3, 53, 4), True)],
)  # fmt: skip
def test_write_ahead_log_only_where_it_is_sound(version: tuple[int, ...], sound: bool) -> None:
    assert db.wal_is_sound(version) is sound


def test_files_are_the_users_alone(workspace: Workspace) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no mode bits")
    for path in (workspace.path, *(workspace.path / name for name in ("runs", "adapters"))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in (DATABASE, "curator.toml"):
        assert stat.S_IMODE((workspace.path / name).stat().st_mode) == 0o600


def test_a_newer_schema_is_refused_and_left_as_it_is(workspace: Workspace) -> None:
    path = workspace.path / DATABASE
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    before = sha256(path)
    with pytest.raises(BadConfig, match="schema 99; this curator reads 1"):
        db.open_database(path)
    assert sha256(path) == before


def test_what_is_no_database_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curator.db"
    with pytest.raises(BadData, match="missing"):
        db.open_database(path)
    path.write_bytes(b"")
    with pytest.raises(BadData, match="empty: it is damaged"):
        db.open_database(path)
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(BadData, match="not a database"):
        db.open_database(path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(BadData, match="another program"):
        db.open_database(path)


def test_an_exception_rolls_everything_back(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), db.writing(workspace.engine) as session:
        session.add(Annotator(name="anna"))
        session.flush()
        raise ZeroDivisionError
    with db.reading(workspace.engine) as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM annotator").scalar() == 0


def test_a_full_disk_is_said_plainly_and_nothing_is_half_written(workspace: Workspace) -> None:
    @event.listens_for(workspace.engine, "connect")
    def small(connection: sqlite3.Connection, _: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 4}")

    with pytest.raises(CannotWrite, match="the disk is full"):
        for number in range(100):
            with db.writing(workspace.engine) as session:
                session.add(Setting(name=str(number), value="x" * 2000))
    with db.reading(workspace.engine) as session:
        connection = session.connection()
        assert connection.exec_driver_sql("PRAGMA quick_check").scalar() == "ok"
        assert connection.exec_driver_sql("SELECT count(*) FROM setting").scalar() == number


def test_a_read_only_file_is_said_plainly(workspace: Workspace) -> None:
    @event.listens_for(workspace.engine, "connect")
    def read_only(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    with pytest.raises(CannotWrite, match="read-only"), db.writing(workspace.engine) as session:
        session.add(Setting(name="a", value="b"))


def test_two_writers_take_turns(workspace: Workspace) -> None:
    other = open_workspace(workspace.path)

    def add(place: Workspace, start: int) -> None:
        for number in range(start, start + 20):
            with db.writing(place.engine) as session:
                count = len(session.connection().exec_driver_sql("SELECT * FROM setting").all())
                session.add(Setting(name=str(number), value=str(count)))

    threads = [threading.Thread(target=add, args=(p, s)) for p, s in ((workspace, 0), (other, 100))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.reading(workspace.engine) as session:
        values = session.connection().exec_driver_sql("SELECT value FROM setting").scalars().all()
    # Each saw what the other had committed: no two transactions overlapped.
    assert sorted(map(int, values)) == list(range(40))


def test_a_writer_that_never_ends_is_said_plainly(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_MS", 50)
    other = open_workspace(workspace.path)
    with (
        db.writing(workspace.engine) as first,
        pytest.raises(Busy, match="in use by another program"),
        db.writing(other.engine) as second,
    ):
        first.add(Setting(name="a", value="b"))
        first.flush()
        second.add(Setting(name="c", value="d"))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_commit_cut_short_by_a_crash_is_undone_at_the_next_opening(workspace: Workspace) -> None:
    path = workspace.path / DATABASE
    workspace.engine.dispose()
    script = (
        "import os, signal, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size=1'); c.execute('BEGIN IMMEDIATE')\n"
        "for n in range(3000):\n"
        "    c.execute('INSERT INTO setting VALUES (?, ?)', (str(n), 'x' * 900))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)])
    journal = path.with_name(f"{DATABASE}-journal")
    assert db.wal_is_sound() or journal.stat().st_size > 0
    with db.reading(db.open_database(path)) as session:
        connection = session.connection()
        assert connection.exec_driver_sql("SELECT count(*) FROM setting").scalar() == 0
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_a_database_held_at_opening_is_in_use_not_damaged(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.path / DATABASE
    workspace.engine.dispose()
    monkeypatch.setattr(db, "BUSY_MS", 50)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(Busy, match="in use by another program"),
            db.reading(db.open_database(path)) as session,
        ):
            session.connection().exec_driver_sql("SELECT * FROM setting").all()


def test_a_workspace_is_not_made_twice(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="is a workspace already"):
        create_workspace(workspace.path)
    with pytest.raises(BadConfig, match=r"is no model: it has no config\.json"):
        create_workspace(tmp_path / "other", str(tmp_path))
    assert not (tmp_path / "other").exists()
