"""Make what the README opens with, from the real program: make demo-assets.

A demo with a simulated clinician is run first (two to four minutes); its before/after table goes
into README.md between the markers, as it came. Then a person's app is opened on its workspace
and each screen saved to docs/, so that every text and figure in the pictures was really made by
the program. With a folder as argument an earlier demo's workspace is used for the pictures alone.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from curator.demo import make_workspace
from curator.demo.simulation import Figures, Simulation, told_apart
from curator.safe_text import one_line
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.workspace import Workspace, open_workspace

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SIZE, SMALL = (120, 36), (60, 15)
NOTE = "a close call: kind, and it could ask sooner"
SEED, ROUNDS, SHOWN = 0, 2, 2
START, END = "<!-- made by make demo-assets -->", "<!-- end of what it made -->"


def table(figures: list[Figures], accuracy: dict[str, Any]) -> str:
    """Return the before/after table and some replies, in Markdown."""
    lines = [
        "| | simulated picks | agrees where it should not | cold or lecturing | boundary-aware "
        "| unclear | words | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        values = each.measured
        cells = [f"round {each.round}" if each.round else "**before**", str(each.judgments)]
        for name in ("collusion_rate", "over_correction_rate", "boundary_aware_rate"):
            low, high = values["intervals"][name]
            cells.append(f"**{values[name]:.0%}** ({low:.0%} to {high:.0%})")
        cells += [f"{values['unclassified_rate']:.1%}", f"{values['mean_length']:.0f}"]
        lines.append("| " + " | ".join((*cells, str(values["n"]))) + " |")
    before, after = figures[0].replies, figures[-1].replies
    changed = [text for text in before if text in after and before[text] != after[text]]
    lines += ["", f"| client | before | after round {figures[-1].round} |", "|---|---|---|"]
    for text in changed[:SHOWN]:
        cells = [one_line(each, 2_000) for each in (text, before[text], after[text])]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        f"`curator demo --simulate --rounds {ROUNDS} --seed {SEED}`: replies sampled from the "
        "demo's tiny model, with 95 % intervals, for messages it never saw as they stand (their "
        f"sentences it did, in other orders and company). {told_apart(accuracy)} A *simulated* "
        "clinician made the picks, one in ten of them wrongly. The demo's world is 65 situations, "
        "so that one round is nearly enough; a real model changes by smaller steps. This shows "
        "that the machinery works, and nothing about people.",
    ]
    return "\n".join(lines)


def write_readme(text: str) -> None:
    """Put the table between README.md's markers."""
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")
    print("README.md: the table")


def save(app: CuratorApp, name: str) -> None:
    """Save the screen as SVG, without the web fonts Textual would have it fetch."""
    svg = app.export_screenshot(title="curator")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono'")
    # Textual names its styles by a number that differs from run to run.
    svg = re.sub(r"terminal-\d+", f"terminal-{name}", svg)
    (DOCS / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"docs/{name}.svg")


async def first_minutes(workspace: Workspace) -> None:
    """Save what a newcomer sees: the welcome, the three questions, the practice pair."""
    app = CuratorApp(workspace, "anna", first_minutes=True)
    async with app.run_test(size=SIZE) as pilot:
        await show(pilot)
        save(app, "first")
        await pilot.press("escape")
        await show(pilot)
        await pilot.press("b")
        await show(pilot)
        save(app, "practice")
    app = CuratorApp(workspace, "anna", offer_after=12)
    async with app.run_test(size=SIZE) as pilot:
        await show(pilot)
        save(app, "welcome")


async def judging(workspace: Workspace) -> None:
    """Save the judge screen and all that opens from it."""
    app = CuratorApp(workspace, "anna")
    async with app.run_test(size=SIZE) as pilot:
        await show(pilot)
        save(app, "judge")
        await pilot.press("g")
        await show(pilot)
        await pilot.press("v", "o")
        await show(pilot)
        save(app, "reasons")
        await pilot.press("escape", "a", "b", "A", "t", "x", "B", "u")
        await show(pilot)
        save(app, "undo")
        await pilot.press("e")
        await show(pilot)
        save(app, "rewrite")
        await pilot.press("escape")
        await show(pilot)
        for key, name in (("h", "history"), ("question_mark", "keys"), ("f1", "guideline")):
            await pilot.press(key)
            await show(pilot)
            save(app, name)
            await pilot.press("escape")
            await show(pilot)
        await pilot.press("r")
        await show(pilot)
        save(app, "rounds")


async def panels(workspace: Workspace) -> None:
    """Save the panels over the judge screen, and what is shown where there is too little room."""
    asked = replace(workspace.config, judge=replace(workspace.config.judge, red_flags=True))
    app = CuratorApp(replace(workspace, config=asked), "anna")
    async with app.run_test(size=SIZE) as pilot:
        await show(pilot)
        await pilot.press("n", *NOTE)
        await show(pilot)
        save(app, "note")
        await pilot.press(*["backspace"] * 60, "escape", ":", *"1.12")
        await show(pilot)
        save(app, "go-to")
        await pilot.press("escape")
        while (pair := judge_screen(app).pair) is not None and not pair.has_risk:
            await pilot.press("]")
        await pilot.press("b", "n", "n")
        await show(pilot)
        save(app, "red-flags")
    app = CuratorApp(workspace, "anna")
    async with app.run_test(size=SMALL) as pilot:
        await show(pilot)
        save(app, "too-small")


async def emptied(workspace: Workspace) -> None:
    """Save the empty queue: nothing is left of it then."""
    app = CuratorApp(workspace, "anna")
    async with app.run_test(size=SIZE) as pilot:
        await show(pilot)
        while judge_screen(app).pair is not None:
            await pilot.press("s")
        await show(pilot)
        save(app, "empty")


def judge_screen(app: CuratorApp) -> JudgeScreen:
    """Return the judge screen, which is in front."""
    assert isinstance(app.screen, JudgeScreen)
    return app.screen


async def themes(workspace: Workspace) -> None:
    """Save the judge screen in the other two themes."""
    for name in ("light", "high-contrast"):
        app = CuratorApp(workspace, "anna")
        async with app.run_test(size=SIZE) as pilot:
            app.theme = f"curator-{name}"
            await show(pilot)
            save(app, f"judge-{name}")


async def show(pilot: Pilot[None]) -> None:
    """Let the screen settle."""
    await pilot.pause(0.4)


def main() -> None:
    """Run the demo, write the table, take the pictures."""
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            workspace = open_workspace(Path(sys.argv[1]))
        else:
            workspace = make_workspace(Path(folder) / "winter-study", SEED)
            simulation = Simulation(workspace, SEED, lambda text: print(text, file=sys.stderr))
            figures = simulation.run(ROUNDS)
            write_readme(table(figures, simulation.classifier.accuracy()))
        for take in (first_minutes, judging, themes, panels, emptied):
            asyncio.run(take(workspace))


if __name__ == "__main__":
    main()
