"""The history as a screen: found, read at 80 columns, opened and judged again."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from sqlmodel import select
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from curator import db
from curator.models import Judgment, Prompt
from curator.tui.app import CuratorApp
from curator.tui.history_screen import HistoryScreen
from curator.tui.judge_screen import JudgeScreen
from curator.workspace import Workspace
from tests.conftest import AddPairs
from tests.curator.test_app import painted, play, rows
from tests.curator.test_judge import exported


def test_history_finds_and_reopens(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 4)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "f", "b", "t", "n", *"odd", "enter", "s", "h")
        assert isinstance(app.screen, HistoryScreen)
        table = app.screen.query_one(DataTable)
        assert table.row_count == 4
        await pilot.press("v")
        assert table.row_count == 1 and "said: A" in painted(app)
        await pilot.press(*"vvvvv", "f")
        assert table.row_count == 1 and "⚑" in painted(app)
        await pilot.press("f", "/", *"message\x203")
        assert table.row_count == 1
        await pilot.press("escape", "/", *"odd")
        assert table.row_count == 1 and "note" in painted(app)
        app.screen.query_one(Input).value = "100% [/]"
        await pilot.pause()
        assert table.row_count == 0 and "show others" in painted(app)
        await pilot.press("escape", "down", "down", "down", "enter")
        assert isinstance(app.screen, JudgeScreen) and "message 0." in painted(app)
        await pilot.press("B")

    play(workspace, script)
    newest = [row for row in rows(workspace) if row.pair_id == ids[0]]
    assert [(str(r.verdict), r.strength, r.revision) for r in newest] == [
        ("left", 1, 1), ("right", 2, 2),
    ]  # fmt: skip
    assert len(exported(workspace)) == 2


def test_the_clients_words_and_this_places_time_are_in_the_history(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "I have told nobody but my sister, and she says that it is"
    add_pairs(workspace, 1, messages=[{"role": "user", "content": f"{said} for the best."}])
    if hasattr(time, "tzset"):
        monkeypatch.setenv("TZ", "west+9")
        time.tzset()

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("f", "g", *"nv", "enter", "A", "h")
        shown = painted(app)
        assert said[:44] in shown and "⚑ · " in shown and "names feeling, validates" in shown
        judged_at = datetime.fromisoformat(rows(workspace)[0].created_at)
        assert f"{judged_at.astimezone():%m-%d %H:%M}" in shown

    play(workspace, script, size=(80, 24))
    with db.writing(workspace.engine) as session:  # changed by somebody
        session.exec(select(Judgment)).one().created_at = "2024-13-\x1b"

    async def look(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("h")
        assert "2024-13-␛" in painted(app)

    play(workspace, look)
    monkeypatch.undo()
    if hasattr(time, "tzset"):
        time.tzset()


def test_a_full_row_of_the_history_fits_80_columns(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1, messages=[{"role": "user", "content": "我很难过。" * 30}])
    with db.writing(workspace.engine) as session:
        session.exec(select(Prompt)).one().content_label = "medication, and who decides on it"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("g", *"nvo", "tab", *"nvo", "enter", "f", "A", "h")
        table = app.screen.query_one(DataTable)
        assert table.virtual_size.width <= 80 and not table.show_horizontal_scrollbar
        assert "我很难过" in painted(app) and "…" in painted(app)

    play(workspace, script, size=(80, 24))
