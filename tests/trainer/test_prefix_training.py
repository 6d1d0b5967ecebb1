"""Prefix sharing in a whole training: where it ends, where it is off, what it says then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.trainer.conftest import Rows, preference_rows, run_folder
from tests.trainer.test_prefix_sharing import DRAWN, half
from trainer import contract, dpo, model, prefix_sharing
from trainer.contract import Request, TrainSettings
from trainer.preferences import Preferences
from trainer.prefix_sharing import PrefixSharing, sharing

pytestmark = pytest.mark.train

__all__ = ["half"]

SETTINGS: dict[str, Any] = {
    "max_steps": 20, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 200,
}  # fmt: skip


def trained(
    folder: Path, gemma: Path, wanted: bool, base: Any = None, **settings: Any
) -> tuple[Rows, tuple[int, int], list[str]]:
    """Train on the base, or on a model with an adapter; return steps, batches, warnings."""
    request = Request(
        action="train", model=str(gemma), seed=7, quantization=settings.pop("quantization", "none"),
        train=TrainSettings(**{**SETTINGS, "prefix_sharing": wanted, **settings}),
    )  # fmt: skip
    device, events = model.choose_device(), []
    if base is None:
        base = model.load_base(request, gemma, device)
    import torch

    torch.manual_seed(7)
    trainer = dpo.make_trainer(
        base, model.load_tokenizer(gemma, "tiny"), Preferences(preference_rows(24), [], 0, ""),
        request, device, folder, lambda event, **values: events.append((event, values)),
    )  # fmt: skip
    with sharing(trainer, wanted, trainer_emit(events)) as wrapper:
        dpo.train(trainer)
        counted = (wrapper.shared, wrapper.stock) if wrapper else (0, 0)
    steps = [row for row in trainer.state.log_history if "loss" in row]
    return steps, counted, [v["message"] for event, v in events if event == "warning"]


def trainer_emit(events: list[tuple[str, dict[str, Any]]]) -> Any:
    return lambda event, **values: events.append((event, values))


def alike(ours: Rows, stock: Rows) -> None:
    assert len(ours) == len(stock) >= 4
    for mine, theirs in zip(ours, stock, strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "entropy", "mean_token_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-3), name
    assert abs(stock[-1]["rewards/margins"]) > 0.05  # it learned: the comparison says something


def test_twenty_steps_end_where_stock_trls_do(tmp_path: Path, gemma: Path) -> None:
    ours, counted, told = trained(tmp_path / "ours", gemma, True)
    stock, nothing, _ = trained(tmp_path / "stock", gemma, False)
    # Policy and reference, 40 batches each; a few of these prompts are too short for it to pay.
    assert sum(counted) == 80 and counted[0] >= 60 and nothing == (0, 0) and not told
    alike(ours, stock)


def test_in_nf4_and_bf16_a_training_stays_as_near_as_in_another_batch(
    tmp_path: Path, gemma: Path, half: None
) -> None:
    """The same pairs a step, in batches of one and of four: stock's own difference to itself."""
    plain = {"quantization": "nf4", "loss": ("sigmoid",), "loss_weights": (1.0,)}
    ways = {"stock": {}, "ours": {}, "one": {"batch_size": 1, "gradient_accumulation": 4},
            "four": {"batch_size": 4, "gradient_accumulation": 1}}  # fmt: skip
    found = {
        name: trained(tmp_path / name, gemma, name == "ours", **plain, **way)[0]
        for name, way in ways.items()
    }

    def apart(name: str, figure: str) -> float:
        pairs = zip(found[name], found["stock"], strict=True)
        return fmean(abs(a[figure] - b[figure]) for a, b in pairs)

    for figure in ("loss", "rewards/margins", "logps/chosen", "logps/rejected"):
        own = max(apart("one", figure), apart("four", figure))
        assert 0 < apart("ours", figure) <= DRAWN * own, figure


def test_it_serves_a_reference_that_is_an_adapter(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path]
) -> None:
    def base() -> Any:
        request = Request(action="train", model=str(gemma), quantization="none")
        loaded = model.load_base(request, gemma, model.choose_device())
        return model.attach_adapter(loaded, adapters[1], trainable=True)

    few = {"max_steps": 6, "gradient_checkpointing": True, "learning_rate": 5e-3}
    ours, counted, _ = trained(tmp_path / "ours", gemma, True, base(), **few)
    stock, _, _ = trained(tmp_path / "stock", gemma, False, base(), **few)
    assert counted[0] >= 18
    alike(ours, stock)


def test_a_run_has_it_and_a_switch_turns_it_off(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.__main__ import perform

    made: list[PrefixSharing] = []
    plain = PrefixSharing.__init__
    monkeypatch.setattr(
        PrefixSharing, "__init__", lambda self, base: (made.append(self), plain(self, base))[1]
    )
    for name, wanted in (("on", True), ("off", False)):
        folder = run_folder(
            tmp_path / name, preference_rows(12, split="train"), action="train", model=str(gemma),
            train={**SETTINGS, "max_steps": 2, "prefix_sharing": wanted},
        )  # fmt: skip
        assert perform(folder) == 0
        told = [e.get("message", "") for e in contract.read_events(folder)[0]]
        assert not any("prefix" in message for message in told)
    assert len(made) == 1 and made[0].shared >= 4 and not made[0].active


def unheeded(config: Any, rows: Any, at: Any, dtype: Any) -> Any:
    """Return masks as they come out in a model that does not heed them: everything is seen."""
    import torch

    mask = torch.zeros(*rows.ids.shape, rows.ids.shape[1], dtype=dtype)[:, None]
    return dict.fromkeys(config.layer_types, mask)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: setattr(c, "_attn_implementation_internal", "flash_attention_2"),
         "flash_attention_2 takes no mask"),
        (lambda c: setattr(c, "use_bidirectional_attention", True), "looks both ways"),
        (lambda c: setattr(c, "model_type", "qwen3"), "type qwen3"),
        (lambda c: {"lora_dropout": 0.1}, "train.lora_dropout would drop the same"),
        ("attention_mask", "other numbers"),
        ("layout", "come in another way"),
    ],
)  # fmt: skip
def test_where_a_model_does_not_take_it_training_is_stock_and_says_so(
    tmp_path: Path, gemma: Path, change: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(action="train", model=str(gemma), quantization="none",
                      train=TrainSettings(**SETTINGS))  # fmt: skip
    device, told = model.choose_device(), []
    base: Any = model.load_base(request, gemma, device)
    asked = None if isinstance(change, str) else change(base.config)
    request = replace(request, train=replace(request.train, **(asked or {})))
    trainer = dpo.make_trainer(
        base, model.load_tokenizer(gemma, "tiny"), Preferences(preference_rows(12), [], 0, ""),
        request, device, tmp_path, lambda *_, **__: None,
    )  # fmt: skip
    forward = base.forward
    if isinstance(change, str):
        instead = {"attention_mask": unheeded, "layout": lambda *_: None}
        monkeypatch.setattr(prefix_sharing, change, instead[change])
    with sharing(trainer, True, lambda event, **values: told.append((event, values))) as wrapper:
        assert wrapper is None and base.forward is forward
    [(event, values)] = told
    assert event == "warning" and said in values["message"]
    assert values["message"].startswith("no prefix sharing: ")


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("prompts", [0, 4])
def test_it_is_tried_on_pairs_that_are_shared_not_on_the_longest(
    tmp_path: Path, gemma: Path, batch_size: int, prompts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short prompt under long replies is not shared, and says nothing of the others."""
    long = [{"role": "assistant", "content": f"{n} " + "trees and roads. " * 99} for n in range(12)]
    short = [{"role": "user", "content": "Hm?"}]
    rows = [{**row, "prompt": short, "chosen": [long[n]], "rejected": [long[-n - 1]]}
            for n, row in enumerate(preference_rows(4))]  # fmt: skip
    rows += preference_rows(prompts)
    request = Request(
        action="train", model=str(gemma), quantization="none",
        train=TrainSettings(**{**SETTINGS, "max_length": 1900, "batch_size": batch_size}),
    )  # fmt: skip
    device, told = model.choose_device(), []
    trainer = dpo.make_trainer(
        model.load_base(request, gemma, device), model.load_tokenizer(gemma, "tiny"),
        Preferences(rows, [], 0, ""), request, device, tmp_path, lambda *_, **__: None,
    )  # fmt: skip
    monkeypatch.setattr(prefix_sharing, "attention_mask", unheeded)
    with sharing(trainer, True, lambda event, **values: told.append(values)) as wrapper:
        assert wrapper is None
    assert len(told) == (1 if prompts else 0)  # with nothing to share there is nothing to say


def test_a_checkpoint_is_gone_on_from_with_it_on_or_off() -> None:
    from trainer.checkpoints import fingerprint

    request = Request(action="train", model="tiny")
    off = replace(request, train=replace(request.train, prefix_sharing=False))
    assert request.train.prefix_sharing
    marks = [fingerprint(each, "b", "t", [], None, 1) for each in (request, off)]
    assert marks[0] == marks[1]
