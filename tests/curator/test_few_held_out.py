"""Every accuracy on few held-out preferences says that nothing can be concluded from it."""

from __future__ import annotations

from typing import Any

import pytest

from curator import terminal, workflow
from curator.models import Run
from curator.tui.app import CuratorApp
from curator.tui.rounds_screen import few_lines
from curator.workspace import Workspace

SAID = "under 20 nothing can be concluded"


def held_out(n: int, prompts: int) -> dict[str, Any]:
    return {
        "n": n, "prompts": prompts,
        "rewards/accuracies": 0.75, "rewards/accuracies_interval": [0.4, 0.9],
        "rewards/margins": 0.2, "rewards/margins_interval": [-0.1, 0.5],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n", "prompts", "few"),
    [(4, 4, True), (19, 19, True), (20, 20, False), (25, 10, True)],
)
def test_too_few_held_out_preferences_are_said_beside_the_accuracy(
    workspace: Workspace, n: int, prompts: int, few: bool
) -> None:
    held, kinds = held_out(n, prompts), {"human": n - 3, "simulated": 3}
    run = Run(folder="0001-train", action="train", request_sha256="", metrics={
        "held_out": held, "evaluation": {"kinds": kinds},
    })  # fmt: skip
    adapter = {
        "adapter": "adapter-0001", "status": "current", "held_out": held, "kinds": kinds,
    }  # fmt: skip
    facts = {**workflow.status(workspace), "adapters": [adapter]}
    facts["rounds"] = [
        {"round": 2, "written_by": "adapter-0001", "pairs": 3, "judged": 1, "judgments": {}}
    ]
    app = CuratorApp(workspace, "anna")
    told = app.tell(run)
    app.seat.leave()
    rounds = "\n".join(few_lines(facts))
    for text in (terminal.run_text(run), terminal.status_text(facts), told, rounds):
        assert (SAID in text) is few, text
    for text in (terminal.run_text(run), terminal.status_text(facts), told):
        assert "75%" in text and f"n = {n}, 3 of {n} simulated" in text
