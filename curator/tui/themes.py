"""The app's three themes. Blue is A, orange is B, in every one; the accent is neither.

In the high-contrast theme every text keeps at least 7:1 (WCAG 2.2, 1.4.6), which a test measures
on painted screens.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="curator-dark", primary="#9d8cf0", accent="#b9a6ff", foreground="#e4e4e8",
    background="#121216", surface="#1c1c22", panel="#26262e", error="#ff6b6b", dark=True,
    variables={"side-a": "#5fafff", "side-b": "#ffaf5f", "quiet": "#a0a0aa", "line": "#44444e"},
)  # fmt: skip
LIGHT = Theme(
    name="curator-light", primary="#5b46c9", accent="#5b46c9", foreground="#1c1c22",
    background="#fbfbf8", surface="#efeee9", panel="#e4e3dd", error="#b3261e", dark=False,
    variables={"side-a": "#0b5cad", "side-b": "#9a4a00", "quiet": "#5c5c66", "line": "#b8b7b0"},
)  # fmt: skip
CONTRAST = Theme(
    name="curator-high-contrast", primary="#ffff00", accent="#ffff00", foreground="#ffffff",
    background="#000000", surface="#000000", panel="#000000", error="#ff9c9c", dark=True,
    variables={
        "side-a": "#8fd0ff", "side-b": "#ffc080", "quiet": "#d8d8d8", "line": "#d8d8d8",
        "text-muted": "#d8d8d8", "text-disabled": "#d8d8d8",
        "block-cursor-background": "#ffff00", "block-cursor-foreground": "#000000",
        "block-cursor-blurred-background": "#000000", "block-cursor-blurred-foreground": "#ffffff",
        "input-cursor-background": "#ffffff", "input-cursor-foreground": "#000000",
        "input-selection-background": "#00308f 100%", "border": "#ffffff",
        "scrollbar": "#d8d8d8", "scrollbar-background": "#000000",
    },
)  # fmt: skip
THEMES = {"dark": DARK, "light": LIGHT, "high-contrast": CONTRAST}
