"""Writing at the judge's seat: rewrites, notes, drafts, and what waits beside a verdict."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlmodel import select
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, Static, TextArea

from curator import db
from curator.models import Annotator, Candidate, Draft, Pair
from curator.tui.app import CuratorApp
from curator.tui.rewrite_screen import RewriteScreen
from curator.workspace import Workspace
from tests.conftest import AddPairs
from tests.curator.test_app import painted, play, rows, until
from tests.curator.test_judge import ONCE, exported, with_settings


def test_a_rewrite_is_preferred_over_both(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("E")
        assert isinstance(app.screen, RewriteScreen)
        app.screen.query_one(TextArea).text = "My own words."
        await pilot.pause()
        await pilot.press("ctrl+s")
        assert "now judge the two as they are" in painted(app)
        assert "rewrite of B goes with your pick" in painted(app)
        await pilot.press("a")

    play(workspace, script)
    (row,) = rows(workspace)
    with db.reading(workspace.engine) as session:
        pair = session.get_one(Pair, row.pair_id)
        written = session.get_one(Candidate, row.rewrite_id)
        anna = session.exec(select(Annotator)).one()
        assert (written.author_id, written.rewrites_id) == (anna.id, pair.right_id)
        assert written.model is None and session.exec(select(Draft)).all() == []
        both = [session.get_one(Candidate, i).text for i in (pair.left_id, pair.right_id)]
    assert exported(workspace) == [("My own words.", both[0]), ("My own words.", both[1])]


@pytest.mark.parametrize("written", ["  ", "THE REPLY"])
def test_a_rewrite_that_says_nothing_new_is_taken_off(
    workspace: Workspace, add_pairs: AddPairs, written: str
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        editor = app.screen.query_one(TextArea)
        reply = editor.text
        editor.text = "Something better."
        await pilot.press("ctrl+s", "e")
        assert "rewrite of A goes with your pick" in marks_before(app)
        app.screen.query_one(TextArea).text = written if written.isspace() else reply
        await pilot.press("ctrl+s")
        assert "no rewrite goes with your pick" in painted(app)
        await pilot.press("a")

    play(workspace, script)
    (row,) = rows(workspace)
    assert row.rewrite_id is None and len(exported(workspace)) == 1


def marks_before(app: CuratorApp) -> str:
    """Return what the judge screen below the one in front says beside the verdict."""
    return str(app.screen_stack[-2].query_one("#marks", Static).render())


def test_what_was_said_beside_waits_while_another_pair_is_looked_at(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("g", "n", "enter", "f", "e")
        app.screen.query_one(TextArea).text = "Something better."
        await pilot.press("ctrl+s", "]", "[", "a")

    play(workspace, script)
    (row,) = rows(workspace)
    assert row.tags_left == ["names_feeling"] and row.flagged
    assert row.rewrite_id is not None


def test_writing_left_as_a_draft_outlives_the_verdict(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        app.screen.query_one(TextArea).text = "Half a reply"
        await pilot.press("escape", "n", *"hm", "escape", "a", "u")
        assert "a rewrite was begun · a note was begun" in painted(app)
        await pilot.press("e")
        assert app.screen.query_one(TextArea).text == "Half a reply"

    play(workspace, script)
    first, _ = rows(workspace)
    assert first.note is None and first.rewrite_id is None


def test_a_pasted_text_is_cleaned_where_it_stands(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        editor = app.screen.query_one(TextArea)
        editor.text = "Start. "
        editor.move_cursor(editor.document.end)
        app.post_message(events.Paste("soft\u00adly\x1b[2J"))
        await pilot.pause()
        await pilot.press(*" on")
        assert editor.text == "Start. softly[2J on"

    play(workspace, script)


def test_starting_again_from_the_reply_can_be_undone(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    """On the disk too."""
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        screen = app.screen
        assert isinstance(screen, RewriteScreen) and "ctrl+z undo" in painted(app)
        editor = screen.query_one(TextArea)
        await pilot.press(*" Mine.")
        assert screen.draft()
        await pilot.press("ctrl+r")
        assert editor.text == screen.reply and screen.draft() and drafts(workspace) == {}
        await pilot.press("tab", "ctrl+z")
        assert editor.text == f"{screen.reply} Mine." and screen.draft()
        assert drafts(workspace) == {"rewrite_left": f"{screen.reply} Mine."}
        await pilot.press("ctrl+z")
        assert editor.text == screen.reply

    play(workspace, script)


def test_drafts_survive_a_crash(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def crash() -> None:
        app = CuratorApp(workspace, "anna")
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.pause()
            await pilot.press("e")
            app.screen.query_one(TextArea).text = "Half a better rep"
            await pilot.pause(1.0)  # no key, no exit: what is a second old is on the disk
            with db.reading(workspace.engine) as session:
                assert [d.text for d in session.exec(select(Draft))] == ["Half a better rep"]
            await pilot.press("escape", "n", *"half")
            await pilot.pause(1.0)
            with db.reading(workspace.engine) as session:
                drafts = {d.field: d.text for d in session.exec(select(Draft))}
            assert drafts == {"rewrite_left": "Half a better rep", "note": "half"}

    asyncio.run(crash())

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "a rewrite was begun" in painted(app)
        await pilot.press("e")
        assert app.screen.query_one(TextArea).text == "Half a better rep"
        await pilot.press("ctrl+s", "n", "enter", "t")

    play(workspace, again)
    (row,) = rows(workspace)
    assert row.rewrite_id is not None and row.note == "half"


def drafts(workspace: Workspace) -> dict[str, str]:
    with db.reading(workspace.engine) as session:
        return {draft.field: draft.text for draft in session.exec(select(Draft))}


@pytest.mark.parametrize("way", ["a key", "a key in a panel", "the palette"])
def test_leaving_keeps_what_is_being_written(
    workspace: Workspace, add_pairs: AddPairs, way: str
) -> None:
    """At once: not only what was written when the editor last looked."""
    add_pairs(workspace, 1)
    panel = way == "a key in a panel"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("n" if panel else "e")
        if panel:
            app.screen.query_one(Input).value = "Half a rep"
        else:
            app.screen.query_one(TextArea).text = "Half a rep"
        if way == "the palette":
            (leave,) = (c for c in app.get_system_commands(app.screen) if "leave" in c.title)
            assert leave.callback == app.action_quit
            await app.action_quit()
        else:
            await pilot.press("ctrl+q")

    play(workspace, script)
    assert drafts(workspace) == {"note" if panel else "rewrite_left": "Half a rep"}


def test_where_something_is_written_ctrl_c_copies(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        app.screen.query_one(TextArea).text = "Some words."
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "ctrl+q leaves curator" in painted(app))
        app.screen.query_one(TextArea).select_all()
        await pilot.press("ctrl+c")
        assert app.is_running and app.clipboard == "Some words."
        await pilot.press("escape", "n", *"odd", "shift+home", "ctrl+c")
        assert app.is_running and app.clipboard == "odd"

    play(workspace, script, notifications=True)


def test_what_is_written_after_it_was_kept_is_taken_up_and_outlives_the_verdict(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        app.screen.query_one(TextArea).text = "First."
        await pilot.press("ctrl+s", "n", *"one", "enter")
        assert "rewrite of A goes with your pick · note: one " in painted(app)
        await pilot.press("e")
        app.screen.query_one(TextArea).text = "Second."
        await pilot.press("escape", "n", "end", "2", "escape")
        assert "a rewrite was begun · a note was begun · rewrite of A goes" in painted(app)
        await pilot.press("e")
        assert app.screen.query_one(TextArea).text == "Second."
        await pilot.press("escape", "n")
        assert app.screen.query_one(Input).value == "one2"
        await pilot.press("escape", "a", "u", "e")
        assert app.screen.query_one(TextArea).text == "Second."
        await pilot.press("escape", "n")
        assert app.screen.query_one(Input).value == "one2"

    play(workspace, script)
    first, _ = rows(workspace)
    with db.reading(workspace.engine) as session:
        assert session.get_one(Candidate, first.rewrite_id).text == "First."
    assert first.note == "one"
    assert drafts(workspace) == {"rewrite_left": "Second.", "note": "one2"}


def test_an_editor_stays_open_until_its_words_are_on_the_disk(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    """Else an older draft would come back in place of what was kept."""
    add_pairs(workspace, 2)
    long = "word " * 4_000

    def limit(pages: int) -> None:
        with workspace.engine.connect() as connection:  # the one connection the app uses too
            used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={used + pages}")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        app.screen.query_one(TextArea).text = long
        limit(0)
        await pilot.press("ctrl+s")
        assert isinstance(app.screen, RewriteScreen)
        limit(1000)
        await pilot.press("ctrl+s")
        assert "rewrite of A goes with your pick" in painted(app)
        await pilot.press("a")

    play(workspace, script)
    assert rows(workspace)[0].rewrite_id is not None and drafts(workspace) == {}


def test_a_rewrite_after_a_pick_that_stays_is_saved_and_so_is_its_removal(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    add_pairs(place, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "e")
        app.screen.query_one(TextArea).text = "My own words."
        assert isinstance(app.screen, RewriteScreen) and app.screen.draft()
        await pilot.press("ctrl+s")
        assert "rewrite of A goes with your pick" in painted(app)
        assert "was begun" not in painted(app) and drafts(place) == {}
        await pilot.press("e", "ctrl+r", "ctrl+s")
        assert "goes with your pick" not in str(app.screen.query_one("#marks", Static).render())

    play(place, script)
    written = [row.rewrite_id is not None for row in rows(place)]
    assert written == [False, True, False]


def test_a_draft_that_is_the_reply_again_is_none(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e", "z")
        screen = app.screen
        assert isinstance(screen, RewriteScreen)
        assert screen.draft() and len(drafts(workspace)) == 1
        await pilot.press("backspace", "escape")
        assert "was begun" not in painted(app)

    play(workspace, script)
    assert drafts(workspace) == {}


def test_no_rewrite_of_one_reply_leaves_the_other_ones(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        app.screen.query_one(TextArea).text = "My own words."
        await pilot.press("ctrl+s", "E", "ctrl+s")
        assert "that is no rewrite: the other one stays" in painted(app)
        await pilot.press("a")

    play(workspace, script)
    (row,) = rows(workspace)
    assert row.rewrite_id is not None
