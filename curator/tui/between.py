"""What the judge screen says between judgments: an empty queue, a first round, a run, a pause."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from curator.errors import CuratorError
from curator.tui.messages import RunChanged
from curator.words import RunState

if TYPE_CHECKING:
    from curator.tui.judge_screen import JudgeScreen


def suggest_break(screen: JudgeScreen) -> None:
    """Say quietly that some time has passed."""
    minutes = screen.app.workspace.config.judge.break_minutes
    screen.aside(f"another {minutes} minutes: a pause does the next pairs good.")


def show_empty(screen: JudgeScreen) -> None:
    """Say what can be done now, and do it where that was asked for.

    Raises CuratorError when it cannot be read.
    """
    from curator.workflow import next_step

    screen.step = step = next_step(screen.app.workspace, screen.app.seat)
    key, running = screen.app.key_of, screen.app.run_watch is not None
    if running:
        lines = ["Nothing to judge just now: a run is under way.",
                 "Its pairs will show up here by themselves.", ""]  # fmt: skip
    else:
        lines = [step.text, "", *(["enter  do that now"] if step.action else [])]
    lines += [f"{key('undo')}  undo the last judgment", f"{key('history')}  your judgments",
              f"{key('rounds')}  rounds", f"{key('leave')}  leave"]  # fmt: skip
    text = Content.from_text("\n".join(lines), markup=False)
    screen.query_one("#empty-text", Static).update(text)
    if screen.auto_allowed and step.action and not running:
        screen.auto_allowed = False  # until the next judgment: a run that brings nothing is one
        screen.action_go_on()


def offer_round(screen: JudgeScreen) -> None:
    """Say, once, that there is enough for a first round; not while a run is under way."""
    app, judged = screen.app, screen.judged
    if app.run_watch is not None:
        # Who has started a round needs no offer.
        screen.offered = screen.offered or app.run_watch.action in ("train", "round")
        return
    if app.offer_after is None or screen.offered or judged < app.offer_after:
        return
    from curator.workflow import next_step

    step = None
    with contextlib.suppress(CuratorError):  # tried again after the next judgment
        screen.step = step = next_step(app.workspace, app.seat)
    if step is not None and step.action == "round":
        screen.offered = True
        key = app.key_of("rounds")
        screen.aside(
            f"{judged} judged: enough for a first round. Press {key}, then enter; judge on."
        )


def follow_run(screen: JudgeScreen, message: RunChanged) -> None:
    """Follow the run; when it has ended, its pairs are in the queue."""
    screen.show_run()
    if screen.app.run_watch is not None:
        if message.pairs:
            screen.refresh_progress()
        if screen.pair is None and message.pairs:
            screen.go_next()
        elif screen.pair is None:
            show_empty(screen)
        offer_round(screen)
        return
    screen.refresh_progress()
    run = message.ended
    if screen.pair is None:
        screen.go_next()
    if run is not None and run.error:
        from curator.terminal import end_text

        screen.aside(end_text(run), failed=run.state != RunState.CANCELLED)
        return
    if run is not None:
        screen.aside(screen.app.tell(run))
    offer_round(screen)
