"""A workspace: the folder that holds one study, and nothing of it lies anywhere else."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from curator.config import DEFAULT_MODEL, FILE, Config, load_config, read_config, template
from curator.errors import BadConfig, CannotWrite
from curator.probes import FILE as PROBES
from curator.rubric import FILE as RUBRIC
from curator.rubric import Rubric, load_rubric
from curator.safe_text import one_line, too_long, visible
from trainer.contract import write_whole

if TYPE_CHECKING:
    from sqlalchemy import Engine

DATABASE = "curator.db"
GUIDELINE = "guideline.md"
FOLDERS = ("runs", "adapters", "exports")
# Made by the trainer; can be deleted at any time, at the cost of computing it again.
REFERENCE_CACHE = "cache/reference"


@dataclass(frozen=True)
class Workspace:
    """An existing workspace's folder, its settings and its database."""

    path: Path
    config: Config

    @cached_property
    def engine(self) -> Engine:
        """The database, opened (and migrated, when its schema is behind) on first use."""
        from curator import db

        return db.open_database(self.path / DATABASE)

    @cached_property
    def rubric(self) -> Rubric:
        """The reasons annotators can give: the workspace's own rubric.json, or curator's."""
        own = self.path / RUBRIC
        return load_rubric(own if own.is_file() else data_folder() / RUBRIC)

    @property
    def probes(self) -> Path:
        """The probes a model is measured with: the workspace's own probes.jsonl, or curator's."""
        own = self.path / PROBES
        return own if own.exists() else data_folder() / PROBES

    @property
    def guideline(self) -> str:
        """How to judge, on a page, made visible: the workspace's own guideline.md, or curator's.

        Raises BadConfig when it cannot be read.
        """
        own = self.path / GUIDELINE
        path = own if own.exists() else data_folder() / GUIDELINE
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise BadConfig(f"{path}: {said}. Mend it, or take it away to see curator's.") from None
        if reason := too_long(text):
            raise BadConfig(f"{path} has {reason}.")
        return visible(text)

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
        name = self.config.model.name
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            inside = self.path / Path(name).expanduser()
            return str(inside.resolve()) if inside.is_dir() else name
        return name


def command_line(*words: str) -> str:
    """Return a command as one types it into this system's shell."""
    import re
    import shlex
    import sys

    if sys.platform != "win32":
        return shlex.join(words)
    return " ".join(w if re.fullmatch(r"[\w.:\\/=-]+", w) else f'"{w}"' for w in words)


def data_folder() -> Path:
    """Return the folder of the texts and the demo model that come with curator."""
    here = Path(__file__).parent
    return here / "data" if (here / "data").is_dir() else here.parent / "data"


def create_workspace(
    path: Path, model: str = DEFAULT_MODEL, settings: str | None = None
) -> Workspace:
    """Make a workspace in a folder; `settings` is its whole curator.toml.

    A folder that is new or empty becomes its user's alone; one that holds other files keeps its
    permissions, and only what is made in it is private. Raises BadConfig when there is a workspace
    already or the model's folder is no model, CannotWrite when the disk says no; what was made
    until then is taken away again.
    """
    try:
        there = [name for name in (FILE, DATABASE) if (path / name).exists()]
    except OSError as error:
        raise CannotWrite(f"{one_line(str(path), 60)}: {error.strerror}.") from None
    if FILE in there:
        raise BadConfig(
            f"{path} is a workspace already. Name another folder, or go on in it with: "
            + command_line("curator", "annotate", "--workspace", str(path))
        )
    if there:
        raise BadConfig(f"{path / DATABASE} is there without a {FILE}. Name another folder.")
    from curator import db

    folder = check_model(model)
    text = settings or template(str(folder.resolve()) if folder else model)
    read_config(text, path / FILE)
    made: list[Path] = []
    try:
        _make_folders(path, made)
        made.append(path / DATABASE)
        db.create_database(path / DATABASE)
        os.chmod(path / DATABASE, 0o600)
        # Last: a folder with this file is a workspace.
        write_whole(path / FILE, text)
        os.chmod(path / FILE, 0o600)
    except (OSError, CannotWrite) as error:
        for each in reversed(made):
            with contextlib.suppress(OSError):
                each.rmdir() if each.is_dir() else each.unlink()
        if isinstance(error, CannotWrite):
            raise
        raise CannotWrite(f"{path}: {error.strerror}. Choose a folder you can write.") from None
    return open_workspace(path)


def _make_folders(path: Path, made: list[Path]) -> None:
    missing = [each for each in (path, *path.parents) if not each.exists()]
    fresh = bool(missing) or not any(path.iterdir())
    path.mkdir(parents=True, exist_ok=True)
    made += reversed(missing)
    if fresh:
        os.chmod(path, 0o700)
    for name in FOLDERS:
        if not (path / name).exists():
            (path / name).mkdir(mode=0o700)
            made.append(path / name)


def check_model(model: str) -> Path | None:
    """Return the folder that `model` names, or None for an id; refuse a folder that is no model.

    An id is looked up by the trainer, when it is needed.
    """
    try:
        folder = Path(model).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user
        raise BadConfig(f"{one_line(model, 60)}: no such folder ({error}).") from None
    looks_like_path = is_folder or model.startswith((".", "/", "~")) or "\\" in model
    if looks_like_path and not (folder / "config.json").is_file():
        raise BadConfig(
            f"{one_line(model, 60)} is no model: it has no config.json. "
            f"Name a model's folder, or an id such as {DEFAULT_MODEL}."
        )
    return folder if is_folder else None


def open_workspace(path: Path) -> Workspace:
    """Open the workspace in `path`. Raises BadConfig when it is none."""
    try:
        found = (path / FILE).is_file()
    except OSError as error:
        raise BadConfig(f"{one_line(str(path), 60)}: {error.strerror}.") from None
    if not found:
        raise BadConfig(f"{path} is no curator workspace. Make one with: curator init {path}")
    path = path.resolve()
    return Workspace(path, load_config(path / FILE))


def find_workspace(start: Path | None = None) -> Workspace:
    """Open the nearest workspace: `start` or the first of its parents with a curator.toml."""
    try:
        start = (start or Path.cwd()).resolve()
    except OSError:
        raise BadConfig("this folder is gone. Change to another, or use --workspace.") from None
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return open_workspace(folder)
    raise BadConfig(
        "no curator workspace here or above. Make one with: curator init my-study "
        "(or name one with --workspace DIR)"
    )
