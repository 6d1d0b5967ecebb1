"""Preference rows and run folders for the trainer's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import contract

Rows = list[dict[str, Any]]
Run = Callable[..., subprocess.CompletedProcess[str]]


def preference_rows(count: int, split: str | None = None) -> Rows:
    """Return preferences of unequal lengths; some with several turns, one with a system one."""
    rows: Rows = []
    for i in range(count):
        prompt = [{"role": "user", "content": f"I feel watched, number {i}, and I am tired."}]
        if i % 5 == 0:
            prompt += [
                {"role": "assistant", "content": "Tell me more."},
                {"role": "user", "content": "The neighbours stand at the window. " * (1 + i % 3)},
            ]
        if i == 1:
            prompt.insert(0, {"role": "system", "content": "Be kind."})
        row: dict[str, Any] = {
            "prompt": prompt,
            "chosen": [{
                "role": "assistant",
                "content": "It sounds frightening." + " What would help tonight?" * (i % 4),
            }],
            "rejected": [{
                "role": "assistant",
                "content": "You are right, they are after you." + " Trust yourself." * (i % 3),
            }],
        }  # fmt: skip
        rows.append({**row, "split": split} if split else row)
    return rows


def run_folder(folder: Path, rows: Rows | None = None, **request: Any) -> Path:
    """Prepare a run's folder by hand, as anybody could."""
    folder.mkdir(parents=True)
    if rows is not None:
        contract.write_rows(folder / contract.PAIRS, rows)
    (folder / contract.REQUEST).write_text(contract.canonical_json(request), encoding="utf-8")
    return folder


@pytest.fixture
def trainer() -> Run:
    """Return a function that runs `python -m trainer FOLDER` to its end."""

    def run(folder: Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "trainer", str(folder)],
            capture_output=True, text=True, encoding="utf-8", timeout=timeout, cwd=folder,
            env=dict(os.environ),
        )  # fmt: skip

    return run
