"""Contrast as painted, no colour alone, and colours that can be switched off."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pexpect
import pytest
from rich.style import Style
from sqlmodel import select
from textual.color import Color
from textual.pilot import Pilot
from textual.screen import ModalScreen

from curator import db
from curator.models import Prompt
from curator.tui.app import CuratorApp
from curator.workspace import Workspace, create_workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import painted, play

SIZES = [(120, 36), (80, 24)]


def channel(value: int) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def luminance(color: Color) -> float:
    """Relative luminance, WCAG 2.2."""
    return 0.2126 * channel(color.r) + 0.7152 * channel(color.g) + 0.0722 * channel(color.b)


def contrast(style: Style) -> float:
    """Contrast ratio of a style's colours, WCAG 2.2 (1.4.3)."""
    assert style.color is not None and style.bgcolor is not None
    colors = [Color.from_rich_color(c) for c in (style.color, style.bgcolor)]
    if style.reverse:
        colors.reverse()
    light, dark = sorted((luminance(c) for c in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def text_contrasts(app: CuratorApp) -> dict[str, float]:
    """Return the contrast of every piece of text on the screen, box-drawing left out."""
    found = {}
    front = app.screen.children[0].region if isinstance(app.screen, ModalScreen) else None
    for y, strip in enumerate(app.screen._compositor.render_strips()):
        if front is not None:  # what lies behind a panel is not for reading now
            if not front.y <= y < front.bottom:
                continue
            strip = strip.crop(front.x, front.right)
        for segment in strip:
            text = segment.text.strip(" ─│╭╮╰╯━┃┏┓┗┛╍╏▁▂▃▄▅▆▇█▔▎▊▏▕")
            if text and segment.style is not None and segment.style.color is not None:
                assert not segment.style.dim, text
                found[text] = contrast(segment.style)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("theme", "least"), [("high-contrast", 7.0), ("dark", 4.5), ("light", 4.5)]
)
def test_every_text_on_every_screen_has_contrast(
    tmp_path: Path, add_pairs: AddPairs, theme: str, least: float, size: tuple[int, int]
) -> None:
    place = create_workspace(tmp_path / "study", settings=f'{ONCE}theme = "{theme}"\n')
    turns = [{"role": "user", "content": "Earlier."}, {"role": "assistant", "content": "Yes?"},
             {"role": "user", "content": "Now."}]  # fmt: skip
    add_pairs(place, 4, good="Fine \x1b here {i}.", messages=turns)
    low: list[tuple[str, str, float]] = []

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for name, keys in (
            ("judge", []), ("saved", ["A"]), ("undone", ["u"]), ("reasons", ["g"]),
            ("chosen", ["n", "tab", "e"]), ("note", ["enter", "n"]), ("marks", ["x", "enter", "f"]),
            ("rewrite", ["e"]), ("help", ["escape", "?"]), ("guideline", ["escape", "i"]),
            ("history", ["escape", "b", "h"]), ("found", ["/", "x"]),
            ("rounds", ["escape", "escape", "r"]), ("palette", ["escape", "ctrl+p"]),
        ):  # fmt: skip
            await pilot.press(*keys)
            await pilot.pause(0.2)
            low.extend(
                (name, text, round(value, 2))
                for text, value in text_contrasts(app).items() if value < least
            )  # fmt: skip

    play(place, script, size)
    assert low == []


def test_a_and_b_differ_by_more_than_colour(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "─ A ─" in painted(app) and "─ B ─" in painted(app)
        await pilot.press("b", "u")
        assert "╍ B ╍" in painted(app)  # the earlier pick has another frame, and words
        assert "was: B better" in painted(app)

    play(workspace, script)


@pytest.mark.parametrize(
    ("theme", "least"), [("high-contrast", 7.0), ("dark", 4.5), ("light", 4.5)]
)
def test_the_first_minutes_and_an_empty_queue_have_contrast(
    tmp_path: Path, add_pairs: AddPairs, theme: str, least: float
) -> None:
    settings = f'{ONCE}theme = "{theme}"\nred_flags = true\n'
    place = create_workspace(tmp_path / "study", settings=settings)
    add_pairs(place, 1)
    with db.writing(place.engine) as session:
        session.exec(select(Prompt)).one().risk_cue = "self-harm"
    low: list[tuple[str, str, float]] = []

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for name, keys in (
            ("first", []), ("typed", [*"Jo", "ctrl+a"]), ("practice", ["escape"]),
            ("picked", ["b"]), ("red flags", ["enter", "a"]), ("answered", ["y"]),
            ("empty", [*"nnnnn"]),
        ):  # fmt: skip
            await pilot.press(*keys)
            await pilot.pause(0.2)
            low.extend(
                (name, text, round(value, 2))
                for text, value in text_contrasts(app).items() if value < least
            )  # fmt: skip
        assert "undo the last judgment" in painted(app)

    play(place, script, first_minutes=True)
    assert low == []


def test_no_color_is_heeded(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)
    colors = []
    for more in ({}, {"NO_COLOR": "1"}):
        child = pexpect.spawn(
            sys.executable,
            ["-P", "-m", "curator", "annotate", "-a", "anna", "--workspace", str(workspace.path)],
            dimensions=(36, 120), timeout=30,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **more},
        )  # fmt: skip
        child.expect("rather this client")
        child.send("q")
        child.expect(pexpect.EOF)
        found = re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)", child.before or b"")
        colors.append({each for each in found if len(set(each)) > 1})
    assert colors[0] and not colors[1]
