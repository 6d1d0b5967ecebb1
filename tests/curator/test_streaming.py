"""Pairs can be judged while their run still writes others; what was judged outlasts its end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import select

from curator import db, rounds, store, workflow
from curator.adapters import accept, refuse
from curator.judgments import Said
from curator.models import Adapter, Candidate, Pair, Prompt, Round, Run, RunState, Verdict, new_uuid
from curator.preferences import preferences
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.workspace import Workspace
from tests.conftest import write_prompts
from tests.curator.test_app import painted
from tests.curator.test_runs import judge_all, wait

Fake = Callable[[str], None]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake trainer kills itself")


@pytest.fixture
def prompted(workspace: Workspace, tmp_path: Path) -> Workspace:
    workflow.import_prompts(workspace, write_prompts(tmp_path / "p.jsonl", 10))
    return workspace


def so_far(workspace: Workspace) -> int:
    """Wait until the run under way has written something, and take it in."""
    deadline = time.monotonic() + 20
    while not (made := rounds.take_in_so_far(workspace)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return made


def counted(workspace: Workspace) -> tuple[int, int, int]:
    with db.reading(workspace.engine) as session:
        asked = sum(prompt.asked for prompt in session.exec(select(Prompt)).all())
        return (
            len(session.exec(select(Pair)).all()), len(session.exec(select(Candidate)).all()), asked
        )  # fmt: skip


def test_the_first_pairs_are_judged_before_the_last_is_written(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("stream")
    started = rounds.start_run(prompted, "generate", prompts=8)
    assert so_far(prompted) == 4  # the fifth has one reply of two; of the sixth half a line
    assert rounds.take_in_so_far(prompted) == 0
    assert counted(prompted) == (4, 8, 4)
    seat = take_seat(prompted, "anna", new_uuid())
    shown = seat.next()
    assert shown is not None
    seat.judge(shown.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    assert rounds.run_under_way(prompted) is not None
    (started.folder / "go").touch()
    run = wait(prompted, started.folder)
    assert run.state is RunState.FINISHED and counted(prompted) == (8, 16, 8)
    assert (run.metrics or {})["pairs"] == {"strategy": "contrast", "made": 8, "left_out": {}}
    with db.reading(prompted.engine) as session:
        assert session.exec(select(Round)).one().pairs == 8
        assert len(preferences(session)[0]) == 1


def test_replies_too_long_to_keep_are_counted_once_whenever_they_came(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("stream-long")
    started = rounds.start_run(prompted, "generate", prompts=8)
    assert so_far(prompted) == 2
    (started.folder / "go").touch()
    run = wait(prompted, started.folder)
    pairs = (run.metrics or {})["pairs"]
    assert pairs["made"] == 5 and pairs["left_out"] == {"too long": 4, "not answered": 3}


def test_what_was_judged_outlasts_a_run_that_is_killed(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("stream")
    started = rounds.start_run(prompted, "generate", prompts=8)
    so_far(prompted)
    judge_all(prompted)
    (started.folder / "die").touch()
    run = wait(prompted, started.folder)
    assert run.state is RunState.FAILED and (run.metrics or {})["pairs"]["made"] == 4
    assert counted(prompted) == (4, 8, 4)
    with db.reading(prompted.engine) as session:
        assert len(preferences(session)[0]) == 4
    assert workflow.broken_judgments(prompted) == []
    fake_trainer("ok")
    wait(prompted, rounds.start_run(prompted, "generate", prompts=6).folder)
    assert counted(prompted) == (10, 20, 10)  # prompts not asked yet came first


def test_a_rounds_pairs_come_only_once_its_adapter_is_in_use(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("ok")
    wait(prompted, rounds.start_run(prompted, "generate").folder)
    judge_all(prompted)
    fake_trainer("stream")
    started = rounds.start_run(prompted, "round", prompts=4)
    assert so_far(prompted) == 2
    with db.reading(prompted.engine) as session:
        current = store.current_adapter(session)
        newest = store.newest_round(session)
    assert current is not None and newest is not None and newest.adapter_id == current.id
    judge_all(prompted)
    (started.folder / "die").touch()
    # The adapter was whole, measured and passed: it stays in use, and so do the judged pairs.
    run = wait(prompted, started.folder)
    assert run.state is RunState.FAILED and run.adapter_id == current.id
    with db.reading(prompted.engine) as session:
        assert len(session.exec(select(Adapter)).all()) == 1
        assert store.current_adapter(session) == current

    fake_trainer("stream-collusive")
    started = rounds.start_run(prompted, "round", prompts=4)
    while not (started.folder / "candidates.jsonl").exists():
        time.sleep(0.02)
    before = counted(prompted)
    time.sleep(0.3)
    assert rounds.take_in_so_far(prompted) == 0 and counted(prompted) == before
    (started.folder / "go").touch()
    run = wait(prompted, started.folder)
    assert (run.metrics or {})["adapter"]["status"] == "refused"
    assert (run.metrics or {})["pairs"]["held_back"] and counted(prompted)[0] == before[0]


def test_refusing_an_adapter_under_way_keeps_the_rest_back_and_accepting_opens_it(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("ok")
    wait(prompted, rounds.start_run(prompted, "generate").folder)
    judge_all(prompted)
    fake_trainer("stream")
    started = rounds.start_run(prompted, "round", prompts=4)
    assert so_far(prompted) == 2
    with db.reading(prompted.engine) as session:
        current = store.current_adapter(session)
    assert current is not None
    refuse(prompted, current.name, None)
    (started.folder / "go").touch()
    run = wait(prompted, started.folder)
    assert run.state is RunState.FINISHED and (run.metrics or {})["pairs"]["made"] == 2
    assert accept(prompted, current.name).pairs == 2
    with db.reading(prompted.engine) as session:
        pairs = session.exec(select(Pair)).all()
    assert len({pair.prompt_id for pair in pairs if pair.round_id == pairs[-1].round_id}) == 4


def test_what_was_left_out_before_a_refusal_is_counted_once(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("ok")
    wait(prompted, rounds.start_run(prompted, "generate").folder)
    judge_all(prompted)
    fake_trainer("stream-long")
    started = rounds.start_run(prompted, "round", prompts=4)
    so_far(prompted)
    with db.reading(prompted.engine) as session:
        current, newest = store.current_adapter(session), store.newest_round(session)
    assert current is not None and newest is not None and newest.adapter_id == current.id
    before = newest.left_out
    assert sum(before.values()) > 0, "nothing was left out before the refusal"
    refuse(prompted, current.name, None)
    (started.folder / "go").touch()
    run = wait(prompted, started.folder)
    assert (run.metrics or {})["pairs"]["held_back"]
    accept(prompted, current.name)
    with db.reading(prompted.engine) as session:
        turn, told = session.get_one(Round, newest.id), session.get_one(Run, run.id).metrics
    assert turn.left_out == told["pairs"]["left_out"]
    assert sum(turn.left_out.values()) == sum(before.values()) + 1  # the last prompt's long reply
    assert turn.pairs == told["pairs"]["made"]


def test_the_app_shows_the_first_pairs_while_the_run_goes_on(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("stream")

    async def sit() -> None:
        app = CuratorApp(prompted, "anna")
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.press("enter")
            deadline = time.monotonic() + 20
            while "round 1 · 0 of" not in painted(app):
                assert time.monotonic() < deadline, painted(app)
                await pilot.pause(0.05)
            await pilot.press("a")
            assert app.run_watch is not None and "round 1 · 1 of" in painted(app)
            await pilot.press("q")

    asyncio.run(sit())
    under_way = rounds.run_under_way(prompted)
    assert under_way is not None
    (under_way[1] / "go").touch()
    assert wait(prompted, under_way[1]).state is RunState.FINISHED
