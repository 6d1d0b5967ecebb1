"""The verdicts a key gives: what each key means, how it is said, how the key bar shows it."""

from __future__ import annotations

from curator.tui.widgets import KeyHint
from curator.verbs import Verb

JUDGES: dict[str, tuple[str, int | None]] = {
    "left_slightly": ("left", 1), "left_clearly": ("left", 2),
    "right_slightly": ("right", 1), "right_clearly": ("right", 2),
    "tie": ("tie", None), "both_bad": ("both_bad", None), "skip": ("skip", None),
}  # fmt: skip
SAID = {
    ("left", 1): "A better", ("left", 2): "A clearly better",
    ("right", 1): "B better", ("right", 2): "B clearly better",
    ("tie", None): "a tie", ("both_bad", None): "both bad", ("skip", None): "skipped",
}  # fmt: skip


def key_hints(verbs: tuple[Verb, ...]) -> list[KeyHint]:
    """Return the verbs as the key bar shows them."""
    return [KeyHint(v.key, v.says, v.short, f"verb('{v.name}')") for v in verbs]
