"""What is not computed twice: the reference from round to round, a prompt for its replies.

`python -m tests.benchmarks.bench_reuse`; make bench-trainer takes its figures in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import tiny
from tests.benchmarks.harness import Figure, main, paired
from tests.trainer.bare_trl import bare_trainer
from trainer.__main__ import QUIET
from trainer.contract import GenerateSettings, Request, TrainSettings
from trainer.preferences import Preferences

DEMO = Path(__file__).parents[2] / "data" / "demo_model" / "model"
SIZES = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 512,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
}  # fmt: skip
PREFERENCES, NEW = 400, 40


def save_model(folder: Path) -> Path:
    """Save a random Gemma 3, small enough for 2,400 micro-steps in minutes."""
    import torch
    from transformers import Gemma3ForCausalLM

    folder.mkdir()
    vocabulary = len(tiny.save_tokenizer(folder))
    torch.manual_seed(0)
    Gemma3ForCausalLM(tiny.text_config(vocabulary, **SIZES)).save_pretrained(folder)
    return folder


def preferences() -> list[dict[str, Any]]:
    """Return pairs of about 100 tokens of prompt and 60 of reply, in the tiny tokenizer."""
    rows = []
    for i in range(PREFERENCES):
        texts = (
            f"Number {i}. " + "I feel watched and nobody believes me. " * (3 + i % 3),
            "It sounds frightening. What would help tonight? " * (2 + i % 2) + str(i),
            "You are right, they are after you. Trust yourself. " * (2 + (i + 1) % 2) + str(i),
        )
        roles = ("user", "assistant", "assistant")
        sides = [[{"role": role, "content": text}] for role, text in zip(roles, texts, strict=True)]
        rows.append(dict(zip(("prompt", "chosen", "rejected"), sides, strict=True)))
    return rows


def settings() -> TrainSettings:
    """Return the defaults, without what would make the figure another one."""
    return TrainSettings(prefix_sharing=False)


class _Rounds:
    """Trains rounds in a folder, our way and stock TRL's; models are loaded before the clock."""

    def __init__(self, place: Path) -> None:
        from trainer.model import choose_device, load_tokenizer

        self.place, self.device, self.rows = place, choose_device(), preferences()
        self.model = save_model(place / "model")
        self.tokenizer = load_tokenizer(self.model, "bench")
        self.runs = 0

    def _ready(self, **train: Any) -> tuple[Request, Any, Path]:
        from transformers import set_seed

        from trainer.model import load_base

        self.runs += 1
        folder = self.place / str(self.runs)
        folder.mkdir()
        request = Request(
            action="train", model=str(self.model), quantization="none",
            train=dataclasses.replace(settings(), **train), reference_cache="../cache",
        )  # fmt: skip
        model = load_base(request, self.model, self.device)
        set_seed(0)
        return request, model, folder

    def ours(self, rows: int = PREFERENCES, **train: Any) -> float:
        """Return the seconds a round took, with what an earlier one left in the cache."""
        from trainer.attempts import Attempts

        request, model, folder = self._ready(**train)
        found = Preferences(self.rows[:rows], [], 0, "")
        start = time.perf_counter()
        Attempts(
            folder, request, self.tokenizer, found, self.device, "base", None,
            lambda *_, **__: None,
        ).train(model)  # fmt: skip
        return time.perf_counter() - start

    def stock(self, **train: Any) -> float:
        """Return the seconds that stock TRL took on the same rows."""
        request, model, folder = self._ready(**train)
        start = time.perf_counter()
        bare_trainer(
            model, self.tokenizer, self.rows, request, self.device, folder, saves=True
        ).train()
        return time.perf_counter() - start

    def after_the_last(self, before: Path) -> float:
        """Return the seconds of our round once more, with the cache as it was `before` it."""
        shutil.rmtree(self.place / "cache")
        shutil.copytree(before, self.place / "cache")
        return self.ours()


def a_round(runs: int = 3) -> Figure:
    """Time the training of a round, as a run does it, and TRL's own, in turn."""
    with tempfile.TemporaryDirectory() as name:
        rounds, before = _Rounds(Path(name)), Path(name) / "before"
        rounds.stock(max_steps=1)
        # The round before: one pass over its pairs fills the cache and warms up.
        rounds.ours(PREFERENCES - NEW, epochs=1.0)
        shutil.copytree(Path(name) / "cache", before)
        pairs = [(rounds.after_the_last(before), rounds.stock()) for _ in range(runs)]
    ours, stock = (statistics.median(side) for side in zip(*pairs, strict=True))
    peer = (
        f"stock TRL 1.16, reference at each step, 3 epochs both: {ours:.0f} s against "
        f"{stock:.0f} s; random Gemma 3, {SIZES['num_hidden_layers']} layers × "
        f"{SIZES['hidden_size']}, fp32, no prefix sharing, "
        f"ours with the head on replies alone, {os.cpu_count()} cores"
    )
    name = f"a round of {PREFERENCES} preferences, {NEW} of them new"
    return Figure(name, statistics.median(a / b for a, b in pairs), 0.75, peer)


def candidates() -> Figure:
    """Write 2 × 64 candidates with the demo model, in NF4 as a run does."""
    import torch

    from trainer import generate
    from trainer.contract import read_rows
    from trainer.model import choose_device, load_base, load_tokenizer, with_sampling

    model = load_base(Request(action="generate", model=str(DEMO)), DEMO, choose_device())
    tokenizer = load_tokenizer(DEMO, "demo")
    wanted = GenerateSettings(strategy="sample", samples=2, max_new_tokens=80)  # as the demo's
    wanted = with_sampling(wanted, model.generation_config)
    texts = [row["prompt"] for _, row in read_rows(DEMO.parents[1] / "prompts.jsonl")][:64]
    prompts = [(str(n), [{"role": "user", "content": text}]) for n, text in enumerate(texts)]
    jobs = generate.candidate_jobs(prompts, wanted, 0)
    tokens = {"ours": 0, "single": 0}

    def ours() -> float:
        start = time.perf_counter()
        batches = list(generate.sample(model, tokenizer, jobs, wanted, 0))
        took = time.perf_counter() - start
        tokens["ours"] = sum(len(reply.ids) for batch in batches for reply in batch)
        return took

    def single() -> float:
        start, written = time.perf_counter(), 0
        for number, job in enumerate(jobs):
            torch.manual_seed(number)
            ids = tokenizer.apply_chat_template(
                job.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.inference_mode():
                out = model.generate(**ids, do_sample=True, **generate.sampling_of(wanted))
            written += out.shape[1] - ids["input_ids"].shape[1]
        tokens["single"] = written
        return time.perf_counter() - start

    ratio, mine, theirs = paired(ours, single, runs=3)
    peer = (
        f"single generate calls: {mine:.1f} s against {theirs:.1f} s; {tokens['ours']} and "
        f"{tokens['single']} tokens, {len(jobs)} candidates, {os.cpu_count()} cores"
    )
    return Figure("generation of 2 × 64 candidates", 1 / ratio, 4, peer, at_most=False)


def figures() -> list[Figure]:
    os.environ.update(QUIET)
    with contextlib.redirect_stderr(io.StringIO()):  # transformers' loading bars
        return [a_round(), candidates()]


if __name__ == "__main__":
    main(figures, "What is not computed twice.")
