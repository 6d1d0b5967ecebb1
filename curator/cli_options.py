"""What the commands share: their options, where they speak, and following a run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from curator.workspace import Workspace
    from trainer.contract import Action

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", "-w", metavar="DIR", envvar="CURATOR_WORKSPACE", show_envvar=False,
        help="The workspace; without it the nearest one from here upwards.",
    ),
]  # fmt: skip
AnnotatorOption = Annotated[
    str | None, typer.Option("--annotator", "-a", metavar="NAME", help="Who judges.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def talk(text: str) -> None:
    """Say something to the person, made visible, on standard error."""
    from curator.safe_text import visible

    typer.echo(visible(text), err=True)


def workspace_at(path: Path | None) -> Workspace:
    """Return the workspace named, or the nearest."""
    from curator.workspace import find_workspace, open_workspace

    return open_workspace(path) if path else find_workspace()


def annotator_name(name: str | None, workspace: Workspace) -> tuple[str, str]:
    """Return who judges, and what is to be said of that; empty: nothing.

    As named, in the writing that is known here; else the name this computer knows the person by,
    if it is known here; else who judged here last, and where nobody did that name. Raises Busy.
    """
    import getpass

    from curator.people import known_as, people
    from curator.workspace import DATABASE

    names = people(workspace.path / DATABASE)
    if name and name.strip():
        name = name.strip()
        known = known_as(name, names) or name
        return known, f"{name} is taken to be {known}, who is known here." * (known != name)
    try:
        login = getpass.getuser()
    except (OSError, KeyError, ImportError):
        login = "annotator"
    if names and known_as(login, names) is None:
        said = f"you judge as {names[0]}, as last time; for another: --annotator NAME."
        return names[0], said
    return known_as(login, names) or login, ""


def go_on_text(workspace: Workspace, annotator: str, *command: str) -> str:
    """Return the command that goes on where a sitting ended, naming only what has to be named."""
    from curator.errors import CuratorError
    from curator.workspace import command_line

    words = ["curator", *command]
    unnamed, nearest = None, None
    with contextlib.suppress(CuratorError):
        unnamed = annotator_name(None, workspace)[0]
    if unnamed != annotator:
        words += ["--annotator", annotator]
    with contextlib.suppress(CuratorError):
        named = os.environ.get("CURATOR_WORKSPACE")
        nearest = workspace_at(Path(named) if named else None).path
    if nearest != workspace.path:
        words += ["--workspace", str(workspace.path)]
    return f"Go on with: {command_line(*words)}"


def left_out_text(left_out: dict[str, int]) -> str:
    """Return what gave no preference, in words."""
    if not left_out:
        return ""
    parts = (f"{n} {what.replace('_', ' ')}" for what, n in sorted(left_out.items()))
    return f"; left out: {', '.join(parts)}"


def run_and_follow(workspace: Workspace, action: Action, prompts: int | None = None) -> None:
    """Start a run, show how it goes, settle it, and say what it brought."""
    from curator import terminal
    from curator.rounds import start_run

    started = start_run(workspace, action, prompts=prompts)
    if started.preferences:
        talk(f"{started.preferences} preferences{left_out_text(dict(started.left_out))}.")
    run = terminal.follow_run(workspace, started.folder)
    talk(terminal.run_text(run))
