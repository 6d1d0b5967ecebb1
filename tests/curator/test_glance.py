"""The first pair as painted before the database layer is loaded: the seat's own, or none."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from textual.pilot import Pilot

from curator.glance import first_pair
from curator.models import Verdict, new_uuid
from curator.seat import Seat, take_seat
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import DEAF_SECONDS
from curator.words import Said, Shown
from curator.workspace import DATABASE, Workspace, create_workspace
from tests.conftest import AddPairs
from tests.curator.test_app import painted, play, rows

VERDICTS = (Verdict.TIE, Verdict.BOTH_BAD, Verdict.SKIP)


def glance(place: Workspace, name: str = "anna") -> Shown | None:
    return first_pair(place.path / DATABASE, name)


def judge_one(place: Workspace, name: str = "anna") -> None:
    seat = take_seat(place, name, new_uuid())
    pair = seat.next()
    assert pair is not None
    seat.judge(pair.pair_id, Said(Verdict.TIE), new_uuid(), advance=False)
    seat.leave()


def do_something(seat: Seat, draw: random.Random) -> None:
    """Do one of the things that decide which pair comes next."""
    pair = seat.next()
    what = draw.choice(("judge",) * 6 + ("undo", "beside"))
    if what == "undo":
        seat.undo()
    elif pair is not None and what == "judge":
        seat.judge(pair.pair_id, Said(draw.choice(VERDICTS)), new_uuid(), advance=False)
    elif pair is not None:
        seat.beside(pair.pair_id, 1)


@pytest.mark.parametrize("seed", (0, 3))
def test_it_is_the_pair_the_seat_hands_out_or_none(
    tmp_path: Path, add_pairs: AddPairs, seed: int
) -> None:
    settings = f"[judge]\nrepeat_share = 1.0\ncalibration = {4 * (seed % 2)}\n"
    place = create_workspace(tmp_path / "study", settings=settings)
    add_pairs(place, 40)
    add_pairs(place, 4, number=2)
    draw, certain = random.Random(seed), Counter[str]()
    for _ in range(300):  # when a repeat is due is drawn: until one was and enough was seen
        if certain.total() >= 50 and certain["repeat 1"] and certain["train 2"]:
            break
        name = draw.choice(("anna", "anna", "ben"))
        seat = take_seat(place, name, new_uuid())
        do_something(seat, draw)
        seat.leave()
        seen = glance(place)
        seat = take_seat(place, "anna", new_uuid())
        handed_out = seat.next()
        seat.leave()
        if seen is not None:
            assert seen == handed_out
            certain[f"{seen.purpose} {seen.round}"] += 1
    assert certain.total() >= 50 and certain["repeat 1"] and certain["train 2"], certain


def test_calibration_pairs_come_first(tmp_path: Path, add_pairs: AddPairs) -> None:
    settings = "[judge]\nrepeat_share = 0.0\ncalibration = 3\n"
    place = create_workspace(tmp_path / "study", settings=settings)
    add_pairs(place, 6)
    judge_one(place, "ben")
    judge_one(place)
    seen = glance(place)
    seat = take_seat(place, "anna", new_uuid())
    assert seen is not None and seen.purpose == "calibration" and seen == seat.next()
    seat.leave()


def test_none_where_it_cannot_be_known(workspace: Workspace, add_pairs: AddPairs) -> None:
    assert glance(workspace) is None
    add_pairs(workspace, 3)
    assert glance(workspace) is None  # who never judged may be given other pairs first
    judge_one(workspace)
    assert glance(workspace) is not None
    assert glance(workspace, "ben") is None and glance(workspace, "b\udcff") is None
    seat = take_seat(workspace, "ben", new_uuid())
    seat.next()
    assert glance(workspace) is None  # on another screen
    seat.leave()
    seen = glance(workspace)
    seat = take_seat(workspace, "anna", new_uuid())
    assert seen is not None
    seat.save_draft(seen.pair_id, "note", "begun")
    seat.leave()
    assert glance(workspace) is None  # what was begun is shown with it
    seat.save_draft(seen.pair_id, "note", "")
    assert glance(workspace) is not None
    with closing(sqlite3.connect(workspace.path / DATABASE)) as database:
        database.execute("PRAGMA user_version=99")
    assert glance(workspace) is None


@pytest.mark.parametrize("content", [b"", b"nonsense" * 999, None])
def test_none_and_nothing_made_where_there_is_no_database(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "file #1?.db"
    if content is not None:
        path.write_bytes(content)
    assert first_pair(path, "anna") is None
    assert (path.read_bytes() if path.exists() else None) == content


def test_an_app_whose_first_pair_is_known_judges_it(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 4)
    judge_one(workspace)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("b")
        assert "2 of 4" in painted(app) and "saved" in painted(app)

    play(workspace, script)
    assert [str(row.verdict) for row in rows(workspace)] == ["tie", "right"]


def test_a_key_meant_for_a_pair_that_another_took_meanwhile_judges_nothing(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs(workspace, 4)
    judge_one(workspace)
    stale = glance(workspace)
    judge_one(workspace, "ben")
    monkeypatch.setattr("curator.glance.first_pair", lambda *_: stale)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("b")
        assert "message 2." in painted(app) and "saved" not in painted(app)
        await pilot.pause(DEAF_SECONDS + 0.2)
        await pilot.press("b")
        assert "saved" in painted(app)

    play(workspace, script)
    assert [str(row.verdict) for row in rows(workspace)] == ["tie", "tie", "right"]


def test_the_app_and_the_glance_load_no_database_layer() -> None:
    script = "import curator.tui.app, sys; print(any('sqlalchemy' in m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
