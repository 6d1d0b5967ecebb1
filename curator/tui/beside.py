"""What an annotator says of a pair beside the verdict, before it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curator.beside_draft import differs
from curator.safe_text import bare, one_line
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

    def marks(self, drafts: Mapping[str, str], earlier: Said | None) -> str:
        """Return in a line what is said so far.

        `drafts`: what was only begun, by name; `earlier`: what is on the disk, if that stands.
        """
        said = {"note": self.note or ""}
        if self.rewrite is not None:
            said[f"rewrite_{self.rewrite.side.value}"] = self.rewrite.text
        begun = {
            name for name, text in drafts.items()
            if bare(text) not in ("", bare(said.get(name, "")))
        }  # fmt: skip
        parts = []  # what a pick would leave behind comes first: a narrow screen cuts the rest
        if earlier is not None and differs(self.said(Verdict.SKIP, None), earlier):
            parts.append("not saved: judge again")
        if {"rewrite_left", "rewrite_right"} & begun:
            parts.append("a rewrite was begun")
        if "note" in begun:
            parts.append("a note was begun")
        if self.rewrite is not None:
            letter = "A" if self.rewrite.side is Verdict.LEFT else "B"
            parts.append(f"rewrite of {letter} goes with your pick")
        if self.note:
            parts.append(f"note: {one_line(self.note, 24)}")
        if self.flagged:
            parts.append("⚑ flagged")
        return " · ".join(parts)
