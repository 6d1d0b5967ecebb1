"""Bringing an older database to the newest schema. Imported only when one is behind.

The order is the rule: a backup; foreign keys off, outside any transaction (Alembic rebuilds a
table by dropping it, and a cascade would take the judgments along); everything in one write
transaction; no broken reference, and the judgments' count and digest unchanged; only then commit.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlmodel import SQLModel

from curator import db
from curator.errors import BadConfig, CuratorError

VERSIONS = Path(__file__).parent / "versions"
JUDGMENTS = """
SELECT count(*), group_concat(line, char(10))
FROM (SELECT uuid || digest || chain AS line FROM judgment ORDER BY id)
"""


def upgrade(path: Path, version: int, versions: Path = VERSIONS, target: str = "head") -> Path:
    """Migrate the database at `path` from `version`; return the backup made before.

    Raises BadConfig when no revision leads on from `version`, CuratorError when the result is
    not sound; in both cases the file is as it was.
    """
    script = ScriptDirectory(str(Path(__file__).parent), version_locations=[str(versions)])
    revision = f"{version:04d}"
    if revision not in {each.revision for each in script.walk_revisions()}:
        raise BadConfig(f"{path} has schema {version}, which no migration starts from.")
    backup = _back_up(path, version)
    engine = db.make_engine(path, foreign_keys=False)
    try:
        with engine.connect().execution_options(writes=True) as connection:
            _migrate(connection, script, target, path)
            connection.commit()  # any exception before this line rolls all of it back
    finally:
        engine.dispose()
    return backup


def _migrate(connection: Connection, script: ScriptDirectory, target: str, path: Path) -> None:
    before = connection.exec_driver_sql(JUDGMENTS).one()
    for (name,) in connection.exec_driver_sql(
        "SELECT name FROM sqlite_master WHERE name LIKE '\\_alembic\\_tmp\\_%' ESCAPE '\\'"
    ).all():
        connection.exec_driver_sql(f'DROP TABLE "{name}"')
    context = EnvironmentContext(
        Config(), script, fn=lambda revision, _: script._upgrade_revs(target, revision)
    )
    with context:
        context.configure(
            connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True
        )
        context.run_migrations()
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    after = connection.exec_driver_sql(JUDGMENTS).one()
    if broken or tuple(before) != tuple(after):
        raise CuratorError(f"migrating {path} would have lost rows; it was left as it was.")
    reached = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    connection.exec_driver_sql(f"PRAGMA user_version={int(reached)}")


def _back_up(path: Path, version: int) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    backup = path.with_name(f"{path.name}.schema-{version}.{stamp}.backup")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    return backup
