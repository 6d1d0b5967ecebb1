"""Leaving by a signal: as by a key, so that the terminal is left as it was found."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

# For a draft on a disk that is busy, and for the worker that follows a run.
LAST_SECONDS = 10.0


def leave_on_signals(leave: Callable[[int], None]) -> None:
    """Have SIGTERM and SIGHUP call `leave` with an exit status of 128 and the signal's number.

    One that is ignored (nohup) stays so. Where the system or the thread has no such signals,
    nothing is done.
    """

    def received(status: int) -> None:
        end_anyway(status)
        leave(status)

    loop = asyncio.get_running_loop()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, received, 128 + number)


def end_anyway(status: int) -> None:
    """End the process in a while, whatever it waits for: a terminal that is gone takes no words."""
    timer = threading.Timer(LAST_SECONDS, os._exit, [status])
    timer.daemon = True
    timer.start()
