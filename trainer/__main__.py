"""`python -m trainer RUN_DIR`: do what the folder's request.json asks.

Events go to events.jsonl and stdout, a JSON object a line; what libraries say goes to stderr.
Exit status: 0 finished, 65 refused (bad rows, model or adapter), 73 the folder cannot be
written, 75 it is in use, 130 interrupted, 143 stopped, 1 anything else.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import (
    CANDIDATES,
    LOCK,
    MANIFEST,
    REQUEST,
    SAMPLES,
    SCHEMA,
    ContractError,
    Request,
    append_event,
    read_events,
    read_request,
    sha256_file,
    write_manifest,
)

if TYPE_CHECKING:
    from trainer.dpo import Preferences
    from trainer.model import Device

# Read by the libraries when they are imported, so set before: no telemetry (TRL reports every
# trainer it builds), no hub, no update check, no token sent along.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress goes out as events
}


NO_MEMORY = "out of memory. Lower train.max_length, or generate.batch_size."


class Work:
    """One run: the request, the folder, and what has been loaded so far."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder = folder
        self.request = request
        self.deaf = False
        self.manifest: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.preferences: Preferences | None = None
        self.device: Device
        self.base: Path
        self.base_sha256: str
        self.model: Any = None
        self.tokenizer: Any = None
        self.adapter_sha256: str | None = None

    def emit(self, event: str, **values: Any) -> None:
        """Append an event to the run's file and print it."""
        row = append_event(self.folder, event, **values)
        if not self.deaf:
            try:
                print(json.dumps(row), flush=True)
            except BrokenPipeError:  # nobody reads on; the file has it all
                self.deaf = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def run(self) -> None:
        """Do the request's action; the manifest is written by the caller, last."""
        action = self.request.action
        trains = action in ("train", "round")
        self.check(trains)
        self.phase("load", self.load)
        if trains:
            self.phase("train", self.train)
        if action == "evaluate" or trains:
            self.phase("evaluate", self.evaluate)
        if action in ("generate", "round"):
            self.phase("generate", self.generate)
        if self.request.measure:
            self.phase("measure", self.measure)

    def phase(self, name: str, work: Any) -> None:
        """Run one phase, saying so and keeping its time in seconds."""
        self.emit("phase", phase=name)
        start = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - start, 3)

    def check(self, trains: bool) -> None:
        """Refuse what cannot work before any weights are loaded."""
        from trainer import dpo, model

        request = self.request
        if trains and request.adapter:
            raise ContractError(
                "a round starts from the base model: leave adapter out of request.json."
            )
        if trains or request.action == "evaluate":
            self.preferences = dpo.read_preferences(
                self.folder / request.pairs, request.train, request.seed, trains
            )
            if self.preferences.identical:
                n = self.preferences.identical
                self.emit("warning", message=f"{n} rows with two equal replies were left out.")
        self.base = model.find_model(request.model)
        self.base_sha256 = model.model_sha256(self.base)
        if request.adapter:
            folder = self.folder / request.adapter
            self.adapter_sha256 = model.check_adapter(
                folder, request.model, self.base_sha256, request.adapter_sha256
            )
        elif request.action == "evaluate":
            raise ContractError("evaluate needs an adapter: name its folder in request.json.")

    def load(self) -> None:
        from transformers import set_seed

        from trainer import model

        self.device = model.choose_device()
        set_seed(self.request.seed)
        self.tokenizer = model.load_tokenizer(self.base, self.request.model)
        self.model = model.load_base(self.request, self.base, self.device)
        self.manifest["model"] = {
            "name": self.request.model,
            "sha256": self.base_sha256,
            "class": type(self.model).__name__,
            "parameters": model.parameters(self.model),
            "quantization": self.request.quantization,
            "bytes": self.model.get_memory_footprint(),
        }
        kind, dtype = self.device.kind, str(self.device.dtype).removeprefix("torch.")
        self.manifest["device"] = {"kind": kind, "dtype": dtype, "reason": self.device.reason}
        self.emit("loaded", model=self.manifest["model"], device=self.manifest["device"])
        if self.adapter_sha256 and self.request.adapter:
            self.model = model.attach_adapter(self.model, self.folder / self.request.adapter)

    def train(self) -> None:
        from trainer import dpo

        assert self.preferences is not None
        request = self.request
        trainer = dpo.make_trainer(
            self.model, self.tokenizer, self.preferences, request, self.device,
            self.folder / "work", self.emit,
        )  # fmt: skip
        trained_on = len(trainer.train_dataset)
        too_long = len(self.preferences.train) - trained_on
        if too_long:
            self.emit("warning", message=f"{too_long} prompts fill max_length; left out.")
        metrics = dpo.train(trainer)
        shutil.rmtree(self.folder / "work", ignore_errors=True)  # TRL's; nothing is kept there
        self.model = trainer.model
        target = self.folder / request.output_adapter
        self.adapter_sha256 = dpo.publish_adapter(
            self.model, request, self.base_sha256, self.preferences, target
        )
        self.manifest["train"] = metrics
        self.manifest["adapter"] = {"path": request.output_adapter, "sha256": self.adapter_sha256}
        self.manifest["preferences"] = {
            "train": trained_on,
            "held_out": len(self.preferences.held_out),
            "identical_left_out": self.preferences.identical,
            "too_long_left_out": too_long,
            "sha256": self.preferences.sha256,
        }

    def evaluate(self) -> None:
        from trainer import dpo, evaluate

        assert self.preferences is not None
        margins, too_long = evaluate.reward_margins(
            self.model, self.tokenizer, self.preferences.held_out,
            self.request.train.beta, self.request.train.max_length,
        )  # fmt: skip
        if too_long:
            said = f"{too_long} held-out prompts fill max_length; left out."
            self.emit("warning", message=said)
        note = dpo.held_out_note(len(margins))
        if note:
            self.manifest["held_out"] = {"n": len(margins), "note": note}
            self.emit("warning", message=note)
            return
        self.manifest["held_out"] = evaluate.summarise_margins(margins)
        self.emit("evaluated", **self.manifest["held_out"])

    def generate(self) -> None:
        from trainer import generate

        prompts = generate.read_prompts(self.folder / self.request.prompts)
        jobs = generate.candidate_jobs(prompts, self.request.generate, self.request.seed)
        jobs, too_long = generate.short_enough(self.tokenizer, jobs, self.request.generate)
        if too_long:
            self.emit("warning", message=f"{too_long} prompts are too long to answer; left out.")
        count = self._write(jobs, CANDIDATES, "generate")
        self.manifest["candidates"] = {"path": CANDIDATES, "count": count}

    def measure(self) -> None:
        from trainer import generate

        assert self.request.measure is not None
        prompts = generate.read_prompts(self.folder / self.request.measure)
        jobs = [
            generate.Job(prompt_id, messages, None, None, n)
            for prompt_id, messages in prompts
            for n in range(self.request.measure_samples)
        ]
        count = self._write(jobs, SAMPLES, "measure")
        self.manifest["samples"] = {"path": SAMPLES, "count": count}

    def _write(self, jobs: list[Any], name: str, phase: str) -> int:
        from trainer import generate

        origin = {
            "model": self.request.model,
            "model_sha256": self.base_sha256,
            "adapter_sha256": self.adapter_sha256,
        }
        return generate.write_replies(
            self.model, self.tokenizer, jobs, self.request.generate, self.request.seed,
            self.folder / name, origin,
            lambda done, total: self.emit("progress", phase=phase, done=done, total=total),
        )  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of what computed the result."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def finish(work: Work, started: float) -> None:
    """Write the manifest: from here on the run is finished."""
    work.manifest = {
        "schema": SCHEMA,
        "action": work.request.action,
        "run": work.request.run,
        "seed": work.request.seed,
        "request_sha256": sha256_file(work.folder / REQUEST),
        "started_at": started,
        "finished_at": time.time(),
        **work.manifest,
        "seconds": work.seconds,
        "versions": versions(),
    }
    write_manifest(work.folder, work.manifest)
    work.emit("finished", seconds=round(time.time() - started, 1))


def perform(folder: Path) -> int:
    """Do the run in `folder`; every end is an event, and an exit status."""
    started = time.time()
    try:
        append_event(folder, "started", pid=os.getpid())
    except OSError as error:
        tell(f"{folder} cannot be written ({error.strerror}).")
        return 73
    try:
        work = Work(folder, read_request(folder))
        work.run()
        finish(work, started)
        return 0
    except ContractError as error:
        status, message = 65, str(error)
    except (SystemExit, KeyboardInterrupt) as error:
        append_event(folder, "cancelled", message="stopped")
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    except MemoryError:
        status, message = 1, NO_MEMORY
    except Exception as error:  # the edge: whatever went wrong becomes one visible line
        traceback.print_exc()
        status, message = (
            1,
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
        )
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            message = NO_MEMORY
    append_event(folder, "failed", message=message, status=status)
    tell(message)
    return status


def tell(message: str) -> None:
    """Say one line on standard error; names from outside may hold what a terminal would obey."""
    shown = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in message)
    print(f"trainer: {shown}", file=sys.stderr, flush=True)


def stop(signum: int, frame: object) -> None:
    """Turn a termination signal into an orderly end."""
    raise SystemExit(143)


def main(arguments: list[str]) -> int:
    """Check the folder, take its lock, and perform the run."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    folder = Path(arguments[0])
    if not folder.is_dir():
        tell(f"{folder} is no folder; see README.md, The trainer by itself.")
        return 65
    if (folder / MANIFEST).exists():
        tell(f"{folder} is finished already; start a new folder.")
        return 65
    os.environ.update(QUIET)
    signal.signal(signal.SIGTERM, stop)
    if hasattr(os, "nice"):
        os.nice(5)  # somebody may be judging beside it
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=5)  # whoever asks whether a trainer lives holds it for a moment
    except Timeout:
        tell(f"another trainer works in {folder}.")
        return 75
    except OSError as error:
        tell(f"{folder} cannot be written ({error.strerror}).")
        return 73
    with lock:
        if any(event["event"] in ("failed", "cancelled") for event in read_events(folder)[0]):
            tell(f"{folder} was given up already; start a new folder.")
            return 65
        return perform(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
