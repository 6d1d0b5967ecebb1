"""A workspace: the folder that holds one study, and nothing of it lies anywhere else."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import Engine

from curator import db, models
from curator.config import DEFAULT_MODEL, FILE, Config, load_config, template
from curator.errors import BadConfig, CannotWrite

DATABASE = "curator.db"
FOLDERS = ("runs", "adapters", "exports")


@dataclass(frozen=True)
class Workspace:
    """An existing workspace's folder, its settings and its database."""

    path: Path
    config: Config

    @cached_property
    def engine(self) -> Engine:
        """The database, opened (and migrated, when its schema is behind) on first use."""
        return db.open_database(self.path / DATABASE)

    @property
    def name(self) -> str:
        """What to call it on a screen."""
        return self.path.name

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.path / "runs"

    @property
    def model_path(self) -> str:
        """The model's folder, made absolute, or its id."""
        folder = Path(self.config.model.name).expanduser()
        inside = self.path / folder
        return str(inside.resolve()) if inside.is_dir() else self.config.model.name


def data_folder() -> Path:
    """Return the folder of the texts and the demo model that come with curator."""
    here = Path(__file__).parent
    return here / "data" if (here / "data").is_dir() else here.parent / "data"


def private_files() -> None:
    """From here on, what this process makes is its user's alone (0700, 0600)."""
    os.umask(0o077)


def create_workspace(
    path: Path, model: str = DEFAULT_MODEL, settings: str | None = None
) -> Workspace:
    """Make a workspace in a new or empty folder; `settings` is its whole curator.toml.

    Raises BadConfig when there is one already or the model's folder is no model.
    """
    if (path / FILE).exists():
        raise BadConfig(f"{path} is a workspace already. Go on in it, or name another folder.")
    check_model(model)
    if Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    try:
        path.mkdir(parents=True, exist_ok=True)
        os.chmod(path, 0o700)
        for name in FOLDERS:
            (path / name).mkdir(exist_ok=True, mode=0o700)
        if (path / DATABASE).exists():
            raise BadConfig(f"{path / DATABASE} is there without a {FILE}. Name another folder.")
        db.create_database(path / DATABASE)
        os.chmod(path / DATABASE, 0o600)
        # Last: a folder with this file is a workspace.
        (path / FILE).write_text(settings or template(model), encoding="utf-8")
        os.chmod(path / FILE, 0o600)
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror}. Choose a folder you can write.") from None
    return open_workspace(path)


def check_model(model: str) -> None:
    """Refuse a folder that is no model. An id is looked up by the trainer, when it is needed."""
    folder = Path(model).expanduser()
    looks_like_path = folder.exists() or model.startswith((".", "/", "~")) or "\\" in model
    if looks_like_path and not (folder / "config.json").is_file():
        raise BadConfig(
            f"{model} is no model: it has no config.json. "
            f"Name a model's folder, or an id such as {DEFAULT_MODEL}."
        )


def open_workspace(path: Path) -> Workspace:
    """Open the workspace in `path`. Raises BadConfig when it is none."""
    if not (path / FILE).is_file():
        raise BadConfig(f"{path} is no curator workspace. Make one with: curator init {path}")
    path = path.resolve()
    return Workspace(path, load_config(path / FILE))


def find_workspace(start: Path | None = None) -> Workspace:
    """Open the nearest workspace: `start` or the first of its parents with a curator.toml."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return open_workspace(folder)
    raise BadConfig(
        "no curator workspace here or above. Make one with: curator init my-study "
        "(or name one with --workspace DIR)"
    )


def schema_version() -> int:
    """Return the schema this curator reads and writes."""
    return models.SCHEMA_VERSION


def trainer_command() -> list[str]:
    """Return the command that starts the trainer, to which a run's folder is added."""
    return [sys.executable, "-m", "trainer"]
