"""The words of the domain, and what is shown and said at the judge's seat: no database needed.

Apart from curator.models, so that a screen can be painted before the database layer is loaded.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from trainer.contract import Message

APPLICATION_ID = 0x43555241  # "CURA", in the header of every database of ours
SCHEMA_VERSION = 1
# A sitting that ended gives its pair back at the next seat taken; this is for where that fails.
LEASE_SECONDS = 2 * 60 * 60
# Room between two pairs of a queue, for repeats that come back later.
POSITION_STEP = 1_000
# A repeat comes back after 12 to 31 other judgments: drawn, so that nobody counts along.
FEWEST_BETWEEN, SPREAD_BETWEEN = 12, 20


class Verdict(StrEnum):
    """What an annotator said of a pair; `retracted` takes an earlier judgment back (undo)."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"
    BOTH_BAD = "both_bad"
    SKIP = "skip"
    RETRACTED = "retracted"


class Purpose(StrEnum):
    """What a pair is for; only judgments of `train` pairs yield preferences."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    REPEAT = "repeat"
    PRACTICE = "practice"
    DUEL = "duel"


class Split(StrEnum):
    """Which side of the split a prompt is on, for good."""

    TRAIN = "train"
    HELD_OUT = "held_out"


class AnnotatorKind(StrEnum):
    """Who judged: kept apart wherever judgments are counted."""

    HUMAN = "human"
    SIMULATED = "simulated"
    IMPORTED = "imported"


class RunState(StrEnum):
    """How a trainer process is doing."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AdapterStatus(StrEnum):
    """Whether an adapter writes the candidates; at most one is current."""

    PROPOSED = "proposed"
    CURRENT = "current"
    REFUSED = "refused"
    RETIRED = "retired"


def now() -> str:
    """Return the time in UTC as text, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_uuid() -> str:
    """Return a random UUID as text."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Said:
    """What an annotator said of a pair; all of it goes into the judgment's digest."""

    verdict: Verdict
    strength: int | None = None
    tags_left: tuple[str, ...] = ()
    tags_right: tuple[str, ...] = ()
    red_flags: dict[str, bool] = field(default_factory=dict)
    note: str | None = None
    flagged: bool = False
    rewrite_id: int | None = None
    rubric_version: str = "1"


@dataclass(frozen=True)
class Rewrite:
    """A better reply, written by the annotator, made from the left or the right one."""

    side: Verdict
    text: str


@dataclass(frozen=True)
class Shown:
    """A pair as an annotator sees it: no trace of which model or steer wrote what.

    The family is for after the judgment: "the client is right" would give the answer away.
    """

    pair_id: int
    round: int
    messages: list[Message]
    content_label: str | None
    risk_cue: str | None
    left: str
    right: str
    purpose: str
    number: int = 0
    """Its number in the round; for saying after the judgment, and for going to it."""
    family: str | None = None
    earlier: Said | None = None
    """What this annotator said of it before, if it came back by undo or was gone to."""
    rewrite: Rewrite | None = None
    """The rewrite that went with what was said before."""
    before: Said | None = None
    """What was said before that, where undo took a change of mind back."""
    drafts: Mapping[str, str] = field(default_factory=dict)
    """What was begun and not saved, by name."""
    by_another: bool = False
    """Whether another annotator has judged it, so that it needs nobody."""

    @property
    def has_risk(self) -> bool:
        """Whether a risk cue stands before the client's words."""
        return self.risk_cue not in (None, "", "none")


@dataclass(frozen=True)
class Progress:
    """How far an annotator is in the newest round, and what there is to train on."""

    round: int
    judged: int
    pairs: int
    preferences: int


# --- as people say it, in the app and in lines ------------------------------------------------

SPEAKERS = {"user": "client", "assistant": "reply", "system": "setting"}
# What each verb that judges gives: a verdict, and its strength.
JUDGES: dict[str, tuple[Verdict, int | None]] = {
    "left_slightly": (Verdict.LEFT, 1), "left_clearly": (Verdict.LEFT, 2),
    "right_slightly": (Verdict.RIGHT, 1), "right_clearly": (Verdict.RIGHT, 2),
    "tie": (Verdict.TIE, None), "both_bad": (Verdict.BOTH_BAD, None), "skip": (Verdict.SKIP, None),
}  # fmt: skip
# What a run of an action is called; the others are called as they are asked for.
RUNS = {"train": "training", "generate": "generation", "evaluate": "evaluation"}
SAID: dict[tuple[str, int | None], str] = {
    (Verdict.LEFT, 1): "A better", (Verdict.LEFT, 2): "A clearly better",
    (Verdict.RIGHT, 1): "B better", (Verdict.RIGHT, 2): "B clearly better",
    (Verdict.TIE, None): "a tie", (Verdict.BOTH_BAD, None): "both bad",
    (Verdict.SKIP, None): "skipped",
}  # fmt: skip
# The same, where judgments are counted or listed.
COUNTED: dict[str, str] = {
    Verdict.LEFT: "A", Verdict.RIGHT: "B", Verdict.TIE: "tie", Verdict.BOTH_BAD: "both bad",
    Verdict.SKIP: "skipped",
}  # fmt: skip
