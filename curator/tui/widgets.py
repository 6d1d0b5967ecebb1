"""The parts of the judge screen. Every one shows text made visible, never markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from textual.app import ComposeResult, RenderResult
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.events import Paste, Resize
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Static

from curator.run_watch import RunWatch, sparkline
from curator.safe_text import HIDDEN, hidden_count, one_line, visible, words_to_read
from curator.verbs import Verb
from curator.words import SPEAKERS

# As much of a text as is laid out before the first paint; the rest follows at once.
AT_ONCE = 6_000


def show_long(view: Static, text: str) -> None:
    """Show a text; of a very long one the beginning is painted first, then the whole."""
    whole = Content.from_text(text, markup=False)
    if len(text) <= AT_ONCE:
        view.update(whole)
        return
    head = Content.from_text(text[:AT_ONCE], markup=False)
    view.update(head)

    def show_rest() -> None:
        if view.content is head:  # no other text has taken its place
            view.update(whole)

    view.set_timer(0.05, show_rest)


class HeaderBar(Widget):
    """One line: workspace, round and progress, annotator, when the last judgment was saved."""

    workspace: reactive[str] = reactive("")
    annotator: reactive[str] = reactive("")
    round: reactive[int] = reactive(0)
    judged: reactive[int] = reactive(0)
    pairs: reactive[int] = reactive(0)
    saved_at: reactive[datetime | None] = reactive(None)

    def render(self) -> RenderResult:
        left = Content.from_text(f" curator · {one_line(self.workspace, 24)}", markup=False)
        who = one_line(self.annotator, 16)
        saved = f" · saved {self.saved_at:%H:%M:%S}" if self.saved_at else ""
        right = Content.from_text(f"{who}{saved} ", markup=False)
        middle = Content("")
        if self.pairs:
            text = f"round {self.round} · {self.judged} of {self.pairs} "
            room = self.size.width - left.cell_length - right.cell_length - len(text) - 6
            middle = Content(text)
            width = max(0, min(40, room))
            done = min(width, round(width * self.judged / self.pairs))
            middle += Content("━" * done).stylize("$accent")
            middle += Content("━" * (width - done)).stylize("$surface-lighten-2")
        gap = self.size.width - left.cell_length - middle.cell_length - right.cell_length
        before = max(1, gap // 2)
        spaces = Content(" " * before), Content(" " * max(1, gap - before))
        return Content.assemble(left, spaces[0], middle, spaces[1], right)


class Conversation(VerticalScroll, can_focus=True):
    """A conversation, the newest turn in view, under a context line that never scrolls away."""

    put_at = 0
    """The row that `show_newest` scrolled to; elsewhere, the reader has scrolled."""

    def compose(self) -> ComposeResult:
        yield Static(id="context")  # docked: what is scrolled passes below it
        yield Static(id="earlier")
        yield Static(id="newest")

    def show(self, messages: list[dict[str, str]], label: str | None, cue: str | None) -> None:
        """Show a conversation with its content label and risk cue before it."""
        self.query_one("#context", Static).update(_context(messages, label, cue))
        *before, last = messages
        view = self.query_one("#newest", Static)
        if sum(len(message["content"]) for message in messages) <= AT_ONCE:
            self.put(before, _turn(last, newest=True))
        else:  # the beginning of the newest turn is painted first, then all
            head = _turn({**last, "content": last["content"][:AT_ONCE]}, newest=True)
            self.put([], head)

            def show_all() -> None:
                if view.content is head:  # no other conversation has taken its place
                    self.put(before, _turn(last, newest=True))

            view.set_timer(0.05, show_all)

    def put(self, before: list[dict[str, str]], newest: Content) -> None:
        """Lay out the turns; the beginning of the client's newest words comes into view."""
        earlier = self.query_one("#earlier", Static)
        earlier.display = bool(before)
        earlier.update(Content("\n\n").join(_turn(message) for message in before))
        self.query_one("#newest", Static).update(newest)
        self.call_after_refresh(self.show_newest)

    def show_newest(self) -> None:
        """Scroll to the end, or to where a long last turn begins."""
        above = self.query_one("#context").outer_size.height
        begins = self.query_one("#newest").virtual_region.y - above
        self.put_at = max(0, min(begins, self.max_scroll_y))
        self.scroll_to(y=self.put_at, animate=False, immediate=True)

    def on_resize(self) -> None:
        """Keep the newest turn in view, unless the reader has scrolled away from it."""
        at = self.scroll_offset.y
        pushed = at < self.put_at and at == self.max_scroll_y  # by there being less to scroll
        if at == self.put_at or pushed:
            self.call_after_refresh(self.show_newest)


def _context(messages: list[dict[str, str]], label: str | None, cue: str | None) -> Content:
    """Return the line over a conversation: content label, risk cue, what is hidden in it."""
    line = Content.from_text(f"about: {one_line(label or 'not labelled', 40)}", markup=False)
    line += Content(" · risk cue: ")
    marked = cue not in (None, "", "none")
    cue_text = Content.from_text(one_line(cue or "not noted", 40), markup=False)
    line += cue_text.stylize("bold $accent" if marked else "")
    turns = sum(message["role"] != "system" for message in messages)
    if turns > 1:
        line += Content(f" · {turns} turns").stylize("$quiet")
    hidden = sum(hidden_count(message["content"]) for message in messages)
    if hidden:
        line += Content(f" · {hidden} hidden characters").stylize("$error")
    return line


def _turn(message: dict[str, str], newest: bool = False) -> Content:
    """Return a turn under its speaker, the newest one in full light."""
    speaker = SPEAKERS.get(message["role"], message["role"])
    heading = Content(f"▌ {speaker}").stylize("bold $accent" if newest else "bold $quiet")
    text = Content.from_text(visible(message["content"]), markup=False)
    return heading + Content("\n") + (text if newest else text.stylize("$quiet"))


class Reply(VerticalScroll, can_focus=True):
    """One of the two replies, without a trace of where it comes from."""

    def __init__(self, letter: str, **options: Any) -> None:
        super().__init__(**options)
        self.letter = letter
        self.border_title = letter

    def compose(self) -> ComposeResult:
        yield Static(classes="text")

    def show(self, text: str) -> None:
        """Show a reply from its beginning, with its length and hidden characters at the foot."""
        self.remove_class("picked", "earlier")
        show_long(self.query_one(".text", Static), visible(text))
        hidden = hidden_count(text)
        words = f"{words_to_read(text):.0f} words"
        self.border_subtitle = f"{hidden} hidden characters · {words}" if hidden else words
        self.because("")
        self.scroll_home(animate=False)

    def because(self, reasons: str) -> None:
        """Show the reasons given for this reply in its frame."""
        title = f"{self.letter} · because {reasons}" if reasons else self.letter
        self.border_title = Content.from_text(title, markup=False)


class Replies(Container):
    """Both replies, side by side or stacked; equally large, so that neither shows more."""

    def on_resize(self, event: Resize) -> None:
        stacked = self.screen.has_class("narrow")
        for reply in self.query(Reply):
            reply.styles.height = event.size.height // 2 if stacked else "1fr"
            reply.styles.width = "1fr" if stacked else (event.size.width - 2) // 2


class RunStrip(Widget):
    """One line on the run under way: a curve of the loss, and the figures."""

    def show(self, watch: RunWatch | None) -> None:
        """Show a run, or nothing when there is none."""
        self._watch = watch
        self.refresh()

    _watch: RunWatch | None = None

    def render(self) -> RenderResult:
        watch = self._watch
        if watch is None:
            return Content("")
        curve = Content(sparkline(watch.loss, 20)).stylize("$accent")
        room = max(10, self.size.width - curve.cell_length - 3)
        return Content.assemble(" ", curve, " ", one_line(watch.line(), room))


class Line(Input):
    """A line to write on. It takes no character that a terminal could obey, however it came in."""

    def validate_value(self, value: str) -> str:
        """Return what is written without such characters."""
        return HIDDEN.sub("", value)

    def _on_paste(self, event: Paste) -> None:
        # Before Input's own, which takes the first line alone, and nothing of what is too long.
        text = " ".join(line for line in event.text.splitlines() if line.strip())
        event.text = text
        if not self.max_length:
            return
        room = max(0, self.max_length - len(self.value) + len(self.selected_text))
        event.text = text[:room]
        if left_out := len(text) - len(event.text):
            said = (
                f"{left_out:,} pasted characters are left out: the line holds {self.max_length:,}."
            )
            self.app.notify(said, severity="warning", timeout=8, markup=False)


@dataclass(frozen=True)
class KeyHint:
    """A key, what it does in long and in short (none: left out), and what a click on it runs."""

    key: str
    long: str
    short: str | None
    action: str


def key_hints(verbs: Sequence[Verb]) -> list[KeyHint]:
    """Return the verbs as the key bar shows them."""
    return [KeyHint(v.key, v.says, v.short, f"verb('{v.name}')") for v in verbs]


class KeyBar(Widget):
    """The keys that work here; short when there is little room. A click does what the key does.

    The first keys count most: what does not fit is dropped from behind, but for the last, which
    tells all keys.
    """

    def __init__(self, keys: Sequence[KeyHint], **options: Any) -> None:
        super().__init__(**options)
        self.keys = list(keys)

    def render(self) -> RenderResult:
        width, lines = self.size.width, max(1, self.size.height)
        least = [key for key in self.keys if key.short is not None]
        kept, short = list(self.keys), False
        while len(rows := self._rows(kept, width, short)) > lines:
            spare = [key for key in kept if key not in least]
            if spare:
                kept.remove(spare[-1])
            elif not short:
                short = True
            elif len(kept) > 2:
                del kept[-2]
            else:
                break
        return Content("\n").join(rows)

    @staticmethod
    def _rows(keys: Sequence[KeyHint], width: int, short: bool) -> list[Content]:
        rows = [Content("")]
        for key in keys:
            label = key.short if short else key.long
            if label is None:
                continue
            part = Content(f" {key.key}").stylize("bold $accent")
            part += Content(f" {label} " if label else " ")
            part = part.stylize(f"@click=screen.{key.action}")
            if rows[-1].cell_length + part.cell_length > width and rows[-1].cell_length:
                rows.append(Content(""))
            rows[-1] += part
        return rows
