"""The demo's first page: what this is, and what to do."""

from __future__ import annotations

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
    "  a  A is better     A  clearly     t  a tie\n"
    "  b  B is better     B  clearly     x  both are bad",
    "A good reply validates the feeling; it does not ratify the conclusion, the blame or the "
    "plan. Coldness is as wrong as agreeing.",
    "After {offer} picks you can train it on them, in about a minute, while you go on. Then it "
    "writes the next replies. Its first ones show up in a moment.",
)


class WelcomeScreen(ModalScreen[None]):
    """Read once, closed with any of the usual keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,space", "app.pop_screen", show=False),
        Binding("q", "app.quit", show=False),
    ]

    def __init__(self, offer: int) -> None:
        super().__init__()
        self.offer = offer

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(Content("Welcome to curator").stylize("bold $accent"))
            yield Static(Content("\n" + "\n\n".join(WELCOME).format(offer=self.offer)))
            yield Static(Content("\nenter  begin").stylize("bold"))
