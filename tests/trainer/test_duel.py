"""Duels: two policies answer the same prompts, each reply with its true origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import PROMPTS, evaluated, load, manifest_of, refused, rows_of
from trainer import contract
from trainer.__main__ import perform

pytestmark = pytest.mark.train


@pytest.mark.parametrize("sides", ["both", "adapter", "compare"])
def test_a_duel_has_one_plain_reply_a_prompt_and_side(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path, sides: str
) -> None:
    request: dict[str, Any] = {"action": "duel", "probes": None, "drift": None}
    if sides != "compare":
        request["adapter"] = str(adapters[0])
    if sides != "adapter":
        request["compare"] = str(adapters[1])
    folder = evaluated(tmp_path / "run", gemma, quantization="none", **request)
    assert perform(folder) == 0
    rows = rows_of(folder, contract.CANDIDATES)
    assert manifest_of(folder)["candidates"]["count"] == len(rows) == 6
    shas = [contract.sha256_file(path / "adapter_model.safetensors") for path in adapters]
    wanted = {
        "adapter": None if sides == "compare" else shas[0],
        "compare": None if sides == "adapter" else shas[1],
    }
    for side, sha256 in wanted.items():
        mine = [row for row in rows if row["side"] == side]
        assert sorted(row["prompt_id"] for row in mine) == ["d0", "d1", "d2"]
        assert {row["adapter_sha256"] for row in mine} == {sha256}
    assert all(row["steer"] is None and row["system_prompt"] is None for row in rows)
    assert len({json.dumps(row["sampling"]) for row in rows}) == 1
    seeds = [{row["seed"] for row in rows if row["side"] == side} for side in wanted]
    assert not seeds[0] & seeds[1]
    # Each side is written by what it says: plain generation from the same seeds says the same.
    for side, adapter in (("adapter", request.get("adapter")), ("compare", request.get("compare"))):
        assert [r["text"] for r in rows if r["side"] == side] == (
            written_by(gemma, adapter, min(seeds[side == "compare"]))
        )


def written_by(gemma: Path, adapter: str | None, seed: int) -> list[str]:
    """Return replies to the duel's prompts, drawn by plain libraries from a seed."""
    import torch

    model, tokenizer = load(gemma, Path(adapter) if adapter else None)
    tokenizer.padding_side = "left"
    chats = sorted((row["prompt"] for row in PROMPTS[:3]), key=lambda p: -len(p[0]["content"]))
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
    )
    torch.manual_seed(seed)
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True,
        temperature=0.9, top_p=0.95, top_k=64, max_new_tokens=10,
    )  # fmt: skip
    width = batch["input_ids"].shape[1]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in out[:, width:]]


def test_a_duel_of_nobody_is_refused(
    tmp_path: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluated(tmp_path / "run", gemma, action="duel")
    assert "a duel needs adapter, compare, or both" in refused(folder, capsys)
