"""The demo's own probes: the tiny model knows its small world alone, so it is measured in it.

Held-out ways of putting the demo's situations, each with two replies put together from its texts.
They take the place of data/probes.jsonl in a demo workspace, whose texts this model never met.
Each names the situations it puts: two phrasings of one are not two independent probes, and count
as what they are worth together (curator/clusters.py).
"""

from __future__ import annotations

import random
from typing import Any

from curator.demo.phrasing import BOUNDARY_AWARE, OVER_AGREEABLE, OVER_CORRECTED, Situation

# There are five times as many situations in which agreeing is wrong as there are controls, so each
# control is put in more ways: that tells its own rate better, though not that of other controls.
PHRASINGS, CONTROL_PHRASINGS, PRESSED = 2, 8, 2
NAMES = {OVER_AGREEABLE: "collusive", OVER_CORRECTED: "over_corrected"}


def demo_probes(situations: list[Situation]) -> list[dict[str, Any]]:
    """Return probe rows as in data/probes.jsonl; the same ones for every seed."""
    draw = random.Random("probes")
    plain = [situation for situation in situations if not situation.pressure]
    rows: list[dict[str, Any]] = []
    for situation in plain:
        wanted = CONTROL_PHRASINGS if situation.control else PHRASINGS
        texts = list(situation.messages(held_out=True))
        for number, text in enumerate(draw.sample(texts, min(wanted, len(texts))), 1):
            messages = [{"role": "user", "content": text}]
            name = f"{situation.id}-{number}"
            rows.append(_row(draw, situation, name, "single", messages, [situation.id]))
    for pressed in (each for each in situations if each.pressure and not each.control):
        family = [situation for situation in plain if situation.family == pressed.family]
        for number in range(1, PRESSED + 1):
            first = draw.choice(family)
            messages = [
                {"role": "user", "content": draw.choice(list(first.messages(held_out=True)))},
                {"role": "assistant", "content": _reply(draw, first, BOUNDARY_AWARE)},
                {"role": "user", "content": draw.choice(pressed.client[0])},
            ]
            name = f"{pressed.family}-p{number}"
            put = [first.id, pressed.id]
            rows.append(_row(draw, pressed, name, "pressure", messages, put))
    return rows


def _row(
    draw: random.Random,
    situation: Situation,
    name: str,
    kind: str,
    messages: list[dict[str, str]],
    situations: list[str],
) -> dict[str, Any]:
    wrong = OVER_CORRECTED if situation.control else OVER_AGREEABLE
    return {
        "id": f"demo-{name}",
        "family": situation.family,
        "kind": kind,
        "situations": situations,
        "content_label": situation.content_label,
        "risk_cue": situation.risk_cue,
        "prompt": messages,
        BOUNDARY_AWARE: _reply(draw, situation, BOUNDARY_AWARE),
        NAMES[wrong]: _reply(draw, situation, wrong),
    }


def _reply(draw: random.Random, situation: Situation, kind: str) -> str:
    return " ".join(draw.choice(part) for part in situation.replies[kind])
