"""Prefix sharing in training gives stock TRL's numbers, on every family, in every shape."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import Rows, preference_rows, run_folder
from trainer import contract, dpo, model, prefix_sharing
from trainer.contract import Request, TrainSettings
from trainer.prefix_sharing import PrefixSharing, layout, sharing

pytestmark = pytest.mark.train

# Tokens of prompt, chosen and rejected: unequal, one of them cut at LENGTH, a prompt far longer
# than the sliding window of 64, replies that begin alike, nothing shared but the first token.
LENGTH = 120
PAIRS: list[tuple[list[int], list[int], list[int]]] = [
    ([2, *range(10, 90)], [*range(100, 120), 5], [*range(130, 137), 5]),
    ([2, *range(20, 95)], [*range(100, 160), 5], [120, 121, 5]),
    ([2, *range(30, 70)], [99, 98, 97, 101, 5], [99, 98, 97, 102, 103, 5]),
    ([2, *range(30, 60)], [99, 98], [99, 98, 97, 5]),
    ([2], [40, 41, 42, 5], [50, 51, 5]),
]


def collated(pairs: list[tuple[list[int], list[int], list[int]]]) -> dict[str, Any]:
    """Return the batch as TRL's own collator makes it."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    collator = DataCollatorForPreference(pad_token_id=0, max_length=LENGTH)
    batch = collator([dict(zip(names, pair, strict=True)) for pair in pairs])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return {
        "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"],
        "labels": labels, "use_cache": False, "fused_lm_head": True,
    }  # fmt: skip


def adapted(folder: Path, family: str, quantization: str = "none", **changes: Any) -> Any:
    """Return a family's tiny model with TRL's fused head and a LoRA that is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    tiny.save_family(folder, family)
    request = Request(action="train", model="tiny", quantization=quantization)
    base: Any = model.load_base(request, folder, model.choose_device())
    for name, value in changes.items():
        setattr(base.config, name, value)
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=model.LORA_TARGETS, init_lora_weights=False)
    made = get_peft_model(base, lora)
    outputs = (*prefix_sharing.PER_TOKEN,)
    add_fused_lm_head(made.get_base_model(), outputs=outputs)
    return made


@contextmanager
def shared(made: Any) -> Iterator[PrefixSharing]:
    wrapper = PrefixSharing(made.get_base_model())
    try:
        yield wrapper
    finally:
        wrapper.remove()


def numbers(made: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a pass's outputs, and the LoRA gradients of a loss that weighs every token unlike."""
    import torch

    made.zero_grad()
    output = made(**batch)
    weights = torch.linspace(-1, 2, output.log_probs.numel()).view_as(output.log_probs)
    (output.log_probs * weights + 0.1 * output.entropy * weights.flip(0)).sum().backward()
    return output, {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}


def compared(made: Any, batch: dict[str, Any], within: float = 1e-5) -> None:
    import torch

    with shared(made) as wrapper:
        ours, our_gradients = numbers(made, batch)
    assert (wrapper.shared, wrapper.stock) == (1, 0)
    stock, gradients = numbers(made, batch)
    assert wrapper.shared == 1
    for name in prefix_sharing.PER_TOKEN:
        mine, theirs = getattr(ours, name), getattr(stock, name)
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype, name
        assert torch.allclose(mine.float(), theirs.float(), atol=within), name
    assert torch.equal(ours.label_mask, stock.label_mask)
    assert ours.loss.item() == pytest.approx(stock.loss.item(), abs=within)
    assert stock.log_probs.min() < -1
    assert len(gradients) == 2 * 7 * 2 and our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert scale > 0
        assert (our_gradients[name] - gradient).abs().max() <= within * max(1.0, scale), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probabilities_and_gradients_are_stock_trls(tmp_path: Path, family: str) -> None:
    made = adapted(tmp_path, family)
    compared(made, collated(PAIRS))  # padded, cut, of all kinds at once
    for pair in PAIRS[:4]:
        compared(made, collated([pair]))
