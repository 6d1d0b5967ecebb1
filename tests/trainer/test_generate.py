"""Candidates: seeded, steered, batched so that padding changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import Run, run_folder
from trainer import contract, generate
from trainer.batches import by_batch
from trainer.contract import STEERS, ContractError, GenerateSettings, Request, read_rows, write_rows

PROMPTS = [
    (str(i), [{"role": "user", "content": f"Message {i}. " * (1 + i % 7)}]) for i in range(300)
]


def test_contrast_steers_two_replies_a_prompt_apart() -> None:
    jobs = generate.candidate_jobs(PROMPTS, GenerateSettings(), seed=1)
    assert len(jobs) == 600
    steers = Counter(job.steer for job in jobs)
    assert steers["boundaried"] == 300
    assert 160 < steers["agreeable"] < 240 and steers["cold"] == 300 - steers["agreeable"]
    assert all(job.system_prompt == STEERS[job.steer or ""] for job in jobs)
    assert jobs == generate.candidate_jobs(PROMPTS, GenerateSettings(), seed=1)
    assert jobs != generate.candidate_jobs(PROMPTS, GenerateSettings(), seed=2)


def test_sample_asks_for_plain_replies() -> None:
    settings = GenerateSettings(strategy="sample", samples=3)
    jobs = generate.candidate_jobs(PROMPTS[:4], settings, seed=1)
    assert [(j.prompt_id, j.sample, j.steer) for j in jobs[:4]] == [
        ("0", 0, None), ("0", 1, None), ("0", 2, None), ("1", 0, None),
    ]  # fmt: skip


def test_batches_hold_no_more_than_their_tokens() -> None:
    encoded: list[Any] = [([0] * n, None) for n in (30_000, 9_000, 9_000, 9_000, 10, 10)]
    sizes = list(by_batch(
        encoded, 4, generate._cost(100), lambda batch: [len(ids) for ids, _ in batch], pytest.fail
    ))  # fmt: skip
    assert sizes == [[30_000], [9_000, 9_000, 9_000], [10, 10]]


def test_prompts_are_checked(tmp_path: Path) -> None:
    write_rows(tmp_path / "p", [{"id": 1, "prompt": [{"role": "assistant", "content": "x"}]}])
    with pytest.raises(ContractError, match="line 1: prompt must end with user"):
        generate.read_prompts(tmp_path / "p")
    (tmp_path / "p").write_text("")
    with pytest.raises(ContractError, match="no prompts in it"):
        generate.read_prompts(tmp_path / "p")


@pytest.mark.train
def test_replies_are_reproducible_and_record_their_origin(tmp_path: Path, gemma: Path) -> None:
    from trainer.model import choose_device, load_base, load_tokenizer

    request = Request(action="generate", model=str(gemma))
    model = load_base(request, gemma, choose_device())
    tokenizer = load_tokenizer(gemma, "tiny")
    settings = GenerateSettings(max_new_tokens=12, batch_size=8)
    jobs = generate.candidate_jobs(PROMPTS[:10], settings, seed=3)
    seen: list[tuple[int, int]] = []

    def write(name: str, seed: int) -> list[dict[str, Any]]:
        generate.write_replies(
            model, tokenizer, jobs, settings, seed, tmp_path / name, {"model": "tiny"},
            lambda done, total: seen.append((done, total)),
        )  # fmt: skip
        return [row for _, row in read_rows(tmp_path / name)]

    first = write("a", 3)
    assert first == write("b", 3) != write("c", 4)
    assert seen[:3] == [(8, 20), (16, 20), (20, 20)]
    assert {row["prompt_id"] for row in first} == {str(i) for i in range(10)}
    assert all(row["model"] == "tiny" and row["steer"] in STEERS for row in first)
    assert all(row["tokens"] <= 12 and row["finish_reason"] in ("stop", "length") for row in first)
    assert all(row["sampling"]["max_new_tokens"] == 12 for row in first)


@pytest.mark.train
def test_what_a_model_does_to_its_sampling_is_recorded_and_the_rows_are_on_the_disk(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.model import choose_device, load_base, load_tokenizer

    model = load_base(Request(action="generate", model=str(gemma)), gemma, choose_device())
    tokenizer, fsync = load_tokenizer(gemma, "tiny"), os.fsync
    settings = GenerateSettings(max_new_tokens=12, batch_size=8, temperature=0.8)
    jobs = generate.candidate_jobs(PROMPTS[:4], settings, seed=3)
    synced: list[int] = []

    def also_noted(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", also_noted)

    def write(name: str) -> list[dict[str, Any]]:
        generate.write_replies(
            model, tokenizer, jobs, settings, 3, tmp_path / name, {}, lambda *_: None
        )
        assert synced == [(tmp_path / name).stat().st_size]
        synced.clear()
        return [row for _, row in read_rows(tmp_path / name)]

    plain = {"temperature": 0.8, "top_p": None, "top_k": None, "max_new_tokens": 12}
    rows = write("a")
    assert all(row["sampling"] == plain for row in rows)
    own, none = {"repetition_penalty": 1.3, "min_p": 0.9}, {"typical_p": 1.0}
    for name, value in {**own, **none, "no_repeat_ngram_size": 0}.items():
        setattr(model.generation_config, name, value)
    others = write("b")
    assert all(row["sampling"] == {**plain, **own} for row in others)
    assert [row["text"] for row in others] != [row["text"] for row in rows]  # it is in effect


@pytest.mark.train
def test_a_prompt_too_long_to_answer_is_left_out_and_said(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    folder = run_folder(
        tmp_path / "run", action="generate", model=str(gemma),
        generate={"max_new_tokens": 4, "max_prompt_tokens": 2_000},
    )  # fmt: skip
    long = [{"role": "user", "content": "I feel watched. " * 5_000}]
    rows = [{"id": "1", "prompt": PROMPTS[0][1]}, {"id": "2", "prompt": long}]
    write_rows(folder / contract.PROMPTS, rows)
    done = trainer(folder)
    assert done.returncode == 0, done.stderr
    written = [row["prompt_id"] for _, row in read_rows(folder / contract.CANDIDATES)]
    assert written == ["1", "1"]
    said = [e["message"] for e in contract.read_events(folder)[0] if e["event"] == "warning"]
    assert said == ["1 prompts are too long to answer; left out."]


@pytest.mark.train
def test_padding_on_the_left_changes_no_reply(gemma: Path) -> None:
    import torch

    from trainer.model import choose_device, load_base, load_tokenizer

    request = Request(action="generate", model=str(gemma), quantization="none")
    model = load_base(request, gemma, choose_device())
    tokenizer = load_tokenizer(gemma, "tiny")
    short, long = [2, 40, 41], [2, *range(40, 90)]
    # So little temperature that the likeliest token is taken.
    sampling = {"temperature": 1e-6, "top_p": 1.0, "top_k": 0, "max_new_tokens": 10}
    with torch.inference_mode():
        alone = generate._reply(model, tokenizer, [short], sampling)
        together = generate._reply(model, tokenizer, [long, short], sampling)
    assert together[1] == alone[0]


@pytest.mark.train
def test_finished_replies_are_in_the_file_before_the_last_is_written(
    tmp_path: Path, gemma: Path
) -> None:
    from trainer.model import choose_device, load_base, load_tokenizer

    request = Request(action="generate", model=str(gemma))
    model = load_base(request, gemma, choose_device())
    settings = GenerateSettings(max_new_tokens=4, batch_size=4)
    jobs = generate.candidate_jobs(PROMPTS[:6], settings, seed=3)
    path, there = tmp_path / "candidates.jsonl", []
    generate.write_replies(
        model, load_tokenizer(gemma, "tiny"), jobs, settings, 3, path, {},
        lambda done, total: there.append((done, len(list(read_rows(path))))),
    )  # fmt: skip
    assert there == [(4, 4), (8, 8), (12, 12)]


@pytest.mark.train
def test_short_of_memory_it_goes_on_with_smaller_batches(
    gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from trainer.model import choose_device, load_base, load_tokenizer

    model = load_base(Request(action="generate", model=str(gemma)), gemma, choose_device())
    tokenizer, forward, most = load_tokenizer(gemma, "tiny"), model.forward, [3]

    def with_room_for_few(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", with_room_for_few)
    settings = GenerateSettings(max_new_tokens=6, batch_size=8)
    jobs = generate.candidate_jobs(PROMPTS[:5], settings, seed=3)
    told: list[str] = []
    batches = list(generate.sample(model, tokenizer, jobs, settings, 3, say=told.append))
    assert told == [f"out of memory: {n} at a time from here on." for n in (4, 2)]
    assert [len(batch) for batch in batches] == [2] * 5
    wanted = sorted((job.prompt_id, job.steer or "") for job in jobs)
    assert wanted == sorted((r.job.prompt_id, r.job.steer or "") for b in batches for r in b)
    assert [batch[0].seed - 3 * 1_000_003 for batch in batches] == list(range(5))
    # Started with as many as fit, it writes the same: what was given up has drawn nothing.
    fits = GenerateSettings(max_new_tokens=6, batch_size=2)
    assert batches == list(generate.sample(model, tokenizer, jobs, fits, 3, say=pytest.fail))
    most[0] = 0
    with pytest.raises(ContractError, match=r"of up to 6 tokens to a prompt of up to 2048.*Lower"):
        list(generate.sample(model, tokenizer, jobs, settings, 3))


@pytest.mark.train
def test_a_reply_stops_at_the_end_of_its_turn(gemma: Path) -> None:
    from trainer.model import choose_device, load_base, load_tokenizer

    request = Request(action="generate", model=str(gemma))
    model, tokenizer = load_base(request, gemma, choose_device()), load_tokenizer(gemma, "tiny")
    # A model of random weights ends its turn by chance; with these as ends it does so soon.
    ends = [1, 5, *range(100, 200)]
    model.generation_config.eos_token_id = ends
    settings = GenerateSettings(max_new_tokens=60, batch_size=8)
    jobs = generate.candidate_jobs(PROMPTS[:4], settings, seed=3)
    replies = [r for batch in generate.sample(model, tokenizer, jobs, settings, 3) for r in batch]
    assert {reply.finish_reason for reply in replies} == {"stop"}
    for reply in replies:
        assert reply.ids[-1] in ends and not set(reply.ids[:-1]) & set(ends)
        assert len(reply.ids) == reply.tokens + 1 < 60


@pytest.mark.train
def test_a_round_loads_the_model_once(adapters: tuple[Path, Path]) -> None:
    folder = adapters[1].parent  # of a round
    names = [e.get("phase", e["event"]) for e in contract.read_events(folder)[0]]
    assert names.count("load") == names.count("loaded") == 1
    assert names.index("train") < names.index("evaluate") < names.index("generate")
    # Its first half stands by itself: what the adapter is, and what was measured of it.
    half, whole = (contract.read_manifest(folder, n) for n in (contract.TRAINED, contract.MANIFEST))
    assert half is not None and whole is not None and "candidates" not in half
    assert {name: whole[name] for name in half if name != "seconds"} == {
        name: value for name, value in half.items() if name != "seconds"
    }
