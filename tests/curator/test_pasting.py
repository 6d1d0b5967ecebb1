"""Pastes: one text each, from the terminal's bytes to the field, and never a key."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest
from textual import constants, events
from textual._xterm_parser import BRACKETED_PASTE_END as END
from textual._xterm_parser import BRACKETED_PASTE_START as START
from textual._xterm_parser import XTermParser
from textual.message import Message
from textual.pilot import Pilot
from textual.widgets import Input, TextArea
from textual.widgets.input import Selection

from curator.tui import pasting
from curator.tui.app import CuratorApp
from curator.tui.pasting import PasteParser
from curator.tui.widgets import Line
from curator.workspace import Workspace
from tests.conftest import AddPairs
from tests.curator.test_app import painted, play, rows, until

HOSTILE = "xyz \x1b[31m tt \x1b[0m \x1bB \x1b[A \x1b\x1b x \x03\x1b[97;;97u\x1b[2J end"


class Typed:
    """A parser as a driver uses it, and what came of it: a paste's text in brackets, or a key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parser: XTermParser | None = None) -> None:
        self.clock = 0.0
        monkeypatch.setattr("textual._parser.get_time", lambda: self.clock)
        self.parser = parser or PasteParser()
        self.said: list[str] = []

    def read(self, *reads: str | float) -> list[str]:
        """Feed what each read gave, or let seconds pass; return all that came of it so far."""
        for each in reads:
            if isinstance(each, float):
                self.clock += each
                self.take(self.parser.tick())
            else:
                self.take(self.parser.feed(each))
        return self.said

    def take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, events.Paste):
                self.said.append(f"<{message.text}>")
            elif isinstance(message, events.Key):
                self.said.append(message.key)
            else:
                self.said.append(type(message).__name__)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    return Typed(monkeypatch)


def test_a_paste_is_one_text_whatever_it_holds(typed: Typed) -> None:
    text = HOSTILE + START + " again\r\n" * 3_000
    assert typed.read(f"a{START}{text}{END}b") == ["a", f"<{text}>", "b"]


@pytest.mark.parametrize("whole", [f"{START}{HOSTILE}{END}", f"{START}{END}"])
def test_a_paste_may_be_read_in_any_parts(monkeypatch: pytest.MonkeyPatch, whole: str) -> None:
    text = whole[len(START) : -len(END)]
    for at in range(1, len(whole)):
        typed = Typed(monkeypatch)
        assert typed.read("t", whole[:at], whole[at:], "b") == ["t", f"<{text}>", "b"], at
    assert Typed(monkeypatch).read(*whole, "b") == [f"<{text}>", "b"]


def test_a_slow_line_makes_no_key_of_a_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    """At worst its first one or two characters, which came too long before the others."""
    whole = f"{START}x tt\x1b[0m{END}"
    early = {1: ["escape"], 2: ["left_square_bracket"]}
    for at in range(1, len(whole)):
        said = Typed(monkeypatch).read(whole[:at], constants.ESCAPE_DELAY * 2, whole[at:], "b")
        assert said == [*early.get(at, []), "<x tt\x1b[0m>", "b"], at
    halted = Typed(monkeypatch).read(*"\x1b", 1.0, "[", 1.0, "2", 0.05, "00~x tt", 1.0, END, "b")
    assert halted == ["escape", "left_square_bracket", "<x tt>", "b"]


KEYS: list[list[str | float]] = [
    ["\x1b", 1.0, "[", 1.0, "2", "x"],
    ["\x1b[A", "\x1bOP", "\x1b[2~", "\x1b[20~", "\x1b[200;5u", "\x1b[97;;97u", "\x1b[1;5D"],
    ["\x1b", "[", "B", "\x1b\x1b", 1.0, "\x1b\x1b[A", 1.0],
    ["\x1ba", 1.0, "\x1ba\x1b[A", "\x1b[[\x1b", 1.0],
    ["\x1b[", 1.0, "\x1b[2", 3.0, "a\x1b[20", 3.0, "\x1b[" + "9" * 40, 1.0, "t"],
    ["\x1b[<0;5;5M\x1b[<0;5;5m", "\x1b[I", "\x1b[?2026;1$y", END, "ä\r\t\x7f\x03", "\x1b", ""],
    ["abc\x1b[2", ""],
]


@pytest.mark.parametrize("reads", KEYS)
def test_keys_are_what_they_were(monkeypatch: pytest.MonkeyPatch, reads: list[str | float]) -> None:
    before = Typed(monkeypatch, XTermParser()).read(*reads)
    assert Typed(monkeypatch).read(*reads) == before != []


def test_a_paste_without_an_end_is_ended_by_hand(typed: Typed) -> None:
    """And not by letters, which may be the rest of it."""
    pause = pasting.STALLED_SECONDS
    assert typed.read(f"{START}one\x1b[1m", pause / 2, "\x1b[0m tt", pause, "tt", pause) == []
    assert typed.read("\x1b[A", "t") == ["<one\x1b[1m\x1b[0m tttt>", "up", "t"]
    typed.said.clear()
    assert typed.read(f"{START}one", pause, END, "t") == ["<one>", "t"]
    typed.said.clear()
    assert typed.read(f"{START}one", pause, "\x03", "t") == ["<one>", "ctrl+c", "t"]
    typed.said.clear()
    assert typed.read(f"{START}lost", "") == []


@pytest.mark.parametrize("keys", [[], ["g"], ["h"]])
def test_a_paste_where_nothing_is_written_does_nothing(
    workspace: Workspace, add_pairs: AddPairs, keys: list[str]
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*keys)
        before = painted(app)
        app.post_message(events.Paste(HOSTILE + "a\rB\nt"))
        await pilot.pause()
        assert painted(app) == before

    play(workspace, script)
    assert rows(workspace) == []


def test_the_terminal_is_read_through_the_gate(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        windows = app.driver_class.__module__.endswith("windows_driver")
        name = "textual.drivers.win32" if windows else app.driver_class.__module__
        assert vars(sys.modules[name])["XTermParser"] is PasteParser

    play(workspace, script)


@pytest.mark.parametrize(
    ("key", "first"), [("n", "note"), (":", "number"), ("h", "history"), ("ctrl+p", "palette")]
)
def test_a_line_takes_a_paste_whole_and_inert(
    workspace: Workspace, add_pairs: AddPairs, key: str, first: str
) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(key, *(["slash"] if first == "history" else []))
        app.post_message(events.Paste("one \x1b[31mred\r\rtwo\u202e\r\n three\r"))
        await pilot.pause()
        line = app.focused
        assert isinstance(line, Input)
        # The palette's line is Textual's own, and takes the first line alone.
        whole = "one [31mred" if first == "palette" else "one [31mred two  three"
        assert line.value == whole
        line.value = "a\x1bb"
        assert line.value == "ab" or first == "palette"

    play(workspace, script)


def test_what_has_no_room_of_a_paste_is_told(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("n")
        line = app.screen.query_one(Line)
        line.value = "x" * 1_990 + "yy"
        line.selection = Selection(1_990, 1_992)
        app.post_message(events.Paste("0123456789ab\r" + "z" * 2_000))
        await until(pilot, lambda: "2,003 pasted characters are left out" in painted(app))
        assert line.value == "x" * 1_990 + "0123456789"
        await pilot.press("enter", "a")

    play(workspace, script, size=(120, 36), notifications=True)
    assert len(rows(workspace)[0].note or "") == 2_000


def test_the_lines_of_a_paste_stay_lines_in_a_rewrite(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    """Terminals send a carriage return for each line's end."""
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("e")
        app.screen.query_one(TextArea).text = ""
        app.post_message(events.Paste("one\rtwo\r\nthree\n\x1b[2Jfour"))
        await pilot.pause()
        assert app.screen.query_one(TextArea).text == "one\ntwo\nthree\n[2Jfour"

    play(workspace, script)


def test_a_name_is_a_line_too(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for field in app.screen.query(Line):
            field.focus()
            field.value = ""
            app.post_message(events.Paste("dr\ranna\x1b[0m" + "x" * 100))
            await pilot.pause()
            assert field.value == ("dr anna[0m" + "x" * 100)[:60]

    play(workspace, script, first_minutes=True)
