"""The demo's first page: what this is, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

WELCOME = (
    "A tiny language model, made for this demo, answers people in difficulty. It is kind, and it "
    "agrees too easily. You teach it otherwise, pick by pick: read the client's message and two "
    "replies, then press one key.",
    "{keys}",
    "A good reply validates the feeling; it does not ratify the conclusion, the blame or the "
    "plan. Coldness is as wrong as agreeing.",
    "After {offer} picks you can train it on them, in about a minute, while you go on. Then it "
    "writes the next replies. Its first ones show up in a moment.",
)


class WelcomeScreen(ModalScreen[None]):
    """Read once, closed with any of the usual keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,space", "app.pop_screen", show=False),
        Binding("q", "app.quit", show=False, id="leave"),
    ]

    def __init__(self, offer: int, key_of: Callable[[str], str]) -> None:
        """`key_of` returns the key a verb is on."""
        super().__init__()
        self.offer = offer
        self.key_of = key_of

    def compose(self) -> ComposeResult:
        cells = (
            ("left_slightly", "A is better"), ("left_clearly", "clearly"), ("tie", "a tie"),
            ("right_slightly", "B is better"), ("right_clearly", "clearly"),
            ("both_bad", "both are bad"),
        )  # fmt: skip
        keys = [f"{self.key_of(name):>3}  {says:<12}" for name, says in cells]
        rows = "\n".join("  ".join(keys[i : i + 3]).rstrip() for i in (0, 3))
        text = "\n\n".join(WELCOME).format(offer=self.offer, keys=rows)
        with VerticalScroll(id="help"):
            yield Static(Content("Welcome to curator").stylize("bold $accent"))
            yield Static(Content.from_text(f"\n{text}", markup=False))
            yield Static(Content("\nenter  begin").stylize("bold"))
