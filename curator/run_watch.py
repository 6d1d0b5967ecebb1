"""What the screens know of the run under way, gathered from the trainer's events."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

PHASES = {
    "load": "loading the model",
    "reference": "asking the reference",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "writing replies",
    "measure": "measuring",
    "merge": "merging",
    "pull": "downloading",
}
BARS = "▁▂▃▄▅▆▇█"


@dataclass
class RunWatch:
    """One run as seen so far: phase, steps with their figures, replies written."""

    action: str
    phase: str = "starting"
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 0
    loss: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def take(self, event: dict[str, Any]) -> None:
        """Note one event."""
        match event["event"]:
            case "phase":
                self.phase = PHASES.get(str(event.get("phase")), str(event.get("phase")))
                self.times, self.done, self.total = [], 0, 0
            case "step":
                self.step, self.steps = int(event["step"]), int(event["steps"])
                self.loss.append(_number(event.get("loss")))
                self.margin.append(_number(event.get("rewards/margins")))
                self.accuracy.append(_number(event.get("rewards/accuracies")))
                self.times.append(float(event["time"]))
            case "resumed":
                # Steps after the checkpoint are taken again.
                for curve in (self.loss, self.margin, self.accuracy):
                    del curve[int(event["step"]) :]
                self.times = []
                self.warnings.append(str(event.get("message")))
            case "progress":
                self.done, self.total = int(event["done"]), int(event["total"])
                self.times.append(float(event["time"]))
            case "warning":
                self.warnings.append(str(event.get("message")))

    def seconds_left(self) -> float | None:
        """Return how long this phase will take at the pace so far, or None when unknown."""
        done, total = (self.done, self.total) if self.total else (self.step, self.steps)
        if len(self.times) < 2 or not total:
            return None
        pace = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        batch = done / len(self.times)
        return pace * (total - done) / max(batch, 1e-9)

    def line(self) -> str:
        """Return the run in one line: what it does, its figures, how long it will take."""
        parts = [self.phase]
        if self.total and self.phase == PHASES["pull"]:  # in bytes
            parts.append(f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB")
        elif self.total:
            parts.append(f"{self.done} of {self.total}")
        elif self.loss and self.phase == "training":
            parts += [
                f"step {self.step}/{self.steps}",
                f"loss {self.loss[-1]:.2f}",
                f"margin {self.margin[-1]:+.2f}",
                f"accuracy {self.accuracy[-1]:.0%}",
            ]
        left = self.seconds_left()
        if left is not None and left >= 1:
            parts.append(f"about {duration(left)}")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """Return a length of time for people."""
    if seconds < 90:
        return f"{round(seconds)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def sparkline(values: list[float], width: int) -> str:
    """Return a curve of block characters, the newest `width` values; a gap is no number."""
    values = values[-width:]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low = min(finite)
    scale = (len(BARS) - 1) / ((max(finite) - low) or 1.0)
    return "".join(BARS[int((v - low) * scale)] if math.isfinite(v) else " " for v in values)


def _number(value: Any) -> float:
    """Return a figure of an event; NaN where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan
