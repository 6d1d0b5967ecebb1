"""Figures measured against a named peer in one run, printed a line each.

`name | measured | target | peer | holds` or `short`; with --json the same as JSON. Exit status 1
when one is short. Used by the `make bench-…` targets; nothing here is asserted in a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure; it holds when `measured` is at most (or at least) the target."""

    name: str
    measured: float
    target: float
    peer: str
    unit: str = "×"
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    def line(self) -> str:
        sign = "≤" if self.at_most else "≥"
        verdict = "holds" if self.holds else "short"
        return (
            f"{self.name} | {self.measured:.3g} {self.unit} | {sign} {self.target:g} {self.unit}"
            f" | {self.peer} | {verdict}"
        )


def seconds(command: Sequence[str]) -> float:
    """Return the wall time of a whole process, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def paired(
    ours: Callable[[], float], peers: Callable[[], float], runs: int = 9
) -> tuple[float, float, float]:
    """Time two things in turn, A B A B; return the median ratio and both medians.

    A warm-up run of each is not counted. Ratios are taken pair by pair, so that a machine whose
    speed drifts does not favour either.
    """
    ours(), peers()
    pairs = [(ours(), peers()) for _ in range(runs)]
    ratio = statistics.median(a / b for a, b in pairs)
    return ratio, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def main(measure: Callable[[], list[Figure]], description: str) -> None:
    """Measure, print, and exit with 1 when a figure is short."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure()
    if options.json:
        print(json.dumps([{**asdict(each), "holds": each.holds} for each in figures], indent=1))
    else:
        print("\n".join(each.line() for each in figures))
    sys.exit(0 if all(each.holds for each in figures) else 1)
