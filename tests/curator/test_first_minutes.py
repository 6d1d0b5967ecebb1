"""First minutes, breaks and the account of a sitting, in the real app."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlmodel import select
from textual.pilot import Pilot
from textual.widgets import Input

from curator import db
from curator.judgments import Said
from curator.models import Annotator, Pair, Verdict, new_uuid
from curator.seat import take_seat
from curator.tui import judge_screen
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.workspace import Workspace, create_workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import painted, play, rows, until
from tests.curator.test_judge import with_settings


def test_the_first_minutes(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "Welcome" in painted(app) and app.screen.query_one("#name", Input).value == "anna"
        for text in ("dr anna", "psychotherapist", "CBT"):
            field = app.focused
            assert isinstance(field, Input)
            field.value = text
            await pilot.press("enter")
        assert "practice, not kept" in painted(app) and "wedding" in painted(app)
        await pilot.press("A")
        assert "A clearly better: noted, and not kept" in painted(app)
        await pilot.press("?")
        assert "esc  back" in painted(app) and "works once you have begun" not in painted(app)
        await pilot.press("escape", "i")
        assert "do not ratify the conclusion" in painted(app)
        await pilot.press("escape", "u", "enter")
        assert "message 0." in painted(app) and "dr anna" in painted(app)
        await pilot.press("a")

    play(workspace, script, first_minutes=True)
    (row,) = rows(workspace)
    with db.reading(workspace.engine) as session:
        who = session.get_one(Annotator, row.annotator_id)
        assert (who.name, who.role, who.orientation) == ("dr anna", "psychotherapist", "CBT")

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "Welcome" not in painted(app)

    async def known() -> None:
        app = CuratorApp(workspace, "dr anna", first_minutes=True)
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.pause()
            await again(pilot, app)

    asyncio.run(known())


def say_name(workspace: Workspace, name: str) -> None:
    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        app.screen.query_one("#name", Input).value = name
        await pilot.press("escape", "enter", "a")
        assert "saved: A better" in painted(app) and name in painted(app)

    play(workspace, script, first_minutes=True)


def annotators(workspace: Workspace) -> list[str]:
    with db.reading(workspace.engine) as session:
        return sorted(session.exec(select(Annotator.name)).all())


def test_nobody_stays_behind_under_the_login_name(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = create_workspace(tmp_path / "default")
    add_pairs(place, 30)
    say_name(place, "dr ben")  # a new name: the row of the login name takes it
    assert annotators(place) == ["dr ben"]
    say_name(place, "dr ben")  # one that is known: its own row, and none beside it
    assert annotators(place) == ["dr ben"]
    assert [row.annotator_id for row in rows(place)] == [1, 1]
    say_name(place, "anna")
    assert annotators(place) == ["anna", "dr ben"]
    with db.reading(place.engine) as session:  # and no pair of one who is gone
        mine = {pair.annotator_id for pair in session.exec(select(Pair))}
    assert mine <= {None, *(row.annotator_id for row in rows(place))}


def test_a_name_with_judgments_or_on_another_screen_is_kept(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 4)
    one, other = take_seat(workspace, "anna", "a"), take_seat(workspace, "anna", "b")
    assert one.next() is not None and other.next() is not None
    assert not one.rename("dr anna")
    other.leave()
    pair = one.next()
    assert pair is not None
    one.judge(pair.pair_id, Said(Verdict.TIE), new_uuid())
    assert not one.rename("dr anna")
    one.withdraw()
    assert annotators(workspace) == ["anna"]


def test_the_guideline_is_one_key_away_from_anywhere(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for keys in (["r"], ["escape", "h"], ["escape", "e"], ["escape", "g"]):
            await pilot.press(*keys, "f1")
            assert "How to judge" in painted(app), keys
            await pilot.press("escape")

    play(workspace, script)


def test_a_workspace_has_a_guideline_of_its_own(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)
    own = workspace.path / "guideline.md"
    own.write_bytes("\ufeff# As we judge\n\nBe \x1b[31mkind\u202e.\n".encode())

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f1")
        assert "As we judge" in painted(app) and "Be ␛[31mkind<U+202E>." in painted(app)
        await pilot.press("escape")
        own.write_bytes(b"\xff")
        await pilot.press("f1")
        assert "it is no UTF-8" in painted(app) and "Mend it" in painted(app)
        assert isinstance(app.screen, judge_screen.JudgeScreen)

    play(workspace, script, notifications=True)


@pytest.mark.parametrize("minutes", [30, 0])
def test_a_pause_is_suggested_quietly(
    tmp_path: Path, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    place = with_settings(tmp_path, f"{ONCE}break_minutes = {minutes}\n")
    add_pairs(place, 2)
    monkeypatch.setattr(judge_screen, "MINUTE", 0.005)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        if minutes:
            await until(pilot, lambda: "another 30 minutes: a pause" in painted(app))
        else:
            await pilot.pause(0.2)
            assert "a pause" not in painted(app)
        assert "message 0." in painted(app)
        await pilot.press("a")

    play(place, script)
    assert len(rows(place)) == 1


def test_the_demos_welcome_leads_to_the_judge_screen(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(tmp_path, f'{ONCE}[keys]\nleft_slightly = "1"\nleave = "f9"\n')
    add_pairs(place, 1)

    async def begin(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "Welcome to curator" in painted(app) and "After 12 picks" in painted(app)
        assert "1  A is better" in painted(app) and "b  B is better" in painted(app)
        await pilot.press("q")  # no key of its own now
        assert "Welcome to curator" in painted(app)
        await pilot.press("enter")
        assert isinstance(app.screen, JudgeScreen) and "message 0." in painted(app)

    async def leave(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f9")
        await pilot.pause()
        assert not app.is_running

    play(place, begin, offer_after=12)
    play(place, leave, offer_after=12)


def test_the_account_of_a_sitting(tmp_path: Path, add_pairs: AddPairs) -> None:
    from curator.history import history, sitting, sitting_text

    place = with_settings(tmp_path, "[judge]\nrepeat_share = 1.0\ncalibration = 0\n")
    add_pairs(place, 40, good="word " * 60 + "{i}", bad="term " * 60 + "{i}")
    seat = take_seat(place, "anna", "s")
    assert sitting_text(sitting(seat), "study") == "Nothing was judged in this sitting."
    pair = seat.next()
    repeats = 0
    for number in range(30):
        assert pair is not None
        repeats += pair.purpose == "repeat"
        # The same reply wins whichever side it is on, but for one time.
        verdict = Verdict.LEFT if pair.left.startswith("word") else Verdict.RIGHT
        if pair.purpose == "repeat" and repeats == 1:
            verdict = Verdict.TIE
        elapsed = 1_000 if number < 3 else 60_000
        said = Said(verdict, None if verdict is Verdict.TIE else 1)
        pair = seat.judge(pair.pair_id, said, new_uuid(), elapsed_ms=elapsed)
    seat.undo()
    account = sitting(seat)
    assert (account.judged, account.taken_back, account.fast) == (29, 1, 3)
    assert account.again >= 3 and account.again_same == account.again - 1
    text = sitting_text(account, "study")
    assert text.startswith("29 judged in 0 min, all kept in study.") and "word" not in text
    assert "1 taken back, 3 faster than the texts can be read" in text
    assert sum(row.fast for row in history(seat)) == 3
