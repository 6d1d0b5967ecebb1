"""The rounds screen: what each round brought, and the run under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import DataTable, Static

from curator.errors import CuratorError
from curator.evaluation import TOO_FEW
from curator.run_watch import sparkline
from curator.safe_text import one_line
from curator.statistics import FEWEST_TO_CONCLUDE, simulated_text
from curator.terminal import apart
from curator.tui.messages import RunChanged
from curator.tui.widgets import HeaderBar, KeyBar, KeyHint
from curator.workflow import NextStep, next_step, status

if TYPE_CHECKING:
    from curator.tui.app import CuratorApp

KEYS = [
    KeyHint("enter", "start the next step", "start", "start"),
    KeyHint("ctrl+x", "stop the run", "stop", "stop"),
    KeyHint("esc", "back to judging", "back", "back"),
]
# Two lines a head and a row: a table that fits 80 columns is read without scrolling sideways.
COLUMNS = (
    "\nround", "\nwritten by", "pairs\njudged", "held-out\naccuracy", "collusion\non probes",
    "\nover-correction",
)  # fmt: skip
MOST_WAITING = 3


class RoundsScreen(Screen[None]):
    """A row a round, and the curves of the run under way below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", priority=True, show=False),
        Binding("ctrl+x", "stop", show=False),
        Binding("escape", "back", show=False),
        Binding("r", "back", show=False, id="rounds"),
    ]

    app: CuratorApp

    def __init__(self) -> None:
        super().__init__()
        self.step = NextStep(None, "")

    def compose(self) -> ComposeResult:
        yield HeaderBar(id="header")
        yield DataTable(id="rounds", cursor_type="row", zebra_stripes=True, header_height=2)
        yield Static(id="run")
        yield Static(id="next")
        yield KeyBar(KEYS, id="keys")

    def on_mount(self) -> None:
        header = self.query_one(HeaderBar)
        header.workspace = self.app.workspace.name
        header.annotator = self.app.seat.annotator.name
        self.query_one(DataTable).add_columns(*COLUMNS)
        self.fill()

    def fill(self) -> None:
        """Read everything anew."""
        try:
            facts = status(self.app.workspace)
            judging = any(getattr(screen, "pair", None) for screen in self.app.screen_stack)
            self.step = next_step(self.app.workspace, self.app.seat, unjudged=judging)
        except CuratorError as error:
            self.app.complain(error)
            return
        table = self.query_one(DataTable)
        table.clear()
        for row in round_rows(facts):
            table.add_row(*(Text(cell) for cell in row), height=2)
        lines = few_lines(facts) + waiting_lines(facts)
        if not self.app.run_watch:
            lines.append(self.step.text)
        text = "\n".join(lines)
        self.query_one("#next", Static).update(Content.from_text(text, markup=False))
        self.show_run()

    def show_run(self) -> None:
        """Draw the curves of the run under way."""
        watch = self.app.run_watch
        view = self.query_one("#run", Static)
        view.display = watch is not None
        if watch is None:
            return
        width = max(20, self.size.width - 30)
        lines = [Content(f"{watch.action}: ").stylize("bold") + Content(watch.line())]
        for name, values in (
            ("loss", watch.loss), ("margin", watch.margin), ("accuracy", watch.accuracy)
        ):  # fmt: skip
            if values:
                label = Content(f"{name:>9} {values[-1]:>7.3f}  ")
                lines.append(label + Content(sparkline(values, width)).stylize("$accent"))
        lines += [Content.from_text(f"note: {text}", markup=False) for text in watch.warnings]
        view.update(Content("\n").join(lines))

    def on_run_changed(self, message: RunChanged) -> None:
        """Follow the run."""
        if self.app.run_watch is None:
            self.fill()
        else:
            self.show_run()

    def action_start(self) -> None:
        """Start what comes next."""
        if self.app.run_watch is not None:
            self.notify("a run is under way already.")
        elif self.step.action:
            self.app.start_run(self.step.action)
            self.fill()
        else:
            self.notify("there is nothing to start now.")

    def action_stop(self) -> None:
        """Stop the run under way; the adapter in use stays."""
        if self.app.run_watch is not None:
            self.app.stop_run()
        else:
            self.notify("no run is under way.")

    def action_back(self) -> None:
        """Go back to judging."""
        self.app.pop_screen()


def round_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row a round, in the order of COLUMNS, each cell of up to two lines."""
    adapters = {adapter["adapter"]: adapter for adapter in facts["adapters"]}
    rows: list[tuple[str, ...]] = []
    for each in facts["rounds"]:
        adapter = adapters.get(each["written_by"], {})
        held_out = adapter.get("held_out", {})
        accuracy = None
        if "rewards/accuracies" in held_out:
            accuracy = {
                "value": held_out["rewards/accuracies"], "n": held_out["n"],
                "interval": held_out["rewards/accuracies_interval"],
            }  # fmt: skip
        rows.append(
            (
                str(each["round"]), f"{each['written_by']}\n{adapter.get('status', '')}",
                f"{each['judged']}\nof {each['pairs']}", rate(accuracy),
                rate(adapter.get("probe_collusion_rate")),
                rate(adapter.get("probe_over_correction_rate")),
            )
        )  # fmt: skip
    return rows


def rate(figure: dict[str, Any] | None) -> str:
    """Return a rate with n and its interval below, as the table shows it."""
    if not figure or not figure.get("n"):
        return "–"
    low, high = figure["interval"]
    return f"{figure['value']:.0%}, n = {figure['n']}\n{low:.0%} to {high:.0%}"


def few_lines(facts: dict[str, Any]) -> list[str]:
    """Return a line each where an accuracy shown rests on too few, or on simulated picks."""
    writers = {each["written_by"] for each in facts["rounds"]}
    shown = [
        a for a in facts["adapters"]
        if a["adapter"] in writers and "rewards/accuracies" in a["held_out"]
    ]  # fmt: skip
    few = any(apart(a["held_out"]) < FEWEST_TO_CONCLUDE for a in shown)
    simulated = [
        f"Held out for {one_line(a['adapter'], 30)}: {said}."
        for a in shown
        if (said := simulated_text(a.get("kinds")))
    ]
    return [TOO_FEW] * few + simulated


def waiting_lines(facts: dict[str, Any]) -> list[str]:
    """Return a line each for the newest adapters that are not in use, with the reason."""
    found = [a for a in facts["adapters"] if a["status"] in ("proposed", "refused")]
    return [
        f"{one_line(a['adapter'], 30)} is {a['status']}: {one_line(a['reason'] or '', 300)}. "
        f"curator adapter show {one_line(a['adapter'], 30)} has its figures."
        for a in found[-MOST_WAITING:]
    ]
