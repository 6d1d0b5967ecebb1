"""A tied matrix in host memory, the head on completions and a shared prompt, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import (
    GENERATE,
    PROMPTS,
    TRAIN,
    evaluated,
    manifest_of,
    rows_of,
)
from tests.trainer.test_prefix_sharing import PAIRS, collated
from tests.trainer.test_streamed_head import (
    TIED,
    adapted,
    assert_same,
    both,
    completions,
    run,
    stock,
)
from trainer import contract, model
from trainer.__main__ import perform
from trainer.contract import Request, TrainSettings
from trainer.prefix_sharing import PrefixSharing

pytestmark = pytest.mark.train


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_outputs_and_gradients_are_trls_with_all_there_is(tmp_path: Path, family: str) -> None:
    tiny.save_family(tmp_path, family)
    batch = collated(PAIRS)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    wanted = run(adapted(tmp_path, stock), batch)
    made = adapted(tmp_path, both if family in TIED else completions)
    wrapper = PrefixSharing(made.get_base_model())
    found = run(made, batch)
    assert (wrapper.shared, wrapper.stock) == (1, 0)
    assert_same(found[0], wanted[0], 1e-5)
    for name, gradient in wanted[1].items():  # summed over more tokens: relative to the largest
        assert (found[1][name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max())


def test_a_round_trains_evaluates_and_writes_from_host_memory(tmp_path: Path, gemma: Path) -> None:
    found = {}
    for host in (False, True):
        folder = evaluated(
            tmp_path / str(host), gemma, action="round", quantization="none",
            train={**TRAIN, "host_embedding": host},
        )  # fmt: skip
        assert perform(folder) == 0
        found[host] = manifest_of(folder), rows_of(folder), rows_of(folder, contract.CANDIDATES)
    (plain, plain_rows, plain_texts), (ours, our_rows, our_texts) = found[False], found[True]
    assert ours["model"]["parameters"] == plain["model"]["parameters"]
    assert ours["train"]["loss"] == pytest.approx(plain["train"]["loss"], abs=1e-4)
    for name in ("rewards/margins", "rewards/accuracies"):
        assert ours["held_out"][name] == pytest.approx(plain["held_out"][name], abs=1e-3)
    assert len(our_rows) == len(plain_rows) and len(our_texts) == 6
    assert [row["text"] for row in our_texts] == [row["text"] for row in plain_texts]


def test_replies_are_scored_and_written_as_by_the_resident_model(
    tmp_path: Path, adapters: tuple[Path, Path], gemma: Path
) -> None:
    from trainer import generate
    from trainer.scoring import Completion, Scorer

    tokenizer = model.load_tokenizer(gemma, "tiny")
    groups = [
        tuple(Completion([*range(6, 6 + n), *tail], n) for tail in ([40, 41, 42], [50, 51]))
        for n in (5, 9, 90)
    ]
    scores, replies = [], []
    for host in (False, True):
        request = Request(
            action="generate", model="tiny", quantization="none",
            train=TrainSettings(host_embedding=host),
        )  # fmt: skip
        base: Any = model.load_base(request, gemma, model.choose_device())
        peft = model.attach_adapter(base, adapters[0])
        said: list[str] = []
        scores.append(Scorer(peft, said.append).score(groups))
        assert not said
        jobs = generate.plain_jobs([(row["id"], row["prompt"]) for row in PROMPTS])
        settings = contract.from_dict(contract.GenerateSettings, GENERATE)
        settings = model.with_sampling(settings, base.generation_config)
        drawn = generate.sample(peft, tokenizer, jobs, settings, 3)
        replies.append([reply.ids for batch in drawn for reply in batch])
    assert replies[0] == replies[1] and len(replies[0]) == len(PROMPTS)
    for ours, theirs in zip(scores[1], scores[0], strict=True):
        for mine, their in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(their, abs=1e-5)
