"""Contrast as painted, no colour alone, and colours that can be switched off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.style import Style
from textual.color import Color
from textual.pilot import Pilot
from textual.screen import ModalScreen

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


def test_no_color_is_heeded(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    add_pairs(workspace, 1)

    async def run() -> None:
        app = CuratorApp(workspace, "anna")
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.pause()
            for line in range(36):
                for segment in (
                    app.screen._compositor.render_strips()[line].apply_filter(
                        app._filters[0], Color(0, 0, 0)
                    )
                    if app._filters
                    else []
                ):
                    color = segment.style.color if segment.style else None
                    if color is not None and color.triplet is not None:
                        assert len({*color.triplet}) == 1  # grey
            assert app._filters

    asyncio.run(run())
