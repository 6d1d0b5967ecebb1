"""The commands about models: which there are, fetching one, what fits, a rehearsal."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curator.cli_options import JsonOption, talk

if TYPE_CHECKING:
    from trainer.contract import Action

models_app = typer.Typer(help="Example: curator models")
ModelOption = Annotated[
    str, typer.Option(metavar="M", help="A preset, an id in the local cache, or a folder.")
]
VramOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Of a card, as 4GB; without it, what this machine has."),
]
LengthOption = Annotated[
    int, typer.Option(metavar="N", min=32, max=131_072, help="Tokens of prompt and reply.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(models_app, name="models", short_help="Which models there are; fetch one.")
    app.command(short_help="What a model's training takes, and whether it fits.")(plan)
    app.command(short_help="Train a model's true shape with random weights.")(rehearse)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, vram: VramOption = None, as_json: JsonOption = False) -> None:
    """Example: curator models --vram 4GB

    Every model known by name: its licence, its size, and what this machine, or a card of SIZE,
    would do with it, and why.
    """
    if context.invoked_subcommand is not None:
        return
    from curator.models_text import models_text

    found = _errand("models", vram=vram)
    talk_or_print({n: found[n] for n in ("machine", "models")}, models_text, as_json)


@models_app.command(short_help="Fetch a model: the only thing that downloads.")
def pull(
    model: Annotated[str, typer.Argument(metavar="ID")],
    as_json: JsonOption = False,
) -> None:
    """Example: curator models pull google/gemma-3-4b-it

    Fetch a model from the hub into the local cache. This is the only thing in curator that
    downloads. Broken off, the same command goes on where it broke.
    """
    pulled = _errand("pull", model)["pulled"]
    if as_json:
        typer.echo(json.dumps(pulled, indent=1))
    talk(f"{pulled['model']} is here ({pulled['bytes'] / 1e9:.2f} GB): {pulled['path']}")
    talk(f"Next: curator init my-study --model {pulled['model']}")


def plan(
    model: ModelOption,
    vram: VramOption = None,
    length: LengthOption = 512,
    as_json: JsonOption = False,
) -> None:
    """Example: curator plan --model gemma-3-4b-it --vram 4GB --length 512

    What a training step takes, part by part, against what is free; how it is made to fit, and
    why. Nothing is loaded or downloaded. Training uses the same figures. Exit status 69 when it
    does not fit.
    """
    from curator.errors import NotReady
    from curator.models_text import plan_text

    found = _errand("plan", model, vram=vram, length=length)["plan"]
    talk_or_print(found, plan_text, as_json)
    if found["refusal"]:
        raise NotReady(found["refusal"])


def rehearse(
    model: ModelOption,
    vram: VramOption = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=1000)] = 2,
    length: LengthOption = 256,
    layers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only so many layers: quicker.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Example: curator rehearse --model gemma-3-4b-it --vram 4GB --steps 2

    A preset's true architecture with random weights, quantised as they are made: a few real
    training steps and a short reply. Tells peak memory, speed and the plan's error. On a GPU it
    keeps to SIZE, so that a big card stands in for a small one; on a CPU it tells resident memory.
    """
    from curator.models_text import rehearsal_text

    found = _errand(
        "rehearse", model, vram=vram, length=length, max_steps=steps, layers=layers
    )["rehearsal"]  # fmt: skip
    talk_or_print(found, rehearsal_text, as_json)


# --- shared -------------------------------------------------------------------------------------


def talk_or_print(found: dict[str, Any], text: Any, as_json: bool) -> None:
    """Print what was found, as JSON or for people, made visible."""
    from curator.safe_text import visible

    typer.echo(json.dumps(found, indent=1) if as_json else visible(text(found)))


def bytes_of(size: str | None) -> int | None:
    """Return a card's size, as 4GB or 3500MB, in bytes; binary, as cards are sold."""
    if size is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GIB|MB|MIB)\s*", size.upper())
    value = 0.0
    if match:
        value = float(match[1]) * (1 << (30 if match[2].startswith("G") else 20))
    if not 1 <= value < 1 << 50:
        raise typer.BadParameter(f"{size!r} is no size; as 4GB or 3500MB.", param_hint="--vram")
    return int(value)


def _errand(
    action: Action | Literal["models"], model: str = "", vram: str | None = None,
    length: int | None = None, max_steps: int | None = None, layers: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run an errand of the trainer, its progress on standard error; return its manifest."""
    from pathlib import Path

    from curator.errands import run_errand
    from curator.errors import BadData
    from curator.run_watch import RunWatch
    from curator.terminal import Line
    from trainer.contract import ContractError, Request, TrainSettings

    try:
        # Absolute: the trainer is started elsewhere.
        name = str(Path(model).expanduser().resolve()) if model and Path(model).is_dir() else model
        train = TrainSettings(max_length=length or 512, max_steps=max_steps)
        request = Request(action, name, vram=bytes_of(vram), layers=layers, train=train)
    except (ContractError, OSError, ValueError, RuntimeError) as error:
        raise BadData(str(error)) from None
    watch, line = RunWatch(action), Line()

    def tell(event: dict[str, Any]) -> None:
        watch.take(event)
        if event["event"] in ("phase", "progress", "step"):
            line.show(watch.line(), final=event["event"] == "phase")

    try:
        return run_errand(request, tell)
    finally:
        line.end()
