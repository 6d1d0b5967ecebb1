"""What the commands print: a run's progress, and how things stand."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curator import db, rounds, runs
from curator.errors import BadData, CuratorError
from curator.models import Run, RunState
from curator.run_watch import RunWatch
from curator.safe_text import one_line, visible
from curator.statistics import FEWEST_TO_CONCLUDE, simulated_text
from curator.words import COUNTED, RUNS
from curator.workspace import Workspace

# Between two columns of a table, and how narrow one of them may become.
BETWEEN, LEAST_COLUMN = "  ", 10


def follow_run(workspace: Workspace, folder: Path, show: bool = True) -> Run:
    """Show a run's progress on standard error until it has ended; return it, settled.

    Ctrl-C stops watching, not the run. Raises CuratorError when the run failed.
    """
    watch = RunWatch(folder.name)
    line = Line() if show else None
    try:
        for event in runs.follow(folder):
            watch.take(event)
            if line:
                line.show(watch.line(), final=event["event"] in ("phase", "warning"))
            if event["event"] in ("warning", "resumed") and show:
                print(f"note: {visible(str(event.get('message')))}", file=sys.stderr)
    except KeyboardInterrupt:
        if line:
            line.end()
        raise KeyboardInterrupt(
            f"no longer watching; the run goes on in runs/{folder.name}. See: curator status"
        ) from None
    if line:
        line.end()
    run = settled(workspace, folder.name)
    if run.error:
        refused = (run.metrics or {}).get("exit_status") == BadData.exit_code
        kind = BadData if refused else CuratorError
        raise kind(end_text(run))
    return run


def end_text(run: Run) -> str:
    """Return how a run ended that brought nothing: by whom it was stopped, or why it failed."""
    name = RUNS.get(run.action, run.action)
    if run.state == RunState.CANCELLED:
        return f"the {name} was stopped."
    return f"the {name} {run.state}: {run.error}"


def settled(workspace: Workspace, name: str) -> Run:
    """Return a run once it is settled, by this process or another."""
    from sqlmodel import select

    while True:
        for run in rounds.settle(workspace):
            if run.folder == name:
                return run
        with db.reading(workspace.engine) as session:
            run = session.exec(select(Run).where(Run.folder == name)).one()
        if run.state != "running":
            return run
        time.sleep(runs.POLL_SECONDS)


class Line:
    """A line on standard error that is written over, or lines where that cannot be."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.width = 0

    def show(self, text: str, final: bool) -> None:
        """Show the newest state; where lines cannot be written over, only `final` ones."""
        text = one_line(text, 100)
        if self.live:
            print("\r" + text.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(text)
        elif final:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self.live and self.width:
            print("\r" + " " * self.width, end="\r", file=sys.stderr, flush=True)


def run_text(run: Run) -> str:
    """Return what a finished run brought, with n and interval where there is a figure."""
    metrics = run.metrics or {}
    lines = [f"the {run.action} is done (runs/{run.folder})."]
    if "train" in metrics:
        train = metrics["train"]
        lines.append(
            f"trained {train['steps']} steps on {metrics['preferences']['train']} preferences "
            f"in {metrics['seconds']['train']:.0f} s; last loss {train['loss']:.3f}."
        )
        lines += [fit_text(metrics["preferences"])] if fit_text(metrics["preferences"]) else []
    held_out = metrics.get("held_out", {})
    if "rewards/accuracies" in held_out:
        lines.append(held_out_text(held_out, metrics.get("evaluation", {}).get("kinds")))
    if "adapter" in metrics:
        lines.append(f"{adapter_text(metrics)}.")
    if "candidates" in metrics:
        replies = metrics["candidates"]["count"]
        lines.append(f"{replies} replies written: {pairs_text(metrics)}.")
        if metrics.get("pairs", {}).get("made"):
            lines.append("Next: curator annotate")
    if metrics.get("adapter", {}).get("status") in ("proposed", "refused"):
        lines.append(f"Look at it: curator adapter show {metrics['adapter']['name']}")
    return "\n".join(lines)


def fit_text(preferences: dict[str, Any]) -> str:
    """Return in a line how many preferences did not fit train.max_length; empty when all did."""
    too_long, cut = preferences.get("too_long_left_out", 0), preferences.get("cut", 0)
    if not too_long + cut:
        return ""
    return (
        f"of the preferences {too_long} were left out because the prompt fills train.max_length, "
        f"and {cut} were trained on with the end of a reply cut off."
    )


def adapter_text(metrics: dict[str, Any]) -> str:
    """Return what became of the adapter that a run trained, and why."""
    adapter = metrics["adapter"]
    said = {
        "current": f"{adapter['name']} is in use",
        "refused": f"{adapter['name']} is refused, and the one in use before stays",
        "proposed": f"{adapter['name']} is proposed",
    }
    return f"{said[adapter['status']]} ({one_line(adapter['reason'], 400)})"


def pairs_text(metrics: dict[str, Any]) -> str:
    """Return how many pairs a run brought, and why some prompts have none."""
    pairs = metrics.get("pairs", {})
    left_out = ", ".join(f"{n} {why}" for why, n in sorted(pairs.get("left_out", {}).items()))
    made = pairs.get("made", 0)
    if pairs.get("held_back"):
        return "no pairs are made of them unless the adapter is accepted"
    return f"{made} {'pair' if made == 1 else 'pairs'}" + (f" ({left_out})" if left_out else "")


def held_out_text(held_out: dict[str, Any], kinds: dict[str, int] | None = None) -> str:
    """Return held-out accuracy and margin with n and 95 % intervals.

    `kinds`: how many of the preferences each kind of annotator chose; simulated ones are said.
    """
    margin_low, margin_high = held_out["rewards/margins_interval"]
    return (
        f"held out: accuracy {accuracy_text(held_out)}, "
        f"margin {held_out['rewards/margins']:.2f} ({margin_low:.2f} to {margin_high:.2f}), "
        f"{n_text(held_out, kinds)}."
    )


def accuracy_text(held_out: dict[str, Any]) -> str:
    """Return held-out accuracy with its interval."""
    low, high = held_out["rewards/accuracies_interval"]
    return f"{held_out['rewards/accuracies']:.0%} ({low:.0%} to {high:.0%})"


def n_text(held_out: dict[str, Any], kinds: dict[str, int] | None = None) -> str:
    """Return how many held-out preferences there are, whose, and whether they are too few."""
    simulated = simulated_text(kinds)
    few = f"; under {FEWEST_TO_CONCLUDE} nothing can be concluded"
    return (
        f"n = {held_out['n']}{f', {simulated}' if simulated else ''}"
        f"{few if apart(held_out) < FEWEST_TO_CONCLUDE else ''}"
    )


def apart(held_out: dict[str, Any]) -> int:
    """Return how many held-out preferences stand by themselves: those to one prompt are one."""
    return int(min(held_out["n"], held_out.get("prompts", held_out["n"])))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], width: int | None = None) -> str:
    """Return rows as aligned columns.

    In a terminal (or `width` characters) that is too narrow the widest go over several lines.
    """
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    if width is not None:
        room = width - len(BETWEEN) * (len(widths) - 1)
        while sum(widths) > room and max(widths) > LEAST_COLUMN:
            widths[widths.index(max(widths))] -= 1
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(line for each in lines for line in _columns(each, widths))


def _columns(cells: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    """Yield a row's lines, of as many as its longest cell takes."""
    parts = (
        textwrap.wrap(cell, max(1, width)) or [""]
        for cell, width in zip(cells, widths, strict=True)
    )
    for line in itertools.zip_longest(*parts, fillvalue=""):
        yield BETWEEN.join(map(str.ljust, line, widths)).rstrip()


def side_by_side(left: str, right: str, width: int, heads: tuple[str, str]) -> str:
    """Return two texts, made visible, in two columns under their heads, `width` characters wide."""
    column = max(20, (width - 3) // 2)
    columns = [
        [head, "-" * column, *textwrap.wrap(one_line(text, 2_000), column)]
        for head, text in zip(heads, (left, right), strict=True)
    ]
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join(f"{a:<{column}}   {b}".rstrip() for a, b in rows)


def status_text(facts: dict[str, Any]) -> str:
    """Return workflow.status for people."""
    prompts = facts["prompts"]
    lines = [
        f"workspace  {visible(facts['workspace'])}",
        f"model      {visible(facts['model'])}",
        f"prompts    {prompts['train']} to train on, {prompts['held_out']} held out",
        f"preferences {facts['preferences']}",
    ]
    rows: list[tuple[str, ...]] = []
    for each in facts["rounds"]:
        for kind, verdicts in (each["judgments"] or {"–": {}}).items():
            counts = ", ".join(
                f"{verdicts[verdict]} {said}" for verdict, said in COUNTED.items()
                if verdict in verdicts
            )  # fmt: skip
            rows.append(
                (str(each["round"]), each["written_by"], str(each["pairs"]), kind, counts or "none")
            )
    if rows:
        lines += ["", table(("round", "written by", "pairs", "annotator", "judgments"), rows)]
    rows = []
    for adapter in facts["adapters"]:
        held_out = adapter["held_out"]
        accuracy = (
            held_out_text(held_out, adapter.get("kinds")) if "rewards/accuracies" in held_out
            else str(held_out.get("note", "not evaluated"))
        )  # fmt: skip
        rows.append((adapter["adapter"], adapter["status"], accuracy))
        if adapter["status"] in ("proposed", "refused"):
            rows.append(("", "", one_line(adapter["reason"] or "", 200)))
    if rows:
        lines += ["", table(("adapter", "status", "figures"), rows)]
    run = facts["run"]
    if run:
        said = f": {visible(run['error'])}" if run["error"] else ""
        lines += ["", f"last run   {run['run']} ({run['state']}){said}"]
    return "\n".join(lines)
