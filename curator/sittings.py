"""Sittings: which of them live, told by a lock that the system lets go of however one ends."""

from __future__ import annotations

from filelock import FileLock, Timeout

from curator.errors import CannotWrite
from curator.workspace import Workspace

SITTINGS = ".sittings"


def sitting_lock(workspace: Workspace, sitting: str) -> FileLock:
    """Take the lock that says this sitting lives: the system lets go of it however it ends."""
    folder = workspace.path / SITTINGS
    lock = FileLock(folder / f"{sitting}.lock", thread_local=False)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock.acquire(timeout=0)
    except OSError as error:
        raise CannotWrite(f"{folder}: {error.strerror}. Free some space and retry.") from None
    return lock


def sits(workspace: Workspace, sitting: str) -> bool:
    """Tell whether a sitting still lives; sweep up after one that does not."""
    path = workspace.path / SITTINGS / f"{sitting}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    return False
