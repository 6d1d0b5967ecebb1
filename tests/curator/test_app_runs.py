"""A run from inside the app: started, followed, adopted, stopped, while judging goes on."""

from __future__ import annotations

import re

import pytest
from sqlmodel import select
from textual.pilot import Pilot
from textual.widgets import DataTable

from curator import db, rounds, runs, terminal, workflow
from curator.judgments import Said
from curator.models import Run, RunState, Verdict, new_uuid
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.tui.rounds_screen import RoundsScreen
from curator.workspace import Workspace
from tests.conftest import AddPairs
from tests.curator.test_app import Fake, painted, play, rows, until


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


@pytest.mark.parametrize(("picks", "name"), [("abababab", "round"), ("abx", "generation")])
def test_a_run_that_was_stopped_is_said_and_is_no_failure(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake, picks: str, name: str
) -> None:
    add_pairs(workspace, len(picks))
    fake_trainer("stops")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*picks, "r", "enter")
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        await pilot.press("ctrl+x")
        await until(pilot, lambda: app.run_watch is None)
        await pilot.press("escape")
        await until(pilot, lambda: f"the {name} was stopped." in painted(app))
        assert not app.screen.query_one("#foot").has_class("failed")

    play(workspace, script)


def test_the_rounds_screen_offers_no_more_pairs_while_some_wait(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "r")
        assert "Next: judge the pairs that are here." in painted(app)
        await pilot.press("enter", "ctrl+x")  # starts and stops nothing, and says so
        assert app.run_watch is None
        assert "there is nothing to start now." in painted(app)
        assert "no run is under way." in painted(app)
        await pilot.press("escape", "a", "a", "r")
        assert "Next: the model writes more pairs." in painted(app)

    play(workspace, script, notifications=True)


def test_the_rounds_screen_counts_a_pair_once(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    for name in ("ben", "cleo"):
        seat = take_seat(workspace, name, new_uuid())
        pair = seat.open(1)
        assert pair is not None
        seat.judge(pair.pair_id, Said(Verdict.TIE), new_uuid())
        seat.leave()

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "r")
        lines = painted(app).splitlines()
        (row,) = (n for n, line in enumerate(lines) if re.match(r" +1 +base +2\b", line))
        assert "of 3" in lines[row + 1]

    play(workspace, script, size=(80, 24))
    (found,) = workflow.status(workspace)["rounds"]
    assert found["judged"] == 2 and found["judgments"]["human"] == {"left": 1, "tie": 2}
    assert "1 A, 2 tie" in terminal.status_text(workflow.status(workspace))


OFFER = "enough for a first round. Press r, then enter"


def test_a_first_round_is_offered_once_there_is_enough_and_never_again(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 20)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("enter", *"abttab")  # six judged, and four of them to train on
        assert len(rows(workspace)) == 6 and OFFER not in painted(app)
        await pilot.press(*"aba")
        assert OFFER not in painted(app)
        await pilot.press("b")
        assert f"10 judged: {OFFER}" in painted(app)
        await pilot.press("a")
        assert OFFER not in painted(app) and "saved: A better" in painted(app)

    play(workspace, script, offer_after=6)


def test_a_first_round_is_offered_when_the_run_that_was_under_way_has_ended(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 20)
    fake_trainer("wait")
    folder = rounds.start_run(workspace, "generate").folder

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("enter", *"ababababa")
        assert app.run_watch is not None and OFFER not in painted(app)
        (folder / "go").touch()
        await until(pilot, lambda: OFFER in painted(app))
        await pilot.press("a", "r", "enter")  # a round is under way: nothing more is offered
        await until(pilot, lambda: app.run_watch is not None and app.run_watch.step == 3)
        assert isinstance(app.screen_stack[1], JudgeScreen) and app.screen_stack[1].offered
        under_way = rounds.run_under_way(workspace)
        assert under_way is not None
        (under_way[1] / "go").touch()
        await until(pilot, lambda: app.run_watch is None)

    play(workspace, script, offer_after=8)
