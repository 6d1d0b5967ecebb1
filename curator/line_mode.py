"""Judging in lines: `curator annotate --plain`. No screen, no cursor control, the same verbs.

For screen readers, simple terminals and scripts. A line is a verb's key or name; what follows it
on the line goes with it (`n a note`, `: 2.17`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from curator import rounds
from curator.errors import CuratorError
from curator.history import history, sitting, sitting_text
from curator.judgments import Said
from curator.models import Verdict, new_uuid, now
from curator.rubric import MOST_TAGS_A_SIDE
from curator.safe_text import hidden_count, one_line, visible
from curator.seat import Rewrite, Seat, Shown, take_seat
from curator.terminal import run_text
from curator.verbs import with_keys
from curator.workflow import next_step
from curator.workspace import Workspace, data_folder

SPEAKERS = {"user": "client", "assistant": "reply", "system": "setting"}
JUDGES: dict[str, tuple[Verdict, int | None, str]] = {
    "left_slightly": (Verdict.LEFT, 1, "A better"),
    "left_clearly": (Verdict.LEFT, 2, "A clearly better"),
    "right_slightly": (Verdict.RIGHT, 1, "B better"),
    "right_clearly": (Verdict.RIGHT, 2, "B clearly better"),
    "tie": (Verdict.TIE, None, "a tie"),
    "both_bad": (Verdict.BOTH_BAD, None, "both bad"),
    "skip": (Verdict.SKIP, None, "skipped"),
}


class Left(Exception):
    """The person has left, or there is no more input."""


class LineMode:
    """One sitting in lines."""

    def __init__(self, workspace: Workspace, seat: Seat, lines: TextIO, out: TextIO) -> None:
        self.workspace, self.seat = workspace, seat
        self.lines, self.out = lines, out
        self.verbs = {verb.name: verb for verb in with_keys(workspace.config.keys)}
        self.pair: Shown | None = None
        self.said = Said(Verdict.SKIP)
        self.rewrite: Rewrite | None = None
        self.retry: tuple[Said, str] | None = None
        self.shown_at, self.shown_clock = "", 0.0

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
        return line.rstrip("\r\n")

    def run(self) -> None:
        """Judge until the person leaves or the input ends."""
        self.show(self.seat.next())
        while True:
            self.settle()
            prompt = "better? " if self.pair else "nothing to judge: "
            keys = " ".join(verb.key for verb in self.verbs.values())
            self.do(self.ask(f"{prompt}{keys} > "))

    def do(self, line: str) -> None:
        """Do what a line says."""
        word, _, rest = line.strip().partition(" ")
        verb = next((v for v in self.verbs.values() if word in (v.key, v.name)), None)
        if not word:
            return
        if verb is None:
            help_key = self.verbs["help"].key
            self.say(f"{one_line(word, 40)} is no key here; {help_key} tells them all.")
            return
        if verb.name in JUDGES:
            self.judge(*JUDGES[verb.name])
            return
        action: Callable[[str], None] = getattr(self, f"do_{verb.name}")
        try:
            action(rest.strip())
        except CuratorError as error:
            self.say(str(error))

    # --- showing -------------------------------------------------------------------------------

    def show(self, pair: Shown | None) -> None:
        """Show a pair, or what can be done when there is none."""
        self.pair, self.retry, self.rewrite = pair, None, None
        self.said = Said(Verdict.SKIP)
        if pair is None:
            self.say(next_step(self.workspace, self.seat).text)
            key = self.verbs["rounds"].key
            self.say(f"{key} start: do that now.")
            return
        progress = self.seat.progress()
        label = one_line(pair.content_label or "not labelled", 60)
        cue = one_line(pair.risk_cue or "not noted", 60)
        self.say()
        self.say(f"{progress.judged} of {progress.pairs} judged · about: {label} · risk cue: {cue}")
        for message in pair.messages:
            self.paragraph(SPEAKERS.get(message["role"], message["role"]), message["content"])
        self.paragraph("A", pair.left)
        self.paragraph("B", pair.right)
        if pair.earlier is not None:
            verdict = pair.earlier.verdict
            name = next(
                n for v, s, n in JUDGES.values() if (v, s) == (verdict, pair.earlier.strength)
            )
            self.say(f"was: {name}")
            self.said, self.rewrite = pair.earlier, pair.rewrite
        if pair.before is not None:
            self.say(f"before that: {pair.before.verdict}")
        if pair.by_another:
            self.say("another person has judged it")
        for name in pair.drafts:
            self.say(f"begun earlier and kept: {name.replace('_', ' of ')}")
        self.shown_at, self.shown_clock = now(), time.monotonic()

    def paragraph(self, name: str, text: str) -> None:
        """Print a text under a name, with its length and hidden characters.

        Its further lines stand in from the edge: no text can look like another speaker's.
        """
        hidden = hidden_count(text)
        facts = f"{len(text.split())} words" + (f", {hidden} hidden characters" if hidden else "")
        self.say(f"{name} ({facts}): {text}".replace("\n", "\n    "))

    def settle(self) -> None:
        """Tell of a run that has ended."""
        try:
            for run in rounds.settle(self.workspace):
                self.say(run.error or run_text(run))
                if self.pair is None:
                    self.show(self.seat.next())
            if self.pair is None and rounds.take_in_so_far(self.workspace):
                self.show(self.seat.next())
        except CuratorError as error:
            self.say(str(error))

    # --- judging -------------------------------------------------------------------------------

    def judge(self, verdict: Verdict, strength: int | None, name: str) -> None:
        """Save a verdict, then show the next pair."""
        if self.pair is None:
            self.say("there is nothing to judge.")
            return
        judge = self.workspace.config.judge
        asked = judge.red_flags and self.pair.has_risk and verdict is not Verdict.SKIP
        if asked and not self.said.red_flags:
            self.ask_red_flags()
        said = replace(self.said, verdict=verdict, strength=strength, rewrite_id=None)
        if self.retry is None or self.retry[0] != said:
            self.retry = (said, new_uuid())
        elapsed = round((time.monotonic() - self.shown_clock) * 1000)
        try:
            following = self.seat.judge(
                self.pair.pair_id, said, self.retry[1], self.shown_at, elapsed, rewrite=self.rewrite
            )
        except CuratorError as error:
            self.say(f"not saved, say it again to retry: {error}")
            return
        self.say(f"saved: {name}")
        self.show(following)

    def ask_red_flags(self) -> None:
        """Ask the red flags of both replies, yes or no."""
        answers = {}
        for side, letter in (("left", "A"), ("right", "B")):
            for flag in self.seat.rubric.red_flags:
                answer = ""
                while answer not in ("y", "n"):
                    answer = self.ask(f"{letter}: {flag.question} y n > ").strip().lower()
                answers[f"{side}.{flag.flag}"] = answer == "y"
        self.said = replace(self.said, red_flags=answers)

    def do_undo(self, _: str) -> None:
        """Take the last judgment back."""
        pair = self.seat.undo()
        if pair is None:
            self.say("nothing to take back.")
        else:
            self.say("taken back:")
            self.show(pair)

    def do_tags(self, text: str) -> None:
        """Take reasons: `g A nv` gives reply A two by their keys; alone it lists them."""
        letter, _, keys = text.partition(" ")
        if letter.upper() not in ("A", "B"):
            for tag in self.seat.rubric.tags:
                self.say(f"  {tag.key}  {tag.label}")
            self.say(f"{self.verbs['tags'].key} A KEYS, or B: at most {MOST_TAGS_A_SIDE} a side.")
            return
        by_key = {tag.key: tag.tag for tag in self.seat.rubric.tags}
        unknown = [key for key in keys if key not in by_key and not key.isspace()]
        names = tuple(by_key[key] for key in keys if key in by_key)
        if unknown or len(names) > MOST_TAGS_A_SIDE:
            self.say(f"not taken: {''.join(unknown) or 'too many'}.")
            return
        if letter.upper() == "A":
            self.said = replace(self.said, tags_left=names)
        else:
            self.said = replace(self.said, tags_right=names)
        self.say(f"{letter.upper()} because {self.seat.rubric.labels(names) or 'nothing'}")

    def do_note(self, text: str) -> None:
        """Take a note, to be saved with the verdict."""
        self.said = replace(self.said, note=text or None)
        self.say(f"note: {text or 'none'}")

    def do_flag(self, _: str) -> None:
        """Flag the pair, or take the flag off."""
        self.said = replace(self.said, flagged=not self.said.flagged)
        self.say("flagged." if self.said.flagged else "not flagged.")

    def do_rewrite_left(self, _: str) -> None:
        """Take a rewrite of A."""
        self.take_rewrite(Verdict.LEFT)

    def do_rewrite_right(self, _: str) -> None:
        """Take a rewrite of B."""
        self.take_rewrite(Verdict.RIGHT)

    def take_rewrite(self, side: Verdict) -> None:
        """Read the better reply, up to a line with a full stop alone."""
        if self.pair is None:
            return
        draft = self.pair.drafts.get(f"rewrite_{side.value}")
        if draft:
            self.paragraph("begun earlier", draft)
        self.say("write the reply; a line with a full stop alone ends it.")
        lines = []
        while (line := self.ask("")) != ".":
            lines.append(line)
        text = "\n".join(lines).strip()
        if text in ("", self.pair.left.strip(), self.pair.right.strip()):
            self.rewrite = None
            self.say("no rewrite goes with your pick: it says what a reply says, or nothing.")
            return
        self.rewrite = Rewrite(side, text)
        self.say("now judge the two as they are: your rewrite is kept with your pick.")

    # --- going about ---------------------------------------------------------------------------

    def go(self, pair: Shown | None) -> None:
        """Show a pair that was gone to, or say that there is none."""
        if pair is None:
            self.say("there is no such pair.")
        else:
            self.show(pair)

    def do_go_to(self, text: str) -> None:
        """Go to a pair by its number, or round and number."""
        turn, _, number = text.rpartition(".")
        if not number.isdecimal() or (turn and not turn.isdecimal()):
            self.say(f"{self.verbs['go_to'].key} 17, or 2.17: round and number.")
            return
        self.go(self.seat.go_to(int(number[:9]), int(turn[:9]) if turn else None))

    def do_previous(self, _: str) -> None:
        """Show the pair before."""
        self.go(self.seat.beside(self.pair.pair_id, -1) if self.pair else None)

    def do_following(self, _: str) -> None:
        """Show the pair after."""
        self.go(self.seat.beside(self.pair.pair_id, 1) if self.pair else None)

    def do_next_unjudged(self, _: str) -> None:
        """Show the next pair that needs a judgment."""
        self.show(self.seat.next())

    def do_history(self, text: str) -> None:
        """List the latest judgments, those that hold a text if one is given."""
        for row in history(self.seat, text=text)[:20]:
            client = one_line(row.client, 60)
            self.say(f"{row.round}.{row.number}  {row.said.verdict}  {client}")

    def do_rounds(self, text: str) -> None:
        """Tell what comes next; with `start`, start it."""
        step = next_step(self.workspace, self.seat)
        self.say(step.text)
        if text == "start" and step.action:
            started = rounds.start_run(self.workspace, step.action)
            self.say(f"started: {step.action} (runs/{started.folder.name}).")

    def do_guideline(self, _: str) -> None:
        """Print how to judge."""
        self.say((data_folder() / "guideline.md").read_text(encoding="utf-8"))

    def do_help(self, _: str) -> None:
        """Print the verbs with their keys."""
        for verb in self.verbs.values():
            self.say(f"  {verb.key}  {verb.says}")

    def do_leave(self, _: str) -> None:
        """Leave."""
        raise Left


def run_line_mode(workspace: Workspace, annotator: str, lines: TextIO, out: TextIO) -> int:
    """Judge in lines until the input ends; return the exit status."""
    seat = take_seat(workspace, annotator, new_uuid())
    mode = LineMode(workspace, seat, lines, out)
    try:
        mode.run()
    except Left:
        pass
    finally:
        seat.leave()
    mode.say(sitting_text(sitting(seat), workspace.name))
    return 0
