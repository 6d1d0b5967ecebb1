"""Leaving by a signal: as by a key, so that the terminal is left as it was found."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

# A busy database is waited for five seconds (db.BUSY_MS), and twice: for the last draft, and to
# give the pair back. Besides, the worker that follows a run ends.
LAST_SECONDS = 20.0


def leave_on_signals(leave: Callable[[int], None]) -> None:
    """Have SIGTERM, SIGHUP and SIGINT call `leave` with a status of 128 and the signal's number.

    The key ctrl+c sends none of them here: it is read as a key. One that is ignored (nohup) stays
    so. Where the system or the thread has no such signals, nothing is done.
    """

    def received(status: int) -> None:
        end_anyway(status)
        leave(status)

    loop = asyncio.get_running_loop()
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        # Windows has none of it; another thread than the main one may set none.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, received, 128 + number)


def end_anyway(status: int) -> None:
    """End the process in a while, whatever it waits for: a terminal that is gone takes no words."""
    timer = threading.Timer(LAST_SECONDS, os._exit, [status])
    timer.daemon = True
    timer.start()
