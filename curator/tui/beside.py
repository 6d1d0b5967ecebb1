"""What an annotator says of a pair beside the verdict, before it is given."""

from __future__ import annotations

from dataclasses import dataclass

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

    def said(self, verdict: Verdict, strength: int | None) -> Said:
        """Return it with the verdict."""
        return Said(
            verdict, strength, tags_left=self.tags_left, tags_right=self.tags_right,
            note=self.note, flagged=self.flagged, red_flags=self.red_flags or {},
        )  # fmt: skip
