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
from curator.beside_draft import BESIDE, differs, with_draft
from curator.errors import CuratorError
from curator.history import sitting, sitting_text
from curator.judgments import Said
from curator.line_texts import (
    beside_lines,
    help_lines,
    history_lines,
    paragraph,
)
from curator.line_writing import Left as Left
from curator.line_writing import Writing
from curator.models import Verdict, new_uuid, now
from curator.rubric import MOST_TAGS_A_SIDE
from curator.safe_text import one_line
from curator.seat import Shown, take_seat
from curator.terminal import end_text, run_text
from curator.words import JUDGES, LEASE_SECONDS, SAID, SPEAKERS
from curator.workflow import next_step
from curator.workspace import Workspace


class LineMode(Writing):
    """One sitting in lines."""

    def run(self) -> None:
        """Judge until the person leaves or the input ends."""
        self.show(self.seat.next())
        keys = " ".join(verb.key for verb in self.verbs.values())
        try:
            while True:
                self.settle()
                self.suggest_break()
                prompt = "better? " if self.pair else "nothing to judge: "
                self.do(self.ask(f"{prompt}{keys} > "))
        finally:
            self.draft_again()
            if self.unkept:
                self.say("the last words that were written could not be kept.")

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
        try:
            if verb.name in JUDGES and rest.strip():
                note = self.verbs["note"].key
                self.say(f"not judged: nothing may follow {word}. {note} and words make a note.")
                return
            if verb.name in JUDGES:
                self.judge(*JUDGES[verb.name])
                return
            action: Callable[[str], None] = getattr(self, f"do_{verb.name}")
            action(rest.strip())
        except CuratorError as error:
            self.say(str(error))

    # --- showing -------------------------------------------------------------------------------

    def show(self, pair: Shown | None) -> None:
        """Show a pair, or what can be done when there is none."""
        self.draft_again()  # of the pair that is left
        self.pair, self.retry, self.unkept = pair, None, set()
        self.said, self.rewrite = Said(Verdict.SKIP), None
        if pair is None:
            step = next_step(self.workspace, self.seat)
            self.say(step.text)
            if step.action:
                self.say(f"{self.verbs['rounds'].key} start: do that now.")
            return
        progress = self.seat.progress()
        label = one_line(pair.content_label or "not labelled", 60)
        cue = one_line(pair.risk_cue or "not noted", 60)
        self.say()
        self.say(f"{progress.judged} of {progress.pairs} judged · about: {label} · risk cue: {cue}")
        for message in pair.messages:
            speaker = SPEAKERS.get(message["role"], message["role"])
            self.say(paragraph(speaker, message["content"]))
        self.say(paragraph("A", pair.left))
        self.say(paragraph("B", pair.right))
        if pair.earlier is not None:
            self.say(f"was: {SAID[pair.earlier.verdict, pair.earlier.strength]}")
            self.said, self.rewrite = pair.earlier, pair.rewrite
        self.said = with_draft(self.said, pair.drafts.get(BESIDE, ""), self.seat.rubric)
        self.said, self.rewrite = self.kept.get(pair.pair_id, (self.said, self.rewrite))
        if pair.before is not None:
            self.say(f"before that: {SAID[pair.before.verdict, pair.before.strength]}")
        if pair.by_another:
            self.say("another person has judged it")
        self.show_beside(pair)
        self.shown_at, self.shown_clock = now(), time.monotonic()
        self.keep_at = time.time() + LEASE_SECONDS / 3

    def show_beside(self, pair: Shown) -> None:
        """Print what was said beside a verdict so far, and what was begun and is kept."""
        if pair.earlier is not None and differs(self.said, pair.earlier):
            self.say("not saved, judge again to save it:")
        for line in beside_lines(self.seat.rubric, self.said, self.rewrite):
            self.say(line)
        for name, what, said in (
            ("note", "note", self.said.note),
            ("rewrite_left", "rewrite of A", self.rewritten(Verdict.LEFT)),
            ("rewrite_right", "rewrite of B", self.rewritten(Verdict.RIGHT)),
        ):
            text = pair.drafts.get(name)
            if text and text.strip() != said:
                key = self.verbs[name].key
                self.say(paragraph(f"{what} begun earlier, {key} takes it up", text))

    def settle(self) -> None:
        """Tell of a run that has ended."""
        try:
            for run in rounds.settle(self.workspace):
                self.say(end_text(run) if run.error else run_text(run))
                if self.pair is None:
                    self.show(self.seat.next())
            if self.pair is None and rounds.take_in_so_far(self.workspace):
                self.show(self.seat.next())
        except CuratorError as error:
            self.say(str(error))

    def suggest_break(self) -> None:
        """Say that some time has passed."""
        minutes = self.workspace.config.judge.break_minutes
        if minutes and time.monotonic() >= self.pause_at:
            self.pause_at = time.monotonic() + 60 * minutes
            self.say(f"another {minutes} minutes: a pause does the next pairs good.")

    # --- judging -------------------------------------------------------------------------------

    def judge(self, verdict: Verdict, strength: int | None) -> None:
        """Save a verdict, then show the next pair."""
        if self.pair is None:
            self.say("there is nothing to judge.")
            return
        judge = self.workspace.config.judge
        asked = judge.red_flags and self.pair.has_risk and verdict is not Verdict.SKIP
        if asked and not self.said.red_flags and not self.ask_red_flags():
            self.say("not judged: the questions are open.")
            return
        said = replace(self.said, verdict=verdict, strength=strength, rewrite_id=None)
        if self.retry is None or self.retry[:2] != (said, self.rewrite):
            self.retry = (said, self.rewrite, new_uuid())
        elapsed = round((time.monotonic() - self.shown_clock) * 1000)
        self.draft_again()  # else an older draft would outlive the words that are saved
        try:
            following = self.seat.judge(
                self.pair.pair_id, said, self.retry[2], self.shown_at, elapsed, rewrite=self.rewrite
            )
        except CuratorError as error:
            self.say(f"not saved, say it again to retry: {error}")
            return
        self.kept.pop(self.pair.pair_id, None)
        saved = {"note", BESIDE} | (
            {f"rewrite_{self.rewrite.side.value}"} if self.rewrite else set()
        )
        self.unkept -= saved  # it is in the judgment now
        self.say(f"saved: {SAID[verdict, strength]}")
        self.show(following)

    def ask_red_flags(self) -> bool:
        """Ask the red flags of both replies, yes or no; tell whether all were answered."""
        asked = [
            (f"{side}.{flag.flag}", f"{letter}: {flag.question} y n > ")
            for side, letter in (("left", "A"), ("right", "B"))
            for flag in self.seat.rubric.red_flags
        ]
        if asked:
            self.say("yes or no of each reply; u: the question before, c: not yet")
        answers: list[bool] = []
        while len(answers) < len(asked):
            answer = self.ask(asked[len(answers)][1]).strip().lower()
            if answer == "c":
                return False
            if answer == "u":
                answers = answers[:-1]
            elif answer in ("y", "n"):
                answers.append(answer == "y")
        names = [name for name, _ in asked]
        self.say_beside(red_flags=dict(zip(names, answers, strict=True)))
        return True

    def do_undo(self, _: str) -> None:
        """Take the last judgment back."""
        try:
            pair = self.seat.undo()
        except CuratorError as error:
            self.say(f"not taken back: {error}")
            return
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
        self.say_beside(**{"tags_left" if letter.upper() == "A" else "tags_right": names})
        self.say(f"{letter.upper()} because {self.seat.rubric.labels(names) or 'nothing'}")

    def do_flag(self, _: str) -> None:
        """Flag the pair, or take the flag off."""
        self.say_beside(flagged=not self.said.flagged)
        self.say("flagged." if self.said.flagged else "not flagged.")

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
        """List the latest judgments: `h verdict=tie flagged=yes words`, or some of these."""
        for line in history_lines(self.seat, text):
            self.say(line)

    def do_rounds(self, text: str) -> None:
        """Tell what comes next; with `start`, start it."""
        step = next_step(self.workspace, self.seat)
        self.say(step.text)
        if text == "start" and step.action:
            started = rounds.start_run(self.workspace, step.action)
            self.say(f"started: {step.action} (runs/{started.folder.name}).")

    def do_guideline(self, _: str) -> None:
        """Print how to judge."""
        self.say(self.workspace.guideline)

    def do_help(self, _: str) -> None:
        """Print the verbs with their keys."""
        for line in help_lines(self.verbs.values()):
            self.say(line)

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
