"""`curator demo`: the whole ring on a fresh workspace, with a tiny model made for it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from curator import workflow
from curator.demo.phrasing import load_situations
from curator.demo.probes import demo_probes
from curator.demo.simulation import Figures, Simulation, figures_text
from curator.rounds import start_run
from curator.workspace import Workspace, command_line, create_workspace, data_folder
from trainer.contract import PROBES, write_rows

OFFER_AFTER = 12
# Far from what a 4B model wants: a model of 4 M parameters has to be pushed harder.
SETTINGS = """\
# A demo workspace: the tiny model, and settings that suit its size.
seed = {seed}

[model]
name = {model}

[round]
prompts = 52
held_out_share = 0.2

[judge]
repeat_share = 0.0
calibration = 0

[generate]
max_new_tokens = 80
temperature = 0.9
top_p = 0.95
samples = 8

[train]
learning_rate = 5e-4
epochs = 8
batch_size = 4
gradient_accumulation = 1
beta = 0.2
loss_weights = [1.0, 1.0]
max_length = 384
"""


def demo_model() -> Path:
    """Return the folder of the model that comes with curator."""
    return data_folder() / "demo_model" / "model"


def make_workspace(directory: Path | None, seed: int) -> Workspace:
    """Return a fresh workspace with the starter prompts, in `directory` or a temporary folder."""
    folder = directory or Path(tempfile.mkdtemp(prefix="curator-demo-"))
    model = str(demo_model().resolve())
    settings = SETTINGS.format(seed=seed, model=json.dumps(model))
    workspace = create_workspace(folder, model, settings)
    situations = load_situations(data_folder() / "demo_model" / "texts")
    write_rows(workspace.path / PROBES, demo_probes(situations))
    workflow.import_prompts(workspace, data_folder() / "prompts.jsonl")
    return workspace


def run_demo(
    directory: Path | None,
    simulate: bool,
    rounds: int,
    seed: int,
    as_json: bool,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> int:
    """Run the demo; return the exit status."""
    workspace = make_workspace(directory, seed)
    if simulate:
        say(f"a demo in {workspace.path}: a simulated clinician judges, {rounds} rounds run.")
        simulation = Simulation(workspace, seed, say)
        figures = simulation.run(rounds)
        accuracy = simulation.classifier.accuracy()
        if as_json:
            print(json.dumps(report(workspace, figures, accuracy)))
        else:
            print(figures_text(figures, accuracy))
        say(f"Look at it: {_annotate(workspace)}")
        return 0
    from curator.tui.app import CuratorApp

    start_run(workspace, "generate")
    app = CuratorApp(workspace, "you", offer_after=OFFER_AFTER)
    app.run()
    say(f"The demo's workspace stays in {workspace.path}.")
    say(f"Go on with: {_annotate(workspace, '--annotator', 'you')}")
    return app.return_code or 0


def _annotate(workspace: Workspace, *options: str) -> str:
    return command_line("curator", "annotate", *options, "--workspace", str(workspace.path))


def report(
    workspace: Workspace, figures: list[Figures], accuracy: dict[str, object]
) -> dict[str, object]:
    """Return the figures as the JSON that `--json` prints; round 0 is the base."""
    return {
        "model": workspace.config.model.name,
        "annotator": "simulated",
        "rounds": [each.row() for each in figures],
        "classifier": accuracy,
    }
