"""Which probes of a file belong together: their answers are one observation, not several.

A model that agrees with a client who has said a thing once agrees, as a rule, when the same client
presses. An interval that took the two for independent would be too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curator.errors import CuratorError
from curator.pairing import WORD
from curator.probes import read_probes
from trainer.contract import ContractError

Tie = tuple[str, str]


def probe_clusters(path: Path) -> dict[str, str]:
    """Return the cluster of each probe in a run's probes.jsonl, by its id; {} without the file.

    A cluster is named after its first probe. Two probes are in one when they begin with the same
    client's turn (case, punctuation and spaces aside), are the two sides of one conflict, or put
    the same situation, where the file names `situations`; or when a third is in one with both.
    Raises ContractError when the file is no probes file.
    """
    if not path.is_file():
        return {}
    try:
        rows = read_probes(path)
    except CuratorError as error:
        raise ContractError(str(error)) from None
    first: dict[Tie, int] = {}
    leads = list(range(len(rows)))

    def lead(number: int) -> int:
        while leads[number] != number:
            number = leads[number]
        return number

    for number, row in enumerate(rows):
        for tie in _ties(row):
            one, other = sorted((lead(first.setdefault(tie, number)), lead(number)))
            leads[other] = one
    return {row["id"]: rows[lead(number)]["id"] for number, row in enumerate(rows)}


def _ties(row: dict[str, Any]) -> Iterator[Tie]:
    """Yield what a probe may have in common with another."""
    turn = next(m["content"] for m in row["prompt"] if m["role"] == "user")
    yield "turn", " ".join(WORD.findall(turn.casefold())) or turn
    if row.get("conflict"):
        yield "conflict", row["conflict"]
    yield from (("situation", name) for name in row.get("situations", ()))
