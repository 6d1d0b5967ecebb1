"""Every family of model we name: loaded text-only and whole, adapted in its language layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_lora_is_put_on_fused_layers_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    place = tmp_path / "model"
    tiny.save_family(place, "phi3")
    folder = run_folder(
        tmp_path / "run", preference_rows(12, split="train"), action="train", model=str(place),
        train={**TRAIN, "max_steps": 2},
    )  # fmt: skip
    assert perform(folder) == 0
    weights = load_file(folder / "adapter" / contract.ADAPTER_WEIGHTS)
    moved = [n.split(".layers.")[1].split(".lora_B")[0] for n, w in weights.items()
             if "lora_B" in n and w.any()]  # fmt: skip
    linears = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert sorted(moved) == sorted(f"{layer}.{name}" for layer in (0, 1) for name in linears)


ROUND = ["gemma3", "llama", "mistral", "mistral3"]  # gemma3_text is everywhere else


@pytest.mark.parametrize("family", ROUND)
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


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [e for e in contract.read_events(folder)[0] if e["event"] == "step"]


# Each run in a process of its own that kills itself when its first checkpoint is published.
KILLED = """
import os, signal, sys
from pathlib import Path
import bitsandbytes, peft, torch._dynamo  # once for all: what a run imports as it goes
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import DPOTrainer
from trainer import checkpoints, dpo, evaluate, generate, model
from trainer.__main__ import perform

def publish_and_die(*arguments, publish=checkpoints.publish):
    publish(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoints.publish = publish_and_die
for folder in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        perform(Path(folder))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_training_goes_on_in_every_family(tmp_path: Path) -> None:
    rows = preference_rows(12, split="train")
    for family in ROUND:
        tiny.save_family(tmp_path / family / "model", family)
        request = {
            "action": "train", "model": str(tmp_path / family / "model"), "seed": 3,
            "train": {**TRAIN, "max_steps": 2, "save_steps": 1},
        }  # fmt: skip
        for name in ("whole", "killed"):
            run_folder(tmp_path / family / name, rows, **request)
    folders = [str(tmp_path / family / "killed") for family in ROUND]
    # Before anything is computed there: threads of a parent are not there after a fork.
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, *folders],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for family in ROUND:
        whole, killed = tmp_path / family / "whole", tmp_path / family / "killed"
        assert [e["step"] for e in steps_of(killed)] == [1], family
        assert not (killed / "adapter").exists(), family
        assert perform(whole) == perform(killed) == 0, family
        assert [e["step"] for e in steps_of(killed)] == [1, 2], family
        for ours, wanted in zip(steps_of(killed), steps_of(whole), strict=True):
            assert ours["loss"] == pytest.approx(wanted["loss"], abs=1e-6), family
        sha256 = manifest_of(whole)["adapter"]["sha256"]
        assert manifest_of(killed)["adapter"]["sha256"] == sha256, family


@pytest.mark.parametrize("family", ROUND)
def test_a_chained_round_goes_on_with_the_adapter_of_the_one_before(
    tmp_path: Path, family: str
) -> None:
    place = tmp_path / "model"
    tiny.save_family(place, family)
    train = {**TRAIN, "max_steps": 2, "loss": ["sigmoid"], "loss_weights": [1.0]}
    rows = preference_rows(12, split="train")
    request = {"model": str(place), "quantization": "none", "generate": GENERATE}
    first = run_folder(tmp_path / "first", rows, **request, action="train", train=train)
    assert perform(first) == 0
    second = run_folder(
        tmp_path / "second", rows, **request, action="round", adapter="../first/adapter",
        train={**train, "strategy": "chained"},
    )  # fmt: skip
    contract.write_rows(second / contract.PROMPTS, PROMPTS[:2])
    assert perform(second) == 0
    # The reference is the adapter it begins with: at the first step both say the same.
    assert steps_of(second)[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    card = json.loads((second / "adapter" / contract.ADAPTER_CARD).read_text())
    parent = manifest_of(first)["adapter"]["sha256"]
    assert card["strategy"] == "chained" and card["parent_sha256"] == parent
    assert manifest_of(second)["adapter"]["sha256"] != parent
    assert len(rows_of(second, contract.CANDIDATES)) == 4


@pytest.mark.parametrize("family", ROUND)
def test_a_familys_turns_are_written_and_ended_in_its_own_way(tmp_path: Path, family: str) -> None:
    tiny.save_family(tmp_path, family)
    tokenizer = model.load_tokenizer(tmp_path, "tiny")
    messages = preference_rows(1)[0]["prompt"]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    begins, ends = tiny.TURNS[tiny.turns_of(family)][:2]
    assert text.count(begins) >= 2 and ends in text
    config = model.load_base(PLAIN, tmp_path, model.choose_device()).generation_config
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    said = [*messages, {"role": "assistant", "content": "Tell me more."}]
    ids = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
    assert set(ids[-2:]) & set(stops)  # what training teaches it to end with, generation stops at
