"""A prompt computed once for its replies: the same distributions, the same draws."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from trainer import generate, scoring
from trainer.contract import GenerateSettings, Request

pytestmark = pytest.mark.train

# Unlike lengths, the longest of them longer than the tiny Gemma's sliding window of 64.
PROMPTS = [[2, *range(40, 190)], [2, *range(50, 120)], [2, 40, 41, 42, 43, 44]]
REPEATED = [prompt for prompt in PROMPTS for _ in range(3)]
SAMPLING = {"temperature": 0.9, "top_p": 0.95, "top_k": 64, "max_new_tokens": 24}
GREEDY = {**SAMPLING, "temperature": 1e-6, "top_k": 0, "top_p": 1.0}


def load(place: Path, quantization: Any = "none") -> tuple[Any, Any]:
    from trainer.model import choose_device, load_base, load_tokenizer

    request = Request(action="generate", model=str(place), quantization=quantization)
    return load_base(request, place, choose_device()), load_tokenizer(place, "tiny")


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "mistral", "ministral3"])
def test_shared_and_plain_write_the_same(tmp_path: Path, family: str) -> None:
    import torch

    tiny.save_family(tmp_path, family)
    model, tokenizer = load(tmp_path)
    with torch.inference_mode():
        assert scoring.prompt_cache_is_exact(model, [PROMPTS[0], PROMPTS[-1]])
        for sampling in (GREEDY, SAMPLING):
            drawn = []
            for shares in (False, True):
                torch.manual_seed(5)
                drawn.append(generate._reply(model, tokenizer, REPEATED, sampling, shares))
            assert drawn[0] == drawn[1]
    assert len({reply[1] for reply in drawn[1]}) > 3  # drawn, not copied


@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_the_first_token_is_drawn_from_the_same_distribution(tmp_path: Path, family: str) -> None:
    import torch

    tiny.save_family(tmp_path, family)
    model, _ = load(tmp_path)
    width = max(map(len, REPEATED))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in REPEATED])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in REPEATED])
    logits = []
    with torch.inference_mode():
        for begun in ({}, generate._computed_once(model, REPEATED, ids, mask)):
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, pad_token_id=0, top_k=0,
                max_new_tokens=1, return_dict_in_generate=True, output_logits=True, **begun,
            )  # fmt: skip
            logits.append(out.logits[0])
        alone = [model(input_ids=torch.tensor([p])).logits[0, -1] for p in REPEATED]
    for found in logits:
        assert torch.allclose(found, torch.stack(alone), atol=1e-4)


def test_an_adapters_replies_are_shared_too(gemma: Path, adapters: tuple[Path, Path]) -> None:
    import torch

    from trainer.model import attach_adapter

    model, tokenizer = load(gemma)
    model = attach_adapter(model, adapters[1]).eval()
    with torch.inference_mode():
        plain, shared = (
            generate._reply(model, tokenizer, REPEATED, GREEDY, shares) for shares in (False, True)
        )
    assert plain == shared


def test_each_prompt_is_computed_once_and_the_switch_turns_it_off(
    gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, tokenizer = load(gemma)
    computed: list[torch.Size] = []
    forward = model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        computed.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    monkeypatch.setattr(generate, "prompt_cache_is_exact", lambda *_: True)
    prompts = [(str(i), [{"role": "user", "content": f"Hello {i}. " * 9}]) for i in range(3)]
    texts = {}
    for shares in (True, False):
        settings = GenerateSettings(
            strategy="sample", samples=4, max_new_tokens=8, batch_size=12, share_prefix=shares,
            temperature=0.9, top_p=0.95, top_k=64,
        )  # fmt: skip
        computed.clear()
        jobs = generate.candidate_jobs(prompts, settings, 1)
        (batch,) = generate.sample(model, tokenizer, jobs, settings, 1)
        texts[shares] = [reply.text for reply in batch]
        rows, width = computed[0]
        assert (rows, width > 8) == ((3 if shares else 12), True)
        assert computed[1] == (12, 1)
    assert texts[True] == texts[False]


def test_where_a_cache_is_not_exact_it_is_said_and_prompts_are_computed_plainly(
    gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(gemma)
    settings = GenerateSettings(
        strategy="sample", samples=2, max_new_tokens=4, temperature=0.9, top_p=0.95, top_k=64
    )
    prompts = [("1", [{"role": "user", "content": "I feel watched."}])]
    jobs = generate.candidate_jobs(prompts, settings, 1)
    told: list[str] = []
    score = scoring._score_shared

    def wrong(*arguments: Any) -> Any:
        return [[[x - 1 for x in one] for one in group] for group in score(*arguments)]

    monkeypatch.setattr(scoring, "_score_shared", wrong)
    monkeypatch.setattr(generate, "_computed_once", pytest.fail)
    (batch,) = generate.sample(model, tokenizer, jobs, settings, 1, say=told.append)
    assert len(batch) == 2
    assert told == ["this model's cache cannot be shared: a prompt is computed for each reply."]


def test_steered_replies_share_nothing(gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(gemma)
    settings = GenerateSettings(max_new_tokens=4, temperature=0.9, top_p=0.95, top_k=64)
    jobs = generate.candidate_jobs([("1", [{"role": "user", "content": "Hello."}])], settings, 1)
    monkeypatch.setattr(generate, "_computed_once", pytest.fail)
    monkeypatch.setattr(generate, "prompt_cache_is_exact", pytest.fail)
    (batch,) = generate.sample(model, tokenizer, jobs, settings, 1)
    assert len(batch) == 2


def test_the_cache_of_transformers_is_the_one_known_here() -> None:
    """An upgrade of transformers that moves what a shared prompt leans on fails here, by name."""
    from transformers import DynamicCache

    picked = inspect.signature(DynamicCache.batch_select_indices)
    assert list(picked.parameters) == ["self", "indices"]
    assert "config" in inspect.signature(DynamicCache.__init__).parameters
