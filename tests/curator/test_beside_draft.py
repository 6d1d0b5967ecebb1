"""What is said beside no verdict yet: kept as a draft, shown again, saved as it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlmodel import select
from textual.pilot import Pilot

from curator import db
from curator.beside_draft import BESIDE, draft_text, with_draft
from curator.models import Draft, Verdict, new_uuid
from curator.seat import take_seat
from curator.tui import judge_screen
from curator.tui.app import CuratorApp
from curator.words import Said, now
from curator.workspace import Workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import painted, play, rows, until
from tests.curator.test_judge import with_settings
from tests.curator.test_line_mode import annotate, limit_pages, take_seat_in_lines
from tests.curator.test_rewrite import drafts


@pytest.fixture
def only_on_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept by the clock."""
    monkeypatch.setattr(judge_screen, "DRAFT_SECONDS", 600.0)


def test_enter_after_a_failed_save_saves_what_the_screen_shows(
    workspace: Workspace, add_pairs: AddPairs, only_on_leaving: None
) -> None:
    add_pairs(workspace, 60)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        limit_pages(workspace, 2)
        while "not saved" not in painted(app):
            await pilot.press("B")
        await pilot.press("f", "g", "n", "enter")
        assert "A · because names feeling" in painted(app) and "⚑ flagged" in painted(app)
        assert "not saved (press B to try again): the disk is full" in painted(app)
        limit_pages(workspace, 1000)
        await pilot.press("enter")
        assert "saved: B clearly better" in painted(app)

    play(workspace, script)
    last = rows(workspace)[-1]
    assert (last.verdict, last.flagged, last.tags_left) == ("right", 1, ["names_feeling"])


def test_a_verdict_said_again_in_lines_saves_what_was_said_since(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 60)
    with take_seat_in_lines(workspace) as (mode, out):
        mode.show(mode.seat.next())
        limit_pages(workspace, 2)
        while "not saved" not in out.getvalue():
            mode.do("B")
        for line in ("f", "g A n", "n why"):
            mode.do(line)
        limit_pages(workspace, 1000)
        mode.do("B")
    last = rows(workspace)[-1]
    assert (last.flagged, last.tags_left, last.note) == (1, ["names_feeling"], "why")
    assert drafts(workspace) == {}


@pytest.mark.parametrize("way", ["q", "ctrl+q"])
def test_flag_and_reasons_without_a_verdict_outlive_leaving(
    workspace: Workspace, add_pairs: AddPairs, only_on_leaving: None, way: str
) -> None:
    add_pairs(workspace, 2)

    async def leave(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f", "g", "n", "enter")
        assert drafts(workspace) == {}  # no key waits for the disk
        await pilot.press("]", way)

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "A · because names feeling" in painted(app) and "⚑ flagged" in painted(app)
        assert "begun" not in painted(app)
        await pilot.press("f", "b")

    play(workspace, leave)
    assert rows(workspace) == [] and set(drafts(workspace)) == {BESIDE}
    play(workspace, again)
    (row,) = rows(workspace)
    assert (row.pair_id, row.flagged, row.tags_left) == (1, 0, ["names_feeling"])
    assert drafts(workspace) == {}  # though what it said was changed since


def test_what_is_said_of_a_judged_pair_outlives_a_crash(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def crash(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f", "a", ":", "1", "enter", "f")
        await until(pilot, lambda: set(drafts(workspace)) == {BESIDE})  # no key, no exit

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(":", "1", "enter")
        assert "flagged" not in painted(app)
        await pilot.press("a")

    play(workspace, crash)
    assert [row.flagged for row in rows(workspace)] == [1]
    play(workspace, again)
    assert [row.flagged for row in rows(workspace)] == [1, 0] and drafts(workspace) == {}


def test_a_flag_taken_off_again_leaves_nothing(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f")
        await until(pilot, lambda: set(drafts(workspace)) == {BESIDE})
        await pilot.press("f", "ctrl+q")

    play(workspace, script)
    assert drafts(workspace) == {}


def test_what_is_said_after_a_pick_that_stays_is_a_judgment_and_no_draft(
    tmp_path: Path, add_pairs: AddPairs, only_on_leaving: None
) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    add_pairs(place, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "f", "q")

    play(place, script)
    assert [row.flagged for row in rows(place)] == [0, 1] and drafts(place) == {}


def test_words_that_cannot_be_kept_are_said_on_leaving(
    workspace: Workspace, add_pairs: AddPairs, only_on_leaving: None
) -> None:
    said: list[str] = []
    add_pairs(workspace, 60)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        limit_pages(workspace, 1)
        while "not saved" not in painted(app):
            await pilot.press("B")
        assert isinstance(app.screen, judge_screen.JudgeScreen)
        app.screen.undrafted = dict.fromkeys((1, 2), ("x" * 9_000, now()))
        assert not app.screen.draft() and set(app.screen.undrafted) == {1, 2}
        app.exit()
        said.extend(str(each) for each in app._exit_renderables)
        limit_pages(workspace, 1000)
        assert app.screen.draft() and app.screen.undrafted == {}

    play(workspace, script)
    assert said == ["curator: the last words being written could not be kept."]


def test_what_could_not_be_kept_is_tried_again_by_the_clock(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs(workspace, 60)
    monkeypatch.setattr(judge_screen, "DRAFT_SECONDS", 0.01)
    monkeypatch.setattr(judge_screen, "AGAIN_SECONDS", 0.01)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        limit_pages(workspace, 1)
        while "not saved" not in painted(app):
            await pilot.press("B")
        await pilot.press("f")
        screen = app.screen
        assert isinstance(screen, judge_screen.JudgeScreen)
        for text, _ in list(screen.undrafted.values()):
            assert screen.pair is not None
            screen.undrafted = {screen.pair.pair_id: (text + " " * 9_000, now())}
        limit_pages(workspace, 1000)
        await until(pilot, lambda: set(drafts(workspace)) == {BESIDE})

    play(workspace, script)


def test_a_later_judgment_is_not_outlived_by_what_was_said_before_it(
    workspace: Workspace, add_pairs: AddPairs, only_on_leaving: None
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f", "]")
        other = take_seat(workspace, "anna", "another window")
        other.judge(1, Said(Verdict.TIE), new_uuid())
        other.leave()
        await pilot.press("q")

    play(workspace, script)
    assert [row.flagged for row in rows(workspace)] == [0] and drafts(workspace) == {}


def test_nothing_is_kept_of_a_pair_that_is_gone(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)
    seat = take_seat(workspace, "anna", "s")
    seat.save_draft(99, BESIDE, "{}")
    seat.leave()
    assert drafts(workspace) == {}


def test_a_flag_on_a_judged_pair_is_said_to_be_unsaved(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def flag(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", ":", "1", "enter")
        assert "not saved" not in painted(app)
        await pilot.press("f")
        assert "not saved: judge again · ⚑ flagged" in painted(app)
        await pilot.press("q")

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(":", "1", "enter")
        assert "not saved: judge again · ⚑ flagged" in painted(app)
        await pilot.press("a", ":", "1", "enter")
        assert "not saved" not in painted(app) and "⚑ flagged" in painted(app)

    play(workspace, flag)
    assert (
        "not saved, judge again to save it:\nflagged." in annotate(workspace, ": 1").stdout.decode()
    )
    play(workspace, again)


def test_what_was_taken_back_outlives_leaving(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def undo(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f", "g", "n", "enter", "n", *"why", "enter", "a", "u")
        assert "⚑ flagged" in painted(app) and "begun" not in painted(app)
        await pilot.press("]", "q")

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "A · because names feeling" in painted(app) and "⚑ flagged" in painted(app)
        assert "a note was begun" in painted(app)
        await pilot.press("n", "enter", "b")

    play(workspace, undo)
    assert set(drafts(workspace)) == {BESIDE, "note"}
    play(workspace, again)
    last = rows(workspace)[-1]
    assert (last.verdict, last.flagged, last.note) == ("right", 1, "why")
    assert drafts(workspace) == {}


def test_enter_goes_on_once_what_failed_was_taken_off_again(
    tmp_path: Path, add_pairs: AddPairs, only_on_leaving: None
) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    add_pairs(place, 60)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a")
        limit_pages(place, 1)
        while "not saved" not in painted(app):
            await pilot.press("f")
        screen = app.screen
        assert isinstance(screen, judge_screen.JudgeScreen) and screen.saved is not None
        while screen.beside.flagged != screen.saved.flagged:
            await pilot.press("f")
        assert "saved, as it stands here" in painted(app)
        pair = screen.pair
        limit_pages(place, 1000)
        await pilot.press("enter")
        assert screen.pair != pair and "not saved" not in painted(app)

    play(place, script)


def test_flag_and_reasons_outlive_leaving_in_lines(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    annotate(workspace, "f", "g A n")  # and the input ends
    assert set(drafts(workspace)) == {BESIDE}
    text = annotate(workspace, "a").stdout.decode()
    assert "A because names feeling\nflagged.\n" in text
    (row,) = rows(workspace)
    assert (row.flagged, row.tags_left) == (1, ["names_feeling"]) and drafts(workspace) == {}
    annotate(workspace, "f", "f")
    assert drafts(workspace) == {}


FLAGGED = {"tags_left": ["cold"], "tags_right": [], "flagged": True, "red_flags": {}}


def test_a_draft_says_what_was_said(workspace: Workspace) -> None:
    rubric = workspace.rubric
    answers = {
        f"{side}.{flag.flag}": side == "left"
        for side in ("left", "right")
        for flag in rubric.red_flags
    }
    said = Said(Verdict.SKIP, None, ("cold",), ("vague", "cold")[1:], answers, flagged=True)
    nothing = Said(Verdict.SKIP)
    assert with_draft(nothing, draft_text(said, None), rubric) == said
    assert draft_text(nothing, None) == draft_text(nothing, nothing) == ""
    assert with_draft(said, draft_text(nothing, said), rubric).flagged is False


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", '"flagged"', "{}", "{", "[" * 200_000, "9" * 9_000, "\ud800",
     *(json.dumps({**FLAGGED, name: value}) for name, value in (
         ("tags_left", 3), ("tags_right", [["cold"]]), ("red_flags", None), ("red_flags", "xy"),
     ))],
)  # fmt: skip
def test_a_damaged_draft_says_nothing(workspace: Workspace, text: str) -> None:
    before = Said(Verdict.LEFT, 1, tags_left=("vague",), flagged=True)
    assert with_draft(before, text, workspace.rubric) == before


def test_a_draft_brings_nothing_the_rubric_does_not_know(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    hostile = {
        "tags_left": ["\x1b[2J", "cold", "cold", "of an older rubric", 7],
        "tags_right": [tag.tag for tag in workspace.rubric.tags],
        "flagged": "yes",
        "red_flags": {"left.misses_risk": True, "x": 1},
        "more": None,
    }
    before = Said(Verdict.LEFT, 1, tags_left=("of an older rubric",))
    said = with_draft(before, json.dumps(hostile), workspace.rubric)
    assert said.tags_left == ("cold", "of an older rubric") and len(said.tags_right) == 3
    assert not said.flagged and said.red_flags == {}
    add_pairs(workspace, 1)
    seat = take_seat(workspace, "anna", "s")
    seat.save_draft(1, BESIDE, '{"tags_left": [[]]')
    seat.leave()

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "begun" not in painted(app)
        await pilot.press("a")

    play(workspace, script)
    assert len(rows(workspace)) == 1 and drafts(workspace) == {}


def test_a_draft_goes_with_its_annotators_judgment_alone(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    anna, ben = take_seat(workspace, "anna", "a"), take_seat(workspace, "ben", "b")
    anna.save_draft(1, BESIDE, json.dumps(FLAGGED))
    ben.judge(1, Said(Verdict.TIE), new_uuid())
    anna.judge(2, Said(Verdict.TIE), new_uuid())
    with db.reading(workspace.engine) as session:
        assert [draft.pair_id for draft in session.exec(select(Draft))] == [1]
    anna.judge(1, Said(Verdict.SKIP), new_uuid())
    assert drafts(workspace) == {}
