"""One's own judgments: found again, opened, judged again."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from curator.tui.app import CuratorApp

KEYS = [
    KeyHint("enter", "open it", "open", "open"),
    KeyHint("v", "by verdict", "verdict", "verdict"),
    KeyHint("f", "flagged only", "flagged", "flagged"),
    KeyHint("/", "by text", "text", "text"),
    KeyHint("esc", "back", "back", "back"),
]
COLUMNS = ("when", "pair", "said", "reasons", "", "about", "client")
VERDICTS = (None, "left", "right", "tie", "both_bad", "skip")
SAID = {"left": "A", "right": "B", "tie": "tie", "both_bad": "both bad", "skip": "skipped"}


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
            table.add_row(*(Text(cell) for cell in self.cells(row)))
        parts = [f"{len(self.rows)} judgments"]
        if len(self.rows) == MOST_ROWS:
            parts[0] = f"the latest {MOST_ROWS} judgments"
        if self.verdict:
            parts.append(f"said: {SAID[self.verdict]}")
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
        """Return a row as the table shows it."""
        said = SAID[str(row.said.verdict)] + (" clearly" if row.said.strength == 2 else "")
        tags = (*row.said.tags_left, *row.said.tags_right)
        marks = [
            ("⚑" if row.said.flagged else ""), ("note" if row.said.note else ""),
            ("rewritten" if row.said.rewrite_id is not None else ""),
            ("fast" if row.fast else ""), ("changed" if row.revisions > 1 else ""),
        ]  # fmt: skip
        return (
            row.judged_at[5:16].replace("T", " "), f"{row.round}.{row.number}", said,
            one_line(self.app.seat.rubric.labels(tags), 34), " ".join(filter(None, marks)),
            one_line(row.about, 20), one_line(row.client, 60),
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
