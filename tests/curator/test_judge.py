"""The judge's seat: every key pressed in the real app, then the database read."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlmodel import select
from textual.pilot import Pilot

from curator import db, workflow
from curator.models import Judgment, Prompt
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.tui.panels import RedFlagsPanel, TagsPanel
from curator.tui.widgets import Reply
from curator.workspace import Workspace, create_workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import painted, play, rows, until

Script = Callable[[Pilot[None], CuratorApp], Awaitable[None]]


def with_settings(tmp_path: Path, text: str) -> Workspace:
    return create_workspace(tmp_path / "other", settings=text)


def exported(workspace: Workspace) -> list[tuple[str, str]]:
    lines = (json.loads(line) for line in workflow.export_preferences(workspace).lines)
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in lines]


# --- reasons, notes, flags -----------------------------------------------------------------------


def test_reasons_are_kept_for_the_side_they_were_given_for(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("g")
        assert isinstance(app.screen, TagsPanel)
        assert "at most 3 reasons a side" in painted(app)
        await pilot.press("n", "v", "o", "g")  # the fourth is one too many
        assert "3 already: take one off first" in painted(app)
        await pilot.press("o", "tab", "e", "1", "enter")
        assert "A · because names feeling, validates" in painted(app)
        assert "B · because endorses, cold" in painted(app)
        await pilot.press("A")
        assert "because" not in painted(app)
        await pilot.press("u")
        assert "taken back; it was: A clearly better, A because names feeling" in painted(app)
        await pilot.press("b")

    play(workspace, script)
    first, _, again = rows(workspace)
    assert first.tags_left == ["names_feeling", "validates_not_endorses"]
    assert first.tags_right == ["endorses_belief", "cold"] and first.rubric_version == "1"
    assert (again.tags_left, again.verdict) == (first.tags_left, "right")


def test_a_note_and_a_flag_go_with_the_verdict(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("n", *"a close\x20call", "enter", "f")
        assert "note: a close call" in painted(app) and "flagged" in painted(app)
        await pilot.press("t", "f", "f", "x")

    play(workspace, script)
    first, second = rows(workspace)
    assert (first.note, first.flagged, first.verdict) == ("a close call", 1, "tie")
    assert (second.note, second.flagged, second.verdict) == (None, 0, "both_bad")


def test_reasons_never_stand_in_the_way(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 6)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"aAbBtx")
        assert isinstance(app.screen, JudgeScreen)

    play(workspace, script)
    assert len(rows(workspace)) == 6


def test_without_auto_advance_the_pair_stays_until_enter(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    ids = add_pairs(place, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a")
        assert "message 0." in painted(app) and "saved: A better · enter" in painted(app)
        assert app.screen.query_one("#left").has_class("picked")
        await pilot.press("f")
        assert "saved" in painted(app)
        await pilot.press("enter")
        assert "message 1." in painted(app)
        await pilot.press("B")

    play(place, script)
    said = [(r.pair_id, str(r.verdict), r.flagged, r.revision) for r in rows(place)]
    assert said == [(ids[0], "left", 0, 1), (ids[0], "left", 1, 2), (ids[1], "right", 0, 1)]


def test_red_flags_are_asked_where_there_is_a_risk(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(tmp_path, ONCE + "red_flags = true\n")
    add_pairs(place, 2)
    with db.writing(place.engine) as session:
        session.get_one(Prompt, 1).risk_cue = "self-harm"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "risk cue: self-harm" in painted(app)
        await pilot.press("a")
        assert isinstance(app.screen, RedFlagsPanel)
        await pilot.press("n", "escape")
        assert "not judged" in painted(app) and rows(place) == []
        await pilot.press("]", "[", "b")  # what was answered of this pair is there again
        assert "make it small?  no" in painted(app)
        await pilot.press("escape", "a", *"nn", "y", "u", "y", "n", "y")
        await pilot.press("a")  # the next pair has no risk cue: nothing is asked

    play(place, script)
    first, second = rows(place)
    assert first.red_flags == {
        "left.misses_risk": False, "left.green_lights_risk": False, "left.endorses_belief": False,
        "right.misses_risk": True, "right.green_lights_risk": False, "right.endorses_belief": True,
    }  # fmt: skip
    assert second.red_flags == {}


def test_answers_left_open_are_of_their_pair_and_screen_alone(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, ONCE + "red_flags = true\n")
    add_pairs(place, 2)
    with db.writing(place.engine) as session:
        for prompt in session.exec(select(Prompt)):
            prompt.risk_cue = "self-harm"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "y", "escape", "]", "a")
        assert "make it small?  y/n" in painted(app)
        panel = app.screen
        assert isinstance(panel, RedFlagsPanel)
        await pilot.press(*"nnnnnn")
        panel.action_answer(True)  # a key held down while it closes
        panel.action_back()
        await pilot.press("u", "a")  # taken back: the answers come with the pair
        assert isinstance(app.screen, JudgeScreen)
        await pilot.press("[", "a")
        assert "make it small?  yes" in painted(app)

    async def another(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a")
        assert "make it small?  y/n" in painted(app)

    play(place, script)
    assert [set((row.red_flags or {}).values()) for row in rows(place)] == [{False}, set(), {False}]
    play(place, another)


@pytest.mark.parametrize("size", [(80, 24), (60, 16), (200, 50)])
def test_the_ways_out_of_a_panel_are_always_in_sight(
    tmp_path: Path, add_pairs: AddPairs, size: tuple[int, int]
) -> None:
    place = with_settings(tmp_path, ONCE + "red_flags = true\n")
    add_pairs(place, 1)
    with db.writing(place.engine) as session:
        session.get_one(Prompt, 1).risk_cue = "self-harm"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("g")
        assert "at most 3 reasons a side" in painted(app) and "enter  done" in painted(app)
        await pilot.press(*"nvogc")
        assert "3 already: take one off first" in painted(app) and "enter  done" in painted(app)
        await pilot.press("escape", "a", *"nnn")
        assert "esc  read on: your answers stay" in painted(app)
        panel, b = app.screen.query_one("#panel"), app.screen_stack[-2].query_one("#right")
        # What is asked about can be read, where the replies are one below the other.
        assert size[0] >= 100 or size[1] < 24 or not panel.region.overlaps(b.region)
        while isinstance(app.screen, RedFlagsPanel):
            assert "y/n" in painted(app)  # what is asked now
            await pilot.press("n")
        assert len(rows(place)) == 1

    play(place, script, size)


# --- rewriting -----------------------------------------------------------------------------------


def test_going_to_pairs(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 5)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(":", "4", "enter")
        assert "message 3." in painted(app) and "pair 1.4" in painted(app)
        await pilot.press("b")
        assert "message 0." in painted(app)  # and on with the first that needs a judgment
        await pilot.press("]")
        assert "message 1." in painted(app)
        await pilot.press("[", "[")
        assert "message 0." in painted(app) and "this is the first pair" in painted(app)
        await pilot.press(":", *"1.5", "enter")
        assert "message 4." in painted(app)
        await pilot.press(".")
        assert "message 0." in painted(app)
        await pilot.press(":", *"77", "enter")
        assert "there is no pair 77" in painted(app)
        await pilot.press(":", *"x", "enter")
        assert "'x' is no pair" in painted(app)
        await pilot.press(":", "4", "enter")
        assert "it is: B better. Judge again to change it" in painted(app)
        assert app.screen.query_one("#right").has_class("earlier")
        await pilot.press("A")

    play(workspace, script)
    said = [(row.pair_id, str(row.verdict), row.revision) for row in rows(workspace)]
    assert said == [(ids[3], "right", 1), (ids[3], "left", 2)]


def test_the_family_shows_only_after_the_judgment(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    with db.writing(workspace.engine) as session:
        for prompt in session.exec(select(Prompt)):
            prompt.family = "C03"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "C03" not in painted(app) and "client is right" not in painted(app)
        await pilot.press("a")
        assert "saved: A better · C03: control: the client is right" in painted(app)

    play(workspace, script)


# --- sizes and texts ----------------------------------------------------------------------------


def test_any_resize_keeps_pair_and_pick(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    add_pairs(place, 1)
    draw = random.Random(4)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("A")
        for _ in range(60):
            await pilot.resize_terminal(draw.randint(1, 220), draw.randint(1, 70))
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        assert "message 0." in painted(app)
        assert app.screen.query_one("#left").has_class("picked")

    play(place, script)


LONG = {
    "200 KB": "I could not sleep again. " * 8_000,
    "5,000 lines": "\n".join(f"line {n}" for n in range(5_000)),
    "one word": "w" * 50_000,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 " * 2_000,
    "right to left": "שלום עולם " * 5_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts_are_shown_and_judged(
    workspace: Workspace, add_pairs: AddPairs, name: str
) -> None:
    text = LONG[name]
    add_pairs(workspace, 1, good=text, bad=text + " other",
              messages=[{"role": "user", "content": text}])  # fmt: skip

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        left = app.screen.query_one("#left", Reply)
        await pilot.pause(0.3)  # the beginning is painted first, then the whole
        assert len(str(left.query_one(".text").render())) >= len(text)
        left.focus()
        await pilot.press("end", "home", "pagedown", "a")

    play(workspace, script)
    assert len(rows(workspace)) == 1


MANY = [
    {"role": role, "content": f"{role} turn {number}"}
    for number in range(15)
    for role in ("user", "assistant")
]


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (200, 50)])
def test_the_newest_turn_is_in_view(
    workspace: Workspace, add_pairs: AddPairs, size: tuple[int, int]
) -> None:
    newest = {"role": "user", "content": "the newest\u200b words"}
    add_pairs(workspace, 1, messages=[*MANY, newest])
    context = "about: feeling watched · risk cue: none · 31 turns · 1 hidden characters"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "words (1.0)" in painted(app) and "user turn 0" not in painted(app)
        assert context in painted(app)
        app.screen.query_one("#conversation").focus()
        await pilot.press("home")
        await pilot.pause()
        assert "user turn 0" in painted(app) and context in painted(app)
        await pilot.press("escape", "e")
        await pilot.pause()
        assert "words (1.0)" in painted(app) and context in painted(app)

    play(workspace, script, size)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
def test_a_long_message_is_seen_from_its_beginning_under_its_cue(
    workspace: Workspace, add_pairs: AddPairs, size: tuple[int, int]
) -> None:
    long = "The beginning of it. " + "sleepless nights again " * 70  # 1,600 characters
    add_pairs(workspace, 1, messages=[*MANY, {"role": "user", "content": long}])

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for _ in range(3):
            assert "The beginning of it." in painted(app) and "▌ client" in painted(app)
            assert "risk cue: none" in painted(app)
            app.screen.query_one("#conversation").focus()
            await pilot.press("end")
            await until(pilot, lambda: "(1.0)" in painted(app))
            assert "risk cue: none" in painted(app)
            await pilot.press("]", "[", ".")

    play(workspace, script, size)


def test_a_resize_keeps_the_newest_turn_or_where_the_reader_is(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1, messages=[*MANY, {"role": "user", "content": "the newest words"}])

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for size in ((80, 24), (60, 16), (200, 50), (120, 36), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            await pilot.pause()
            assert "the newest words" in painted(app), size
        app.screen.query_one("#conversation").focus()
        await pilot.press("home")
        await pilot.pause()
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        await pilot.pause()
        assert "user turn 0" in painted(app) and "the newest words" not in painted(app)

    play(workspace, script, (200, 50))


def judgment_count(workspace: Workspace) -> int:
    with db.reading(workspace.engine) as session:
        return len(session.exec(select(Judgment.id)).all())
