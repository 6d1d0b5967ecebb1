"""What can go wrong, in one clear line each: what, where, what next.

Raised where it is noticed, printed once at the edge (cli or screen), with the exit status of
sysexits.h that fits.
"""

from __future__ import annotations

import traceback
from pathlib import Path


def where(error: BaseException | None) -> str:
    """Return the file and line that an error comes from, without any text that was at hand."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "?"


class CuratorError(Exception):
    """An expected failure; its text is the one line a person reads."""

    exit_code = 1


class BadData(CuratorError):
    """A file or row from outside is not what it must be."""

    exit_code = 65


class NotReady(CuratorError):
    """What was asked needs something that is not there yet."""

    exit_code = 69


class CannotWrite(CuratorError):
    """The disk is full, or the place cannot be written."""

    exit_code = 73


class Busy(CuratorError):
    """Somebody else is at it; the same call may work later."""

    exit_code = 75


class BadConfig(CuratorError):
    """No workspace, a wrong setting, or a database this version does not read."""

    exit_code = 78
