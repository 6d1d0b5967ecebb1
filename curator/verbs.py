"""What can be said at the judge's seat, and the key for each: one list for app and line mode.

A key is one character, or `f2` to `f12`, `space`, `ctrl+n`; curator.toml's [keys] changes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

# Taken by every screen: leave, the command palette, suspend, the guideline; and what a terminal
# sends for tab, enter, backspace and escape.
RESERVED = (
    "ctrl+c", "ctrl+q", "ctrl+p", "ctrl+z", "f1",
    "ctrl+i", "ctrl+m", "ctrl+j", "ctrl+h", "escape", "enter", "tab",
)  # fmt: skip
NAMED_KEY = re.compile(r"ctrl\+[a-z]|f[1-9]|f1[0-2]|space")


@dataclass(frozen=True)
class Verb:
    """One thing to say or do, under its name in curator.toml."""

    name: str
    key: str
    says: str
    short: str | None = None
    """What a narrow key bar says; empty: the key alone; none: nothing, there is `?` for it."""


VERBS: tuple[Verb, ...] = (
    Verb("left_slightly", "a", "A better", "better"),
    Verb("left_clearly", "A", "A clearly", "clearly"),
    Verb("right_slightly", "b", "B better", ""),
    Verb("right_clearly", "B", "B clearly", ""),
    Verb("tie", "t", "tie", "tie"),
    Verb("both_bad", "x", "both bad", "both bad"),
    Verb("skip", "s", "skip", "skip"),
    Verb("undo", "u", "undo", "undo"),
    Verb("tags", "g", "reasons", "why"),
    Verb("rewrite_left", "e", "rewrite A", "edit"),
    Verb("rewrite_right", "E", "rewrite B"),
    Verb("note", "n", "note", "note"),
    Verb("flag", "f", "flag"),
    Verb("go_to", ":", "go to a pair"),
    Verb("previous", "[", "the pair before"),
    Verb("following", "]", "the pair after"),
    Verb("next_unjudged", ".", "next unjudged"),
    Verb("history", "h", "history"),
    Verb("rounds", "r", "rounds", "rounds"),
    Verb("guideline", "i", "guideline"),
    Verb("leave", "q", "leave"),
    Verb("help", "?", "keys", "keys"),
)
NAMES = tuple(verb.name for verb in VERBS)


def with_keys(keys: Mapping[str, str]) -> tuple[Verb, ...]:
    """Return the verbs under other keys ({name: key}).

    Raises ValueError for an unknown name, what is no key, or one key for two verbs.
    """
    for name, key in keys.items():
        if name not in NAMES:
            raise ValueError(f"keys.{name} is not known; known: {', '.join(NAMES)}.")
        plain = len(key) == 1 and key.isprintable() and not key.isspace() and key != ","
        if key in RESERVED or not (plain or NAMED_KEY.fullmatch(key)):
            raise ValueError(
                f"keys.{name} is {key[:20]!r}; it is one character, f2 to f12, space or ctrl+ "
                f"and a letter, and none of {', '.join(RESERVED)}."
            )
    verbs = tuple(replace(verb, key=keys.get(verb.name, verb.key)) for verb in VERBS)
    taken: dict[str, str] = {}
    for verb in verbs:
        if verb.key in taken:
            raise ValueError(f"keys: {verb.key} is for {taken[verb.key]} and for {verb.name}.")
        taken[verb.key] = verb.name
    return verbs
