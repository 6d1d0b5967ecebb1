"""The app: keys are pressed, then the database is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from sqlmodel import select
from textual.pilot import Pilot
from textual.widgets import Static

from curator import db, workflow
from curator.models import Judgment, Run, RunState
from curator.safe_text import HIDDEN
from curator.seat import Seat
from curator.tui.app import CuratorApp
from curator.tui.between import suggest_break
from curator.tui.judge_screen import JudgeScreen
from curator.tui.messages import RunEnded
from curator.tui.widgets import HeaderBar, Reply
from curator.words import Progress
from curator.workspace import Workspace
from tests.conftest import AddPairs, write_prompts

Script = Callable[[Pilot[None], CuratorApp], Awaitable[None]]
Fake = Callable[[str], None]


def play(
    workspace: Workspace,
    script: Script,
    size: tuple[int, int] = (120, 36),
    notifications: bool = False,
    **options: Any,
) -> None:
    """Run the real app headless and let `script` press keys; corner notes only where asked for."""

    async def run() -> None:
        app = CuratorApp(workspace, "anna", **options)
        async with app.run_test(size=size, notifications=notifications) as pilot:
            await pilot.pause()
            await script(pilot, app)
            await pilot.pause()

    asyncio.run(run())


def rows(workspace: Workspace) -> list[Judgment]:
    with db.reading(workspace.engine) as session:
        return list(session.exec(select(Judgment).order_by("id")).all())


def painted(app: CuratorApp) -> str:
    """Return what is on the screen, as text."""
    return "\n".join(
        "".join(segment.text for segment in line) for line in app.screen._compositor.render_strips()
    )


async def until(pilot: Pilot[None], condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, painted(pilot.app)  # type: ignore[arg-type]
        await pilot.pause(0.05)


@pytest.mark.parametrize(
    ("key", "verdict", "strength"),
    [("a", "left", 1), ("A", "left", 2), ("b", "right", 1), ("B", "right", 2),
     ("t", "tie", None), ("x", "both_bad", None), ("s", "skip", None)],
)  # fmt: skip
def test_each_key_is_one_judgment(
    workspace: Workspace, add_pairs: AddPairs, key: str, verdict: str, strength: int | None
) -> None:
    ids = add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "0 of 2" in painted(app)
        await pilot.press(key)
        assert "saved" in painted(app)
        assert "1 of 2" in painted(app)

    play(workspace, script)
    (row,) = rows(workspace)
    assert (row.pair_id, row.verdict, row.strength) == (ids[0], verdict, strength)
    assert row.elapsed_ms is not None and row.shown_at is not None and row.sitting is not None


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (200, 50)])
def test_the_screen_shows_words_cue_question_and_both_replies(
    workspace: Workspace, add_pairs: AddPairs, size: tuple[int, int]
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        text = painted(app)
        for part in ("Round 1, message 0.", "about: feeling watched", "risk cue: none",
                     "Which reply would you rather", "What would help?", "they are after you",
                     "A clearly" if size[0] > 80 else "A", "both bad"):  # fmt: skip
            assert part in text
        left, right = app.screen.query_one("#left", Reply), app.screen.query_one("#right", Reply)
        assert left.size == right.size
        side_by_side = left.region.y == right.region.y
        assert side_by_side is (size[0] >= 100)

    play(workspace, script, size)


def test_undo_brings_the_pair_back_with_the_earlier_pick(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    ids = add_pairs(workspace, 3)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "B", "u")
        assert "was: B clearly better" in painted(app)
        assert app.screen.query_one("#right").has_class("earlier")
        assert app.screen.query_one(HeaderBar).judged == 1
        await pilot.press("t", "u", "u", "x")

    play(workspace, script)
    said = [(row.pair_id, str(row.verdict)) for row in rows(workspace)]
    assert said == [
        (ids[0], "left"), (ids[1], "right"), (ids[1], "retracted"), (ids[1], "tie"),
        (ids[1], "retracted"), (ids[0], "retracted"), (ids[0], "both_bad"),
    ]  # fmt: skip


def test_a_full_disk_keeps_the_answer_on_the_screen(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 60)

    def limit(pages: int) -> None:
        with workspace.engine.connect() as connection:  # the one connection the app uses too
            used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={used + pages}")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        limit(2)
        while "not saved" not in painted(app):
            text = painted(app)
            await pilot.press("B")
        before = len(rows(workspace))
        assert "not saved (press B to try again): the disk is full" in painted(app)
        assert app.screen.query_one("#right").has_class("picked")
        (message,) = [line for line in text.splitlines() if "message" in line]
        assert message in painted(app)
        await pilot.press("B")
        assert len(rows(workspace)) == before and "not saved" in painted(app)
        limit(1000)
        await pilot.press("B")
        assert len(rows(workspace)) == before + 1 and "saved: B clearly" in painted(app)

    play(workspace, script)


HOSTILE = (
    "I feel [/sad] [@click=app.quit]x[/] \x1b]52;c;eA==\x07 \x9b2J \u202e\u200b {i} today "
    + "w" * 300
)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
def test_hostile_text_is_shown_inert(
    workspace: Workspace, add_pairs: AddPairs, size: tuple[int, int]
) -> None:
    messages = [{"role": "user", "content": HOSTILE}]
    add_pairs(workspace, 1, good=HOSTILE, bad=HOSTILE + "other", messages=messages)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        text = painted(app)
        assert not HIDDEN.search(text.replace("\n", ""))
        assert "[/sad]" in text and "␛]52" in text and "hidden characters" in text
        await pilot.press("a")

    play(workspace, script, size)
    assert len(rows(workspace)) == 1


def test_an_empty_queue_says_what_to_do(workspace: Workspace, tmp_path: Any) -> None:
    async def no_prompts(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "curator import prompts FILE" in painted(app)
        await pilot.press("a", "u", "enter")
        assert "nothing to take back" in painted(app)

    play(workspace, no_prompts)
    workflow.import_prompts(workspace, write_prompts(tmp_path / "p.jsonl", 10))

    async def no_pairs(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "the model writes the first pairs (10 prompts)" in painted(app)

    play(workspace, no_pairs)
    assert rows(workspace) == []


@pytest.mark.parametrize("size", [(59, 24), (80, 15), (20, 5), (1, 1)])
def test_too_small_a_terminal_asks_for_room(
    workspace: Workspace, add_pairs: AddPairs, size: tuple[int, int]
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert app.screen.query_one("#too-small", Static).display
        assert not app.screen.query_one("#work").display
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        assert "What would help?" in painted(app)

    play(workspace, script, size)


def test_help_says_the_keys(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("question_mark")
        assert "take the last judgment back" in painted(app)
        await pilot.press("escape", "i")
        assert "do not ratify the conclusion" in painted(app)
        await pilot.press("escape", "a")

    play(workspace, script)
    assert len(rows(workspace)) == 1


def test_enter_does_nothing_where_nothing_is_shown(
    workspace: Workspace, tmp_path: Any, fake_trainer: Fake
) -> None:
    workflow.import_prompts(workspace, write_prompts(tmp_path / "p.jsonl", 10))
    fake_trainer("ok")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("enter", "a", "u")
        assert "needs a little more room" in painted(app)
        assert app.run_watch is None and not any(workspace.runs.glob("*"))

    play(workspace, script, (59, 15))


def test_what_nobody_asked_for_never_hides_that_a_pick_is_not_saved(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 60)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        with workspace.engine.connect() as connection:  # the one connection the app uses too
            used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={used + 2}")
        while "not saved" not in painted(app):
            await pilot.press("B")
        assert isinstance(app.screen, JudgeScreen)
        suggest_break(app.screen)
        ended = Run(action="round", folder="x", state=RunState.FAILED, error="the loss is nan.")
        app.post_message(RunEnded(ended))
        await until(pilot, lambda: "the loss is nan" in painted(app))
        assert "not saved (press B to try again)" in painted(app)
        assert "a pause does the next" in painted(app)

    play(workspace, script, notifications=True)


FAILURE = (
    "the generation failed: google/gemma-3-4b-it is neither a folder nor a model in this machine's "
    "cache, and nothing is downloaded by itself. Fetch it once (curator models pull "
    "google/gemma-3-4b-it), or name a folder."
)


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (200, 50)])
@pytest.mark.parametrize(
    "failure", [FAILURE, f"not saved: /{'long' * 400}/x is in use. Try again."]
)
def test_a_failure_is_said_with_what_happened_and_what_next(
    workspace: Workspace, add_pairs: AddPairs, size: tuple[int, int], failure: str
) -> None:
    add_pairs(workspace, 3)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        screen = app.screen
        assert isinstance(screen, JudgeScreen)
        replies, foot = screen.query_one("#replies"), screen.query_one("#foot")
        room = replies.region
        screen.notice("a quiet word " * 40)
        await pilot.pause()
        assert (replies.region, foot.size.height) == (room, 1) and "…" in painted(app)
        screen.notice(failure, failed=True)
        await pilot.pause()
        text = " ".join(painted(app).split())
        assert failure[:9] in text and failure[-20:] in text and foot.size.height <= 5
        if failure == FAILURE:
            assert "message 0." in text and "What would help?" in text
        await pilot.press("f")
        text = " ".join(painted(app).split())
        assert "⚑ flagged" in text and failure[-20:] in text
        await pilot.resize_terminal(size[0] + 20, size[1])
        await pilot.resize_terminal(*size)
        await pilot.pause()
        assert failure[-20:] in " ".join(painted(app).split())
        await pilot.press("a")
        await pilot.pause()
        assert (replies.region, foot.size.height) == (room, 1) and "saved" in painted(app)

    play(workspace, script, size)


def test_no_key_waits_for_counting(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting grows with the judgments: it comes when the next pair is painted."""
    add_pairs(workspace, 3)
    shown: int | None = None
    counted_with: list[int | None] = []
    progress = Seat.progress

    def displayed(app: CuratorApp) -> None:
        nonlocal shown
        shown = pair_shown(app)

    def counted(seat: Seat) -> Progress:
        counted_with.append(shown)
        return progress(seat)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "[")
        monkeypatch.setattr(CuratorApp, "post_display_hook", displayed)
        monkeypatch.setattr(Seat, "progress", counted)
        for key, said in (("b", "1 of 3"), ("u", "0 of 3")):
            counted_with.clear()
            await pilot.press(key)
            await until(pilot, lambda: len(counted_with) == 1)
            assert counted_with == [pair_shown(app)]
            await until(pilot, partial(is_painted, app, said))

    play(workspace, script)


def pair_shown(app: CuratorApp) -> int | None:
    assert isinstance(app.screen, JudgeScreen)
    return app.screen.pair.pair_id if app.screen.pair else None


def is_painted(app: CuratorApp, text: str) -> bool:
    return text in painted(app)
