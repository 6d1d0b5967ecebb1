"""What the trainer leans on in other packages that their documentation does not promise.

An upgrade that moves one of these is to fail here, by name, and not in the middle of a training or,
worse, not at all. What the faster paths touch stands in their own tests, under
"test_trls_private_names_are_those_known_here" and its like.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

pytestmark = pytest.mark.train


def source(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]


def test_trl_and_transformers_trainers() -> None:
    from transformers import Trainer, TrainerState
    from transformers.trainer_callback import ExportableState
    from trl import DPOTrainer

    # dpo.make_trainer puts its own in the place of these two: they have to be what is called.
    assert "self.create_model_card(model_name=model_name)" in source(DPOTrainer._save_checkpoint)
    assert "self._load_from_checkpoint(resume_from_checkpoint)" in source(Trainer.train)
    assert list(inspect.signature(Trainer._load_from_checkpoint).parameters) == [
        "self", "resume_from_checkpoint", "model",
    ]  # fmt: skip
    made = source(DPOTrainer.__init__)
    assert 'model.add_adapter("ref", default_config)' in made
    assert 'if ".default." in name:' in made
    assert "disable_dropout_in_model(model)" in made
    # measure.dry_step takes a step as TRL does.
    assert 'self._metrics = {"train": ' in made
    assert made.count("self.maybe_activation_offload_context = ") == 2
    assert "self.maybe_activation_offload_context" in source(DPOTrainer.training_step)
    # callbacks.is_done reads what transformers saves of the one that stops early.
    assert "stateful_callbacks" in {field.name for field in fields(TrainerState)}
    assert callable(ExportableState.state)


def test_the_columns_and_tokens_of_trl() -> None:
    from trl import DPOTrainer
    from trl.data_utils import _tokenize, common_prefix_length

    assert list(inspect.signature(_tokenize).parameters)[:2] == ["processing_class", "input"]
    assert common_prefix_length([1, 2, 3], [1, 2, 4, 5]) == 2
    columns = source(DPOTrainer._set_signature_columns_if_needed)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert f'"{name}"' in columns
    assert 'inputs["completion_mask"]' in source(DPOTrainer._compute_loss)


def test_bitsandbytes(gemma: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    from trainer.contract import Request
    from trainer.model import choose_device, load_base

    model = load_base(Request(action="train", model=str(gemma)), gemma, choose_device())
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert layers
    for layer in layers:
        assert type(layer.weight).__name__ == "Params4bit"  # counted by its name in model.py
        assert layer.weight.quant_state.absmax is not None
        assert hasattr(layer, "support_avx512bf16_for_cpu")
    assert "self.support_avx512bf16_for_cpu" in source(Linear4bit.forward)


def test_peft(gemma: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from trainer.attempts import take_off
    from trainer.contract import Request
    from trainer.model import LORA_TARGETS, choose_device, load_base

    request = Request(action="train", model=str(gemma), quantization="none")
    base = load_base(request, gemma, choose_device())
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=LORA_TARGETS)
    made = get_peft_model(base, config)
    names = [name for name, module in made.named_modules() if isinstance(module, LoraLayer)]
    assert names and all(hasattr(made.get_submodule(f"{n}.lora_dropout"), "default") for n in names)
    # Left on the base, it would make the next attempt's adapter a second one.
    assert made.get_base_model().peft_config
    take_off(base)
    assert not hasattr(base, "peft_config")
    assert not any(isinstance(module, LoraLayer) for module in base.modules())


def test_transformers_configurations_and_attention() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AutoConfig, PreTrainedModel
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    from trainer.prefix_sharing import MASK_A_KIND, ONE_MASK, ONE_WINDOWED

    for family in (*ONE_MASK, *ONE_WINDOWED, *MASK_A_KIND):
        config = AutoConfig.for_model(family)
        assert config.attention_dropout == 0.0  # read with a default: a new name would pass
        assert hasattr(config, "_attn_implementation")
    assert AutoConfig.for_model("gemma3_text").use_bidirectional_attention is False
    for name in ("_init_weights", "post_init"):
        assert callable(getattr(PreTrainedModel, name))
    assert "all_tied_weights_keys" in source(PreTrainedModel.post_init)
    assert list(inspect.signature(replace_with_bnb_linear).parameters)[:3] == [
        "model", "modules_to_not_convert", "quantization_config",
    ]  # fmt: skip
    # split_attention answers it in the mask's place.
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    assert scaled_dot_product_attention(query, key, key, enable_gqa=True).shape == query.shape
    assert torch._C.DisableTorchFunctionSubclass is not None


def test_the_hubs_client() -> None:
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._paths import filter_repo_objects

    found = filter_repo_objects(["a.json", "b.bin"], allow_patterns=["*.json"])
    assert list(found) == ["a.json"]
    assert "user-agent" in build_hf_headers(token=False)
