"""make bench-app: how the judge's seat feels, and how much is installed for it.

Cold starts are whole processes in a real pseudo-terminal, from spawning to the text being there,
in turn with a bare two-pane Textual app. Key presses are timed there too: from the key being sent
to the next pair's text having arrived, which is after its commit.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pexpect

from curator import db, queue
from curator.models import Annotator
from curator.seat import take_seat
from curator.workspace import Workspace
from tests.benchmarks.big_workspace import make
from tests.benchmarks.harness import Figure, main, paired

ROOT = Path(__file__).parents[2]
CURATOR = str(Path(sys.executable).parent / "curator")
SMALL, LARGE = 10_000, 1_000_000
# Two panes with a text each: what any Textual app pays.
BARE = """
from textual.app import App
from textual.containers import Horizontal
from textual.widgets import Static
class Bare(App):
    CSS = "Static { width: 1fr; }"
    def compose(self):
        with Horizontal():
            yield Static("left pane")
            yield Static("right pane")
Bare().run()
"""


def spawn(command: list[str]) -> pexpect.spawn:
    return pexpect.spawn(
        command[0], command[1:], dimensions=(36, 120), timeout=120,
        env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
    )  # fmt: skip


def until_painted(command: list[str], text: str) -> float:
    """Return the seconds from starting a program in a terminal to a text being painted there."""
    start = time.perf_counter()
    child = spawn(command)
    child.expect(text)
    seconds = time.perf_counter() - start
    child.close(force=True)
    return seconds


def annotate(workspace: Workspace) -> list[str]:
    return [CURATOR, "annotate", "-a", "anna", "--workspace", str(workspace.path)]


def cold_start(small: Workspace, large: Workspace, folder: Path) -> list[Figure]:
    bare = folder / "bare.py"
    bare.write_text(BARE)

    def opening(workspace: Workspace) -> Callable[[], float]:
        return lambda: until_painted(annotate(workspace), "rather this client")

    ratio, ours, peers = paired(
        opening(small), lambda: until_painted([sys.executable, str(bare)], "right pane"), runs=9
    )
    growth, big, little = paired(opening(large), opening(small), runs=7)
    return [
        Figure("cold start, 10,000 pairs", ratio, 2.5,
               f"a bare Textual app ({ours:.2f} s against {peers:.2f} s)"),
        Figure("cold start, 1,000,000 pairs", growth, 1.5,
               f"10,000 pairs ({big:.2f} s against {little:.2f} s)"),
    ]  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def key_presses(workspace: Workspace, count: int = 200) -> float:
    """Return the p95 of the milliseconds from a key to the next pair on the screen."""
    child = spawn(annotate(workspace))
    child.delaybeforesend = None  # pexpect would sleep 50 ms before each key, within the timing
    child.expect("rather this client")
    time.sleep(1.0)
    times = []
    for number in range(count):
        start = time.perf_counter()
        child.send("a" if number % 2 else "b")
        # Painted with the next pair, once the commit has returned.
        child.expect("saved: [AB] better")
        times.append((time.perf_counter() - start) * 1000)
        time.sleep(0.05)
    child.send("q")
    child.expect(pexpect.EOF)
    return percentile(times, 0.95)


def busy_trainer(folder: Path) -> subprocess.Popen[bytes]:
    """Start the real trainer on the demo model, with work for longer than is measured."""
    from curator.workspace import data_folder
    from trainer import contract

    folder.mkdir()
    model = str(data_folder() / "demo_model" / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"I feel watched, number {n}. " * 4}],
            "chosen": [{"role": "assistant", "content": f"It sounds frightening, {n}. " * 6}],
            "rejected": [{"role": "assistant", "content": f"They are after you, {n}. " * 6}],
        }
        for n in range(40)
    ]
    contract.write_rows(folder / contract.PAIRS, rows)
    contract.write_request(
        folder,
        contract.Request("train", model, train=contract.TrainSettings(max_steps=2_000)),
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "trainer", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # as the app starts it
    )  # fmt: skip
    while not any(e["event"] == "step" for e in contract.read_events(folder)[0]):
        time.sleep(0.2)
        assert child.poll() is None
    return child


def next_pair_query(workspace: Workspace) -> Figure:
    seat = take_seat(workspace, "ben", "bench")
    times = []
    for _ in range(300):
        with db.writing(workspace.engine) as session:
            annotator = session.get_one(Annotator, seat.annotator.id)
            start = time.perf_counter()
            pair = queue.next_pair(session, annotator, "bench")
            times.append((time.perf_counter() - start) * 1000)
            assert pair is not None and annotator.id is not None
            queue.set_bookmark(session, annotator.id, pair.round_id, pair.position)
    seat.leave()
    peer = f"none: an absolute figure; median {statistics.median(times):.1f} ms"
    return Figure("next-pair query, p95, 1,000,000 pairs", percentile(times, 0.95), 20, peer, "ms")


GROWTH = """
import asyncio, gc, json, sys
import psutil
from pathlib import Path
from curator.tui.app import CuratorApp
from curator.workspace import open_workspace

async def run():
    me, app = psutil.Process(), CuratorApp(open_workspace(Path(sys.argv[1])), "anna")
    async with app.run_test(size=(120, 36)) as pilot:
        async def judge(count):
            for number in range(count):
                await pilot.press("aBtx"[number % 4])
            gc.collect()
            return me.memory_info().rss, me.num_fds() if hasattr(me, "num_fds") else 0
        before = await judge(100)
        after = await judge(1000)
    print(json.dumps([after[0] - before[0], after[1] - before[1]]))

asyncio.run(run())
"""


def growth(workspace: Workspace) -> list[Figure]:
    command = [sys.executable, "-c", GROWTH, str(workspace.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    memory, files = json.loads(done.stdout.splitlines()[-1])
    peer = "none: an absolute figure"
    return [
        Figure("1,000 judgments, memory growth", memory / 1e6, 20, peer, "MB"),
        Figure("1,000 judgments, open files growth", files, 0, peer, "files"),
    ]


def base_install(folder: Path) -> list[Figure]:
    """Install the base package into an empty environment and weigh both."""
    import venv

    def weigh(environment: Path) -> tuple[int, float]:
        python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        size = sum(p.stat().st_size for p in environment.rglob("*") if p.is_file())
        return len(json.loads(listed)), size / 1e6

    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    empty = weigh(environment)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "-c", str(ROOT / "constraints.txt"), str(ROOT)],
        check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    full = weigh(environment)
    peer = "Argilla's client 40 packages and 449 MB, Potato 39 and 471, Label Studio 159 and 994"
    return [
        Figure("base install, packages", full[0] - empty[0], 40, peer, "packages"),
        Figure("base install, size", full[1] - empty[1], 150, peer, "MB"),
    ]


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("making workspaces of 10,000 and 1,000,000 pairs ...", file=sys.stderr)
        # Opened by one who has judged here before: the sitting after the first.
        small, large = make(folder / "small", SMALL, 1), make(folder / "large", LARGE, 50_000)
        figures = cold_start(small, large, folder)
        peer = "none: an absolute figure"
        figures.append(
            Figure("key to next pair, p95, 1,000,000 pairs", key_presses(large), 100, peer, "ms")
        )
        trainer = busy_trainer(folder / "run")
        try:
            figures.append(
                Figure("the same while a trainer runs", key_presses(large), 100, peer, "ms")
            )
        finally:
            trainer.kill()
            trainer.wait()
        figures.append(next_pair_query(large))
        figures += growth(small)
        figures += base_install(folder)
        return figures


if __name__ == "__main__":
    main(measure, "How the judge's seat feels, and how much is installed for it.")
