"""What the keys do, and how to judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Markdown, Static

if TYPE_CHECKING:
    from curator.tui.app import CuratorApp

CLOSING: list[BindingType] = [
    Binding("escape,enter", "app.pop_screen", show=False),
    # Under the verbs' names, so that they follow them to other keys.
    Binding("question_mark", "app.pop_screen", show=False, id="help"),
    Binding("i", "app.pop_screen", show=False, id="guideline"),
    Binding("q", "app.pop_screen", show=False, id="leave"),
]
SAYS = {
    "left_slightly": "A is better, slightly", "left_clearly": "A is better, clearly",
    "right_slightly": "B is better, slightly", "right_clearly": "B is better, clearly",
    "tie": "content with either", "both_bad": "content with neither",
    "skip": "skip, without penalty", "undo": "take the last judgment back",
    "tags": "reasons, a key each", "flag": "flag the pair", "note": "a line of note",
    "next_unjudged": "the next unjudged", "history": "your judgments",
    "rounds": "rounds and figures", "guideline": "how to judge",
    "help": "this page", "leave": "leave; a run goes on",
}  # fmt: skip
ALSO = """
enter: the next pair, or the next step · ctrl+p: everything by name
up, down, tab: scroll · f1: how to judge, from anywhere

Every judgment is on the disk before "saved" shows.
A tie, both bad and skip are kept, and never trained on; a rewrite is,
over both replies, whatever else you say of them but skip."""


class HelpScreen(ModalScreen[None]):
    """A page over the judge screen; any of the closing keys goes back."""

    BINDINGS: ClassVar[list[BindingType]] = CLOSING

    app: CuratorApp

    def compose(self) -> ComposeResult:
        verbs = self.app.verbs
        rows = [f"{v.key:>6}  {SAYS.get(v.name, v.says)}" for v in verbs]
        half = (len(rows) + 1) // 2
        beside = [
            f"{left:<38}{rows[half + i] if half + i < len(rows) else ''}"
            for i, left in enumerate(rows[:half])
        ]
        question = self.app.seat.rubric.question
        text = "\n".join([question, "", *beside, ALSO])
        with VerticalScroll(id="help"):
            yield Static(Content.from_text(text, markup=False))
            yield Static(Content("esc  back").stylize("$quiet"))


class GuidelineScreen(ModalScreen[None]):
    """How to judge, on a page."""

    BINDINGS: ClassVar[list[BindingType]] = CLOSING

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help", classes="wide"):
            yield Markdown(self.text, open_links=False)
            yield Static(Content("esc  back").stylize("$quiet"))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
