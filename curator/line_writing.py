"""Lines in and out, and what is written in them beside a verdict: a note, a rewrite."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any, TextIO

from curator.beside_draft import BESIDE, draft_text
from curator.errors import CuratorError
from curator.judgments import Said
from curator.line_texts import paragraph
from curator.models import Verdict
from curator.safe_text import bare, visible
from curator.seat import Rewrite, Seat, Shown
from curator.verbs import with_keys
from curator.words import LEASE_SECONDS
from curator.workspace import Workspace


class Left(Exception):
    """The person has left, or there is no more input."""


class Writing:
    """The pair on the screen of a sitting in lines, and what is written of it."""

    def __init__(self, workspace: Workspace, seat: Seat, lines: TextIO, out: TextIO) -> None:
        self.workspace, self.seat = workspace, seat
        self.lines, self.out = lines, out
        self.verbs = {verb.name: verb for verb in with_keys(workspace.config.keys)}
        self.pair: Shown | None = None
        self.said = Said(Verdict.SKIP)
        self.rewrite: Rewrite | None = None
        self.kept: dict[int, tuple[Said, Rewrite | None]] = {}
        """What was said beside no verdict yet, by pair, for when one comes back to it."""
        self.unkept: set[str] = set()
        """The drafts of the pair on the screen that could not be put on the disk."""
        self.retry: tuple[Said, Rewrite | None, str] | None = None
        self.shown_at, self.shown_clock, self.keep_at = "", 0.0, 0.0
        self.pause_at = time.monotonic() + 60 * workspace.config.judge.break_minutes

    def say(self, text: str = "") -> None:
        """Print lines, with everything a terminal could obey made visible."""
        self.out.write(visible(text) + "\n")
        self.out.flush()

    def ask(self, prompt: str) -> str:
        """Return a line of input without its end. Raises Left when there is none."""
        self.out.write(visible(prompt))
        self.out.flush()
        line = self.lines.readline()
        if not line:
            self.say()
            raise Left
        self.keep_pair()
        return line.rstrip("\r\n")

    def keep_pair(self) -> None:
        """Hold the pair that was shown, however long its reader takes."""
        if self.pair is not None and time.time() >= self.keep_at:
            self.keep_at = time.time() + LEASE_SECONDS / 3
            with contextlib.suppress(CuratorError):  # tried again later
                self.seat.keep(self.pair.pair_id)

    def rewritten(self, side: Verdict) -> str | None:
        """Return the rewrite of a side that goes with the pick, or None."""
        return self.rewrite.text if self.rewrite and self.rewrite.side is side else None

    def say_beside(self, **what: Any) -> None:
        """Keep something said beside the verdict, for as long as the pair is unjudged."""
        self.said = replace(self.said, **what)
        if self.pair is not None:
            self.kept[self.pair.pair_id] = (self.said, self.rewrite)
            if error := self.draft(BESIDE, draft_text(self.said, self.pair.earlier)):
                self.say(f"not on the disk yet: {error}")

    def draft(self, name: str, text: str) -> CuratorError | None:
        """Keep what is not saved yet of the pair on the screen; an empty text drops it.

        Return why it could not be put on the disk; `draft_again` tries that once more.
        """
        same = self.pair is None or self.pair.drafts.get(name, "") == text
        if self.pair is None or (same and name not in self.unkept):
            return None
        drafts = {**self.pair.drafts, name: text}
        self.pair = replace(self.pair, drafts={n: t for n, t in drafts.items() if t})
        try:
            self.seat.save_draft(self.pair.pair_id, name, text)
        except CuratorError as error:
            self.unkept.add(name)
            return error
        self.unkept.discard(name)
        return None

    def draft_again(self) -> None:
        """Try to put on the disk what could not be put there."""
        for name in sorted(self.unkept):
            self.draft(name, self.pair.drafts.get(name, "") if self.pair else "")

    def do_note(self, text: str) -> None:
        """Take a note, to be saved with the verdict; alone, one begun earlier, or none."""
        begun = self.pair.drafts.get("note", "").strip() if self.pair else ""
        if not text and begun != self.said.note:
            text = begun
        self.say_beside(note=text or None)
        self.say(f"note: {text or 'none'}")
        if error := self.draft("note", text):
            self.say(f"not on the disk yet: {error}")

    def do_rewrite_left(self, text: str) -> None:
        """Take a rewrite of A."""
        self.take_rewrite(Verdict.LEFT, text == "new")

    def do_rewrite_right(self, text: str) -> None:
        """Take a rewrite of B."""
        self.take_rewrite(Verdict.RIGHT, text == "new")

    def take_rewrite(self, side: Verdict, anew: bool) -> None:
        """Take the better reply: going on from what was begun, or begun anew."""
        if self.pair is None:
            return
        name = f"rewrite_{side.value}"
        draft = self.pair.drafts.get(name, "")
        begun = (draft if draft.strip() else self.rewritten(side) or "") if not anew else ""
        if begun:
            self.say(paragraph("begun earlier", begun))
            self.say(f"what you write goes on from there; {self.verbs[name].key} new begins anew.")
        lines = self.read_reply(name, begun.split("\n") if begun else [])
        text = "\n".join(lines).strip()
        if bare(text) in ("", bare(self.pair.left), bare(self.pair.right)):
            self.draft(name, "")
            if self.rewrite is not None and self.rewrite.side is not side:
                self.say("that is no rewrite: the other one stays.")
                return
            self.rewrite = None
            self.say_beside()
            self.say("no rewrite goes with your pick: it says what a reply says, or nothing.")
            return
        self.rewrite = Rewrite(side, text)
        self.say_beside()
        self.say("now judge the two as they are: your rewrite is kept with your pick.")

    def read_reply(self, name: str, lines: list[str]) -> list[str]:
        """Return lines with those read up to a full stop alone, each kept at once as a draft.

        Where one cannot be kept, reading goes on: the lines to come would be taken for verbs.
        """
        self.say("write the reply; a line with a full stop alone ends it.")
        told = False
        try:
            while (line := self.ask("")) != ".":
                lines.append(line)
                error = self.draft(name, "\n".join(lines))
                if error and not told:
                    self.say(f"not on the disk yet, write on, it is tried again: {error}")
                    told = True
        finally:
            self.draft_again()
        if name in self.unkept:
            self.say("still not on the disk; your pick tries it again.")
        return lines
