"""A training killed, and started again on a machine with more or less memory than before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import manifest_of, preference_rows, run_folder
from trainer import checkpoints, contract, dpo, fitting, memory
from trainer.__main__ import perform
from trainer.contract import TrainSettings
from trainer.memory import GIB, Machine

pytestmark = pytest.mark.train

SETTINGS = {
    "max_steps": 6, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 512, "save_steps": 2,
}  # fmt: skip


class Shrinking:
    """A machine whose free memory is set between two starts, and a training killed on demand."""

    def __init__(self, gemma: Path) -> None:
        self.shape = fitting.shape_in(gemma, "tiny")
        self.free, self.kill = 9 * GIB, False

    def enough_for(self, **settings: Any) -> int:
        """Return the bytes that are just enough for these settings."""
        wanted = contract.from_dict(TrainSettings, {**SETTINGS, **settings})
        return memory.plan(self.shape, wanted, "nf4", self.here(9 * GIB)).total

    def here(self, free: int | None = None) -> Machine:
        return Machine(free or self.free, "cpu", False, 4)


@pytest.fixture
def machine(gemma: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shrinking]:
    found = Shrinking(gemma)
    publish = checkpoints.publish

    def publish_and_die(*arguments: Any) -> Path:
        path = publish(*arguments)
        if found.kill and arguments[3] == 4:
            raise SystemExit(143)
        return path

    monkeypatch.setattr(fitting, "machine_here", found.here)
    monkeypatch.setattr(checkpoints, "publish", publish_and_die)
    yield found


def started(folder: Path, gemma: Path, **train: Any) -> Path:
    return run_folder(
        folder, preference_rows(10, split="train"), action="train", model=str(gemma), seed=3,
        train={**SETTINGS, **train},
    )  # fmt: skip


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in contract.read_events(folder)[0] if e["event"] == name]


SMALL = {"max_length": 256, "batch_size": 1, "gradient_checkpointing": True}


def test_with_more_memory_it_goes_on_as_the_checkpoint_was_made(
    tmp_path: Path, gemma: Path, machine: Shrinking
) -> None:
    machine.free = machine.enough_for(**SMALL)
    whole, killed = started(tmp_path / "whole", gemma), started(tmp_path / "killed", gemma)
    assert perform(whole) == 0
    machine.kill = True
    assert perform(killed) == 143
    machine.kill, machine.free = False, 9 * GIB
    assert perform(killed) == 0
    (resumed,) = events(killed, "resumed")
    assert resumed["step"] == 4
    assert (
        "with what it was made with: batch_size 1, gradient_accumulation 4, max_length 256"
        in (resumed["message"])
    )
    assert [e["step"] for e in events(killed, "step")] == [1, 2, 3, 4, 5, 6]
    assert manifest_of(killed)["adapter"]["sha256"] == manifest_of(whole)["adapter"]["sha256"]
    assert manifest_of(killed)["memory"]["max_length"] == 256
    assert manifest_of(killed)["memory"]["planned"] == manifest_of(whole)["memory"]["planned"]


def test_with_less_memory_it_goes_on_where_no_result_changes(
    tmp_path: Path, gemma: Path, machine: Shrinking
) -> None:
    killed = started(tmp_path / "killed", gemma)
    machine.kill = True
    assert perform(killed) == 143
    machine.kill = False
    machine.free = machine.enough_for(batch_size=1, gradient_checkpointing=True)
    assert perform(killed) == 0
    assert any("one pair at a time" in e["message"] for e in events(killed, "warning"))
    assert [e["step"] for e in events(killed, "resumed")] == [4]
    assert [e["step"] for e in events(killed, "step")] == [1, 2, 3, 4, 5, 6]


def test_settings_that_are_dropped_leave_every_attempt(
    tmp_path: Path, gemma: Path, machine: Shrinking, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    killed = started(tmp_path / "killed", gemma)
    machine.kill = True
    assert perform(killed) == 143
    for card in (killed / contract.CHECKPOINTS).glob(f"*/{checkpoints.CARD}"):
        made = json.loads(card.read_text())
        card.write_text(json.dumps({**made, "attempt": 3}))  # as the last attempt would have
    machine.kill = False
    machine.free = machine.enough_for(batch_size=1, gradient_checkpointing=True)
    make, short = dpo.make_trainer, [True]

    def short_of_memory_once(*arguments: Any) -> Any:
        if short and short.pop():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make(*arguments)

    monkeypatch.setattr(dpo, "make_trainer", short_of_memory_once)
    assert perform(killed) == 0
    (told,) = [e for e in events(killed, "warning") if "attempt" in e]
    assert told["attempt"] == 2 and told["change"] == "max_length 320"
    assert [e["step"] for e in events(killed, "resumed")] == [4]


def test_what_no_longer_fits_begins_anew_and_says_why(
    tmp_path: Path, gemma: Path, machine: Shrinking
) -> None:
    killed = started(tmp_path / "killed", gemma)
    machine.kill = True
    assert perform(killed) == 143
    machine.free = machine.enough_for(**SMALL)
    assert perform(killed) == 143  # and its own checkpoints are kept beside the longer ones
    (told,) = {e["message"] for e in events(killed, "warning") if "step-00000004" in e["message"]}
    assert "was made with max_length 512, which takes" in told and told.endswith(
        "enough for 256; passed over."
    )
    machine.kill = False
    assert perform(killed) == 0
    assert [e["step"] for e in events(killed, "step")] == [1, 2, 3, 4] * 2 + [5, 6]
    assert [e["step"] for e in events(killed, "resumed")] == [4]


def test_a_length_out_of_memory_led_to_is_kept_with_the_checkpoint(tmp_path: Path) -> None:
    asked = TrainSettings()
    for step, length in ((2, 512), (4, 384), (6, 384)):
        saved = tmp_path / "saved"
        saved.mkdir()
        (saved / "optimizer.pt").write_text("x")
        made = replace(asked, max_length=length)
        checkpoints.publish(saved, tmp_path, "mark", step, 1 if length == 512 else 3, made)
    found = checkpoints.latest(tmp_path, "mark", pytest.fail)
    assert found is not None and (found.step, found.attempt) == (6, 3)
    assert found.settings == replace(asked, max_length=384)
    names = sorted(p.name for p in (tmp_path / contract.CHECKPOINTS).iterdir())
    assert names == ["step-00000004", "step-00000006"]
