"""Figures say whose picks they rest on: people's and a simulated clinician's are never one."""

from __future__ import annotations

import json
from typing import Any

from curator import adapters, cards, db, evaluation_text, rounds, terminal, workflow
from curator.demo.simulated import NAME
from curator.evaluation import learning_curve
from curator.judgments import Said
from curator.models import Adapter, AnnotatorKind, Verdict, new_uuid
from curator.preferences import EVERYBODY
from curator.seat import take_seat
from curator.tui.rounds_screen import few_lines
from curator.workspace import Workspace
from tests.curator.test_adapters import curator, work
from tests.curator.test_runs import wait

SIMULATED = "8 of 12 simulated"


def test_simulated_picks_among_the_held_out_are_said_wherever_figures_are(
    judged: Workspace,
) -> None:
    work(judged, "round")
    shown = adapters.show_adapter(judged, "adapter-0002")
    assert (shown["kinds"], shown["evaluation"]["kinds"]) == ({"human": 16}, {"human": 4})
    said = [evaluation_text.adapter_text(shown), evaluation_text.adapters_text([shown]),
            cards.card_text(shown, "peft", "nf4")]  # fmt: skip
    assert not any("simulated" in text for text in said)
    seat = take_seat(judged, NAME, new_uuid(), AnnotatorKind.SIMULATED)
    pair = seat.next()
    while pair is not None:
        pair = seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    seat.leave()
    # Measured again on people's picks, nothing changes; on all, that is kept with the figures.
    work(judged, "evaluate")
    assert adapters.show_adapter(judged, "adapter-0002")["evaluation"] == shown["evaluation"]
    run = wait(judged, rounds.start_run(judged, "evaluate", kinds=EVERYBODY).folder)
    shown = adapters.show_adapter(judged, "adapter-0002")
    assert shown["evaluation"]["kinds"] == {"human": 4, "simulated": 8}
    assert shown["kinds"] == {"human": 16}  # what it was trained on is as it was
    for text in (evaluation_text.adapter_text(shown), evaluation_text.adapters_text([shown]),
                 evaluation_text.evaluation_text((run.metrics or {})["evaluation"]),
                 cards.card_text(shown, "peft", "nf4")):  # fmt: skip
        assert SIMULATED in text
    listed = json.loads(curator(judged, "adapter", "list", "--json").stdout)
    assert listed[0]["evaluation"]["kinds"]["simulated"] == 8


def test_the_card_the_status_and_the_screen_say_it(workspace: Workspace) -> None:
    held_out = {
        "n": 30, "rewards/accuracies": 0.75, "rewards/accuracies_interval": [0.6, 0.9],
        "rewards/margins": 0.2, "rewards/margins_interval": [-0.1, 0.5],
    }  # fmt: skip
    kinds = {"human": 20, "simulated": 10}
    adapter = {"adapter": "a", "status": "current", "held_out": held_out, "kinds": kinds}
    facts = {**workflow.status(workspace), "adapters": [adapter]}
    facts["rounds"] = [{"round": 2, "written_by": "a", "pairs": 3, "judgments": {}}]
    screen = "\n".join(few_lines(facts))
    for text in (terminal.status_text(facts), terminal.held_out_text(held_out, kinds), screen):
        assert "10 of 30 simulated" in text
    figure = {"value": 1.0, "n": 4, "interval": [0.51, 1.0]}
    card = cards.card_text(
        {
            "adapter": "a", "base_model": "b", "preferences": {"train": 40}, "base_sha256": "1",
            "sha256": "2", "pairs_sha256": "3", "status": "current", "reason": None,
            "kinds": {"human": 32, "simulated": 8},
            "evaluation": {"kinds": {"human": 4},
                           "policies": {"adapter": {"held_out_accuracy": figure}}},
        },
        "peft", "nf4",
    )  # fmt: skip
    assert "on 40 preferences (8 of 40 simulated)." in card
    assert "| 100% | 51% to 100% | 4 |" in card and "nothing can be concluded" in card


def add_round(workspace: Workspace, number: int, taught: str, held: str) -> None:
    """Add an adapter trained on 40 more preferences, with its figures."""
    figure = {"value": 0.5 + number / 10, "n": 40, "interval": [0.4, 0.9]}
    figures = {"held_out_accuracy": figure, "probe_collusion_rate": figure}
    metrics: dict[str, Any] = {
        "preferences": {"train": 40 * number}, "kinds": {"human": 20, taught: 20 * number},
        "evaluation": {"policies": {"adapter": figures}, "probes_sha256": "p",
                       "kinds": {"human": 20, held: 20}},
    }  # fmt: skip
    with db.writing(workspace.engine) as session:
        session.add(Adapter(
            name=f"a{number}", folder=f"adapters/a{number}", base_model="b", base_sha256="1",
            sha256=str(number), pairs_sha256="3", metrics=metrics, status_reason="",
        ))  # fmt: skip


def curve(workspace: Workspace) -> dict[str, Any]:
    with db.reading(workspace.engine) as session:
        return learning_curve(adapters.trained_rounds(session))


def test_a_curve_is_of_one_kind_of_picks_and_says_which(workspace: Workspace) -> None:
    for number in (1, 2, 3):
        add_round(workspace, number, "human", "human")
    found = curve(workspace)
    assert set(found["gains"]) == {"held_out_accuracy", "probe_collusion_rate"}
    assert not found["simulated"] and "simulated" not in evaluation_text.curve_text(found)
    # One measured on other picks: its held-out accuracy cannot be set beside the earlier ones.
    add_round(workspace, 4, "human", "simulated")
    found = curve(workspace)
    assert set(found["gains"]) == {"probe_collusion_rate"} and found["rounds"] == 4
    assert "simulated" in evaluation_text.curve_text(found)
    # One trained on other picks is the first of its kind.
    add_round(workspace, 5, "simulated", "simulated")
    found = curve(workspace)
    assert found["rounds"] == 1 and found["simulated"] and found["gains"] == {}
