"""Take the screenshots in docs/ from the real app: make screens.

A demo with a simulated clinician is run first (about two minutes), then a person's app is opened
on its workspace, so that every text and figure in the pictures was really made by the program.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path

from textual.pilot import Pilot

from curator import demo
from curator.tui.app import CuratorApp
from curator.workspace import Workspace, open_workspace

DOCS = Path(__file__).parent.parent / "docs"
SIZE = (120, 36)


def save(app: CuratorApp, name: str) -> None:
    """Save the screen as SVG, without the web fonts Textual would have it fetch."""
    svg = app.export_screenshot(title="curator")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono'")
    (DOCS / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"docs/{name}.svg")


async def take(workspace: Workspace) -> None:
    """Open the app and save each screen."""
    app = CuratorApp(workspace, "anna")
    async with app.run_test(size=SIZE) as pilot:
        await show(pilot)
        save(app, "judge")
        await pilot.press("a", "b", "A", "u")
        await show(pilot)
        save(app, "undo")
        await pilot.press("question_mark")
        await show(pilot)
        save(app, "help")
        await pilot.press("escape", "r")
        await show(pilot)
        save(app, "rounds")


async def show(pilot: Pilot[None]) -> None:
    """Let the screen settle."""
    await pilot.pause(0.3)


def main() -> None:
    """Run the demo, then take the pictures."""
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "winter-study"
        if not place.exists():
            demo.run_demo(place, simulate=True, rounds=2, seed=0, as_json=False)
        asyncio.run(take(open_workspace(place)))


if __name__ == "__main__":
    main()
