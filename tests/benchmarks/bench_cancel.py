"""How long a run takes to end once it is told to: part of make bench-trainer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import tiny
from tests.benchmarks.harness import Figure, main
from tests.trainer.conftest import GENERATE, PROMPTS, preference_rows, run_folder
from trainer import contract

# What is under way when it is told, and the event (and phase) that shows it.
DURING: dict[str, tuple[str, str | None]] = {
    "tokenising": ("loaded", None), "reference": ("progress", "reference"),
    "training": ("step", None), "generating": ("loaded", None),
}  # fmt: skip


def cancelled(place: Path, during: str) -> float:
    """Return the seconds from the signal to the end of the process."""
    many = during in ("tokenising", "reference")
    rows = preference_rows(6000 if many else 8, split="train")
    folder = run_folder(
        place / during, rows, action="generate" if during == "generating" else "train",
        model=str(place / "model"), train={"max_steps": 4000},
        generate={**GENERATE, "max_new_tokens": 2000},
    )  # fmt: skip
    contract.write_rows(folder / contract.PROMPTS, PROMPTS)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    event, phase = DURING[during]
    while not any(
        e["event"] == event and phase in (None, e.get("phase"))
        for e in contract.read_events(folder)[0]
    ):
        if child.poll() is not None:
            raise RuntimeError(f"the run ended with {child.returncode} before it was told to")
        time.sleep(0.01)
    time.sleep(0.4)
    start = time.perf_counter()
    child.terminate()
    if child.wait() != 143:
        raise RuntimeError(f"the run ended with {child.returncode}, not cancelled")
    return time.perf_counter() - start


def figures() -> list[Figure]:
    """Cancel a run at each of four places; the longest counts."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tiny.save_gemma(place / "model")
        took = {during: cancelled(place, during) for during in DURING}
    peer = "absolute: " + ", ".join(f"{during} {s:.2f} s" for during, s in took.items())
    return [Figure("a run is cancelled", max(took.values()), 2, peer, unit="s")]


if __name__ == "__main__":
    main(figures, "How long a run takes to end once it is told to.")
