"""`python -m trainer RUN_DIR`: do what the folder's request.json asks.

Training may be spread: `accelerate launch -m trainer RUN_DIR`, or `torchrun --nproc_per_node N -m
trainer RUN_DIR`. The first process alone writes events and files, and does what comes after.

Events go to events.jsonl and stdout, a JSON object a line; what libraries say goes to stderr.
Exit status: 0 finished, 65 refused (bad rows, model or adapter), 73 the folder cannot be
written, 75 it is in use, 130 interrupted, 143 stopped, 1 anything else.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
import traceback
from pathlib import Path

from trainer import checkpoints
from trainer.batches import out_of_memory
from trainer.contract import (
    LOCK,
    MANIFEST,
    REQUEST,
    SCHEMA,
    ContractError,
    append_event,
    read_events,
    read_request,
    sha256_file,
    write_manifest,
)
from trainer.processes import end_if_asked, is_first, stop, world_size
from trainer.work import Work

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

# A pull, and nothing else, is let onto the network, with the user's own token.
ONLINE = {
    "HF_HUB_OFFLINE": "0",
    "TRANSFORMERS_OFFLINE": "0",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
    "HF_HUB_DISABLE_XET": "1",  # plain HTTP: it can be resumed, and checked by SHA-256
}

NO_MEMORY = "out of memory. Lower train.max_length, or generate.batch_size."


def versions() -> dict[str, str]:
    """Return the versions of what computed the result."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):  # a plan needs none of them
            found[name] = version(name)
    return found


def finish(work: Work, started: float) -> None:
    """Write the manifest: from here on the run is finished."""
    end_if_asked()
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
    checkpoints.remove(work.folder)
    work.emit("finished", seconds=round(time.time() - started, 1))


def perform(folder: Path) -> int:
    """Do the run in `folder`; every end is an event, and an exit status."""
    started = time.time()
    try:
        if is_first():
            append_event(folder, "started", pid=os.getpid(), world_size=world_size())
    except OSError as error:
        tell(f"{folder} cannot be written ({error.strerror}).")
        return 73
    try:
        work = Work(folder, read_request(folder))
        work.run()
        if is_first():
            finish(work, started)
        return 0
    except ContractError as error:
        status, message = 65, str(error)
    except (SystemExit, KeyboardInterrupt) as error:
        if is_first():
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
        if out_of_memory(error):
            message = NO_MEMORY
    if is_first() or status == 1:  # what is refused, every process refuses
        append_event(folder, "failed", message=message, status=status)
        tell(message)
    return status


def tell(message: str) -> None:
    """Say one line on standard error; names from outside may hold what a terminal would obey."""
    shown = "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in message)
    print(f"trainer: {shown}", file=sys.stderr, flush=True)


def keep_one_gpu() -> None:
    """Show the libraries one GPU, unless an engine started a process for each.

    transformers would put a copy of the model on every GPU it sees (nn.DataParallel), which TRL
    refuses. CUDA_VISIBLE_DEVICES is read when PyTorch first asks for a GPU; -1 is none, which an
    empty text would be too, but on Windows that unsets the variable.
    """
    if world_size() == 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.partition(",")[0].strip() or "-1"


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
    keep_one_gpu()
    with contextlib.suppress(ContractError):  # what is wrong with it is said below
        os.environ.update(ONLINE if read_request(folder).action == "pull" else {})
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: nohup
        signal.signal(signal.SIGINT, stop)
    if hasattr(os, "nice"):
        os.nice(5)  # somebody may be judging beside it
    if not is_first():
        return perform(folder)  # the first holds the lock for all; an engine ends all with it
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
