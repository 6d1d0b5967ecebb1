"""Prefix sharing in training gives stock TRL's numbers, on every family, in every shape."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from trainer import model, prefix_sharing
from trainer.contract import Request
from trainer.prefix_sharing import PrefixSharing, layout

pytestmark = pytest.mark.train

# Tokens of prompt, chosen and rejected: unequal, one of them cut at LENGTH, a prompt far longer
# than the sliding window of 64, replies that begin alike, nothing shared but the first token, and
# nothing at all.
LENGTH = 120
PAIRS: list[tuple[list[int], list[int], list[int]]] = [
    ([2, *range(10, 90)], [*range(100, 120), 5], [*range(130, 137), 5]),
    ([2, *range(20, 95)], [*range(100, 160), 5], [120, 121, 5]),
    ([2, *range(30, 70)], [99, 98, 97, 101, 5], [99, 98, 97, 102, 103, 5]),
    ([2, *range(30, 60)], [99, 98], [99, 98, 97, 5]),
    ([2], [40, 41, 42, 5], [50, 51, 5]),
    ([], [43, 44, 45, 5], [53, 54, 5]),
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


@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_sliding_window_counts_positions_of_its_own_row(tmp_path: Path, window: int) -> None:
    made = adapted(tmp_path, "mistral", sliding_window=window)
    compared(made, collated(PAIRS))


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_eager_attention_and_recomputed_activations_give_the_same(
    tmp_path: Path, family: str
) -> None:
    made = adapted(tmp_path, family)
    made.train()
    made.enable_input_require_grads()
    made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compared(made, collated(PAIRS))
    made.get_base_model().set_attn_implementation("eager")
    compared(made, collated(PAIRS[:2]))


def test_rows_that_end_alike_or_are_equal_are_right_too(tmp_path: Path) -> None:
    made = adapted(tmp_path, "gemma3_text")
    prompt = [2, *range(10, 60)]
    compared(made, collated([(prompt, [99, 98, 5], [99, 98, 5])]))
    long = list(range(100, 100 + LENGTH))  # cut to the same tokens: equal rows, both learned from
    compared(made, collated([(prompt, long, [*long, 7]), (prompt, [70, 5], [80, 5])]))


def test_the_shared_rows_are_as_drawn() -> None:
    import torch

    batch = collated([([2, 10, 11], [20, 21], [30]), ([2, 12], [40], [50, 51, 52])])
    found = layout(batch["input_ids"], batch["attention_mask"], batch["labels"])
    assert found is not None and found.width == 7
    rows = prefix_sharing.shared_rows(batch["input_ids"], batch["labels"], found)
    assert rows.ids[:, :7].tolist() == [[2, 10, 11, 20, 21, 11, 30], [2, 12, 40, 12, 50, 51, 52]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 1, 2, 3, 4]]
    assert rows.labels.tolist() == [
        [-100, -100, 20, 21, -100, 30, -100], [-100, 40, -100, 50, 51, 52, -100]
    ]  # fmt: skip
    looks = prefix_sharing.allowed(rows, found)[0].tolist()
    seen = [[c for c, look in enumerate(row) if look] for row in looks]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 5], [0, 1, 5, 6]]
    left = {**batch, "attention_mask": batch["attention_mask"].flip(1)}
    assert torch.any(left["attention_mask"] != batch["attention_mask"])
    assert layout(left["input_ids"], left["attention_mask"], left["labels"]) is None


def test_what_does_not_pay_or_is_not_trls_goes_the_stock_way(tmp_path: Path) -> None:
    import torch

    made = adapted(tmp_path, "gemma3_text")
    batch = collated(PAIRS[:2])
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with shared(made) as wrapper, torch.no_grad():
        few = collated([([2, 10], list(range(20, 60)), list(range(60, 100)))])
        made(**few)  # too little is shared
        positions = torch.arange(batch["input_ids"].shape[1])[None]
        made(**batch, position_ids=positions)
        made(**{**batch, "attention_mask": batch["attention_mask"].flip(1)})
        assert (wrapper.shared, wrapper.stock) == (0, 3)
        assert made(**plain).logits.shape[:2] == batch["input_ids"].shape
        ids = batch["input_ids"][:1, :9]
        assert made.generate(input_ids=ids, max_new_tokens=2, min_new_tokens=2).shape == (1, 11)
        assert (wrapper.shared, wrapper.stock) == (0, 3)


def test_taken_off_nothing_is_left(tmp_path: Path) -> None:
    made = adapted(tmp_path, "llama")
    base = made.get_base_model()
    before, signature = base.forward, inspect.signature(base.forward)
    with shared(made):
        assert base.forward is not before
        assert inspect.signature(base.forward) == signature
    assert base.forward is before


# Rounding as large as stock's own, drawn anew: neither draw is always the smaller one.
DRAWN = 1.5


def padded_left(batch: dict[str, Any], by: int) -> dict[str, Any]:
    """Return TRL's batch with padding before its rows: the same numbers but for rounding."""
    from torch.nn.functional import pad

    mask = pad(batch["attention_mask"], (by, 0))
    return {
        **batch, "input_ids": pad(batch["input_ids"], (by, 0)), "attention_mask": mask,
        "labels": pad(batch["labels"], (by, 0), value=-100),
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }  # fmt: skip


def short_pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    draw = random.Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(10, 260) for _ in range(draw.randrange(least, most))]

    return [([2, *tokens(20, 70)], [*tokens(3, 40), 5], [*tokens(3, 40), 5]) for _ in range(count)]


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load in bf16 on the CPU, as on a GPU."""
    import torch

    device = model.Device("cpu", torch.bfloat16, "as on a GPU")
    monkeypatch.setattr(model, "choose_device", lambda: device)


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_in_bf16_it_is_as_near_to_stock_as_stock_is_to_itself(
    tmp_path: Path, family: str, quantization: str, half: None
) -> None:
    import torch

    made = adapted(tmp_path, family, quantization)
    made.train()  # in evaluation bitsandbytes would change a CPU's weights
    assert made.get_base_model().dtype == torch.bfloat16
    ours, own = 0.0, 0.0
    with torch.no_grad():
        for pair in short_pairs(12):
            batch = collated([pair])
            stock = made(**batch).log_probs
            with shared(made) as wrapper:
                mine = made(**batch).log_probs
                assert wrapper.shared == 1
            left = made(**padded_left(batch, 8)).log_probs[:, 8:]
            tokens = (batch["labels"] != -100).sum()
            ours += float((mine - stock).abs().sum() / tokens)
            own += float((left - stock).abs().sum() / tokens)
    assert 0 < ours <= DRAWN * own < 0.01  # 12 pairs' sum


# --- what of TRL and transformers it rests on -----------------------------------------------------


def test_trls_fused_head_is_as_it_was_read() -> None:
    """TRL 1.16: an upgrade that changes any of these must be read anew."""
    from dataclasses import fields

    from trl import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

    assert {f.name for f in fields(FusedCausalLMOutput)} == {
        "loss", *prefix_sharing.PER_TOKEN, "label_mask", "aux_loss",
    }  # fmt: skip
    head = inspect.getsource(add_fused_lm_head)
    assert "model.forward = types.MethodType(_fused_forward, model)" in head
    assert "fused_lm_head=False, labels=None, shift_labels=None" in head
    assert "labels = shift_labels" in head and "mask = labels != -100" in head
    loss = inspect.getsource(DPOTrainer._compute_loss)
    assert loss.count("labels=labels, fused_lm_head=True)") == 3
    assert "outputs.log_probs[:, -seq_len:]" in loss
    precomputed = inspect.getsource(DPOTrainer.compute_ref_log_probs)
    assert precomputed.count("labels=labels, fused_lm_head=True)") == 1
    for name in ("_prepare_inputs", "compute_loss_context_manager"):
        assert callable(getattr(DPOTrainer, name))


def test_transformers_take_a_prepared_mask_as_they_did() -> None:
    """transformers 5.23: a 4-D mask goes through as it is, a dict goes to Gemma's layers."""
    import torch
    from transformers import masking_utils
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextModel

    mask = torch.zeros(2, 1, 3, 3)
    inputs = torch.zeros(2, 3, 8)
    config = tiny.text_config(layer_types=["sliding_attention", "full_attention"])
    config._attn_implementation = "sdpa"
    for make in ("create_causal_mask", "create_sliding_window_causal_mask"):
        made = getattr(masking_utils, make)(
            config=config, inputs_embeds=inputs, attention_mask=mask, past_key_values=None,
            position_ids=None,
        )  # fmt: skip
        assert made is mask
    near = masking_utils.sliding_window_overlay(4)
    assert near(0, 0, 9, 6) and not near(0, 0, 9, 5)
    gemma = inspect.getsource(Gemma3TextModel)
    assert "isinstance(causal_mask_mapping := attention_mask, dict)" in gemma
    assert "attn_mask=attention_mask" in inspect.getsource(sdpa_attention_forward)


def test_a_split_mask_answers_nothing_but_attention() -> None:
    """Were a mask looked into some day, training would be stock, not wrong."""
    import torch

    from trainer.split_attention import Span, SplitMask

    mask = SplitMask([Span(5, 3, 5)], 7, None, torch.empty(0, dtype=torch.bfloat16))
    assert tuple(mask.shape) == (1, 1, 7, 7)
    assert mask.ndim == 4 and mask.dtype == torch.bfloat16
    for touch in (lambda: torch.add(mask, 1), lambda: mask[..., :3], lambda: mask.sum()):
        with pytest.raises(TypeError, match="mask of shared rows"):
            touch()
