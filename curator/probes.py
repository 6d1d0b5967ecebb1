"""The probes a model is measured with, and the guard that keeps their texts out of the training.

data/probes.jsonl comes with curator, and a workspace may have a probes.jsonl of its own; nothing
near to a text in them may become a prompt.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import BadData, NotReady
from curator.pairing import WORD
from trainer.contract import ContractError, Message, check_messages, read_rows

FILE = "probes.jsonl"
# Share of a probe's neighbouring word pairs that a text may not hold. Of 815 real questions none
# reaches 0.35, however long; a probe with every fifth word changed keeps over 0.53.
NEAR_PROBE = 0.5
FEWEST_WORDS = 8
KINDS = ("single", "pressure", "both_sides")
MOST_PROBES = 5_000
LONGEST_NAME = 200


def _words(text: str) -> str:
    """Return the words of a text, in lower case, with a space between."""
    return " ".join(WORD.findall(text.casefold()))


def word_pairs(text: str) -> set[tuple[str, str]]:
    """Return the neighbouring word pairs of a text, in lower case, punctuation left out."""
    return set(itertools.pairwise(WORD.findall(text.casefold())))


@dataclass(frozen=True)
class ProbeIndex:
    """The client texts of the probes: whole, and by neighbouring word pairs."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    index: dict[tuple[str, str], list[int]]
    whole: dict[str, str]
    """The id of the probe in which a client says these words and no more."""

    def near(self, messages: Sequence[Message]) -> str | None:
        """Return the id of a probe that one of the client's turns equals or nearly equals."""
        turns = [m["content"] for m in messages if m["role"] == "user"]
        for text in (*turns, "\n".join(turns)) if len(turns) > 1 else turns:
            if (equal := self.whole.get(_words(text))) is not None:
                return equal
            shared = Counter(n for mark in word_pairs(text) for n in self.index.get(mark, ()))
            # Of each by its own size: a longer probe may share more of its words, and a smaller
            # part of them.
            for number, count in shared.items():
                if count >= NEAR_PROBE * self.sizes[number]:
                    return self.names[number]
        return None


def index_probes(rows: Iterable[Mapping[str, Any]]) -> ProbeIndex:
    """Return the index of the client texts in rows as read_probes returns them."""
    names: list[str] = []
    sizes: list[int] = []
    index: dict[tuple[str, str], list[int]] = defaultdict(list)
    whole: dict[str, str] = {}
    for probe in rows:
        said = [m["content"] for m in probe["prompt"] if m["role"] == "user"]
        if words := _words("\n".join(said)):
            whole.setdefault(words, probe["id"])
        for text in said:  # an answer in between is no client's text
            marks = word_pairs(text)
            if len(marks) >= FEWEST_WORDS:  # a short turn could be anybody's
                for mark in marks:
                    index[mark].append(len(names))
                names.append(probe["id"])
                sizes.append(len(marks))
    return ProbeIndex(tuple(names), tuple(sizes), dict(index), whole)


def read_probes(path: Path) -> list[dict[str, Any]]:
    """Return a probes file's rows, checked: what a run is asked to score, and no prompt may be.

    Raises NotReady when the file is missing, BadData naming line and fault.
    """
    if not path.is_file():
        raise NotReady(
            f"{path} is missing, and without probes nothing tells whether an adapter agrees too "
            "much. It comes with curator: install curator anew."
        )
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    try:
        for number, row in read_rows(path):
            rows.append(_checked(row, known, f"{path}, line {number}"))
            if len(rows) > MOST_PROBES:
                raise BadData(f"{path}: over {MOST_PROBES} probes.")
    except ContractError as error:
        raise BadData(str(error)) from None
    if not rows:
        raise BadData(f"{path}: no probes in it.")
    return rows


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME


def _checked(row: dict[str, Any], known: set[str], where: str) -> dict[str, Any]:
    """Return a probe if it is one. Raises BadData or ContractError."""
    check_messages(row.get("prompt"), ("user",), f"{where}: prompt")
    wrong = [name for name in ("collusive", "over_corrected") if name in row]
    name, kind = row.get("id"), row.get("kind")
    if not _is_name(name) or name in known:
        raise BadData(f"{where}: id must be a text that no other probe has.")
    if not _is_name(row.get("family")) or kind not in KINDS:
        raise BadData(f"{where}: family must be a name, and kind {', '.join(KINDS)}.")
    conflict = row.get("conflict")
    if not (_is_name(conflict) if kind == "both_sides" else conflict is None):
        raise BadData(f"{where}: a both_sides probe, and no other, names its conflict.")
    replies = ["boundary_aware", *wrong]
    if len(wrong) != 1 or not all(isinstance(row.get(each), str) and row[each] for each in replies):
        raise BadData(f"{where}: needs boundary_aware, and collusive or over_corrected.")
    put = row.get("situations", [])
    if not isinstance(put, list) or not all(isinstance(each, str) for each in put):
        raise BadData(f"{where}: situations, where there are any, is a list of texts.")
    if conflict and wrong != ["collusive"]:
        raise BadData(f"{where}: of a conflict told from both sides, agreeing is the error.")
    known.add(str(name))
    return row
