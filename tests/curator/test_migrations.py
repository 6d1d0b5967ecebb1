"""A migration keeps every judgment, or leaves the file as it was."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from curator import migrations
from curator.errors import BadConfig, CuratorError
from curator.judgments import Said
from curator.models import Verdict
from curator.seat import take_seat
from curator.workspace import DATABASE, Workspace
from tests.conftest import AddPairs

HEAD = """
from alembic import op
import sqlalchemy as sa
revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None
"""
ADDS_A_COLUMN = (
    HEAD
    + """
def upgrade():
    with op.batch_alter_table("pair", recreate="always") as batch:
        batch.add_column(sa.Column("extra", sa.Text))
"""
)
LOSES_JUDGMENTS = (
    HEAD
    + """
def upgrade():
    op.execute("DELETE FROM judgment WHERE id = 1")
"""
)
BREAKS_A_REFERENCE = (
    HEAD
    + """
def upgrade():
    op.execute("DELETE FROM candidate WHERE id = 1")
"""
)
FAILS_HALFWAY = (
    HEAD
    + """
def upgrade():
    op.execute("CREATE TABLE half (x)")
    raise RuntimeError("halfway")
"""
)


@pytest.fixture
def judged(workspace: Workspace, add_pairs: AddPairs) -> Path:
    """A workspace's database with three judgments."""
    add_pairs(workspace, 3)
    seat = take_seat(workspace, "anna", "sitting")
    pair = seat.next()
    for number in range(3):
        assert pair is not None
        pair = seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), f"u{number}")
    workspace.engine.dispose()
    return workspace.path / DATABASE


def versions(tmp_path: Path, second: str) -> Path:
    folder = tmp_path / "versions"
    folder.mkdir()
    first = migrations.VERSIONS / "0001_first.py"
    (folder / first.name).write_text(first.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "0002_second.py").write_text(second, encoding="utf-8")
    return folder


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_rebuilding_a_parent_table_keeps_the_judgments(judged: Path, tmp_path: Path) -> None:
    before = query(judged, "SELECT * FROM judgment ORDER BY id")
    backup = migrations.upgrade(judged, 1, versions(tmp_path, ADDS_A_COLUMN))
    assert query(judged, "SELECT * FROM judgment ORDER BY id") == before
    assert query(judged, "PRAGMA user_version") == [(2,)]
    assert query(judged, "SELECT version_num FROM alembic_version") == [("0002",)]
    assert "extra" in [row[1] for row in query(judged, "PRAGMA table_info(pair)")]
    assert query(judged, "PRAGMA foreign_key_check") == []
    assert query(backup, "SELECT * FROM judgment ORDER BY id") == before
    assert query(backup, "PRAGMA user_version") == [(1,)]


@pytest.mark.parametrize(
    ("second", "error"),
    [(LOSES_JUDGMENTS, CuratorError), (BREAKS_A_REFERENCE, CuratorError),
     (FAILS_HALFWAY, RuntimeError)],
)  # fmt: skip
def test_a_migration_that_would_lose_something_changes_nothing(
    judged: Path, tmp_path: Path, second: str, error: type[Exception]
) -> None:
    before = hashlib.sha256(judged.read_bytes()).hexdigest()
    with pytest.raises(error):
        migrations.upgrade(judged, 1, versions(tmp_path, second))
    assert hashlib.sha256(judged.read_bytes()).hexdigest() == before


def test_an_unknown_older_schema_is_refused(judged: Path) -> None:
    with pytest.raises(BadConfig, match="which no migration starts from"):
        migrations.upgrade(judged, 77)


def test_revision_one_is_what_a_new_database_has(judged: Path) -> None:
    migrations.upgrade(judged, 1)
    assert query(judged, "SELECT version_num FROM alembic_version") == [("0001",)]
