"""Keys, palette and mouse: every way to a verb, in the real app."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.workspace import Workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import painted, play, rows
from tests.curator.test_judge import with_settings


def test_keys_can_be_changed(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(
        tmp_path, ONCE + '[keys]\nleft_slightly = "1"\nright_slightly = "0"\nflag = "f5"\n'
    )
    add_pairs(place, 3)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert " 1 A better" in painted(app) and " 0 B better" in painted(app)
        await pilot.press("a", "b")
        assert rows(place) == []
        await pilot.press("f5", "1", "0")
        await pilot.press("question_mark")
        assert "f5  flag the pair" in painted(app)

    play(place, script)
    assert [(str(r.verdict), r.flagged) for r in rows(place)] == [("left", 1), ("right", 0)]


def test_the_keys_that_open_a_page_close_it_too_wherever_they_are(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    keys = '[keys]\nhelp = "k"\nguideline = "f6"\nrounds = "l"\nleave = "f7"\n'
    place = with_settings(tmp_path, ONCE + keys)
    add_pairs(place, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for key in ("k", "f6", "l"):
            await pilot.press(key)
            assert not isinstance(app.screen, JudgeScreen), key
            await pilot.press("question_mark", "i", "q", "r")
            assert not isinstance(app.screen, JudgeScreen), key
            await pilot.press(key)
            assert isinstance(app.screen, JudgeScreen), key
        await pilot.press("k", "f7")
        assert isinstance(app.screen, JudgeScreen)
        await pilot.press("a")

    play(place, script)
    assert len(rows(place)) == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [('tie = "a"', "a is for left_slightly and for tie"), ('tyre = "x"', "keys.tyre is not known"),
     ('tie = "enter"', "keys.tie is 'enter'"), ('tie = " "', "keys.tie is ' '"),
     ('tie = "\\u001b"', "keys.tie"), ("tie = 3", "a key is a text")],
)  # fmt: skip
def test_wrong_keys_are_refused_by_name(tmp_path: Path, keys: str, said: str) -> None:
    from curator.errors import BadConfig

    with pytest.raises(BadConfig, match=said):
        with_settings(tmp_path, f"[keys]\n{keys}\n")
    assert not (tmp_path / "other").exists()


def test_the_palette_has_every_verb_and_no_screenshot(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {verb.says for verb in app.verbs} <= titles
        assert {"dark theme", "light theme", "high-contrast theme"} <= titles
        assert not any("creenshot" in title for title in titles)
        await pilot.press("ctrl+p", *"both bad", "enter")
        await pilot.pause()

    play(workspace, script)
    assert [str(row.verdict) for row in rows(workspace)] == ["both_bad"]


def test_the_mouse_works_too(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        line = painted(app).splitlines()[-2]
        await pilot.click("#keys", offset=(line.index("B clearly"), 0))
        await pilot.pause()

    play(workspace, script)
    assert [(str(r.verdict), r.strength) for r in rows(workspace)] == [("right", 2)]
