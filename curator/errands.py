"""A trainer process for what belongs to no study: its folder is a temporary one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curator import runs
from curator.errors import BadData, CuratorError
from trainer.contract import Request, write_request


def run_errand(request: Request, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Have the trainer do an errand; return its manifest. `tell` is given every event.

    An interrupt stops the trainer. Raises BadData when it refused, CuratorError when it failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="curator-"))
    try:
        write_request(folder, request)
        pid = runs.start(folder)
        try:
            for event in runs.follow(folder):
                tell(event)
        except BaseException:
            runs.stop(folder, pid)
            raise
        end = runs.ended(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if end.manifest is None:
        kind = BadData if end.status == BadData.exit_code else CuratorError
        raise kind(end.message)
    return end.manifest
