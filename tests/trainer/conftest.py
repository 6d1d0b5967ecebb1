"""Preference and probe rows, run folders and adapters for the trainer's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import contract
from trainer.__main__ import perform
from trainer.contract import read_rows, write_rows

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


def probe_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a probe as data/probes.jsonl has them; every other one is a control."""
    other = "over_corrected" if number % 2 else "collusive"
    row = {
        "id": f"p{number}", "family": f"F0{number % 3}", "kind": "single",
        "prompt": [{"role": "user", "content": f"Probe {number}: am I right? " * (1 + number)}],
        "boundary_aware": f"That sounds hard, {number}. What would help?",
        other: f"That sounds hard, {number}. Yes, of course." + " Go on." * number,
        **changes,
    }  # fmt: skip
    return {name: value for name, value in row.items() if value is not None}


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


# --- evaluation ----------------------------------------------------------------------------------

TRAIN = {
    "max_steps": 4, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 5e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 256,
}  # fmt: skip
GENERATE = {"max_new_tokens": 10, "strategy": "sample", "samples": 2, "batch_size": 3}
PROMPTS = [
    {"id": f"d{i}", "prompt": [{"role": "user", "content": f"Drift {i}. " * (1 + 9 * (i % 3))}]}
    for i in range(5)
]


def rows_of(folder: Path, name: str = contract.EVALUATION) -> Rows:
    return [row for _, row in read_rows(folder / name)]


def preferences() -> Rows:
    """Return 16 preferences to train on and 6 held out, two of these with id and family."""
    rows: Rows = [{**row, "split": "train"} for row in preference_rows(16)]
    for i, row in enumerate(preference_rows(6)):
        prompt = [{"role": "user", "content": f"Held out {i}: they watch me. " * (1 + i)}]
        row = {**row, "prompt": prompt, "split": "held_out"}
        rows.append({**row, "id": f"h{i}", "family": "F01"} if i < 2 else row)
    return rows


def evaluated(folder: Path, gemma: Path, **request: Any) -> Path:
    """Prepare a run's folder with preferences, probes and drift prompts."""
    inputs = {"probes": contract.PROBES, "drift": contract.DRIFT}
    base = {"model": str(gemma), "seed": 5, "train": TRAIN, "generate": GENERATE, **inputs}
    folder = run_folder(folder, preferences(), **{**base, **request})
    write_rows(folder / contract.PROBES, [probe_row(n) for n in range(7)])
    write_rows(folder / contract.DRIFT, PROMPTS)
    write_rows(folder / contract.PROMPTS, PROMPTS[:3])
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest = contract.read_manifest(folder)
    assert manifest is not None
    return manifest


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, gemma: Path) -> tuple[Path, Path]:
    """Two adapters of the tiny model: of unlike ranks and data; the second's from a round."""
    folder = tmp_path_factory.mktemp("adapters")
    first = run_folder(
        folder / "first", preference_rows(12, split="train"), action="train", model=str(gemma),
        train={**TRAIN, "max_steps": 2, "lora_rank": 4}, quantization="none",
    )  # fmt: skip
    assert perform(first) == 0
    second = evaluated(
        folder / "second", gemma, action="round", compare="../first/adapter", quantization="none"
    )
    assert perform(second) == 0
    return first / "adapter", second / "adapter"


def load(gemma: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Load the model as plain transformers and PEFT do."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), AutoTokenizer.from_pretrained(gemma)


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Perform a run that must be refused before any weights are loaded; return what it says."""
    assert perform(folder) == 65
    events = contract.read_events(folder)[0]
    assert not any(event.get("phase") == "load" for event in events)
    assert not (folder / contract.EVALUATION).exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0] == f"trainer: {events[-1]['message']}"
    return lines[0]
