"""Which of the processes that an engine (torchrun, accelerate) started this one is, and its end.

The engine tells by environment variables; without one there is a single process.
"""

from __future__ import annotations

import os
import signal

_asked: list[int] = []
"""The signals that asked this process to stop."""


def stop(signum: int, frame: object) -> None:
    """Turn a signal into an orderly end: KeyboardInterrupt for SIGINT, else SystemExit(143).

    Python drops what is raised while it collects garbage or runs a weak reference's callback, so
    the signal is remembered as well: see `end_if_asked`.
    """
    _asked.append(signum)
    end_if_asked()


def end_if_asked() -> None:
    """Raise what `stop` raised, if Python dropped it; called with every event."""
    if _asked:
        raise KeyboardInterrupt if _asked[0] == signal.SIGINT else SystemExit(143)


def world_size() -> int:
    """Return how many processes train together."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Return this process's number among them, from 0."""
    return _number("RANK", 0)


def is_first() -> bool:
    """Tell whether this process is the one that writes events and files."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of the GPU that is this process's on its machine."""
    return _number("LOCAL_RANK", 0)


def wait_for_all() -> None:
    """Wait until every process is here; returns at once where there is one."""
    import torch.distributed as dist

    if world_size() > 1 and dist.is_available() and dist.is_initialized():
        dist.barrier()


def part() -> None:
    """Leave the group of processes once training is over: the first goes on alone."""
    import torch.distributed as dist

    if world_size() > 1 and dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
