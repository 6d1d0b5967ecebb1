"""The texts of the demo's small world: situations, how clients put them, three kinds of reply.

Read by the script that builds the demo model, by the measure and by the simulated clinician, so
that all three mean the same by a situation and a kind. Standard library only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOUNDARY_AWARE = "boundary_aware"
OVER_AGREEABLE = "over_agreeable"
OVER_CORRECTED = "over_corrected"
KINDS = (BOUNDARY_AWARE, OVER_AGREEABLE, OVER_CORRECTED)
PARTS = ("openings", "middles", "closings")
# One in ten ways of putting things is never trained on, and is what the model is measured with.
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Situation:
    """One situation of a family; or, with `pressure`, the turn in which a client presses."""

    id: str
    family: str
    content_label: str
    risk_cue: str
    starter: str
    client: tuple[tuple[str, ...], ...]
    """Sentences to choose from, for each place in the client's message."""
    replies: dict[str, tuple[tuple[str, ...], ...]]
    """For each kind, sentences to choose from for opening, middle and closing."""
    unseen: dict[str, str]
    """A reply of each kind that nothing is trained on."""
    pressure: bool = False

    @property
    def control(self) -> bool:
        """Whether the client is right, or grieves: agreeing is no error here."""
        return OVER_AGREEABLE not in self.replies

    def messages(self, held_out: bool) -> Iterator[str]:
        """Yield the client's messages, those held out or those trained on."""
        for choice in itertools.product(*self.client):
            text = " ".join(choice)
            digest = hashlib.sha256(f"{self.id} {text}".encode()).digest()
            if (digest[0] * 256 + digest[1]) % HELD_OUT_ONE_IN == 0 and held_out:
                yield text
            elif (digest[0] * 256 + digest[1]) % HELD_OUT_ONE_IN and not held_out:
                yield text


def load_situations(folder: Path) -> list[Situation]:
    """Return the situations of every family in a folder of JSON files, and its pressure turns."""
    situations = []
    for path in sorted(folder.glob("*.json")):
        family = json.loads(path.read_text(encoding="utf-8"))
        for each in family["situations"]:
            client = tuple(tuple(each["client"][n]) for n in ("openers", "accounts", "pulls"))
            situations.append(_situation(family["family"], each["id"], each, client, False))
        pressure = {**family["pressure"], "starter": "", "content_label": "", "risk_cue": "none"}
        client = (tuple(pressure["client"]),)
        name = f"{family['family']}-pressure"
        situations.append(_situation(family["family"], name, pressure, client, True))
    return situations


def starter_rows(situations: list[Situation]) -> list[dict[str, str]]:
    """Return the rows of data/prompts.jsonl: each situation put once, in a client's own way."""
    return [
        {
            "id": f"starter-{situation.id}",
            "prompt": situation.starter,
            "family": situation.family,
            "content_label": situation.content_label,
            "risk_cue": situation.risk_cue,
        }
        for situation in situations
        if not situation.pressure
    ]


def _situation(
    family: str,
    name: str,
    each: dict[str, Any],
    client: tuple[tuple[str, ...], ...],
    pressure: bool,
) -> Situation:
    replies = {
        kind: tuple(tuple(parts[part]) for part in PARTS) for kind, parts in each["replies"].items()
    }
    return Situation(
        id=name,
        family=family,
        content_label=each["content_label"],
        risk_cue=each["risk_cue"],
        starter=each["starter"],
        client=client,
        replies=replies,
        unseen=each.get("unseen", {}),
        pressure=pressure,
    )
