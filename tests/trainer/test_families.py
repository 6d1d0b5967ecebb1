"""Every family of model we name: loaded text-only and whole, adapted in its language layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import (
    GENERATE,
    PROMPTS,
    TRAIN,
    manifest_of,
    preference_rows,
    rows_of,
    run_folder,
)
from trainer import contract, memory, model, model_folder
from trainer.__main__ import perform
from trainer.contract import Request

pytestmark = pytest.mark.train

PLAIN = Request(action="generate", model="tiny", quantization="none")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_language_model_is_loaded_whole_and_alone(tmp_path: Path, family: str) -> None:
    import torch

    whole = tiny.save_family(tmp_path, family)
    ids = torch.tensor([[2, 40, 41, 42]])
    with torch.no_grad():
        wanted = whole(input_ids=ids).logits
    model_folder.check_weights(model.find_model(str(tmp_path)), "tiny")
    text = model.load_base(PLAIN, tmp_path, model.choose_device())
    assert type(text).__name__.endswith("ForCausalLM")
    assert not any("vision" in name or "projector" in name for name, _ in text.named_modules())
    with torch.no_grad():
        assert torch.allclose(text(input_ids=ids).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_a_missing_language_weight_is_refused_from_the_files_heads(
    tmp_path: Path, family: str
) -> None:
    from safetensors.torch import load_file, save_file

    tiny.save_family(tmp_path, family)
    file = tmp_path / "model.safetensors"
    weights: Any = load_file(file)
    [gone] = [key for key in weights if key.endswith("layers.1.mlp.up_proj.weight")
              and "vision" not in key]  # fmt: skip
    weights.pop(gone)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(model.Refused, match=r"misses weights \(1, among them model\.layers\.1"):
        model_folder.check_weights(tmp_path, "tiny")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_lora_is_put_on_language_layers_and_trains(tmp_path: Path, family: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    tiny.save_family(tmp_path, family)
    base = model.load_base(Request(action="train", model="tiny"), tmp_path, model.choose_device())
    lora = LoraConfig(r=4, target_modules=model.LORA_TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * 2  # layers, linears, A and B
    assert all(".layers." in name and "vision" not in name for name in names)
    ids = torch.tensor([[2, 40, 41, 42]])
    adapted(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("family", ["llama", "mistral", "mistral3"])
def test_a_round_runs_from_preferences_to_new_replies(tmp_path: Path, family: str) -> None:
    place = tmp_path / "model"
    tiny.save_family(place, family)
    folder = run_folder(
        tmp_path / "run", preference_rows(12, split="train"), action="round", model=str(place),
        train={**TRAIN, "max_steps": 2}, generate=GENERATE,
    )  # fmt: skip
    contract.write_rows(folder / contract.PROMPTS, PROMPTS[:2])
    assert perform(folder) == 0
    manifest = manifest_of(folder)
    assert manifest["model"]["class"].endswith("ForCausalLM")
    assert manifest["memory"]["tier"] == memory.RESIDENT
    assert manifest["candidates"]["count"] == 4
    row = rows_of(folder, contract.CANDIDATES)[0]
    assert row["sampling"]["temperature"] == 0.9 and row["sampling"]["top_k"] == 64
