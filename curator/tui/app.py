"""The app: one workspace, one annotator, and the run under way."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual import events, work
from textual.actions import SkipAction
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.driver import Driver
from textual.screen import Screen
from textual.worker import get_current_worker

from curator import glance
from curator.errors import CuratorError, where
from curator.people import known_as, people
from curator.run_watch import RunWatch
from curator.safe_text import one_line, visible
from curator.tui.judge_screen import JudgeScreen
from curator.tui.leaving import leave_on_signals
from curator.tui.messages import Drafts, PairsCame, RunChanged, RunEnded, RunEvent
from curator.tui.pasting import cleaned, gate
from curator.tui.themes import THEMES
from curator.verbs import with_keys
from curator.words import AnnotatorKind, Shown, new_uuid
from curator.workspace import DATABASE, Workspace, data_folder
from trainer.contract import Action

if TYPE_CHECKING:
    from curator.models import Run
    from curator.seat import Seat


class CuratorApp(App[None]):
    """Judging in a terminal."""

    CSS_PATH = "curator.tcss"
    TITLE = "curator"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "leave", show=False, priority=True),
        Binding("ctrl+c", "copy_or_quit", "leave", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", "suspend", show=False),
        Binding("f1", "guideline", "how to judge", show=False, priority=True),
    ]

    def __init__(
        self,
        workspace: Workspace,
        annotator: str,
        *,
        kind: AnnotatorKind = AnnotatorKind.HUMAN,
        auto_round: bool = False,
        offer_after: int | None = None,
        first_minutes: bool = False,
        greeting: str = "",
    ) -> None:
        """`offer_after`: welcome a newcomer, and offer the first round after so many judgments.

        `first_minutes`: ask a newcomer who they are and give them a practice pair.
        `greeting`: said at the foot of the judge screen until there is something else to say.
        """
        super().__init__()
        for theme in THEMES.values():
            self.register_theme(theme)
        self.theme = THEMES[workspace.config.judge.theme].name
        self.workspace = workspace
        self.verbs = with_keys(workspace.config.keys)
        self.first_minutes = first_minutes
        self.greeting = greeting
        self.auto_round = auto_round
        self.offer_after = offer_after
        self.annotator_name = annotator
        self.kind = kind
        # The database layer takes longer to load than all else: where the first pair is known
        # without it, that is painted first, and the seat taken behind it.
        self.glanced: Shown | None = glance.first_pair(workspace.path / DATABASE, annotator, kind)
        if self.glanced is None:
            self.annotator_name = self.seat.annotator.name
        self.run_watch: RunWatch | None = None

    def get_driver_class(self) -> type[Driver]:
        """Return what this system's terminal is read by; no key is found in a paste."""
        return gate(super().get_driver_class())

    async def on_event(self, event: events.Event) -> None:
        """Clean a paste before any field has it, the palette's too; then as Textual does."""
        if isinstance(event, events.Paste):
            event.text = cleaned(event.text)
        await super().on_event(event)

    @cached_property
    def seat(self) -> Seat:
        """The annotator's seat, taken on first use. Raises CuratorError when it cannot be."""
        from curator.seat import take_seat

        return take_seat(self.workspace, self.annotator_name, new_uuid(), self.kind)

    def on_mount(self) -> None:
        if not self.is_headless:
            leave_on_signals(lambda status: self.exit(return_code=status))
        self.set_keymap({verb.name: verb.key for verb in self.verbs})
        if self.glanced is None:
            self.look_for_run()
        self.push_screen(JudgeScreen())
        if self.offer_after is not None:
            from curator.tui.welcome_screen import WelcomeScreen

            self.push_screen(WelcomeScreen(self.offer_after, self.key_of))
        elif self.first_minutes and self.glanced is None and self.seat.is_new():
            from curator.tui.first_screen import FirstScreen

            self.push_screen(FirstScreen(), self.begin)

    def look_for_run(self) -> None:
        """Settle what ended while nobody looked, and follow the run under way."""
        from curator import rounds

        try:
            rounds.settle(self.workspace)
            self.adopt_run()
        except CuratorError as error:  # judging may still work
            self.complain(error)

    def begin(self, who: tuple[str, str, str] | None) -> None:
        """Take a newcomer's name, role and orientation, then let them try the keys."""
        from curator.tui.first_screen import PracticeScreen

        if who is not None:
            name, role, orientation = who
            try:
                if name and name != self.seat.annotator.name:
                    self.change_name(name)
                self.seat.describe(role, orientation)
            except CuratorError as error:
                self.complain(error)
        self.push_screen(PracticeScreen())

    def change_name(self, name: str) -> None:
        """Have the seat under another name: a new one, or that of an annotator known already.

        Whatever the case of its letters, which is said. Nobody stays behind under the name the
        app was opened with, where nothing was judged.
        """
        before = self.seat
        own = before.annotator.name
        known = known_as(name, people(self.workspace.path / DATABASE))
        if known not in (None, name, own):
            said = f"{name} is taken to be {known}, who is known here."
            self.notify(visible(said), timeout=10, markup=False)
            name = known
        if not before.rename(name):
            if known == own:
                return
            self.annotator_name = name
            del self.seat
            try:
                _ = self.seat
            except CuratorError:
                self.seat, self.annotator_name = before, before.annotator.name
                raise
            before.withdraw()
        self.annotator_name = self.seat.annotator.name
        for screen in self.screen_stack:
            if isinstance(screen, JudgeScreen):
                screen.show_who()
                if self.seat is not before:
                    screen.go_next()

    # --- what all screens share ------------------------------------------------------------------

    def key_of(self, name: str) -> str:
        """Return the key a verb is on."""
        return next(verb.key for verb in self.verbs if verb.name == name)

    def family(self, name: str | None) -> str | None:
        """Return a prompt's family as people read it."""
        if name is None:
            return None
        return f"{one_line(name, 24)}: {self.families[name]}" if name in self.families else name

    @cached_property
    def families(self) -> dict[str, str]:
        """The scenario families that come with curator, by id."""
        return dict(json.loads((data_folder() / "families.json").read_text(encoding="utf-8")))

    def action_guideline(self) -> None:
        """Show how to judge, over any screen."""
        from curator.tui.help_screen import GuidelineScreen

        if isinstance(self.screen, GuidelineScreen):
            return
        try:
            self.push_screen(GuidelineScreen(self.workspace.guideline))
        except CuratorError as error:
            self.complain(error)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Yield every verb by name, the themes, and leaving.

        Textual's own screenshot command is left out: it would write client texts to a file.
        """
        if isinstance(screen, JudgeScreen):
            for verb in self.verbs:
                yield SystemCommand(
                    verb.says, f"key {verb.key}", partial(screen.action_verb, verb.name)
                )
        for name, theme in THEMES.items():
            yield SystemCommand(
                f"{name} theme", "for this sitting; judge.theme in curator.toml keeps it",
                partial(setattr, self, "theme", theme.name),
            )  # fmt: skip
        yield SystemCommand("how to judge", "key f1", self.action_guideline)
        yield SystemCommand("leave curator", "everything judged is kept", self.action_quit)

    # --- leaving ---------------------------------------------------------------------------------

    def action_copy_or_quit(self) -> None:
        """Copy, where something is being written; anywhere else leave."""
        copy = getattr(self.focused, "action_copy", None)
        if copy is None:
            self.exit()
            return
        try:
            copy()
        except SkipAction:  # nothing is selected
            self.notify("ctrl+c copies what is selected; ctrl+q leaves curator.", markup=False)

    def exit(
        self, result: None = None, return_code: int = 0, message: RenderableType | None = None
    ) -> None:
        """Leave, whichever way was taken; what is being written stays as a draft."""
        try:
            for screen in self.screen_stack:
                with contextlib.suppress(NoMatches):  # not composed yet, or closed already
                    if isinstance(screen, Drafts) and not screen.draft():
                        message = Text("curator: the last words being written could not be kept.")
        finally:
            super().exit(result, return_code, message)

    def on_unmount(self) -> None:
        if "seat" in self.__dict__:
            self.seat.leave()

    # --- the run under way ---------------------------------------------------------------------

    def adopt_run(self) -> None:
        """Follow the run under way, whoever started it."""
        from curator import rounds

        under_way = rounds.run_under_way(self.workspace)
        if under_way is not None:
            run, folder = under_way
            self.run_watch = RunWatch(run.action)
            self.follow_run(folder)

    def start_run(self, action: Action) -> None:
        """Start a run and follow it; judging goes on."""
        from curator import rounds

        # For the trainer, which inherits it: torch's threads spin while they wait unless told not
        # to, which is 15 to 30 % faster on an idle machine, and makes both slow beside this app.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            rounds.start_run(
                self.workspace, action, kinds=(AnnotatorKind(self.seat.annotator.kind),)
            )
        except CuratorError as error:
            self.complain(error)
            return
        self.adopt_run()
        self.screen.post_message(RunChanged())

    @work(thread=True, exit_on_error=False, group="stop")
    def stop_run(self) -> None:
        """Stop the run under way; settling it is left to whoever follows it."""
        from curator import rounds, runs

        under_way = rounds.run_under_way(self.workspace)
        if under_way is not None:
            runs.stop(under_way[1], under_way[0].pid)

    @work(thread=True, exclusive=True, exit_on_error=False, group="follow")
    def follow_run(self, folder: Path) -> None:
        """Post the run's events, and its end once it is settled."""
        from curator import rounds, runs

        worker = get_current_worker()
        for event in runs.follow(folder, lambda: worker.is_cancelled):
            if worker.is_cancelled:
                return
            self.post_message(RunEvent(event))
            if event["event"] == "progress" and event.get("phase") == "generate":
                self.take_in_so_far()
        if worker.is_cancelled:
            return
        try:
            settled = rounds.settle(self.workspace)
        except CuratorError as error:
            settled = []
            self.call_from_thread(self.complain, error)
        self.post_message(RunEnded(settled[0] if settled else None))

    def take_in_so_far(self) -> None:
        """Have the pairs that are written already come next; called in the following thread."""
        from curator import rounds

        try:
            made = rounds.take_in_so_far(self.workspace)
        except CuratorError:
            return  # busy: with the next replies, or at the end
        if made:
            self.post_message(PairsCame())

    def on_pairs_came(self, message: PairsCame) -> None:
        """Pairs are in the queue while the run goes on."""
        for screen in self.screen_stack:
            screen.post_message(RunChanged(pairs=True))

    def on_run_event(self, message: RunEvent) -> None:
        """Note what the trainer said and let every open screen show it."""
        if self.run_watch is not None:
            self.run_watch.take(message.event)
            for screen in self.screen_stack:
                screen.post_message(RunChanged())

    def on_run_ended(self, message: RunEnded) -> None:
        """The run is over; its results are in the database."""
        self.run_watch = None
        for screen in self.screen_stack:
            screen.post_message(RunChanged(message.run))

    def tell(self, run: Run) -> str:
        """Return what a finished run brought, in one line."""
        from curator.terminal import accuracy_text, adapter_text, fit_text, n_text, pairs_text

        metrics = run.metrics or {}
        parts = [f"the {run.action} is done"]
        held_out = metrics.get("held_out", {})
        if "rewards/accuracies" in held_out:
            kinds = metrics.get("evaluation", {}).get("kinds")
            parts.append(f"held-out accuracy {accuracy_text(held_out)}, {n_text(held_out, kinds)}")
        elif held_out.get("note"):
            parts.append(str(held_out["note"]).rstrip("."))
        if fit_text(metrics.get("preferences", {})):
            parts.append(fit_text(metrics["preferences"]).rstrip("."))
        if metrics.get("adapter", {}).get("status") in ("proposed", "refused"):
            parts.append(adapter_text(metrics))
        elif "candidates" in metrics:
            made = metrics.get("pairs", {}).get("made")
            parts.append("new pairs come next" if made else pairs_text(metrics))
        return "; ".join(parts) + "."

    def complain(self, error: CuratorError) -> None:
        """Say a failure in a corner, made visible."""
        self.notify(visible(str(error)), severity="error", markup=False)

    # --- the edge ------------------------------------------------------------------------------

    def _fatal_error(self) -> None:
        """Say where a crash happened, without the texts that were on the screen.

        Textual's own report prints local variables: a client's words in the scrollback.
        """
        error = sys.exc_info()[1] or self._exception
        what = f"{type(error).__name__} in {where(error)}"
        text = f"curator stopped: {what}. Every saved judgment is kept."
        self._exit_renderables.append(Text(text))
        self._close_messages_no_wait()
