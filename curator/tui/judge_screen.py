"""The judge screen: a client's words, two replies, one key."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Static

from curator.beside_draft import BESIDE, draft_text, with_draft
from curator.errors import Busy, CuratorError
from curator.safe_text import shortened, visible
from curator.tui import between
from curator.tui.beside import Beside
from curator.tui.messages import RunChanged
from curator.tui.widgets import Conversation, HeaderBar, KeyBar, Replies, Reply, RunStrip, key_hints
from curator.verbs import VERBS
from curator.words import JUDGES, LEASE_SECONDS, SAID, Rewrite, Said, Shown, Verdict, new_uuid, now

if TYPE_CHECKING:
    from textual.notifications import SeverityLevel

    from curator.tui.app import CuratorApp
    from curator.workflow import NextStep

NARROW, LEAST_WIDTH, LEAST_HEIGHT = 100, 60, 16
TALL = 30
DEAF_SECONDS = 0.3
PAINT_SECONDS = 0.1
DRAFT_SECONDS, AGAIN_SECONDS = 0.8, 20.0
# A failure is said in about so many lines; a line may lose so much to its margins, and to a word
# too long for its end.
FAILED_LINES, WORD = 4, 16
MINUTE = 60.0


class JudgeScreen(Screen[None]):
    """Judging, pair after pair, while a run may be under way."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(v.key, f"verb('{v.name}')", v.says, show=False, id=v.name) for v in VERBS),
        Binding("enter", "go_on", show=False),
    ]

    app: CuratorApp

    def __init__(self) -> None:
        super().__init__()
        self.pair: Shown | None = None
        self.beside = Beside()
        self.besides: dict[int, Beside] = {}
        """What was said beside no verdict yet, by pair, for when one comes back to it."""
        self.undrafted: dict[int, tuple[str, str]] = {}
        """Drafts of it that are not on the disk yet, and when they were said, by pair."""
        self.saved: Said | None = None
        """What was said of the pair on the screen, once it is kept and still shown."""
        self.saved_rewrite: Rewrite | None = None
        self.retry: tuple[Said, Rewrite | None, str] | None = None
        self.shown_at = ""
        self.shown_clock = 0.0
        self.step: NextStep | None = None
        self.judged = 0
        """Pairs judged in this sitting."""
        self.auto_allowed = False
        self.begun = self.seated = self.deaf = self.offered = False
        self.failure = ""
        """The failure that is said under the replies, if one is."""

    def compose(self) -> ComposeResult:
        yield HeaderBar(id="header")
        with Vertical(id="work"):
            yield Conversation(id="conversation")
            yield Static(Content.from_text(self.app.workspace.rubric.question, markup=False),
                         id="question")  # fmt: skip
            with Replies(id="replies"):
                yield Reply("A", id="left")
                yield Reply("B", id="right")
        with Vertical(id="empty"):
            yield Static(id="empty-text")
        with Horizontal(id="foot"):
            yield Static(id="notice")
            yield Static(id="marks")
        yield RunStrip(id="strip")
        yield KeyBar(key_hints(self.app.verbs), id="keys")
        yield Static("curator needs a little more room: 60 × 16 or larger.", id="too-small")

    def on_mount(self) -> None:
        self.show_who()
        self.notice(self.app.greeting)
        self.auto_allowed = self.app.auto_round
        self.show_run()
        self.set_interval(LEASE_SECONDS / 3, self.keep_pair)
        minutes = self.app.workspace.config.judge.break_minutes
        if minutes:
            self.set_interval(minutes * MINUTE, lambda: between.suggest_break(self))
        if self.app.glanced is not None:
            self.show(self.app.glanced)
            # Textual tells when a refresh was asked for, not when it was painted.
            self.set_timer(PAINT_SECONDS, self.take_seat)
            return
        self.take_seat()

    def take_seat(self) -> None:
        """Have the first pair handed out; one that is painted already stays as it is.

        Where it is another pair than was seen, keys pressed meanwhile were not meant for it.
        """
        if self.seated:
            return  # by a key that came first
        self.seated = True
        glanced, self.app.glanced = self.app.glanced, None
        try:
            _ = self.app.seat
            if glanced is not None:
                self.app.look_for_run()
                self.show_run()
            pair = self.app.seat.next()
        except CuratorError as error:
            self.deaf = True  # no key does anything without a seat
            message = Text(visible(f"curator: {error}"))
            self.app.exit(return_code=error.exit_code, message=message)
            return
        if pair != glanced or pair is None:
            self.show(pair)
            self.deaf = glanced is not None
            self.set_timer(DEAF_SECONDS, self.hear)
        self.refresh_progress_later()

    def hear(self) -> None:
        """Take keys again."""
        self.deaf = False

    def show_who(self) -> None:
        """Say whose seat this is, in which workspace."""
        header = self.query_one(HeaderBar)
        header.workspace = self.app.workspace.name
        header.annotator = self.app.annotator_name

    def keep_pair(self) -> None:
        """Hold the pair on the screen, however long its reader takes."""
        if self.pair is not None:
            with contextlib.suppress(CuratorError):  # tried again in a few minutes
                self.app.seat.keep(self.pair.pair_id)

    def on_screen_resume(self) -> None:
        """Start the clock when the pair is first seen, not while a welcome lies over it."""
        if not self.begun:
            self.shown_at, self.shown_clock = now(), time.monotonic()

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.width < NARROW, "narrow")
        self.set_class(event.size.height >= TALL, "tall")
        self.set_class(
            event.size.width < LEAST_WIDTH or event.size.height < LEAST_HEIGHT, "too-small"
        )
        if self.failure:
            self.notice(self.failure, failed=True)

    # --- showing -------------------------------------------------------------------------------

    def show(self, pair: Shown | None) -> None:
        """Show a pair, or what can be done when there is none."""
        self.pair, self.retry, self.saved, self.saved_rewrite = pair, None, None, None
        self.set_class(pair is None, "no-pair")
        self.beside = Beside()
        if pair is None:
            self.show_marks()
            try:
                between.show_empty(self)
            except CuratorError as error:
                self.notice(str(error), failed=True)
            return
        self.query_one(Conversation).show(pair.messages, pair.content_label, pair.risk_cue)
        self.query_one("#left", Reply).show(pair.left)
        self.query_one("#right", Reply).show(pair.right)
        said = pair.earlier or Said(Verdict.SKIP)
        said = with_draft(said, pair.drafts.get(BESIDE, ""), self.app.workspace.rubric)
        self.beside = Beside.of(said, pair.rewrite)
        if pair.earlier is not None:
            self.mark(pair.earlier.verdict, "earlier")
        self.beside = self.besides.get(pair.pair_id, self.beside)
        self.show_marks()
        self.shown_at, self.shown_clock = now(), time.monotonic()

    def say_beside(self, **what: Any) -> None:
        """Keep something said beside the verdict, for as long as the pair is unjudged."""
        assert self.pair is not None
        pair_id, earlier = self.pair.pair_id, self.saved or self.pair.earlier
        before = draft_text(self.beside.said(Verdict.SKIP, None), earlier)
        self.beside = replace(self.beside, **what)
        self.besides[pair_id] = self.beside
        self.show_marks()
        text = draft_text(self.beside.said(Verdict.SKIP, None), earlier)
        if text != before:
            self.undrafted[pair_id] = text, now()
        self.amend()
        if pair_id in self.undrafted:
            self.set_timer(DRAFT_SECONDS, self.draft)  # the key itself does not wait for the disk

    def draft(self, again: bool = False) -> bool:
        """Keep what is said beside no verdict yet; tell whether it is on the disk.

        What cannot be kept now is tried again after a while; `again`: it was said already.
        """
        kept = True
        for pair_id, (text, said_at) in list(self.undrafted.items()):
            try:
                self.app.seat.save_draft(pair_id, BESIDE, text, said_at)
                del self.undrafted[pair_id]
            except CuratorError as error:
                kept = False
                if self.retry is None and not again:  # else it stands at the foot
                    self.app.complain(error)
                if isinstance(error, Busy):
                    break  # the others would wait as long
        if not kept:
            self.set_timer(AGAIN_SECONDS, partial(self.draft, True))
        return kept

    def show_marks(self) -> None:
        """Show what has been said beside the verdict so far."""
        rubric, beside = self.app.workspace.rubric, self.beside
        self.query_one("#left", Reply).because(rubric.labels(beside.tags_left))
        self.query_one("#right", Reply).because(rubric.labels(beside.tags_right))
        earlier = self.pair.earlier if self.pair is not None and self.saved is None else None
        text = beside.marks(self.pair.drafts if self.pair is not None else {}, earlier)
        marks = self.query_one("#marks", Static)
        marks.set_class(bool(text), "some")
        marks.update(Content.from_text(text, markup=False))

    def mark(self, verdict: Verdict, name: str) -> None:
        """Outline the side a verdict is for."""
        for side in ("left", "right"):
            self.query_one(f"#{side}").remove_class("picked", "earlier")
        if verdict in (Verdict.LEFT, Verdict.RIGHT):
            self.query_one(f"#{verdict.value}").add_class(name)

    def notice(self, text: str, failed: bool = False) -> None:
        """Say one quiet line under the replies; of a failure all of it, in up to four lines."""
        self.failure = text if failed else ""
        self.query_one("#foot").set_class(failed, "failed")
        text = visible(text)
        if failed:
            text = shortened(text, FAILED_LINES * (self.app.size.width - WORD))
        self.query_one("#notice", Static).update(Content.from_text(text, markup=False))

    def aside(self, text: str, failed: bool = False) -> None:
        """Say what nobody asked for; in a corner where the line says that a pick is not saved."""
        if self.retry is None:
            self.notice(text, failed)
        else:
            severity: SeverityLevel = "error" if failed else "information"
            self.app.notify(visible(text), severity=severity, timeout=20, markup=False)

    def refresh_progress(self) -> None:
        """Show how far this annotator is; where that cannot be read now, it stays as it was."""
        try:
            progress = self.app.seat.progress()
        except CuratorError as error:
            self.aside(str(error), failed=True)
            return
        for header in self.query(HeaderBar):  # none where the screen has closed meanwhile
            header.round, header.pairs = progress.round, progress.pairs
            header.judged = progress.judged

    def refresh_progress_later(self) -> None:
        """Show it once what is to be judged next is painted: at 50,000 judgments it takes 0.1 s."""
        self.call_after_refresh(self.refresh_progress)

    def show_run(self) -> None:
        """Show the run under way, if one is."""
        self.set_class(self.app.run_watch is not None, "running")
        self.query_one(RunStrip).show(self.app.run_watch)

    # --- verbs ---------------------------------------------------------------------------------

    def action_verb(self, name: str) -> None:
        """Do what a verb says, whichever key it is on; nothing is judged that is not shown."""
        self.take_seat()
        if self.deaf:
            return
        self.begun = True
        if self.has_class("too-small") and name not in ("leave", "help", "guideline"):
            return
        if name in JUDGES:
            self.judge(*JUDGES[name], key=self.app.key_of(name))
            return
        from curator.tui import judge_verbs

        judge_verbs.DO[name](self)

    def judge(self, verdict: str, strength: int | None, key: str) -> None:
        """Save a verdict, then show the next pair. A failed save keeps pair and verdict."""
        if self.pair is None:
            return
        judge = self.app.workspace.config.judge
        asked = judge.red_flags and self.app.seat.rubric.red_flags
        if asked and self.pair.has_risk and verdict != "skip":
            if self.beside.red_flags is None:
                from curator.tui.judge_verbs import ask_red_flags

                ask_red_flags(self, lambda: self.judge(verdict, strength, key))
                return
        self.save(self.beside.said(Verdict(verdict), strength), key)

    def save(self, said: Said, key: str) -> None:
        """Commit a judgment of the pair on the screen; only then say so."""
        assert self.pair is not None
        rewrite = self.beside.rewrite
        if (said, rewrite) == (self.saved, self.saved_rewrite):
            if self.retry is not None:  # what could not be saved was taken off again
                self.retry = None
                self.notice("saved, as it stands here · enter: the next pair")
            return  # a key held down, where the pair stays
        if self.retry is None or self.retry[:2] != (said, rewrite):
            self.retry = (said, rewrite, new_uuid())
        self.mark(said.verdict, "picked")
        elapsed = round((time.monotonic() - self.shown_clock) * 1000)
        advance = self.app.workspace.config.judge.auto_advance
        try:
            following = self.app.seat.judge(
                self.pair.pair_id, said, self.retry[2], self.shown_at, elapsed,
                rewrite=rewrite, advance=advance,
            )  # fmt: skip
        except CuratorError as error:
            self.notice(f"not saved (press {key} to try again): {error}", failed=True)
            return
        self.besides.pop(self.pair.pair_id, None)
        self.undrafted.pop(self.pair.pair_id, None)
        self.count(self.pair)
        text = f"saved: {SAID[said.verdict.value, said.strength]}"
        family = self.app.family(self.pair.family)
        self.notice(f"{text} · {family}" if family else text)
        if advance:
            self.show(following)
        else:
            self.saved, self.saved_rewrite, self.retry = said, rewrite, None
            if following is not None:  # the same pair, without the drafts that are kept now
                self.pair = replace(self.pair, drafts=following.drafts)
                self.show_marks()
            self.notice(f"{text} · enter: the next pair")
        between.offer_round(self)

    def count(self, pair: Shown) -> None:
        """Count a judgment that is on the disk."""
        header = self.query_one(HeaderBar)
        header.saved_at = datetime.now()
        again = self.saved is not None or pair.earlier is not None or pair.by_another
        self.judged += not again
        if pair.round == header.round and pair.purpose in ("train", "duel") and not again:
            header.judged += 1
        elif pair.purpose != "repeat":
            self.refresh_progress_later()
        self.auto_allowed = self.app.auto_round

    def amend(self) -> None:
        """Judge the pair again as before, with what was just added, where it is still shown."""
        if self.saved is not None:
            self.save(self.beside.said(self.saved.verdict, self.saved.strength), "enter")

    # --- runs ----------------------------------------------------------------------------------

    def action_go_on(self) -> None:
        """Try a failed save again, show the next pair, or do what the empty queue suggests."""
        self.take_seat()
        if self.deaf or self.has_class("too-small"):
            return
        if self.retry is not None and self.pair is not None:
            said = self.retry[0]  # its verdict; beside it goes what the screen says now
            self.save(self.beside.said(said.verdict, said.strength), "enter")
        elif self.saved is not None:
            self.go_next()
        elif self.pair is None and self.step and self.step.action and not self.app.run_watch:
            self.app.start_run(self.step.action)
            between.show_empty(self)

    def go_next(self) -> None:
        """Show the next pair to judge."""
        try:
            self.show(self.app.seat.next())
            self.notice("")
        except CuratorError as error:
            self.notice(str(error), failed=True)

    def on_run_changed(self, message: RunChanged) -> None:
        """Follow the run; when it has ended, its pairs are in the queue."""
        between.follow_run(self, message)
