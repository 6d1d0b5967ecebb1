"""make bench-evaluation: what it costs to find out whether an adapter is better."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Figure, main, paired, seconds
from tests.trainer.conftest import preference_rows, run_folder
from trainer import contract
from trainer.__main__ import QUIET

DATA = Path(__file__).parents[2] / "data"
MODEL = DATA / "demo_model" / "model"


def timed(work: Callable[[], object]) -> float:
    """Return the wall time of a call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def one_by_one(model: Any, groups: list[Any]) -> None:
    """Score each reply in a pass of its own, prompt and all, as is simplest with transformers."""
    import torch

    with torch.inference_mode():
        for completion in (c for group in groups for c in group):
            ids = torch.tensor([completion.ids], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, completion.start - 1 : -1]
            chosen = ids[0, completion.start :, None]
            torch.log_softmax(logits.float(), -1).gather(1, chosen).sum().item()


def probe_scoring() -> Figure:
    """Score all shipped probes with the demo model, in NF4 as a run does."""
    from trainer.model import choose_device, load_base, load_tokenizer
    from trainer.probes import probe_groups, read_probes
    from trainer.scoring import Scorer

    request = contract.Request(action="evaluate", model=str(MODEL))
    model = load_base(request, MODEL, choose_device())
    probes = read_probes(DATA / contract.PROBES)
    groups = [g for _, g in probe_groups(load_tokenizer(MODEL, "demo"), probes, 2048)[0]]
    told = functools.partial(print, file=sys.stderr)
    ratio, ours, peers = paired(
        lambda: timed(lambda: Scorer(model, told).score(groups)),
        lambda: timed(lambda: one_by_one(model, groups)),
        runs=5,
    )
    peer = f"one by one: {len(groups)} probes, {ours:.2f} s against {peers:.2f} s"
    return Figure("probe scoring against one by one", 1 / ratio, 1.5, peer, at_most=False)


def an_adapter() -> Figure:
    """Evaluate an adapter beside another and the base, in a process of its own."""
    command = [sys.executable, "-P", "-m", "trainer"]
    prompts = [row["prompt"] for _, row in contract.read_rows(DATA / contract.PROMPTS)][:40]
    with tempfile.TemporaryDirectory() as place:
        rows = [{**row, "split": "train"} for row in preference_rows(30)]
        for i, row in enumerate(preference_rows(20)):
            prompt = [{"role": "user", "content": f"Held out {i}: I feel watched."}]
            rows.append({**row, "prompt": prompt, "split": "held_out"})
        common = {"model": str(MODEL), "seed": 1}
        for name in ("one", "two"):
            folder = run_folder(
                Path(place) / name, rows, action="train", **common,
                train={"max_steps": 2, "learning_rate": 1e-3, "gradient_accumulation": 2},
            )  # fmt: skip
            seconds([*command, str(folder)])
        folder = run_folder(
            Path(place) / "evaluate", rows, action="evaluate", adapter="../one/adapter",
            compare="../two/adapter", probes=contract.PROBES, drift=contract.DRIFT, **common,
            generate={"max_new_tokens": 80},  # as the demo's workspace has it
        )  # fmt: skip
        (folder / contract.PROBES).write_bytes((DATA / contract.PROBES).read_bytes())
        contract.write_rows(
            folder / contract.DRIFT,
            (
                {"id": str(i), "prompt": [{"role": "user", "content": text}]}
                for i, text in enumerate(prompts)
            ),
        )
        took = seconds([*command, str(folder)])
        manifest = contract.read_manifest(folder)
    assert manifest is not None
    done = manifest["evaluation"]
    peer = (
        f"absolute, {os.cpu_count()} cores, 3 policies: {done['probes'] // 3} probes, "
        f"{done['held_out'] // 2} preferences, {done['replies'] // 3} replies"
    )
    return Figure("evaluating an adapter of the demo model", took, 30, peer, unit="s")


def measure() -> list[Figure]:
    os.environ.update(QUIET)
    with contextlib.redirect_stderr(io.StringIO()):  # transformers' loading bars
        return [probe_scoring(), an_adapter()]


if __name__ == "__main__":
    main(measure, "What it costs to find out whether an adapter is better.")
