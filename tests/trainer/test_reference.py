"""Reference log-probabilities computed once: TRL's numbers, kept, and never another's."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.bare_trl import bare_trainer
from tests.trainer.conftest import Rows, manifest_of, preference_rows, run_folder
from tests.trainer.test_streamed_head import TIED
from trainer import contract, reference
from trainer.__main__ import perform
from trainer.contract import Request, TrainSettings
from trainer.preferences import Preferences

pytestmark = pytest.mark.train

SETTINGS: dict[str, Any] = {
    "max_steps": 20, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 256, "save_steps": 0,
}  # fmt: skip
SHORT = {**SETTINGS, "max_steps": 6}


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in contract.read_events(folder)[0] if e["event"] == name]


def train(folder: Path, model: Path, rows: Rows, **changes: Any) -> list[dict[str, Any]]:
    """Train in a folder with a cache beside it; return the steps."""
    request = {"seed": 7, "quantization": "none", "reference_cache": "../cache", **changes}
    request = {"train": SHORT, "action": "train", "model": str(model), **request}
    assert perform(run_folder(folder, rows, **request)) == 0
    return events(folder, "step")


def computed(folder: Path) -> int:
    (event,) = events(folder, "reference")
    return int(event["computed"])


def rows_to_train_on(count: int) -> Rows:
    return preference_rows(count, split="train")


def pairs_of(cache: Path) -> list[bytes]:
    return [line for path in cache.rglob("*.jsonl") for line in path.read_bytes().splitlines()]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The pairs of each batch that the reference is asked for, in the process."""
    from bitsandbytes.nn import Linear4bit
    from trl import DPOTrainer

    asked: list[int] = []
    ask = DPOTrainer.compute_ref_log_probs

    def count(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        assert not model.training  # no dropout
        # Evaluated, they may pack their weights for good, and have no gradient any more.
        layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
        asked.append(len(inputs["input_ids"]) // 2)
        return ask(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", count)
    yield asked


# --- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "mistral", "ministral3"])
def test_twenty_steps_equal_stock_trl(tmp_path: Path, family: str) -> None:
    from transformers import set_seed

    from trainer.model import choose_device, load_base, load_tokenizer

    place = tmp_path / "model"
    tiny.save_family(place, family)
    rows = rows_to_train_on(24)
    ours = [train(tmp_path / "run", place, rows, train=SETTINGS)]
    assert computed(tmp_path / "run") == 24
    if family in TIED:  # all there is, together
        settings = {**SETTINGS, "host_embedding": True}
        ours.append(train(tmp_path / "host" / "run", place, rows, train=settings))
    request = Request(
        action="train", model=str(place), seed=7, quantization="none",
        train=TrainSettings(**SETTINGS),
    )  # fmt: skip
    set_seed(7)
    device = choose_device()
    model, tokenizer = load_base(request, place, device), load_tokenizer(place, "tiny")
    rows[1]["prompt"] = tiny_system(rows[1]["prompt"], tokenizer)
    stock = bare_trainer(model, tokenizer, rows, request, device, tmp_path / "stock")
    stock.train()
    theirs = [row for row in stock.state.log_history if "loss" in row]
    assert len(theirs) == 20
    for run in ours:
        for mine, stocks in zip(run, theirs, strict=True):
            for name in ("loss", "rewards/margins"):
                assert mine[name] == pytest.approx(stocks[name], abs=1e-3)
    assert abs(theirs[-1]["rewards/margins"]) > 0.02  # it learned: the comparison says something


def tiny_system(prompt: Any, tokenizer: Any) -> Any:
    from trainer.model import fit_messages, has_system_role

    return fit_messages(prompt, None, has_system_role(tokenizer))


@pytest.mark.parametrize("chained", [False, True])
def test_each_sum_is_what_trl_asks_for_at_a_step(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path], chained: bool
) -> None:
    import torch

    from trainer import dpo
    from trainer.model import attach_adapter, choose_device, load_base, load_tokenizer

    request = Request(
        action="train", model=str(gemma), quantization="none",
        train=TrainSettings(**{**SETTINGS, "max_length": 60}),
    )  # fmt: skip
    device = choose_device()
    model = load_base(request, gemma, device)
    if chained:
        model = attach_adapter(model, adapters[1], trainable=True)
    preferences = Preferences(rows_to_train_on(14), [], 0, "")
    trainer = dpo.make_trainer(
        model, load_tokenizer(gemma, "tiny"), preferences, request, device, tmp_path, quiet
    )
    rows = list(trainer.train_dataset)
    assert len(rows) > 5  # some are cut, some are too long
    one_by_one = []
    for row in rows:
        pair = trainer.compute_ref_log_probs(trainer.model, trainer.data_collator([row]))
        one_by_one.append([float(side) for side in pair])
    with torch.no_grad():
        assert ("ref" in trainer.model.peft_config) == chained
        reference.precompute(trainer, reference.Store(tmp_path, "c", pytest.fail), quiet)
    assert "ref" not in trainer.model.peft_config and trainer.model.active_adapter == "default"
    for row, wanted in zip(trainer.train_dataset, one_by_one, strict=True):
        # An fp32 sum of some hundred nats is no finer than this.
        assert [row[name] for name in reference.COLUMNS] == pytest.approx(wanted, rel=1e-6)


def quiet(*_: Any, **__: Any) -> None:
    """Take an event, and tell nobody."""


def test_the_switch_off_leaves_it_to_trl(tmp_path: Path, gemma: Path, counted: list[int]) -> None:
    once = train(tmp_path / "once", gemma, rows_to_train_on(12))
    assert sum(counted) == 12 and max(counted) > 1
    stock = train(
        tmp_path / "stock", gemma, rows_to_train_on(12), train={**SHORT, "reference_once": False}
    )
    assert sum(counted) == 12 and not events(tmp_path / "stock", "reference")
    for ours, theirs in zip(once, stock, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_a_training_that_does_not_see_every_pair_asks_for_none(
    tmp_path: Path, gemma: Path, counted: list[int]
) -> None:
    train(tmp_path / "run", gemma, rows_to_train_on(12), train={**SHORT, "max_steps": 2})
    assert not counted


# --- from round to round ------------------------------------------------------------------------


def test_a_second_round_computes_the_new_pairs_only(
    tmp_path: Path, gemma: Path, counted: list[int]
) -> None:
    train(tmp_path / "first", gemma, rows_to_train_on(12))
    counted.clear()
    second = train(tmp_path / "second", gemma, rows_to_train_on(15))
    assert sum(counted) == computed(tmp_path / "second") == 3
    told = [(e["done"], e["total"]) for e in events(tmp_path / "second", "progress")]
    assert told[0][0] > 12 and told[-1] == (15, 15)
    phases = [e["phase"] for e in events(tmp_path / "second", "phase")]
    assert phases[:4] == ["load", "train", "reference", "train"]
    fresh = train(tmp_path / "fresh", gemma, rows_to_train_on(15), reference_cache="../other")
    for ours, theirs in zip(second, fresh, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_another_base_adapter_length_or_precision_is_not_mistaken(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path], counted: list[int]
) -> None:
    other = tiny.save_gemma(tmp_path / "other-model", seed=1)
    chained = {**SHORT, "strategy": "chained"}
    rougher = tmp_path / "rougher"  # the same weights, computed otherwise
    shutil.copytree(gemma, rougher)
    config = json.loads((rougher / "config.json").read_text())
    (rougher / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    runs: dict[str, tuple[Path, dict[str, Any]]] = {
        "base": (gemma, {}),
        "other": (other, {}),
        "config": (rougher, {}),
        "length": (gemma, {"train": {**SHORT, "max_length": 200}}),
        "nf4": (gemma, {"quantization": "nf4"}),
        "one": (gemma, {"train": chained, "adapter": str(adapters[0])}),
        "two": (gemma, {"train": chained, "adapter": str(adapters[1])}),
    }
    for name, (model, changes) in runs.items():
        steps = train(tmp_path / name, model, rows_to_train_on(9), **changes)
        assert computed(tmp_path / name) == 9
        assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)  # its own reference
    assert len(list((tmp_path / "cache").iterdir())) == len(runs)
    assert sum(counted) == 9 * len(runs)


def test_what_is_kept_holds_no_text_and_is_its_users_alone(tmp_path: Path, gemma: Path) -> None:
    train(tmp_path / "run", gemma, rows_to_train_on(9))
    (line, *others) = pairs_of(tmp_path / "cache")
    assert len(others) == 8 and b"watched" not in line
    if sys.platform != "win32":
        for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted
    # Without a cache it is kept with the checkpoints, and goes when these go.
    train(tmp_path / "alone", gemma, rows_to_train_on(9), reference_cache=None)
    assert not (tmp_path / "alone" / contract.CHECKPOINTS).exists()


def test_damaged_and_hostile_lines_are_passed_over(tmp_path: Path, gemma: Path) -> None:
    train(tmp_path / "first", gemma, rows_to_train_on(12))
    (file,) = (tmp_path / "cache").rglob("*.jsonl")
    lines = file.read_bytes().splitlines()
    first, *rest = lines
    changed = first.replace(b'"chosen": -', b'"chosen": -1')  # still JSON, still a number
    nan = reference._line("0" * 64, float("nan"), 0.0).encode()
    hostile = [b"[" * 10_000, b"null", b"\xff\xfe", nan, b'{"pair": 1e999, "chosen": true}']
    file.write_bytes(b"\n".join([changed, *hostile, *rest[:-1], rest[-1][:-9]]))  # a torn end
    second = train(tmp_path / "second", gemma, rows_to_train_on(12))
    assert computed(tmp_path / "second") == 2
    said = [e["message"] for e in events(tmp_path / "second", "warning")]
    assert "6 damaged lines of the reference cache were passed over." in said
    first_steps = events(tmp_path / "first", "step")
    assert [s["loss"] for s in second] == pytest.approx([s["loss"] for s in first_steps], abs=1e-5)
    # What was computed anew went into a file of its own.
    assert len(list((tmp_path / "cache").rglob("*.jsonl"))) == 2


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, gemma: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    train(tmp_path / "run", gemma, rows_to_train_on(12))
    said = [e["message"] for e in events(tmp_path / "run", "warning")]
    assert sum("reference cache cannot be written" in message for message in said) == 1
    assert computed(tmp_path / "run") == 12 and "train" in manifest_of(tmp_path / "run")


# --- cut short ----------------------------------------------------------------------------------


def test_what_was_done_when_it_was_stopped_is_kept(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BATCH_PAIRS", 4)
    add = reference.Store.add

    def stopped_after_two(self: reference.Store, found: Any) -> None:
        add(self, found)
        if len(pairs_of(tmp_path / "cache")) >= 8:
            raise SystemExit(143)

    folder = run_folder(
        tmp_path / "run", rows_to_train_on(12), action="train", model=str(gemma), train=SHORT,
        reference_cache="../cache", quantization="none",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(reference.Store, "add", stopped_after_two)
        assert perform(folder) == 143
    assert len(pairs_of(tmp_path / "cache")) == 8 and not events(folder, "step")
    shutil.rmtree(folder)
    train(folder, gemma, rows_to_train_on(12))
    assert computed(folder) == 4


def test_out_of_memory_asks_for_fewer_at_a_time(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import DPOTrainer

    ask, sizes = DPOTrainer.compute_ref_log_probs, []

    def scarce(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        sizes.append(len(inputs["input_ids"]) // 2)
        if sizes[-1] > 1:
            raise MemoryError
        return ask(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", scarce)
    train(tmp_path / "run", gemma, rows_to_train_on(9))
    assert sizes[0] > 1 and sizes.count(1) == 9 and computed(tmp_path / "run") == 9
    assert os.listdir(tmp_path / "cache")


def test_early_stopping_looks_at_held_out_pairs_with_a_reference(
    tmp_path: Path, gemma: Path, counted: list[int]
) -> None:
    rows = rows_to_train_on(12)
    for i, row in enumerate(preference_rows(20)):
        prompt = [{"role": "user", "content": f"Held out {i}: I feel watched."}]
        rows.append({**row, "prompt": prompt, "split": "held_out"})
    stopping = {"early_stopping_patience": 2, "save_steps": 2}
    losses = {}
    for once in (True, False):
        folder = tmp_path / str(once)
        train(folder, gemma, rows, train={**SHORT, **stopping, "reference_once": once})
        losses[once] = [e["loss"] for e in events(folder, "held_out")]
    assert sum(counted) == 32
    assert losses[True] == pytest.approx(losses[False], abs=1e-5) and len(losses[True]) >= 2


def test_trls_private_names_are_those_known_here() -> None:
    """An upgrade of TRL that moves what the reference pass leans on fails here, by name."""
    from transformers import Trainer
    from trl import DPOTrainer

    asked = inspect.signature(DPOTrainer.compute_ref_log_probs)
    assert list(asked.parameters) == ["self", "model", "inputs"]
    assert list(inspect.signature(Trainer._prepare_inputs).parameters) == ["self", "inputs"]
    loss = inspect.getsource(DPOTrainer._compute_loss)
    assert "if self.precompute_ref_logps:" in loss
    assert "self.precompute_ref_logps = " in inspect.getsource(DPOTrainer.__init__)
    for column in reference.COLUMNS:
        assert f'inputs["{column}"]' in loss
        assert f'"{column}"' in inspect.getsource(DPOTrainer._set_signature_columns_if_needed)
