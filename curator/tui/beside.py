"""What an annotator says of a pair beside the verdict, before it is given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from curator.safe_text import one_line
from curator.words import Rewrite, Said, Verdict


@dataclass(frozen=True)
class Beside:
    """What is said beside a verdict, gathered until it is given."""

    tags_left: tuple[str, ...] = ()
    tags_right: tuple[str, ...] = ()
    note: str | None = None
    flagged: bool = False
    rewrite: Rewrite | None = None
    red_flags: dict[str, bool] | None = None

    @classmethod
    def of(cls, earlier: Said, rewrite: Rewrite | None) -> Beside:
        """Return what was said beside an earlier judgment."""
        return cls(
            earlier.tags_left, earlier.tags_right, earlier.note, earlier.flagged,
            rewrite, earlier.red_flags or None,
        )  # fmt: skip

    def said(self, verdict: Verdict, strength: int | None) -> Said:
        """Return it with the verdict."""
        return Said(
            verdict, strength, tags_left=self.tags_left, tags_right=self.tags_right,
            note=self.note, flagged=self.flagged, red_flags=self.red_flags or {},
        )  # fmt: skip

    def marks(self, drafts: Collection[str]) -> str:
        """Return in a line what is said so far; `drafts`: the names of what was only begun."""
        parts = []
        if self.rewrite is not None:
            letter = "A" if self.rewrite.side is Verdict.LEFT else "B"
            parts.append(f"rewrite of {letter} goes with your pick")
        elif {"rewrite_left", "rewrite_right"} & set(drafts):
            parts.append("a rewrite was begun")
        if self.note:
            parts.append(f"note: {one_line(self.note, 24)}")
        elif "note" in drafts:
            parts.append("a note was begun")
        if self.flagged:
            parts.append("⚑ flagged")
        return " · ".join(parts)
