"""The head, on completions alone and streamed from host memory, gives TRL's numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import TRAIN, preference_rows
from trainer import contract, dpo, model
from trainer.contract import Request, TrainSettings
from trainer.preferences import Preferences

pytestmark = pytest.mark.train

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
TIED = ("gemma3_text", "gemma3", "llama", "mistral3")
# Rows of a batch: tokens, and how many of them are the prompt's.
ROWS = ((23, 9), (31, 9), (17, 12), (26, 12))
WORDS = 100  # of a tile: no divisor of the vocabulary
Change = Callable[[Any], None]


def adapted(folder: Path, change: Change, quantization: Any = "none", dtype: Any = None) -> Any:
    """Load a model, have `change` done to it, put TRL's head and a LoRA that does something on."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    request = Request(action="train", model="tiny", quantization=quantization)
    device = model.choose_device()
    device = replace(device, dtype=dtype) if dtype else device
    base: Any = model.load_base(request, folder, device)
    if change in (streamed, both):
        from trainer.streamed_head import to_host

        to_host(base, WORDS)
    add_fused_lm_head(base, outputs=OUTPUTS)
    change(base)
    lora = LoraConfig(r=4, target_modules=model.LORA_TARGETS, task_type="CAUSAL_LM")
    peft: Any = get_peft_model(base, lora)
    torch.manual_seed(3)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape).to(parameter) * 0.1
    return peft


def stock(base: Any) -> None:
    """Leave TRL's head as it is."""


def completions(base: Any) -> None:
    from trainer.fused_head import install

    install(base, completions_only=True)


def streamed(base: Any) -> None:
    from trainer.fused_head import install

    install(base, completions_only=False)


def both(base: Any) -> None:
    completions(base)


def a_batch(rows: tuple[tuple[int, int], ...] = ROWS) -> dict[str, Any]:
    """Return a batch as TRL's collator makes it, padded on the right; the prompts unlabelled."""
    import torch

    width = max(size for size, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for n, (size, prompt) in enumerate(rows):
        drawn = torch.randint(6, 300, (size,), generator=torch.Generator().manual_seed(size))
        ids[n, :size], mask[n, :size], labels[n, prompt:size] = drawn, 1, drawn[prompt:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run(peft: Any, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return TRL's outputs, and the LoRA's gradients of a loss that uses what has a gradient."""
    peft.zero_grad()
    found = peft(**batch, fused_lm_head=True, use_cache=False)
    weight = found.label_mask.cumsum(1).float() * 0.1
    (-(found.log_probs * weight).sum() + 0.3 * found.entropy.sum()).backward()
    grads = {n: p.grad.clone() for n, p in peft.named_parameters() if p.grad is not None}
    assert grads and all(g.any() for g in grads.values())
    return {n: getattr(found, n).detach() for n in (*OUTPUTS, "loss", "label_mask")}, grads


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], atol: float) -> None:
    import torch

    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].shape == value.shape and ours[name].dtype == value.dtype, name
        torch.testing.assert_close(ours[name], value, atol=atol, rtol=0, msg=name)


# --- equal numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_outputs_and_gradients_are_trls_in_every_family(tmp_path: Path, family: str) -> None:
    tiny.save_family(tmp_path, family)
    wanted = run(adapted(tmp_path, stock), a_batch())
    for change in (completions, streamed, both):
        if family not in TIED and change is not completions:
            with pytest.raises(contract.ContractError, match="a head that is the embedding"):
                adapted(tmp_path, change)
            continue
        found = run(adapted(tmp_path, change), a_batch())
        assert_same(found[0], wanted[0], 1e-5)
        assert_same(found[1], wanted[1], 1e-5)


@pytest.mark.parametrize("change", [completions, streamed, both])
def test_shift_labels_are_scored_as_trl_scores_them(tmp_path: Path, change: Change) -> None:
    import torch

    tiny.save_family(tmp_path, "gemma3_text")
    batch = a_batch()
    shifted = torch.full_like(batch["labels"], -100)
    shifted[:, :-1] = batch["labels"][:, 1:]
    batch = {**batch, "labels": None, "shift_labels": shifted}
    wanted, found = (run(adapted(tmp_path, each), batch) for each in (stock, change))
    assert found[0]["log_probs"].shape == batch["input_ids"].shape
    assert_same(found[0], wanted[0], 1e-5)
    assert_same(found[1], wanted[1], 1e-5)


@pytest.mark.parametrize("change", [completions, both])
def test_a_batch_without_a_label_gives_zeros_and_a_backward(tmp_path: Path, change: Change) -> None:
    tiny.save_family(tmp_path, "llama")
    peft = adapted(tmp_path, change)
    batch = a_batch()
    batch["labels"].fill_(-100)
    found = peft(**batch, fused_lm_head=True)
    assert not found.log_probs.any() and not found.is_top1.any()
    found.log_probs.sum().backward()
    assert not any(p.grad.any() for p in peft.parameters() if p.grad is not None)


def test_logits_are_capped_as_trl_caps_them(tmp_path: Path) -> None:
    import torch
    from transformers import Gemma3ForCausalLM

    tiny.save_tokenizer(tmp_path)
    torch.manual_seed(1)
    Gemma3ForCausalLM(tiny.text_config(final_logit_softcapping=0.5)).save_pretrained(tmp_path)
    wanted, found, few = (run(adapted(tmp_path, c), a_batch()) for c in (stock, both, completions))
    for each in (found, few):
        assert_same(each[0], wanted[0], 1e-5)
        assert_same(each[1], wanted[1], 1e-5)
    ids = a_batch()["input_ids"]
    with torch.no_grad():
        logits, ours = (adapted(tmp_path, c)(input_ids=ids).logits for c in (stock, both))
    assert logits.abs().max() <= 0.5
    torch.testing.assert_close(ours, logits, atol=1e-5, rtol=0)


def test_in_bf16_and_nf4_no_further_from_trl_than_trl_from_itself(tmp_path: Path) -> None:
    import torch

    tiny.save_family(tmp_path, "gemma3_text")
    other = a_batch((ROWS[1], (61, 20), ROWS[0], ROWS[3], ROWS[2]))  # other order, other widths

    def log_probs(change: Change, batch: dict[str, Any], rows: list[int]) -> Any:
        peft = adapted(tmp_path, change, "nf4", torch.bfloat16)
        with torch.no_grad():
            found = peft(**batch, fused_lm_head=True).log_probs
        return torch.cat([found[n, : ROWS[i][0] - 1] for i, n in enumerate(rows)])

    theirs = log_probs(stock, a_batch(), [0, 1, 2, 3])
    itself = (log_probs(stock, other, [2, 0, 4, 3]) - theirs).abs().max()
    assert 0 < itself < 0.5
    for change in (completions, streamed, both):
        ours = log_probs(change, a_batch(), [0, 1, 2, 3])
        assert (ours - theirs).abs().max() <= itself


@pytest.mark.parametrize("checkpointing", [False, True])
def test_twenty_steps_go_the_same_way(tmp_path: Path, gemma: Path, checkpointing: bool) -> None:
    import torch

    settings = {**TRAIN, "max_steps": 20, "gradient_checkpointing": checkpointing}
    device = model.choose_device()
    logs = {}
    for few, host in ((False, False), (True, False), (True, True)):
        train = contract.from_dict(
            TrainSettings, {**settings, "completions_only": few, "host_embedding": host}
        )
        request = Request(action="train", model=str(gemma), train=train, quantization="none")
        torch.manual_seed(7)
        trainer = dpo.make_trainer(
            model.load_base(request, gemma, device), model.load_tokenizer(gemma, "tiny"),
            Preferences(preference_rows(16), [], 0, ""), request, device,
            tmp_path / f"{few}{host}", lambda *_, **__: None,
        )  # fmt: skip
        dpo.train(trainer)
        logs[few, host] = [row for row in trainer.state.log_history if "loss" in row]
    stock_log = logs.pop((False, False))
    assert len(stock_log) == 20 and stock_log[-1]["loss"] < stock_log[0]["loss"] - 0.1
    for log in logs.values():
        for ours, theirs in zip(log, stock_log, strict=True):
            for name in ("loss", "rewards/margins", "logits/chosen", "entropy"):
                assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a GPU")
def test_tiles_copied_ahead_are_the_matrix_on_a_gpu() -> None:
    import torch

    from trainer.streamed_head import HostMatrix

    matrix = torch.randn(1003, 256).pin_memory()
    held = HostMatrix(matrix, torch.device("cuda", 0), 100)
    for _ in range(20):
        tiles = [(start, tile.clone()) for start, tile in held.tiles(torch.float32)]
        assert [start for start, _ in tiles] == list(range(0, 1003, 100))
        assert torch.equal(torch.cat([tile for _, tile in tiles]).cpu(), matrix)


# --- only what is asked for -----------------------------------------------------------------------


def test_only_labelled_positions_go_through_the_head(tmp_path: Path) -> None:
    import torch

    tiny.save_family(tmp_path, "gemma3_text")
    counts = []
    mm = torch.mm

    def counting(a: Any, b: Any, **options: Any) -> Any:
        counts.append(len(a))
        return mm(a, b, **options)

    batch = a_batch()
    labelled = int((batch["labels"] != -100).sum())
    for change, rows in ((stock, 4 * 30), (completions, labelled), (both, labelled)):
        peft = adapted(tmp_path, change)
        counts.clear()
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(torch, "mm", counting)
            peft(**batch, fused_lm_head=True)
        assert set(counts) == {rows}


def test_it_comes_off_again_and_leaves_trl_alone(tmp_path: Path) -> None:
    from trl.trainer import utils
    from trl.trainer.utils import add_fused_lm_head

    from trainer.fused_head import NAMES, install

    before = [getattr(utils, name) for name in NAMES]
    tiny.save_family(tmp_path, "llama")
    base: Any = model.load_base(
        Request(action="train", model="tiny", quantization="none"), tmp_path, model.choose_device()
    )
    with pytest.raises(RuntimeError, match="is not the one TRL"):
        install(base, completions_only=True)
    add_fused_lm_head(base)
    trls = base.forward
    take_off = install(base, completions_only=True)
    assert base.forward.__func__ is not trls.__func__
    assert inspect.signature(base.forward) == inspect.signature(trls)
    assert [getattr(utils, name) for name in NAMES] == before
    take_off()
    assert base.forward == trls
    install(base, completions_only=False)  # nothing to change: TRL's own stays
    assert base.forward == trls


def test_nothing_counts_moves_or_saves_the_matrix_but_us(tmp_path: Path) -> None:
    import torch

    from trainer import measure
    from trainer.streamed_head import is_streamed, to_host

    whole = tiny.save_family(tmp_path, "gemma3_text")
    request = Request(
        action="train", model="tiny", quantization="none", train=TrainSettings(host_embedding=True)
    )
    text: Any = model.load_base(request, tmp_path, model.choose_device())
    plain: Any = model.load_base(replace(request, train=TrainSettings()), tmp_path,
                                 model.choose_device())  # fmt: skip
    assert is_streamed(text) and not is_streamed(plain)
    assert not any("embed_tokens" in n or "lm_head" in n for n in text.state_dict())
    assert model.parameters(text) == model.parameters(plain)
    # On a CPU it is in the same memory; Gemma's scale, one number, went with it.
    assert measure.model_bytes(plain) - measure.model_bytes(text) == 4
    matrix = model.host_matrix(text)
    to_host(text)
    assert model.host_matrix(text) is matrix
    # The embedding and the head are one matrix still, and no copy of it was made.
    assert text.get_input_embeddings().held.weight.data_ptr() == matrix.data_ptr()  # type: ignore[union-attr]
    text.to(torch.float64)
    assert matrix is not None and matrix.dtype == torch.float32
    hidden = torch.randn(2, 64, requires_grad=True)
    with pytest.raises(RuntimeError, match="have no gradient"):
        text.get_output_embeddings()(hidden)
    assert torch.equal(matrix, whole.get_input_embeddings().weight)


def test_out_of_memory_the_embedding_leaves_the_card_before_anything_is_cut() -> None:
    import torch

    from trainer.attempts import with_less_memory

    gpu = model.Device("cuda", torch.bfloat16, "")
    settings, told = TrainSettings(), []
    while less := with_less_memory(settings, gpu, tied=not settings.host_embedding):
        settings = less[0]
        told.append(less[1])
    assert told[:3] == ["embedding in host memory", "checkpoints in host memory", "max_length 320"]
    assert settings.host_embedding and settings.activation_offloading
    untied = with_less_memory(TrainSettings(), gpu, tied=False)
    assert untied is not None and untied[1] == "checkpoints in host memory"


# --- what is touched of TRL -----------------------------------------------------------------------


def test_trls_private_names_are_those_known_here() -> None:
    """Fails with a TRL in which something that is used here is called, or is, another thing."""
    from trl.kernels import chunked_logprob as head
    from trl.trainer.utils import add_fused_lm_head

    from trainer.fused_head import NAMES
    from trainer.streamed_head import StreamedLogProb

    (code,) = [c for c in add_fused_lm_head.__code__.co_consts
               if getattr(c, "co_name", "") == "_fused_forward"]  # fmt: skip
    used = {"get_output_embeddings", "weight", "bias", "device", "apply"}
    assert set(NAMES) | used <= set(code.co_names)
    ours, theirs = (
        list(inspect.signature(f.forward).parameters)
        for f in (StreamedLogProb, head.ChunkedLogProbFunction)
    )
    assert ours == theirs
    assert head.OPTIONAL_OUTPUTS == ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    assert (head.TOKEN_CHUNK_SIZE, head._BLOCK_SIZE) == (4096, 1024)
    running = ["running_max", "sum_exp", "x_sum_exp", "sq_sum_exp", "z_sum", "max_before_target",
               "target_logit"]  # fmt: skip
    scales = ["logit_scale", "softcap", "inv_t", "HAS_SOFTCAP"]
    wanted = [f"HAS_{n}" for n in ("ENTROPY", "LOG_SUM_SQ_PROBS", "MEAN_LOGITS", "IS_TOP1")]
    assert names(head._forward_tile) == [
        "tile", "tile_stride", "targets", *running, "vocab_start", "n_cols", *scales, *wanted,
        "BLOCK_SIZE",
    ]  # fmt: skip
    grads = ["HAS_LOGPROB_GRAD", "HAS_ENTROPY_GRAD"]
    assert names(head._backward_tile) == [
        "tile", "tile_stride", "targets", "log_z", "entropy", "grad_logprobs", "grad_entropy",
        "vocab_start", "n_cols", *scales, *grads, "BLOCK_SIZE",
    ]  # fmt: skip
    assert len(names(head._forward_kernel)) == len(names(head._forward_tile))
    assert len(names(head._backward_kernel)) == len(names(head._backward_tile))
    for one, other in ((head._forward_kernel, head._forward_tile),
                       (head._backward_kernel, head._backward_tile)):  # fmt: skip
        given_by_name = [n for n in names(other) if n.isupper() or n in scales]
        assert set(given_by_name) <= set(names(one))
    assert names(head._addmm_fp32) == ["acc", "a", "b"]
    assert names(head._use_triton) == ["device"]


def names(function: Any) -> list[str]:
    return list(inspect.signature(getattr(function, "fn", function)).parameters)  # Triton's .fn
