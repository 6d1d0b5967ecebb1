"""What the commands share: their options, where they speak, and following a run."""

from __future__ import annotations

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


def annotator_name(name: str | None) -> str:
    """Return who judges: as named, else the name this computer knows the person by."""
    import getpass

    if name and name.strip():
        return name.strip()
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "annotator"


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
