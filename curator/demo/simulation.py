"""Rounds with a simulated clinician, each measured on messages no model has seen as they stand."""

from __future__ import annotations

import random
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curator import terminal
from curator.demo.measure import Classifier, measure
from curator.demo.phrasing import load_situations
from curator.demo.simulated import NAME, Liking, SimulatedClinician
from curator.models import AdapterStatus, AnnotatorKind, Run, new_uuid
from curator.rounds import start_run
from curator.safe_text import one_line
from curator.seat import take_seat
from curator.terminal import side_by_side, table
from curator.workspace import Workspace, data_folder
from trainer.contract import SAMPLES, Action, read_rows

JUDGMENTS = 40
MEASURED = 480
SHOWN = 3


@dataclass(frozen=True)
class Figures:
    """One round's figures; round 0 is the base model."""

    round: int
    judgments: int
    preferences: int
    train_seconds: float
    reward_accuracy: float | None
    reward_accuracy_n: int
    measured: dict[str, Any]
    replies: dict[str, str] = field(default_factory=dict)
    """The first sampled reply to each measured prompt, by its text."""

    def row(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {
            "round": self.round,
            "judgments": self.judgments,
            "preferences": self.preferences,
            "train_seconds": self.train_seconds,
            "reward_accuracy": self.reward_accuracy,
            "reward_accuracy_n": self.reward_accuracy_n,
            **self.measured,
        }


class Simulation:
    """Generate, judge, train, measure, round after round, through the verbs people use."""

    def __init__(
        self,
        workspace: Workspace,
        seed: int,
        say: Callable[[str], None],
        liking: Liking = "boundary_aware",
    ) -> None:
        self.workspace = workspace
        self.say = say
        situations = load_situations(data_folder() / "demo_model" / "texts")
        self.classifier = Classifier(situations)
        self.clinician = SimulatedClinician(self.classifier, seed, liking)
        self.idle = False
        self.prompts: dict[str, tuple[str, str]] = {}
        phrasings = [
            (situation.id, text)
            for situation in situations
            if not situation.pressure
            for text in situation.messages(held_out=True)
        ]
        # The same prompts for every seed and round: what differs is the model.
        random.Random("measured").shuffle(phrasings)
        for number, (situation, text) in enumerate(phrasings[:MEASURED]):
            self.prompts[f"m{number}"] = (situation, text)

    def run(self, rounds: int) -> list[Figures]:
        """Run the base and `rounds` rounds; return their figures."""
        figures = [self.turn(0)]
        for number in range(1, rounds + 1):
            figures.append(self.turn(number))
        return figures

    def turn(self, number: int) -> Figures:
        """Judge what there is, train (round 0: only write), measure."""
        judgments = 0
        if self.idle:
            self.work("generate", measured=False)
        if number:
            seat = take_seat(self.workspace, NAME, new_uuid(), AnnotatorKind.SIMULATED)
            judgments = self.clinician.judge(seat, JUDGMENTS)
            self.say(f"round {number}: the simulated clinician judged {judgments} pairs.")
        run, folder = self.work("round" if number else "generate")
        adapter = (run.metrics or {}).get("adapter", {})
        idle = adapter.get("status") in (AdapterStatus.REFUSED, AdapterStatus.PROPOSED)
        if idle:
            # It is measured all the same. Its replies are not judged: more of the others are.
            self.say(f"round {number}: {terminal.adapter_text(run.metrics or {})}.")
        self.idle = idle
        samples = [row for _, row in read_rows(folder / SAMPLES)]
        replies = {self.prompts[row["prompt_id"]][1]: row["text"] for row in samples}
        metrics = run.metrics or {}
        held_out = metrics.get("held_out", {})
        return Figures(
            round=number,
            judgments=judgments,
            preferences=sum(
                metrics.get("preferences", {}).get(n, 0) for n in ("train", "held_out")
            ),
            train_seconds=metrics.get("seconds", {}).get("train", 0.0),
            reward_accuracy=held_out.get("rewards/accuracies"),
            reward_accuracy_n=held_out.get("n", 0),
            measured=measure(
                self.classifier,
                [(self.prompts[row["prompt_id"]][0], row["text"]) for row in samples],
            ),
            replies=replies,
        )

    def work(self, action: Action, measured: bool = True) -> tuple[Run, Path]:
        """Run the trainer to its end; return the settled run and its folder."""
        rows = [
            {"id": name, "prompt": [{"role": "user", "content": text}]}
            for name, (_, text) in self.prompts.items()
            if measured
        ]
        started = start_run(self.workspace, action, kinds=(AnnotatorKind.SIMULATED,), measure=rows)
        return terminal.follow_run(self.workspace, started.folder), started.folder


def told_apart(accuracy: dict[str, Any]) -> str:
    """Return what is known of the classifier that tells the replies apart, in one paragraph."""
    low, high = accuracy["nearest_kind_interval"]
    made_up, near = accuracy["nonsense"], accuracy["near_enough"]
    return (
        f"They are told apart by the nearest text of the build. Of {accuracy['n']} labelled "
        f"replies in other words that is of the right kind for {accuracy['nearest_kind']:.0%} "
        f"({low:.0%} to {high:.0%}), but near enough to be counted for {near:.0%}: whatever is put "
        f"in other words is unclear here. So is made-up nonsense out of the build's own sentences, "
        f"{made_up['unclassified']} of {made_up['n']}."
    )


def figures_text(figures: list[Figures], accuracy: dict[str, Any]) -> str:
    """Return the before/after table, and some prompts with their first and last reply."""
    rows = []
    for each in figures:
        values = each.measured
        cells = [f"{each.round}" if each.round else "base", str(each.judgments)]
        for name in ("collusion_rate", "over_correction_rate", "boundary_aware_rate"):
            low, high = values["intervals"][name]
            cells.append(f"{values[name]:.0%} ({low:.0%} to {high:.0%})")
        cells += [f"{values['unclassified_rate']:.0%}", f"{values['mean_length']:.0f}"]
        rows.append((*cells, str(values["n"])))
    head = (
        "round", "simulated judgments", "agrees where it should not", "cold or lecturing",
        "boundary-aware", "unclear", "words", "n",
    )  # fmt: skip
    lines = [
        table(head, rows),
        "Replies sampled for messages the model never saw as they stand, though it did see their "
        f"sentences in other orders and company. {told_apart(accuracy)}",
        "",
    ]
    before, after = figures[0].replies, figures[-1].replies
    changed = [text for text in before if text in after and before[text] != after[text]]
    width = min(120, shutil.get_terminal_size().columns)
    heads = ("before", f"after round {figures[-1].round}")
    for text in changed[:SHOWN]:
        lines += [*textwrap.wrap(f"client: {one_line(text, 2_000)}", width), ""]
        lines += [side_by_side(before[text], after[text], width, heads), "", ""]
    return "\n".join(lines).rstrip()
