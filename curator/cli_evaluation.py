"""The commands that tell whether it gets better, and those of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curator.cli_options import JsonOption, WorkspaceOption, talk, workspace_at

if TYPE_CHECKING:
    from curator.adapters import Decided
    from curator.workspace import Workspace

adapter_app = typer.Typer(no_args_is_help=True, help="Example: curator adapter list")
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="As curator adapter list has it.")
]

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(short_help="Measure an adapter: figures with n and interval.")(evaluate)
    app.command(short_help="Compare two adapters blind, or show the results.")(duel)
    app.add_typer(adapter_app, name="adapter", short_help="Accept, refuse, roll back, export.")


def evaluate(
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME", help="Whom; may be given more than once."),
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--include-simulated", help="Also what a simulated clinician chose.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator evaluate --adapter adapter-0004

    Measure an adapter (without a name the one in use) on your held-out preferences, on the probes
    and in what it writes, against the base and the adapter in use. Every figure has n and a 95 %
    interval.
    """
    from curator import adapters, evaluation_text, workflow

    place = workspace_at(workspace)
    names: list[str | None] = [*adapter] if adapter else [None]
    adapters.check_names(_settled(place), adapter or ())
    found = []
    for name in names:
        found.append(_evaluated(place, name, simulated, quiet=as_json))
        if not as_json:
            typer.echo(evaluation_text.evaluation_text(found[-1]))
            typer.echo("")
    curve = workflow.status(place)["learning_curve"]
    if as_json:
        typer.echo(json.dumps({"evaluations": found, "learning_curve": curve}, indent=1))
    else:
        typer.echo(evaluation_text.curve_text(curve))


def _evaluated(place: Workspace, name: str | None, simulated: bool, quiet: bool) -> dict[str, Any]:
    """Run one evaluation to its end; return its figures and whose they are."""
    from curator import terminal
    from curator.errors import CuratorError
    from curator.preferences import EVERYBODY, HUMANS
    from curator.rounds import start_run

    kinds = EVERYBODY if simulated else HUMANS
    started = start_run(place, "evaluate", kinds=kinds, adapter=name)
    run = terminal.follow_run(place, started.folder, show=not quiet)
    figures = (run.metrics or {}).get("evaluation")
    if not figures:
        raise CuratorError(f"runs/{run.folder} brought no figures; see its log.txt.")
    return {"run": run.folder, **figures}


def duel(
    first: Annotated[str | None, typer.Argument(metavar="[A", show_default=False)] = None,
    second: Annotated[str | None, typer.Argument(metavar="B]", show_default=False)] = None,
    n: Annotated[
        int, typer.Option("-n", "--n", metavar="N", min=1, max=1000, help="Prompts to answer.")
    ] = 50,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator duel adapter-0004 base --n 50

    Have two adapters (or `base`) answer the same prompts, held-out ones first and none twice; the
    pairs come into the judge's queue unmarked, among the others, and are never trained on. Without
    names:
    the results so far, with intervals, and how many more pairs would settle it.
    """
    from curator import duels, evaluation_text, terminal

    place = workspace_at(workspace)
    if first is None:
        from curator import rounds

        rounds.settle(place)
        found = duels.results(place)
        typer.echo(json.dumps(found, indent=1) if as_json else evaluation_text.duels_text(found))
        if repeated := sum(each["repeated"] for each in found["duels"]):
            talk(f"not counted: {repeated} judged pairs that ask two the same prompt once more.")
        return
    if second is None:
        raise typer.BadParameter("a duel has two sides: curator duel A B", param_hint="B")
    started = duels.start_duel(place, first, second, n)
    if started.prompts < n:
        talk(f"{started.prompts} prompts: there are no more on which these two have not met.")
    run = terminal.follow_run(place, started.folder)
    if as_json:
        typer.echo(json.dumps({"run": run.folder, **(run.metrics or {}).get("pairs", {})}))
    talk(terminal.run_text(run))


# --- adapters -----------------------------------------------------------------------------------


@adapter_app.command("list", short_help="Every adapter, its figures and status.")
def list_(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Example: curator adapter list

    Every adapter with its status, what it was trained on, and its figures.
    """
    from curator import adapters, evaluation_text

    found = adapters.list_adapters(_settled(workspace_at(workspace)))
    typer.echo(json.dumps(found, indent=1) if as_json else evaluation_text.adapters_text(found))


@adapter_app.command(short_help="One adapter: every rule, its figures and verdict.")
def show(
    name: NameArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None
) -> None:
    """Example: curator adapter show adapter-0004

    One adapter: where it lies, its status and why, every rule with its figures, every figure.
    """
    from curator import adapters, evaluation_text

    facts = adapters.show_adapter(_settled(workspace_at(workspace)), name)
    typer.echo(json.dumps(facts, indent=1) if as_json else evaluation_text.adapter_text(facts))


@adapter_app.command(short_help="Use an adapter from now on.")
def accept(name: NameArgument, workspace: WorkspaceOption = None) -> None:
    """Example: curator adapter accept adapter-0004

    Use an adapter from now on, whatever the rules said of it. Replies it wrote in its round that
    had been held back join the queue.
    """
    from curator import adapters

    _say(adapters.accept(_settled(workspace_at(workspace)), name))


@adapter_app.command(short_help="Never use an adapter; it stays on disk.")
def refuse(
    name: NameArgument,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for later.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator adapter refuse adapter-0004 --reason "it lectures"

    Do not use an adapter; its folder stays. If it is in use, the one before it comes back.
    """
    from curator import adapters

    _say(adapters.refuse(_settled(workspace_at(workspace)), name, reason))


@adapter_app.command(short_help="Back to the adapter in use before.")
def rollback(workspace: WorkspaceOption = None) -> None:
    """Example: curator adapter rollback

    Back to the adapter that was in use before, or to the base when there is none.
    """
    from curator import adapters

    _say(adapters.rollback(_settled(workspace_at(workspace))))


@adapter_app.command(short_help="One model of adapter and base.")
def merge(
    name: NameArgument, output: OutputOption = None, workspace: WorkspaceOption = None
) -> None:
    """Example: curator adapter merge adapter-0004 --output ~/models/kinder

    Merge an adapter into its base, in bf16 on the CPU, as a plain transformers model with a model
    card. It takes memory and disk for the whole model in bf16 (a 4B model: 8 GB of each).
    """
    _merge(workspace_at(workspace), name, "merged", output)


@adapter_app.command(short_help="A folder for others: peft, merged, ollama.")
def export(
    name: NameArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="peft, merged or ollama.")],
    output: OutputOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Example: curator adapter export adapter-0004 --to ollama

    Make a folder with a model card: the adapter as PEFT has it, or merged into its base, or that
    with a Modelfile for Ollama.
    """
    place = workspace_at(workspace)
    if to == "peft":
        from curator.exports import export_peft

        talk(f"{export_peft(_settled(place), name, output)} is written.")
    elif to in ("merged", "ollama"):
        _merge(place, name, "ollama" if to == "ollama" else "merged", output)
    else:
        raise typer.BadParameter(
            f"{to!r} is not known; known: peft, merged, ollama", param_hint="--to"
        )


def _merge(
    place: Workspace, name: str, form: Literal["merged", "ollama"], output: Path | None
) -> None:
    from curator import terminal
    from curator.exports import start_merge

    started, target = start_merge(_settled(place), name, form, output)
    run = terminal.follow_run(place, started.folder)
    size = (run.metrics or {})["merged"]["bytes"]
    talk(f"{target} is written ({size / 1e9:.2f} GB).")


def _settled(place: Workspace) -> Workspace:
    """Return the workspace, a run that has ended taken in."""
    from curator import rounds

    rounds.settle(place)
    return place


def _say(decided: Decided) -> None:
    for why in decided.passed_over:
        talk(f"passed over: {why}.")
    talk(f"{decided.adapter} is {decided.status}; in use: {decided.in_use}.")
    if decided.pairs:
        talk(f"{decided.pairs} pairs of its replies are in the queue. Next: curator annotate")
    else:
        talk("Next: curator generate, once the queue is empty.")
