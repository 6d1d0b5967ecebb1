"""Scoring in batches with a shared beginning gives what one reply at a time gives."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests import tiny
from trainer import batches
from trainer.scoring import Completion, Group, Scorer

pytestmark = pytest.mark.train

WINDOW = 16
VOCABULARY = 384


def tiny_model(family: str, **changes: Any) -> Any:
    """Return a tiny random model of a family, its weights large enough to have opinions."""
    import torch
    import transformers as hf

    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 2048, "pad_token_id": 0, **changes,
    }  # fmt: skip
    torch.manual_seed(3)
    if family == "gemma3":
        model: Any = hf.Gemma3ForCausalLM(
            tiny.text_config(VOCABULARY, **{"sliding_window": WINDOW, **changes})
        )
    elif family == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
    elif family == "mistral":
        model = hf.MistralForCausalLM(hf.MistralConfig(**{"sliding_window": WINDOW, **sizes}))
    else:  # a convolution keeps a state of its own, which a repeated cache does not carry on
        layers = ["conv", "full_attention"]
        model = hf.Lfm2ForCausalLM(hf.Lfm2Config(**sizes, layer_types=layers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


def groups(count: int = 9, seed: int = 1) -> list[Group]:
    """Return pairs of replies of unequal lengths, beginning alike for some tokens, to prompts
    from far below to far over the sliding window; one reply is a single token."""
    rng = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(6, VOCABULARY) for _ in range(n)]

    made = []
    for i in range(count):
        prompt = tokens(3 + 8 * i)
        start = prompt + tokens(i % 4)
        made.append(tuple(
            Completion(start + tokens(n), len(prompt)) for n in (1 + 3 * i, 1 + 2 * (count - i))
        ))  # fmt: skip
    return made


def one_by_one(model: Any, completion: Completion) -> list[float]:
    import torch

    ids = torch.tensor([completion.ids])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, completion.start - 1 : -1]
    chosen = ids[0, completion.start :, None]
    return torch.log_softmax(logits.float(), -1).gather(1, chosen)[:, 0].tolist()


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("family", ["gemma3", "llama", "mistral"])
def test_shared_beginnings_are_exact(family: str, size: int) -> None:
    model = tiny_model(family)
    scorer = Scorer(model, pytest.fail, size)
    given = groups()
    for group, scored in zip(given, scorer.score(given), strict=True):
        for completion, found in zip(group, scored, strict=True):
            assert found == pytest.approx(one_by_one(model, completion), abs=1e-5)
    assert scorer.shares is True


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_the_sliding_window_of_these_models_is_felt(family: str) -> None:
    """Else the test above would say nothing of it."""
    longest = groups()[-1][0]
    narrow = one_by_one(tiny_model(family), longest)
    wide = one_by_one(tiny_model(family, sliding_window=512), longest)
    assert max(abs(a - b) for a, b in zip(narrow, wide, strict=True)) > 0.1


def test_a_model_whose_cache_is_not_exact_is_scored_whole_and_it_is_said() -> None:
    model, said = tiny_model("lfm2"), list[str]()
    scorer = Scorer(model, said.append, 4)
    given = groups()
    for group, scored in zip(given, scorer.score(given), strict=True):
        for completion, found in zip(group, scored, strict=True):
            assert found == pytest.approx(one_by_one(model, completion), abs=1e-5)
    scorer.score(given)
    assert said == ["this model's cache cannot be shared: replies are scored whole."]


def test_bf16_shares_too() -> None:
    import torch

    scorer = Scorer(tiny_model("gemma3").to(torch.bfloat16), pytest.fail, 4)
    scorer.score(groups())
    assert scorer.shares is True


def test_replies_that_are_alike_but_for_the_last_token() -> None:
    model = tiny_model("llama")
    pair = (Completion([7, 8, 9, 10], 2), Completion([7, 8, 9, 11], 2))
    longer = (Completion([7, 8, 9], 2), Completion([7, 8, 9, 11], 2))  # one begins the other
    found_of = Scorer(model, pytest.fail).score([pair, longer])
    for group, scored in zip((pair, longer), found_of, strict=True):
        for completion, found in zip(group, scored, strict=True):
            assert found == pytest.approx(one_by_one(model, completion), abs=1e-5)


def test_a_lack_of_memory_halves_the_batches() -> None:
    import torch

    tried: list[int] = []
    said: list[str] = []
    done: list[int] = []

    def work(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * part for part in batch]

    found = batches.in_batches(list(range(8)), 6, lambda batch: 0.0, work, said.append, done.append)
    assert found == [2 * n for n in range(8)]
    assert tried == [6, 3, 3, 2] and done == [3, 3, 2]
    assert said == ["out of memory: 3 at a time from here on."]


def test_what_does_not_fit_alone_and_what_is_no_lack_of_memory_are_raised() -> None:
    def no_room(batch: list[int]) -> list[int]:
        raise MemoryError

    def broken(batch: list[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    def run(work: Any) -> None:
        batches.in_batches([1, 2, 3], 4, lambda batch: 0.0, work, lambda said: None, print)

    with pytest.raises(MemoryError):
        run(no_room)
    with pytest.raises(RuntimeError, match="shapes"):
        run(broken)


def test_batches_stay_within_their_cost() -> None:
    taken: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        taken.append(batch)
        return batch

    def cost(batch: list[int]) -> float:
        return sum(batch) / 10

    batches.in_batches([30, 5, 5, 5, 1], 3, cost, work, pytest.fail, lambda n: None)
    assert taken == [[30], [5, 5], [5, 1]]
