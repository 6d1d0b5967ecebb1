"""The app: keys are pressed, then the database is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlmodel import select
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from curator import db, rounds, runs, workflow
from curator.judgments import Said
from curator.models import Judgment, Run, RunState, Verdict, new_uuid
from curator.safe_text import HIDDEN
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.tui.rounds_screen import RoundsScreen
from curator.tui.widgets import HeaderBar, Reply
from curator.workspace import Workspace
from tests.conftest import AddPairs, write_prompts

Script = Callable[[Pilot[None], CuratorApp], Awaitable[None]]
Fake = Callable[[str], None]


def play(
    workspace: Workspace, script: Script, size: tuple[int, int] = (120, 36), **options: Any
) -> None:
    """Run the real app headless and let `script` press keys."""

    async def run() -> None:
        app = CuratorApp(workspace, "anna", **options)
        async with app.run_test(size=size) as pilot:
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


def test_a_round_from_inside_while_judging_goes_on(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 10)
    fake_trainer("wait")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab", "r")
        assert isinstance(app.screen, RoundsScreen)
        assert "train on 8 preferences" in painted(app)
        await pilot.press("enter")
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        for part in ("loss   0.400", "margin   0.300", "accuracy   0.800"):
            assert part in painted(app)
        await pilot.press("escape")
        assert isinstance(app.screen, JudgeScreen)
        assert "step 3/3 · loss 0.40 · margin +0.30 · accuracy 80%" in painted(app)
        await pilot.press("t")
        assert len(rows(workspace)) == 9
        under_way = rounds.run_under_way(workspace)
        assert under_way is not None
        (under_way[1] / "go").touch()
        await until(pilot, lambda: app.run_watch is None)
        await pilot.pause()
        assert "the round is done" in painted(app)
        assert "round 2 · 0 of 10" in painted(app)
        await pilot.press("t")  # the pair that was on the screen, of round 1
        assert "round 2 · 0 of 10" in painted(app)
        assert "0002" in painted(app) or "0001-round" in painted(app)
        await pilot.press("a", "r")
        table = app.screen.query_one(DataTable)
        assert table.row_count == 2

    play(workspace, script)
    assert [str(row.verdict) for row in rows(workspace)][-3:] == ["tie", "tie", "left"]


@pytest.mark.parametrize("mode", ["killed", "failed"])
def test_a_trainer_that_dies_is_said_within_two_seconds(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake, mode: str
) -> None:
    add_pairs(workspace, 10)
    fake_trainer(mode)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab", "r", "enter", "escape")
        folder = rounds.run_under_way(workspace)
        assert folder is not None or mode  # it may be over already
        await until(pilot, lambda: not any(workspace.runs.glob("*")) or ended(workspace))
        await until(pilot, lambda: "failed" in painted(app), seconds=2)
        said = "killed by SIGKILL" if mode == "killed" else "the loss is nan"
        assert said in painted(app)
        assert app.run_watch is None

    play(workspace, script)


def ended(workspace: Workspace) -> bool:
    return not any(runs.alive(folder) for folder in workspace.runs.glob("*"))


def test_closing_the_app_does_not_end_the_run_and_reopening_adopts_it(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 10)
    fake_trainer("wait")

    async def start(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab", "r", "enter", "escape")
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        await pilot.press("q")

    play(workspace, start)
    under_way = rounds.run_under_way(workspace)
    assert under_way is not None and runs.alive(under_way[1])

    async def adopt(pilot: Pilot[None], app: CuratorApp) -> None:
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        assert "step 3/3" in painted(app)
        (under_way[1] / "go").touch()
        await until(pilot, lambda: app.run_watch is None)
        await pilot.pause()
        assert "round 2 · 0 of 10" in painted(app)

    play(workspace, adopt)
    with db.reading(workspace.engine) as session:
        assert [run.state for run in session.exec(select(Run))] == [RunState.FINISHED]


def test_a_run_that_ended_while_the_app_was_closed_is_settled_on_opening(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 10)
    seat = take_seat(workspace, "anna", "s")
    for _ in range(8):
        pair = seat.next()
        assert pair is not None
        seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    seat.leave()
    fake_trainer("ok")
    list(runs.follow(rounds.start_run(workspace, "round").folder))

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await until(pilot, lambda: "round 2 · 0 of 10" in painted(app))

    play(workspace, script)


def test_loop_starts_the_round_by_itself(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 8)
    fake_trainer("ok")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab")
        await until(pilot, lambda: "round 2 · 0 of 8" in painted(app))
        await pilot.press("a")
        assert "round 2 · 1 of 8" in painted(app)

    play(workspace, script, auto_round=True)


@pytest.mark.parametrize("mode", ["failed", "silent"])
def test_loop_does_not_start_again_what_failed(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake, mode: str
) -> None:
    add_pairs(workspace, 8)
    fake_trainer(mode)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab")
        await until(pilot, lambda: "the round failed" in painted(app), seconds=5)
        await pilot.pause(0.5)
        assert "enter  do that now" in painted(app)
        assert len(list(workspace.runs.iterdir())) == 1

    play(workspace, script, auto_round=True)


def test_a_loss_that_is_no_number_is_a_gap_in_the_curve(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    from trainer.contract import append_event

    add_pairs(workspace, 10)
    fake_trainer("wait")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab", "r", "enter", "escape")
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        under_way = rounds.run_under_way(workspace)
        assert under_way is not None
        append_event(under_way[1], "step", step=4, steps=4, loss=float("nan"))
        await until(pilot, lambda: "loss nan" in painted(app))
        await pilot.press("r")
        assert "loss     nan" in painted(app)
        (under_way[1] / "go").touch()
        await until(pilot, lambda: app.run_watch is None)

    play(workspace, script)


def test_stopping_a_run_keeps_the_adapter_in_use(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 10)
    fake_trainer("hang")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"abababab", "r", "enter")
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        await pilot.press("ctrl+x")
        await until(pilot, lambda: app.run_watch is None)

    play(workspace, script)
    with db.reading(workspace.engine) as session:
        (run,) = session.exec(select(Run)).all()
    assert run.state in (RunState.FAILED, RunState.CANCELLED)


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


def test_the_rounds_screen_offers_no_more_pairs_while_some_wait(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "r")
        assert "Next: judge the pairs that are here." in painted(app)
        await pilot.press("enter")  # starts nothing
        assert app.run_watch is None
        await pilot.press("escape", "a", "a", "r")
        assert "Next: the model writes more pairs." in painted(app)

    play(workspace, script)


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


def test_a_crash_shows_no_client_text(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs(workspace, 2)

    def broken(*_: object) -> None:
        client_text = "my secret"
        raise RuntimeError(client_text)

    async def run() -> CuratorApp:
        app = CuratorApp(workspace, "anna")
        with pytest.raises(RuntimeError):
            async with app.run_test() as pilot:
                monkeypatch.setattr(JudgeScreen, "show", broken)
                await pilot.press("a")
        return app

    app = asyncio.run(run())
    assert app.return_code == 1
    assert len(rows(workspace)) == 1
