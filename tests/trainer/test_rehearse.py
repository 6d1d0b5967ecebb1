"""A rehearsal: true architecture, real steps, no full copy of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curator.models_text import rehearsal_text
from tests.trainer.conftest import manifest_of, refused, run_folder
from trainer import rehearse
from trainer.__main__ import perform
from trainer.presets import PRESETS

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    "name", ["gemma-3-270m-it", "Llama-3.2-3B-Instruct", "Ministral-3-3B-Instruct-2512-BF16"]
)
def test_a_rehearsal_trains_the_true_layers_and_measures(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    folder = run_folder(
        tmp_path / "run", action="rehearse", model=name, layers=2,
        train={"max_length": 48, "max_steps": 2},
    )  # fmt: skip
    assert perform(folder) == 0
    found = manifest_of(folder)["rehearsal"]
    assert found["steps"] == 2 and found["layers"] == 2 and found["length"] == 48
    assert abs(found["error"]["footprint"]) < 0.03
    assert found["bytes"]["peak"] > 0 and found["tokens_a_second"]["writing"] > 0
    assert found["loss"] > 0 and found["vram"] is None
    assert not (folder / "work").exists()


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every preset's vocabulary small: its embedding is what takes time to draw."""
    for each in PRESETS:
        monkeypatch.setitem(each.config, "vocab_size", 512)
        for part in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if part in each.config:
                monkeypatch.setitem(each.config, part, 1)
        monkeypatch.setitem(each.config, "intermediate_size", 256)


def test_its_pairs_have_exactly_the_length_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = rehearse._tokenizer({})
    for row in rehearse._rows(256, 2, seed=0):
        for reply in ("chosen", "rejected"):
            messages = [*row["prompt"], *row[reply]]
            encoded: Any = tokenizer.apply_chat_template(messages, return_dict=True)
            assert len(encoded["input_ids"]) == 256


def test_a_size_that_a_cpu_does_not_keep_to_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("on a GPU the size is kept to")
    small(monkeypatch)
    folder = run_folder(
        tmp_path / "run", action="rehearse", model="gemma-3-270m-it", layers=1, vram=4 << 30,
        train={"max_length": 32, "max_steps": 1},
    )  # fmt: skip
    assert perform(folder) == 0
    found = manifest_of(folder)["rehearsal"]
    assert found["vram"] == {"asked": 4 << 30, "kept": False}
    assert "--vram 4GB was not kept to: there is no GPU here" in rehearsal_text(found)


def test_only_presets_are_rehearsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "run", action="rehearse", model="some/model")
    assert "is no preset to rehearse; known: gemma-3-4b-it" in refused(folder, capsys)
