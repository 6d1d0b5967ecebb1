"""The judge screen: a client's words, two replies, one key."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Static

from curator import queue
from curator.errors import CuratorError
from curator.judgments import Said
from curator.models import Verdict, new_uuid, now
from curator.safe_text import visible
from curator.seat import Shown
from curator.tui.messages import RunChanged
from curator.tui.widgets import Conversation, HeaderBar, KeyBar, Replies, Reply, RunStrip
from curator.workflow import NextStep, next_step

if TYPE_CHECKING:
    from curator.tui.app import CuratorApp

QUESTION = "Which reply would you rather this client received?"
KEYS = [
    ("a", "A better", "", "judge('left', 1)"),
    ("A", "A clearly", "A", "judge('left', 2)"),
    ("b", "B better", "", "judge('right', 1)"),
    ("B", "B clearly", "B", "judge('right', 2)"),
    ("t", "tie", "tie", "judge('tie')"),
    ("x", "both bad", "both bad", "judge('both_bad')"),
    ("s", "skip", "skip", "judge('skip')"),
    ("u", "undo", "undo", "undo"),
    ("r", "rounds", "rounds", "rounds"),
    ("?", "keys", "keys", "help"),
]
SAID = {
    ("left", 1): "A better", ("left", 2): "A clearly better",
    ("right", 1): "B better", ("right", 2): "B clearly better",
    ("tie", None): "a tie", ("both_bad", None): "both bad", ("skip", None): "skipped",
}  # fmt: skip
NARROW, LEAST_WIDTH, LEAST_HEIGHT = 100, 60, 16


class JudgeScreen(Screen[None]):
    """Judging, pair after pair, while a run may be under way."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key if key != "?" else "question_mark", action, label, show=False)
          for key, label, _, action in KEYS),
        Binding("enter", "next_step", show=False),
        Binding("q", "leave", "leave", show=False),
    ]  # fmt: skip

    app: CuratorApp

    def __init__(self) -> None:
        super().__init__()
        self.pair: Shown | None = None
        self.shown_at = ""
        self.shown_clock = 0.0
        self.pending: tuple[Said, str] | None = None
        self.step = NextStep(None, "")
        self.auto_allowed = False

    def compose(self) -> ComposeResult:
        yield HeaderBar(id="header")
        with Vertical(id="work"):
            yield Conversation(id="conversation")
            yield Static(QUESTION, id="question")
            with Replies(id="replies"):
                yield Reply("A", id="left")
                yield Reply("B", id="right")
        with Vertical(id="empty"):
            yield Static(id="empty-text")
        yield Static(id="notice")
        yield RunStrip(id="strip")
        yield KeyBar(KEYS, id="keys")
        yield Static("curator needs a little more room: 60 × 16 or larger.", id="too-small")

    def on_mount(self) -> None:
        header = self.query_one(HeaderBar)
        header.workspace = self.app.workspace.name
        header.annotator = self.app.seat.annotator.name
        self.auto_allowed = self.app.auto_round
        self.show_run()
        self.set_interval(queue.LEASE_SECONDS / 3, self.keep_pair)
        try:
            self.refresh_progress()
            self.show(self.app.seat.next())
        except CuratorError as error:
            message = Text(visible(f"curator: {error}"))
            self.app.exit(return_code=error.exit_code, message=message)

    def keep_pair(self) -> None:
        """Hold the pair on the screen, however long its reader takes."""
        if self.pair is not None:
            with contextlib.suppress(CuratorError):  # tried again in a few minutes
                self.app.seat.keep(self.pair.pair_id)

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.width < NARROW, "narrow")
        self.set_class(
            event.size.width < LEAST_WIDTH or event.size.height < LEAST_HEIGHT, "too-small"
        )

    # --- showing -------------------------------------------------------------------------------

    def show(self, pair: Shown | None) -> None:
        """Show a pair, or what can be done when there is none."""
        self.pair, self.pending = pair, None
        self.set_class(pair is None, "no-pair")
        if pair is None:
            self.show_empty()
            return
        self.query_one(Conversation).show(pair.messages, pair.content_label, pair.risk_cue)
        self.query_one("#left", Reply).show(pair.left)
        self.query_one("#right", Reply).show(pair.right)
        if pair.earlier is not None:
            said = SAID.get((str(pair.earlier.verdict), pair.earlier.strength), "")
            self.mark(pair.earlier.verdict, "earlier")
            self.notice(f"taken back; it was: {said}")
        self.shown_at, self.shown_clock = now(), time.monotonic()

    def show_empty(self) -> None:
        """Say what was judged and what can be done now."""
        self.step = next_step(self.app.workspace, self.app.seat)
        if self.app.run_watch is not None:
            lines = ["Nothing to judge just now: a run is under way.",
                     "Its pairs will show up here by themselves.", ""]  # fmt: skip
        else:
            lines = [self.step.text, ""]
            if self.step.action:
                lines.append("enter  do that now")
        lines += ["u  undo the last judgment", "r  rounds", "q  leave"]
        self.query_one("#empty-text", Static).update(
            Content.from_text("\n".join(lines), markup=False)
        )
        if self.auto_allowed and self.step.action and self.app.run_watch is None:
            self.auto_allowed = False  # until the next judgment: a run that brings nothing is one
            self.action_next_step()

    def mark(self, verdict: Verdict, name: str) -> None:
        """Outline the side a verdict is for."""
        if verdict in (Verdict.LEFT, Verdict.RIGHT):
            self.query_one(f"#{verdict.value}").add_class(name)

    def notice(self, text: str, failed: bool = False) -> None:
        """Say one quiet line under the replies."""
        line = self.query_one("#notice", Static)
        line.set_class(failed, "failed")
        line.update(Content.from_text(f" {visible(text)}" if text else "", markup=False))

    def refresh_progress(self) -> None:
        """Show how far this annotator is."""
        progress = self.app.seat.progress()
        header = self.query_one(HeaderBar)
        header.round, header.pairs = progress.round, progress.pairs
        header.judged = progress.judged

    def show_run(self) -> None:
        """Show the run under way, if one is."""
        self.set_class(self.app.run_watch is not None, "running")
        self.query_one(RunStrip).show(self.app.run_watch)

    # --- judging -------------------------------------------------------------------------------

    def action_judge(self, verdict: str, strength: int | None = None) -> None:
        """Save a verdict, then show the next pair. A failed save keeps pair and verdict."""
        if self.pair is None:
            return
        said = Said(Verdict(verdict), strength)
        if self.pending is None or self.pending[0] != said:
            self.pending = (said, new_uuid())
        self.query_one("#left").remove_class("picked", "earlier")
        self.query_one("#right").remove_class("picked", "earlier")
        self.mark(said.verdict, "picked")
        elapsed = round((time.monotonic() - self.shown_clock) * 1000)
        try:
            pair = self.app.seat.judge(
                self.pair.pair_id, said, self.pending[1], self.shown_at, elapsed
            )
        except CuratorError as error:
            call = f"judge({verdict!r}{f', {strength}' if strength else ''})"
            key = next(key for key, *_, action in KEYS if action == call)
            self.notice(f"not saved (press {key} to try again): {error}", failed=True)
            return
        header = self.query_one(HeaderBar)
        header.saved_at = datetime.now()
        if self.pair.round == header.round:
            header.judged += 1
        self.auto_allowed = self.app.auto_round
        self.notice(f"saved: {SAID[verdict, strength]}")
        self.show(pair)
        if header.judged == self.app.offer_after and self.app.run_watch is None:
            self.offer_round()

    def offer_round(self) -> None:
        """Say, once, that there is enough for a first round."""
        step = next_step(self.app.workspace, self.app.seat)
        if step.action == "round":
            count = self.query_one(HeaderBar).judged
            self.notice(f"{count} judged: enough for a first round. Press r, then enter; judge on.")

    def action_undo(self) -> None:
        """Take the last judgment back and show its pair again."""
        try:
            pair = self.app.seat.undo()
        except CuratorError as error:
            self.notice(f"not taken back: {error}", failed=True)
            return
        if pair is None:
            self.notice("nothing to take back.")
            return
        self.show(pair)
        self.refresh_progress()

    # --- rounds --------------------------------------------------------------------------------

    def action_next_step(self) -> None:
        """Do what the empty queue suggests."""
        if self.pair is None and self.step.action and self.app.run_watch is None:
            self.app.start_run(self.step.action)
            self.show_empty()

    def on_run_changed(self, message: RunChanged) -> None:
        """Follow the run; when it has ended, its pairs are in the queue."""
        self.show_run()
        if self.app.run_watch is not None:
            if self.pair is None:
                self.show_empty()
            return
        self.refresh_progress()
        run = message.ended
        if run is not None and run.error:
            self.notice(f"the {run.action} {run.state}: {run.error}", failed=True)
        elif run is not None:
            self.notice(self.app.tell(run))
        if self.pair is None:
            try:
                self.show(self.app.seat.next())
            except CuratorError as error:
                self.notice(str(error), failed=True)

    def action_rounds(self) -> None:
        """Open the rounds screen."""
        from curator.tui.rounds_screen import RoundsScreen

        self.app.push_screen(RoundsScreen())

    def action_help(self) -> None:
        """Show what the keys do."""
        from curator.tui.help_screen import HelpScreen

        self.app.push_screen(HelpScreen())

    def action_leave(self) -> None:
        """Leave the app; a run under way goes on."""
        self.app.exit()
