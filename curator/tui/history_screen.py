"""One's own judgments: found again, opened, judged again."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import DataTable, Input, Static

from curator.errors import CuratorError
from curator.history import MOST_ROWS, Judged, history
from curator.safe_text import one_line
from curator.tui.widgets import HeaderBar, KeyBar, KeyHint, Line
from curator.words import COUNTED

if TYPE_CHECKING:
    from curator.tui.app import CuratorApp

KEYS = [
    KeyHint("enter", "open it", "open", "open"),
    KeyHint("v", "by verdict", "verdict", "verdict"),
    KeyHint("f", "flagged only", "flagged", "flagged"),
    KeyHint("/", "by text", "text", "text"),
    KeyHint("esc", "back", "back", "back"),
]
# Two lines a row: the client's words are what one looks for, and have to fit beside the rest.
COLUMNS = ("when", "said", "client, and what was noted")
BESIDE = 32
VERDICTS = (None, *COUNTED)


def _when(row: Judged) -> str:
    """Return when a pair was judged, in this place's time."""
    try:
        return f"{datetime.fromisoformat(row.judged_at).astimezone():%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a row that somebody changed
        return one_line(row.judged_at, 11)


def _cut(text: str, width: int) -> str:
    """Return a text made visible, on one line of at most `width` cells."""
    line = Text(one_line(text, width))
    line.truncate(width, overflow="ellipsis")
    return line.plain


class HistoryScreen(Screen[int | None]):
    """A table of judgments, the latest first. Closes with the pair to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "verdict", show=False),
        Binding("f", "flagged", show=False),
        Binding("slash", "text", show=False),
        Binding("escape", "back", show=False, priority=True),
    ]

    app: CuratorApp

    def __init__(self) -> None:
        super().__init__()
        self.verdict: str | None = None
        self.flagged = False
        self.rows: list[Judged] = []

    def compose(self) -> ComposeResult:
        yield HeaderBar(id="header")
        yield Static(id="filter")
        yield Line(placeholder="a word of the conversation, a reply or a note", id="line")
        yield DataTable(id="judgments", cursor_type="row")
        yield KeyBar(KEYS, id="keys")

    def on_mount(self) -> None:
        header = self.query_one(HeaderBar)
        header.workspace = self.app.workspace.name
        header.annotator = self.app.seat.annotator.name
        self.query_one(Input).display = False
        table = self.query_one(DataTable)
        table.add_columns(*COLUMNS)
        self.fill()
        table.focus()

    def fill(self) -> None:
        """Read the judgments that pass the filters."""
        seat = self.app.seat
        text = self.query_one(Input).value
        try:
            self.rows = history(seat, self.verdict, self.flagged, text)
        except CuratorError as error:
            self.app.complain(error)
        table = self.query_one(DataTable)
        table.clear()
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in self.cells(row)), height=2)
        parts = [f"{len(self.rows)} judgments"]
        if len(self.rows) == MOST_ROWS:
            parts[0] = f"the latest {MOST_ROWS} judgments"
        if self.verdict:
            parts.append(f"said: {COUNTED[self.verdict]}")
        if self.flagged:
            parts.append("flagged")
        if text:
            parts.append(f"with “{one_line(text, 30)}”")
        if not self.rows:
            filtered = self.verdict or self.flagged or text
            parts.append("v, f and / show others" if filtered else "they will be listed here")
        self.query_one("#filter", Static).update(
            Content.from_text(" " + " · ".join(parts), markup=False)
        )

    def cells(self, row: Judged) -> tuple[str, ...]:
        """Return a row as the table shows it, each cell of two lines; times are this place's."""
        said = COUNTED[str(row.said.verdict)]
        clearly = "clearly" if row.said.strength == 2 else ""
        room = max(BESIDE, self.size.width - BESIDE)
        tags = (*row.said.tags_left, *row.said.tags_right)
        marks = [
            ("⚑" if row.said.flagged else ""), ("note" if row.said.note else ""),
            ("rewritten" if row.said.rewrite_id is not None else ""),
            ("fast" if row.fast else ""), ("changed" if row.revisions > 1 else ""),
        ]  # fmt: skip
        noted = (*marks, self.app.seat.rubric.labels(tags), row.about)
        return (
            f"{_when(row)}\n{row.round}.{row.number}", f"{said}\n{clearly}",
            f"{_cut(row.client, room)}\n{_cut(' · '.join(filter(None, noted)), room)}",
        )  # fmt: skip

    @on(DataTable.RowSelected)
    def open_row(self, event: DataTable.RowSelected) -> None:
        """Open the judgment under the cursor."""
        if event.cursor_row < len(self.rows):
            self.dismiss(self.rows[event.cursor_row].pair_id)

    def action_open(self) -> None:
        """Open the judgment under the cursor (by a click on the key)."""
        self.query_one(DataTable).action_select_cursor()

    def action_verdict(self) -> None:
        """Show the next verdict alone, at last all again."""
        self.verdict = VERDICTS[(VERDICTS.index(self.verdict) + 1) % len(VERDICTS)]
        self.fill()

    def action_flagged(self) -> None:
        """Show flagged judgments alone, or all again."""
        self.flagged = not self.flagged
        self.fill()

    def action_text(self) -> None:
        """Ask for a text to find."""
        line = self.query_one(Input)
        line.display = True
        line.focus()

    @on(Input.Changed)
    def find(self) -> None:
        """Show what holds the text, as it is typed."""
        self.fill()

    @on(Input.Submitted)
    def found(self) -> None:
        """Go to the table."""
        self.query_one(DataTable).focus()

    def action_back(self) -> None:
        """Leave the text, or go back to judging."""
        line = self.query_one(Input)
        if line.display:
            line.display = False
            line.value = ""
            self.query_one(DataTable).focus()
            return
        self.dismiss(None)
