"""What the keys do."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from curator.tui.judge_screen import QUESTION

HELP = f"""\
{QUESTION}

  a  A is better, slightly        b  B is better, slightly
  A  A is better, clearly         B  B is better, clearly
  t  a tie                        x  both are bad
  s  skip, without penalty        u  take the last judgment back
  r  rounds: train, write anew    ?  this page
  q  leave; a run goes on         up, down, tab  scroll

Validate the feeling; do not ratify the conclusion, the blame or the plan.
Length, polish and hotline text are no reasons.

Every judgment is on the disk before "saved" shows. A tie, both bad and skip
are kept, and are never trained on."""


class HelpScreen(ModalScreen[None]):
    """A page over the judge screen; any of the closing keys goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,enter,q", "app.pop_screen", show=False)
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(Content.from_text(HELP, markup=False))
            yield Static(Content("esc  back").stylize("dim"))
