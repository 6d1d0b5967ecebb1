"""Writing the reply that was missing: an editor on a reply, its draft kept as it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static, TextArea

from curator.safe_text import HIDDEN
from curator.tui.widgets import Conversation, KeyBar, KeyHint
from curator.words import Shown

KEYS = [
    KeyHint("ctrl+s", "keep it, then judge", "keep", "keep"),
    KeyHint("esc", "leave it as a draft", "leave", "leave"),
    KeyHint("ctrl+r", "start again from the reply", "reset", "reset"),
    KeyHint("ctrl+z", "undo, that too", "undo", "undo"),
]


class RewriteScreen(Screen[str | None]):
    """An editor on one reply. Closes with the text to keep, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", priority=True, show=False),
        Binding("ctrl+r", "reset", priority=True, show=False),
        # Here too where the focus is not in the editor: elsewhere it suspends the app.
        Binding("ctrl+z", "undo", priority=True, show=False),
        Binding("escape", "leave", priority=True, show=False),
    ]

    def __init__(
        self, pair: Shown, letter: str, reply: str, text: str, on_draft: Callable[[str], bool]
    ) -> None:
        """`on_draft` is called with what is written, at most once in 0.8 s and at the end.

        It tells whether it kept it; else it is asked again.
        """
        super().__init__()
        self.pair, self.letter = pair, letter
        self.reply = HIDDEN.sub("", reply)
        self.text = self.drafted = HIDDEN.sub("", text)
        self.on_draft = on_draft

    def compose(self) -> ComposeResult:
        yield Conversation(id="conversation")
        yield Static(f"Write the reply you would want in place of {self.letter}.", id="question")
        yield TextArea(self.text, id="editor", soft_wrap=True, tab_behavior="focus")
        yield KeyBar(KEYS, id="keys")

    def on_mount(self) -> None:
        conversation = self.query_one(Conversation)
        conversation.show(self.pair.messages, self.pair.content_label, self.pair.risk_cue)
        editor = self.query_one(TextArea)
        editor.focus()
        editor.move_cursor(editor.document.end)
        self.set_interval(0.8, self.draft)

    def draft(self) -> bool:
        """Keep what is written so far, if it changed; tell whether it is on the disk."""
        text = self.query_one(TextArea).text
        if text == self.drafted:
            return True
        if kept := self.on_draft(text):
            self.drafted = text
        return kept

    @on(TextArea.Changed)
    def inert(self, event: TextArea.Changed) -> None:
        """Drop characters that a terminal could obey, however they came in."""
        clean = HIDDEN.sub("", event.text_area.text)
        if clean != event.text_area.text:
            event.text_area.text = clean

    def action_keep(self) -> None:
        """Close with what is written; not while a draft on the disk would be older than it."""
        if self.draft():
            self.dismiss(self.query_one(TextArea).text)

    def action_leave(self) -> None:
        """Close; what was written stays a draft."""
        self.draft()
        self.dismiss(None)

    def action_reset(self) -> None:
        """Start again from the reply as it was; undo brings back what was written."""
        editor = self.query_one(TextArea)
        editor.history.checkpoint()  # undone by itself, not with what was typed just before
        editor.replace(
            self.reply, editor.document.start, editor.document.end, maintain_selection_offset=False
        )

    def action_undo(self) -> None:
        """Take the last change back."""
        self.query_one(TextArea).undo()
