"""Starting, following and stopping a trainer process, through its folder alone.

Whether a trainer lives is told by the lock it holds in its folder, which the system lets go of
when the process ends, however it ends: process numbers are used again, locks are not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from curator.errors import CuratorError
from trainer.contract import LOCK, LOG, REQUEST, append_event, read_events, read_manifest

COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "trainer")
POLL_SECONDS = 0.2
STOP_SECONDS = 2.0
# How long after it was asked for a trainer of another process may still be starting, unseen: on a
# slow disk Python alone takes its time.
START_SECONDS = 60.0

# Children of this process, by folder: they need to be waited for, and their end is known at once.
_children: dict[Path, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Ended:
    """How a trainer ended, with its manifest if it finished."""

    state: Literal["finished", "failed", "cancelled"]
    message: str
    manifest: dict[str, Any] | None = None
    status: int = 1
    """The trainer's exit status, as far as it is known: 65 when it refused what it was given."""


def start(folder: Path) -> int:
    """Start the trainer on a prepared folder, detached from this terminal; return its pid.

    Raises CuratorError when it cannot be started.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        # No console of ours: closing the window would end the trainer.
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        options = {"creationflags": flags}
    try:
        with (folder / LOG).open("ab") as log:
            child = subprocess.Popen(
                [*COMMAND, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                **options,
            )
    except OSError as error:
        raise CuratorError(f"the trainer could not be started: {error.strerror}.") from None
    _children[folder] = child
    return child.pid


def alive(folder: Path) -> bool:
    """Tell whether a trainer works in a folder, or is about to."""
    child = _children.get(folder)
    if child is not None:
        return child.poll() is None
    if not folder.is_dir():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written: nobody can work in it
        return False
    lock.release()
    return _starting(folder)


def _starting(folder: Path) -> bool:
    """Tell whether a trainer was asked for a moment ago and has said nothing yet."""
    try:
        age = time.time() - (folder / REQUEST).stat().st_mtime
    except OSError:
        return False
    return abs(age) < START_SECONDS and not started(folder)


def started(folder: Path) -> bool:
    """Tell whether the trainer has said anything yet."""
    return bool(read_events(folder)[0])


def follow(
    folder: Path, stop_following: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, Any]]:
    """Yield the run's events from the first on, until the trainer has ended.

    `stop_following` is asked a few times a second; the trainer goes on regardless.
    """
    offset = 0
    while True:
        lives = alive(folder)  # asked first: what it wrote before it ended is read below
        events, offset = read_events(folder, offset)
        yield from events
        if not lives or stop_following():
            return
        time.sleep(POLL_SECONDS)


def ended(folder: Path) -> Ended:
    """Return how the trainer in a folder ended; call it once it lives no more.

    Raises ContractError when its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        return Ended("finished", "finished", manifest)
    events, _ = read_events(folder)
    for event in reversed(events):
        if event["event"] == "failed":
            code = event.get("status")
            message = str(event.get("message", "no reason given"))
            return Ended("failed", message, status=code if isinstance(code, int) else 1)
        if event["event"] == "cancelled":
            return Ended("cancelled", "stopped")
    child = _children.get(folder)
    status = child.returncode if child is not None else None
    if status is not None and status < 0:
        name = next((s.name for s in signal.Signals if s == -status), f"signal {-status}")
        why = " (often: the machine ran out of memory)" if name == "SIGKILL" else ""
        return Ended("failed", f"the trainer was killed by {name}{why}")
    if not events:
        return Ended("failed", f"the trainer did not start; see {folder / LOG}")
    return Ended("failed", "the trainer was killed (often: the machine ran out of memory)")


def stop(folder: Path, pid: int | None) -> None:
    """Stop a trainer: ask, and after two seconds insist. Nothing it did not finish is used."""
    if pid is None:
        pid = next((e.get("pid") for e in read_events(folder)[0] if e["event"] == "started"), None)
    if pid is None or not alive(folder):
        return
    asks = sys.platform != "win32"  # there a process can only be ended, not asked to
    if asks:
        _signal(folder, pid, signal.SIGTERM)
    if alive(folder):
        # Said for it: from outside, its end looks like one by lack of memory.
        append_event(folder, "cancelled", message="stopped")
        _signal(folder, pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _signal(folder: Path, pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return
    deadline = time.monotonic() + STOP_SECONDS
    while alive(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
