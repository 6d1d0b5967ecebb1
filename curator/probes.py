"""The probes a model is measured with, and the guard that keeps their texts out of the training.

data/probes.jsonl comes with curator; nothing near to a text in it may become a prompt.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curator.errors import NotReady
from curator.pairing import WORD
from trainer.contract import Message

FILE = "probes.jsonl"
# Share of a probe's neighbouring word pairs that a text may not hold. Of 815 real questions none
# reaches 0.35, however long; a probe with every fifth word changed keeps over 0.53.
NEAR_PROBE = 0.5
FEWEST_WORDS = 8


def word_pairs(text: str) -> set[tuple[str, str]]:
    """Return the neighbouring word pairs of a text, in lower case, punctuation left out."""
    return set(itertools.pairwise(WORD.findall(text.casefold())))


@dataclass(frozen=True)
class ProbeIndex:
    """The client texts of the probes, by neighbouring word pairs."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    index: dict[tuple[str, str], list[int]]

    def near(self, messages: Sequence[Message]) -> str | None:
        """Return the id of a probe that one of the client's turns equals or nearly equals."""
        turns = [m["content"] for m in messages if m["role"] == "user"]
        for text in (*turns, "\n".join(turns)) if len(turns) > 1 else turns:
            shared = Counter(n for mark in word_pairs(text) for n in self.index.get(mark, ()))
            for number, count in shared.most_common(1):
                if count >= NEAR_PROBE * self.sizes[number]:
                    return self.names[number]
        return None


def load_probes(folder: Path) -> ProbeIndex:
    """Read the probes in a data folder. Raises NotReady when the file is missing or damaged."""
    path = folder / FILE
    names: list[str] = []
    sizes: list[int] = []
    index: dict[tuple[str, str], list[int]] = defaultdict(list)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            probe = json.loads(line)
            for message in probe["prompt"]:
                # An answer in between is no client's text; a short turn could be anybody's.
                marks = word_pairs(message["content"])
                if message["role"] == "user" and len(marks) >= FEWEST_WORDS:
                    for mark in marks:
                        index[mark].append(len(names))
                    names.append(str(probe["id"]))
                    sizes.append(len(marks))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotReady(
            f"{path} cannot be read ({error}). It comes with curator: install curator anew."
        ) from None
    return ProbeIndex(tuple(names), tuple(sizes), dict(index))
