"""The command line: parse, call a verb, print, exit. Heavy imports wait inside the commands.

Standard output is data, standard error is talk.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curator import cli_evaluation, cli_models
from curator.cli_options import (
    AnnotatorOption,
    JsonOption,
    WorkspaceOption,
    annotator_name,
    go_on_text,
    left_out_text,
    run_and_follow,
    talk,
    workspace_at,
)

if TYPE_CHECKING:
    from curator.workspace import Workspace

app = typer.Typer(
    help="Teach a local language model, pick by pick, to be empathetic and boundary-aware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
import_app = typer.Typer(no_args_is_help=True, help="Example: curator import prompts FILE")
app.add_typer(import_app, name="import", short_help="Bring files in.")
cli_evaluation.register(app)
cli_models.register(app)


FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        from curator import __version__

        typer.echo(f"curator {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teach a local language model, pick by pick, to be empathetic and boundary-aware."""


@app.command(short_help="Make a workspace.")
def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]")] = Path("."),
    model: Annotated[
        str | None, typer.Option(metavar="ID_OR_PATH", help="A model's folder, or an id.")
    ] = None,
) -> None:
    """Example: curator init my-study --model ~/models/gemma-3-4b-it

    Make a workspace: a folder with curator.toml, curator.db, runs/, adapters/ and exports/.
    It holds no prompts yet.
    """
    from curator.config import DEFAULT_MODEL
    from curator.workspace import create_workspace

    workspace = create_workspace(directory, model or DEFAULT_MODEL)
    talk(f"{workspace.path} is ready for {workspace.config.model.name}.")
    talk("Next: curator import prompts FILE, then curator generate.")


@import_app.command("prompts", short_help="Add client messages from JSON lines.")
def import_prompts(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    prompt_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field that holds the prompt.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator import prompts questions.jsonl --prompt-field text

    Add client messages from JSON lines: a text, or a conversation ending with the client, in
    `prompt`. Optional beside it: id, client, family, content_label, risk_cue. What is there
    already is skipped, so a file that grew can be imported again.
    """
    from curator import workflow

    result = workflow.import_prompts(workspace_at(workspace), file, prompt_field)
    talk(
        f"{result.added} prompts added ({result.held_out} of them held out for measuring), "
        f"{result.duplicates} skipped that were there already."
    )
    for what, count in result.mended.items():
        talk(f"{count} {what}.")


@app.command(short_help="Have the model write the pairs to judge.")
def generate(
    prompts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Write pairs for N prompts.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator generate --prompts 40

    Have the model (with the adapter in use, if there is one) write candidates, and pair them.
    """
    run_and_follow(workspace_at(workspace), "generate", prompts)


@app.command(short_help="Judge pairs in the terminal.")
def annotate(
    annotator: AnnotatorOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="In lines, from standard input; no screen.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator annotate

    Judge pairs in the terminal. Leave at any time with q: every judgment is saved when made.
    With --plain in lines, without a screen: for screen readers, simple terminals and scripts.
    """
    place = workspace_at(workspace)
    if plain:
        from curator.line_mode import run_line_mode

        # Whatever the locale says: a byte or letter it does not know must not end the sitting.
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        name, said = annotator_name(annotator, place)
        if said:
            talk(said)
        status = run_line_mode(place, name, sys.stdin, sys.stdout)
        talk(go_on_text(place, name, "annotate", "--plain"))
        sys.exit(status)
    open_app(place, annotator, "annotate", first_minutes=annotator is None)


@app.command(short_help="Write the preferences for a trainer.")
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE.")
    ] = None,
    format: Annotated[str, typer.Option(metavar="NAME", help="trl")] = "trl",  # noqa: A002
    simulated: Annotated[
        bool, typer.Option("--include-simulated", help="Also what a simulated clinician chose.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator export --output pairs.jsonl

    Write the preferences as TRL's prompt, chosen and rejected: to FILE, or standard output.
    Ties, both_bad and skips give no preference; they are counted on standard error.
    """
    from curator import workflow
    from curator.preferences import EVERYBODY, HUMANS

    if format != "trl":
        raise typer.BadParameter(f"{format!r} is not known; known: trl", param_hint="--format")
    result = workflow.export_preferences(
        workspace_at(workspace), EVERYBODY if simulated else HUMANS
    )
    if output is None:
        write_out("".join(result.lines))
    else:
        workflow.write_export(result.lines, output)
    talk(f"{len(result.lines)} preferences{left_out_text(dict(result.left_out))}.")


def write_out(data: str) -> None:
    """Write data to standard output as UTF-8, whatever the locale. Raises CannotWrite."""
    from curator.errors import CannotWrite

    try:
        sys.stdout.buffer.write(data.encode("utf-8"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(f"standard output: {error.strerror}. The export is not whole.") from None


@app.command(short_help="Train an adapter on the preferences so far.")
def train(workspace: WorkspaceOption = None) -> None:
    """Example: curator train

    Train an adapter on every preference so far, by DPO from the base model, and measure it. It is
    used if no rule of the gates is against it.
    """
    run_and_follow(workspace_at(workspace), "train")


@app.command("round", short_help="Train, evaluate and write the next pairs.")
def round_(
    prompts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Write pairs for N prompts.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator round

    Train, evaluate and write the next pairs, on one load of the model.
    """
    run_and_follow(workspace_at(workspace), "round", prompts)


@app.command(short_help="Judge, train, judge again, until you leave.")
def loop(
    annotator: AnnotatorOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator loop --annotator anna

    Judge; when the queue is empty, train and write new pairs; judge again, until you leave.
    """
    open_app(workspace_at(workspace), annotator, "loop", auto_round=True)


@app.command(short_help="Tell how things stand.")
def status(
    as_json: JsonOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Also verify every judgment against its digest.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator status --json

    Tell how things stand: prompts, rounds, judgments, adapters, the run under way.
    """
    import json

    from curator import evaluation_text, rounds, terminal, workflow
    from curator.errors import BadData, Busy, CannotWrite

    place = workspace_at(workspace)
    try:
        rounds.settle(place)
    except (Busy, CannotWrite) as error:  # told all the same
        talk(f"curator: {error}")
    facts = workflow.status(place)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        typer.echo(terminal.status_text(facts))
        if facts["adapters"]:
            typer.echo(evaluation_text.curve_text(facts["learning_curve"]))
    if check:
        broken = workflow.broken_judgments(place)
        if broken:
            raise BadData(
                f"{len(broken)} changed since they were judged, the first: {broken[0]}. "
                "Compare with a backup."
            )
        talk("every judgment matches its digest and chain, every text its digest.")


@app.command(short_help="Try it all with a tiny model, right now.")
def demo(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]")] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="A simulated clinician judges; no app is opened.")
    ] = False,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, max=9)] = 2,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Example: curator demo

    Try it all with a tiny model made for this, on a fresh workspace, without a GPU or a network.
    With --simulate, or without a terminal, a simulated clinician judges and N rounds run.
    """
    from curator.demo import run_demo

    sys.exit(run_demo(directory, simulate or as_json or not has_terminal(), rounds, seed, as_json))


# --- shared by the commands -------------------------------------------------------------------


def has_terminal() -> bool:
    """Tell whether a person can see and type."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def open_app(
    workspace: Workspace,
    annotator: str | None,
    command: str,
    auto_round: bool = False,
    first_minutes: bool = False,
) -> None:
    """Open the terminal app, give account of the sitting, and exit as the app does.

    `command` is what opens it again.
    """
    from curator.errors import CuratorError

    if not has_terminal():
        raise CuratorError("judging needs a terminal, or --plain to judge in lines.")
    from curator.tui.app import CuratorApp

    name, said = annotator_name(annotator, workspace)
    screen = CuratorApp(
        workspace, name, auto_round=auto_round, first_minutes=first_minutes, greeting=said
    )
    screen.run()
    if not screen.return_code and "seat" in screen.__dict__:  # left before it was taken: nothing
        from curator.history import sitting, sitting_text

        talk(sitting_text(sitting(screen.seat), workspace.name))
        talk(go_on_text(workspace, screen.annotator_name, command))
    sys.exit(screen.return_code or 0)


def main() -> None:
    """Run the command line; every expected failure is one line and its exit status."""
    os.umask(0o077)  # what is made here is its user's alone
    from curator.errors import CannotWrite, CuratorError, where

    try:
        app()
    except CuratorError as error:
        talk(f"curator: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        talk(f"curator: {interrupt or 'interrupted.'}")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on; nothing left to say
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or leaving would try to print again
            place = f"{error.filename}: " if error.filename else ""
            talk(f"curator: {place}no space is left to write to. Free some, then try again.")
            sys.exit(CannotWrite.exit_code)
        # No traceback by itself: it would show client texts.
        if os.environ.get("CURATOR_DEBUG"):
            raise
        talk(f"curator: a bug: {type(error).__name__} in {where(error)}. "
             "CURATOR_DEBUG=1 shows all of it.")  # fmt: skip
        sys.exit(1)


if __name__ == "__main__":
    main()
