"""A training taken a step at a time, each when it is told to: two of them can go by turns.

The child's side is `Turns`, a callback; the parent's is `Training`. A line to the child's
standard input is one step; a line back is its time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback


class Turns(TrainerCallback):
    """Waits for a line before each optimiser step; prints the seconds it took, and its loss."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        sys.stdin.readline()
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            print(json.dumps({"seconds": self.seconds, "loss": logs["loss"]}), flush=True)


def tell_peak(peak: int) -> None:
    """Print the most memory that was resident, in bytes, as the child's last word."""
    print(json.dumps({"peak": peak}), flush=True)


class Training:
    """A child process that trains by turns."""

    def __init__(self, command: Sequence[str]) -> None:
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.losses: list[float] = []

    def _read(self, name: str) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(f'{{"{name}"'):
                return dict(json.loads(line))
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")[-2000:]
        raise RuntimeError(f"a training ended early ({self.process.returncode}):\n{said}")

    def step(self) -> float:
        """Have it take one step; return the seconds it took."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        done = self._read("seconds")
        self.losses.append(done["loss"])
        return done["seconds"]

    def close(self) -> float:
        """Return the peak of its resident memory in bytes, once it is over."""
        peak = self._read("peak")["peak"]
        self.process.wait()
        self.errors.close()
        return peak
