"""What is hung into TRL's training loop: progress as events, checkpoints, stopping early."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.processes import is_first, wait_for_all

METRICS = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
Emit = Callable[..., None]


def progress(emit: Emit) -> Any:
    """Return a callback that emits one `step` event an optimiser step."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                values = {name: logs[name] for name in METRICS if name in logs}
                emit("step", step=state.global_step, steps=state.max_steps, **values)
                if not math.isfinite(logs["loss"]):
                    control.should_training_stop, control.should_save = True, False

    return Progress()


def publishing(publish: Callable[[Path, int], None]) -> Any:
    """Return a callback that hands on each checkpoint once every process has written its part."""
    from transformers import TrainerCallback

    class Publishing(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait_for_all()
            if is_first():
                publish(
                    Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step
                )
            wait_for_all()

    return Publishing()


def stopping(patience: int, emit: Emit) -> Any:
    """Return a callback that stops when the held-out loss has not fallen `patience` times.

    Its state goes into checkpoints. transformers' own one needs to load the best checkpoint at
    the end, from where transformers put it.
    """
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Stopping(TrainerCallback, ExportableState):
        def __init__(self, patience: int, best: float = math.inf, worse: int = 0) -> None:
            self.patience, self.best, self.worse = patience, best, worse

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
        ) -> None:
            loss = metrics["eval_loss"]
            emit("held_out", step=state.global_step, loss=loss)
            self.worse = 0 if loss < self.best else self.worse + 1
            self.best = min(self.best, loss)
            if self.worse >= self.patience:
                control.should_training_stop = control.should_save = True
                emit(
                    "warning",
                    message=f"stopped at step {state.global_step}: the loss on held-out "
                    f"preferences has not fallen for {self.worse} evaluations.",
                )

        def state(self) -> dict[str, Any]:
            values = {"best": self.best, "worse": self.worse}
            return {"args": {"patience": self.patience, **values}, "attributes": values}

    return Stopping(patience)


def is_done(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is of the end of its training: the last step, or stopped early."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopping = state.get("stateful_callbacks", {}).get("Stopping", {}).get("args", {})
    stopped = stopping.get("worse", 0) >= stopping.get("patience", math.inf)
    return bool(stopped or state["global_step"] >= state["max_steps"])
