"""Every loss that is offered, chained rounds, and stopping early, with the real trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import Rows, manifest_of, preference_rows, run_folder
from tests.trainer.test_survive import events
from trainer import checkpoints, contract, dpo
from trainer.__main__ import perform
from trainer.contract import ADAPTER_CARD, ContractError, TrainSettings
from trainer.preferences import Preferences

pytestmark = pytest.mark.train

SETTINGS = {
    "max_steps": 2, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 256, "warmup_ratio": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "weights", "first", "family"),
    [
        # At the start policy and reference are equal: each loss has a known value.
        (("robust",), (1.0,), 0.6931, "gemma3_text"),
        (("ipo",), (1.0,), 25.0, "llama"),  # (1 / (2 beta))^2
        (("apo_zero",), (1.0,), 1.0, "mistral"),  # 1 - sigmoid(0) + sigmoid(0)
        (("sigmoid_norm",), (1.0,), 0.6931, "gemma3"),
        (("ipo", "sft"), (0.5, 0.1), None, "mistral3"),
    ],
)
def test_each_loss_trains(
    tmp_path: Path, loss: Any, weights: Any, first: float | None, family: str
) -> None:
    tiny.save_family(tmp_path / "model", family)
    folder = run_folder(
        tmp_path / "run", preference_rows(9, split="train"), action="train",
        model=str(tmp_path / "model"), train={**SETTINGS, "loss": loss, "loss_weights": weights},
    )  # fmt: skip
    assert perform(folder) == 0
    steps = events(folder, "step")
    assert [step["step"] for step in steps] == [1, 2]
    if first is not None:
        assert steps[0]["loss"] == pytest.approx(first, rel=1e-3)
        assert steps[1]["loss"] != steps[0]["loss"]
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "smoothing"),
    [
        (TrainSettings(), 0.0),
        (TrainSettings(loss=("robust",), loss_weights=(1.0,)), 0.1),
        (TrainSettings(loss=("robust",), loss_weights=(1.0,), label_smoothing=0.22), 0.22),
    ],
)
def test_the_flip_rate_reaches_trl(
    tmp_path: Path, settings: TrainSettings, smoothing: float
) -> None:
    import torch

    from trainer.model import Device

    device = Device("cpu", torch.float32, "test")
    assert dpo._arguments(settings, 0, device, tmp_path, False, False).label_smoothing == smoothing


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"loss": ["dpo"], "loss_weights": [1.0]}, "known: sigmoid, sigmoid_norm, ipo, robust"),
        ({"loss": ["sft"], "loss_weights": [1.0]}, "sft alone, which learns no preference"),
        ({"loss": ["ipo", "ipo"], "loss_weights": [1.0, 1.0]}, "names one twice"),
        ({"label_smoothing": 0.1}, "acts on the robust loss alone"),
        ({"strategy": "stacked"}, "it is anchored or chained"),
        ({"early_stopping_patience": -1}, "must be at least 0"),
        ({"early_stopping_patience": 1, "save_steps": 0}, "needs train.save_steps"),
        ({"save_steps": -1}, "train.save_steps must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(train: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract.from_dict(contract.Request, {"action": "train", "model": "m", "train": train})
    assert said in str(caught.value)


def test_a_chained_round_goes_on_with_the_adapter_and_has_it_as_reference(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path]
) -> None:
    from safetensors.torch import load_file

    first = adapters[0]
    rows = preference_rows(12, split="train")
    request = {"action": "train", "model": str(gemma), "adapter": str(first)}
    refused = run_folder(tmp_path / "refused", rows, **request, train=SETTINGS)
    assert perform(refused) == 65
    folder = run_folder(
        tmp_path / "run", rows, **request,
        train={**SETTINGS, "strategy": "chained", "loss": ["sigmoid"], "loss_weights": [1.0]},
        quantization="none",
    )  # fmt: skip
    assert perform(folder) == 0
    steps = events(folder, "step")
    # The reference is the adapter, not the base: at the first step both say the same.
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    card = json.loads((folder / "adapter" / ADAPTER_CARD).read_text())
    assert card["strategy"] == "chained"
    assert card["parent_sha256"] == contract.sha256_file(first / "adapter_model.safetensors")
    before = load_file(first / "adapter_model.safetensors")
    after = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    moved = max(float((after[n] - before[n]).abs().max()) for n in before)
    assert 0 < moved < 5e-3  # two steps of 1e-3 away, not begun anew
    assert sorted(p.name for p in (folder / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", ADAPTER_CARD,
    ]  # fmt: skip


def contrary_rows() -> Rows:
    """Return 32 preferences, and 24 held out with the labels the other way: it only gets worse."""
    rows = preference_rows(32, split="train")
    for i, row in enumerate(preference_rows(24)):
        prompt = [{"role": "user", "content": f"Held out {i}: I feel watched and I am tired."}]
        rows.append({"prompt": prompt, "chosen": row["rejected"], "rejected": row["chosen"],
                     "split": "held_out"})  # fmt: skip
    return rows


def test_training_stops_early_when_the_held_out_loss_rises(tmp_path: Path, gemma: Path) -> None:
    rows = contrary_rows()
    stopping = {"early_stopping_patience": 2, "save_steps": 2, "max_steps": 40}
    folder = run_folder(
        tmp_path / "run", rows, action="train", model=str(gemma),
        train={**SETTINGS, "learning_rate": 5e-3, **stopping},
    )  # fmt: skip
    assert perform(folder) == 0
    losses = [event["loss"] for event in events(folder, "held_out")]
    taken = manifest_of(folder)["train"]["steps"]
    assert taken == 2 * len(losses) < 40
    assert min(losses[-2:]) >= min(losses[:-2])
    (told,) = [e for e in events(folder, "warning") if "stopped at step" in e["message"]]
    assert f"stopped at step {taken}" in told["message"]

    few = run_folder(
        tmp_path / "few", [*rows[:32], *rows[32:40]], action="train", model=str(gemma),
        train={**SETTINGS, **stopping, "max_steps": 2},
    )  # fmt: skip
    assert perform(few) == 0
    assert any(
        "no early stopping: 8 held-out preferences" in e["message"] for e in events(few, "warning")
    )


def test_stopping_early_is_not_forgotten_when_a_training_is_killed(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = contrary_rows()
    train = {
        **SETTINGS, "learning_rate": 5e-3, "early_stopping_patience": 2, "save_steps": 2,
        "max_steps": 40,
    }  # fmt: skip
    request = {"action": "train", "model": str(gemma), "train": train}
    whole, killed = (run_folder(tmp_path / name, rows, **request) for name in ("whole", "killed"))
    assert perform(whole) == 0
    stopped = manifest_of(whole)["train"]["steps"]
    assert stopped < 40
    publish = checkpoints.publish

    def publish_and_die(*arguments: Any) -> Path:
        path = publish(*arguments)
        if arguments[3] == stopped - 2:  # the loss has not fallen once by then
            raise SystemExit(143)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", publish_and_die)
        assert perform(killed) == 143
    assert perform(killed) == 0
    assert [event["step"] for event in events(killed, "resumed")] == [stopped - 2]
    assert manifest_of(killed)["train"]["steps"] == stopped
    # Each is looked at once, and comes out as it did.
    assert [(e["step"], e["loss"]) for e in events(killed, "held_out")] == [
        (e["step"], pytest.approx(e["loss"], abs=1e-6)) for e in events(whole, "held_out")
    ]
    (told,) = [e["message"] for e in events(killed, "warning") if "stopped at" in e["message"]]
    assert f"stopped at step {stopped}: " in told and "for 2 evaluations" in told


@pytest.mark.parametrize("before", [0.0, 0.1])
def test_dropout_reaches_the_policy_and_not_its_reference(
    tmp_path: Path, gemma: Path, before: float
) -> None:
    from torch.nn import Dropout

    from trainer.model import attach_adapter, choose_device, load_base, load_tokenizer

    first, settings = ({**SETTINGS, "lora_dropout": share} for share in (before, 0.5))
    rows = preference_rows(12, split="train")
    folder = run_folder(
        tmp_path / "run", rows, action="train", model=str(gemma), train=first,
    )  # fmt: skip
    assert perform(folder) == 0
    request = contract.from_dict(
        contract.Request, {"action": "train", "model": str(gemma), "train": settings}
    )
    device = choose_device()
    model = attach_adapter(load_base(request, gemma, device), folder / "adapter", trainable=True)
    trainer = dpo.make_trainer(
        model, load_tokenizer(gemma, "tiny"), Preferences(rows, [], 0, ""), request, device,
        tmp_path / "work", lambda *_, **__: None,
    )  # fmt: skip
    found = {
        (name.rpartition(".")[2], module.p)
        for name, module in trainer.model.named_modules()
        if isinstance(module, Dropout)
    }
    assert found == {("default", 0.5)}
    assert trainer.model.peft_config["default"].lora_dropout == 0.5
    dpo.train(trainer)
    begun = next(row for row in trainer.state.log_history if "rewards/margins" in row)
    assert begun["rewards/margins"] != 0  # equal weights, of which the policy drops some
