"""The memory plan: its arithmetic against real models, its tiers, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import TRAIN, preference_rows, refused, run_folder
from trainer import contract, dpo, fitting, measure, memory, model
from trainer.contract import ContractError, Request, TrainSettings
from trainer.memory import CUDA_CONTEXT, GIB, HOST_EMBEDDING, OFFLOAD, RESIDENT, Machine, shape_of
from trainer.preferences import Preferences
from trainer.presets import PRESETS, preset

CARD = Machine(4 * GIB - CUDA_CONTEXT)


def planned(name: str, machine: Machine = CARD, **settings: Any) -> memory.Plan:
    found = preset(name)
    assert found is not None
    return memory.plan(
        shape_of(found.config, name), TrainSettings(**settings), "nf4", machine
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "lora"),
    # The publishers' own counts of the language models; the adapters' as PEFT counted them.
    [("gemma-3-4b-it", 3_880_263_168, 29_802_496), ("gemma-3-1b-it", 999_885_952, 13_045_760),
     ("gemma-3-270m-it", 268_098_176, 3_796_992),
     ("Llama-3.2-3B-Instruct", 3_212_749_824, 24_313_856)],
)  # fmt: skip
def test_the_counts_are_the_models_own(name: str, parameters: int, lora: int) -> None:
    found = preset(name)
    assert found is not None
    shape = shape_of(found.config, name)
    assert (shape.parameters, shape.lora(16)) == (parameters, lora)


@pytest.mark.train
@pytest.mark.parametrize("each", PRESETS, ids=lambda p: p.name)
def test_transformers_makes_the_same_shape_of_every_preset(each: Any) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {n: v for n, v in each.config.items() if n != "model_type"}
    config = AutoConfig.for_model(each.config["model_type"], **values)
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(config)
    shape = shape_of(each.config, each.name)
    assert made.num_parameters() == shape.parameters
    assert shape_of(config.to_dict(), each.name) == shape
    names = [n for n, _ in made.named_modules() if n.endswith("_proj")]
    assert len(names) == 7 * shape.layers


@pytest.mark.train
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_footprint_is_the_one_planned(tmp_path: Path, family: str, quantization: Any) -> None:
    tiny.save_family(tmp_path, family)
    request = Request(action="train", model="tiny", quantization=quantization)
    loaded = model.load_base(request, tmp_path, model.choose_device())
    shape = fitting.shape_in(tmp_path, "tiny")
    found = memory.plan(shape, request.train, quantization, Machine(GIB, "cpu", False, 4))
    assert found.static == pytest.approx(measure.model_bytes(loaded), rel=0.03)


def test_a_tier_is_chosen_in_order() -> None:
    assert planned("gemma-3-1b-it").tier == RESIDENT
    for length in (512, 1024):
        four = planned("gemma-3-4b-it", max_length=length)
        assert four.fits and four.tier == HOST_EMBEDDING and four.length == length
        assert four.settings.host_embedding and not four.settings.activation_offloading
        assert dict(four.tiers)[RESIDENT] > four.free > four.total
        assert four.parts["embedding"] == 0 and four.parts["logits tile"] < 120e6
    narrow = replace(CARD, free=3_400_000_000)
    longer = planned("gemma-3-4b-it", max_length=2048, machine=narrow)
    assert longer.fits and longer.tier == OFFLOAD
    assert longer.settings.host_embedding and longer.settings.activation_offloading
    shorter = planned("gemma-3-4b-it", max_length=4096, machine=narrow)
    assert shorter.fits and shorter.length == shorter.settings.max_length == 2048
    assert shorter.tier == "shorter length 2048"


def test_what_is_loaded_whole_must_fit_before_it_leaves_the_card() -> None:
    machine = replace(CARD, free=3_050_000_000)
    found = planned("gemma-3-4b-it", max_length=256, machine=machine)
    assert not found.fits and found.total < machine.free
    assert "loading takes 3.10 GB, 3.05 GB free" in memory.refusal("x", found, [])
    assert not [tier for tier, _ in found.tiers if tier.startswith("shorter")]  # helps no loading


def test_the_embedding_stays_where_it_is_asked_to_stay() -> None:
    found = planned("gemma-3-4b-it", host_embedding=False)
    assert HOST_EMBEDDING not in dict(found.tiers) and found.tier == OFFLOAD
    assert found.settings.host_embedding is False


def test_a_matrix_of_its_own_is_not_streamed() -> None:
    known = preset("gemma-3-4b-it")
    assert known is not None
    untied = shape_of({**known.config, "tie_word_embeddings": False}, "x")
    found = memory.plan(untied, TrainSettings(), "nf4", CARD)
    assert HOST_EMBEDDING not in dict(found.tiers) and not found.settings.host_embedding
    with pytest.raises(contract.ContractError, match="whose head is its embedding"):
        memory.plan(untied, TrainSettings(host_embedding=True), "nf4", CARD)


def test_on_a_cpu_the_embedding_is_in_the_same_memory() -> None:
    cpu = Machine(64 * GIB, "cpu", False, 4)
    plain, host = (planned("gemma-3-4b-it", cpu, host_embedding=h) for h in (False, True))
    assert host.tier == plain.tier == RESIDENT and host.static == plain.static


def test_one_pair_at_a_time_comes_before_anything_that_changes_a_result() -> None:
    batch = TrainSettings(batch_size=4, gradient_accumulation=2)
    for name, machine in (
        ("gemma-3-1b-it", Machine(2_000_000_000)),
        ("gemma-3-4b-it", Machine(9_000_000_000, "cpu", False, 4)),
    ):
        found = planned(name, machine, batch_size=4, gradient_accumulation=2)
        assert found.fits and found.tier == memory.ONE_PAIR and found.length == batch.max_length
        assert found.settings.batch_size == 1 and found.settings.gradient_accumulation == 8
        assert not found.settings.activation_offloading
        assert memory.ONE_PAIR in dict(found.tiers)
    assert memory.ONE_PAIR not in dict(planned("gemma-3-4b-it").tiers)
    later = planned("gemma-3-4b-it", batch_size=2, max_length=1024)  # what follows builds on it
    assert later.fits and later.settings.batch_size == 1 and later.tier == HOST_EMBEDDING


def test_more_length_never_takes_less() -> None:
    sizes = [planned("gemma-3-4b-it", max_length=n, machine=Machine(80 * GIB)).total
             for n in (128, 256, 512, 1024)]  # fmt: skip
    assert sizes == sorted(sizes)


def test_on_a_cpu_layers_are_computed_again_before_length_is_cut() -> None:
    found = planned("gemma-3-4b-it", machine=Machine(12 * GIB, "cpu", False, 4))
    assert found.fits and found.tier == memory.RECOMPUTED and found.length == 512
    assert found.settings.gradient_checkpointing


def test_without_triton_the_heads_tile_is_larger() -> None:
    with_it, without = (
        planned(
            "gemma-3-4b-it", machine=Machine(8 * GIB, triton=triton), completions_only=False
        ).parts["logits tile"]
        for triton in (True, False)
    )
    assert without > 10 * with_it
    ours = planned("gemma-3-4b-it", machine=Machine(8 * GIB, triton=False)).parts["logits tile"]
    assert 4 * ours == without  # in narrower tiles


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(contract.ContractError, match="no num_hidden_layers to plan with"):
        shape_of({"model_type": "llama"}, "x")
    with pytest.raises(contract.ContractError, match="mixture of experts"):
        shape_of({"num_experts": 8}, "x")


@pytest.mark.train
def test_training_is_refused_before_loading_when_nothing_fits(
    tmp_path: Path, gemma: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(fitting, "machine_here", lambda: Machine(10_000_000, "cpu", False, 4))
    folder = run_folder(tmp_path / "run", preference_rows(8), action="train", model=str(gemma))
    line = refused(folder, capsys)
    assert "does not fit" in line and "0.01 GB free" in line


@pytest.mark.train
@pytest.mark.parametrize("action", ["generate", "evaluate", "duel"])
def test_what_only_writes_or_scores_is_refused_before_loading_too(
    tmp_path: Path, gemma: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, action: str
) -> None:
    monkeypatch.setattr(fitting, "machine_here", lambda: Machine(10_000_000, "cpu", False, 4))
    compare = "../compared" if action == "duel" else None  # not come to
    folder = run_folder(tmp_path / "run", action=action, model=str(gemma), compare=compare)
    line = refused(folder, capsys)
    assert "does not fit: its weights with the reserve take 0.26 GB, 0.01 GB free" in line


def test_weights_alone_leave_out_what_training_takes() -> None:
    known = preset("gemma-3-4b-it")
    assert known is not None
    shape = shape_of(known.config, "x")
    found = memory.loaded(shape, TrainSettings(), "nf4", CARD)
    trained = planned("gemma-3-4b-it")
    assert found.fits and found.static == shape_static(trained) and not found.length
    assert found.total == found.static + found.static // memory.RESERVE_SHARE + memory.RESERVE
    # In host memory afterwards, but on the card until the model is whole.
    streamed = TrainSettings(host_embedding=True)
    narrow = replace(CARD, free=3_050_000_000)
    assert memory.loaded(shape, streamed, "nf4", CARD).parts["embedding"] == 0
    left = memory.loaded(shape, streamed, "nf4", narrow)
    assert left.total < narrow.free and not left.fits
    assert "loading takes 3.10 GB, 3.05 GB free" in memory.refusal("x", left, [])


@pytest.mark.parametrize("asked", [None, False])
def test_what_only_writes_may_put_the_embedding_on_the_host(
    gemma: Path, monkeypatch: Any, asked: bool | None
) -> None:
    """As training may: what can be trained here can be written with, too."""
    request = Request(
        action="generate", model="x", train=TrainSettings(host_embedding=asked)
    )  # fmt: skip
    shape = fitting.shape_in(gemma, "x")
    card = replace(CARD, free=memory.loaded(shape, request.train, "nf4", CARD).total - 1)
    monkeypatch.setattr(fitting, "machine_here", lambda: card)
    if asked is None:
        fitted = fitting.fit_weights(request, gemma, lambda *_, **__: None)
        assert fitted.train.host_embedding is True
        roomy = replace(card, free=card.free + 1)
        monkeypatch.setattr(fitting, "machine_here", lambda: roomy)
        assert fitting.fit_weights(request, gemma, lambda *_, **__: None) == request
    else:
        with pytest.raises(ContractError, match="with the reserve take"):
            fitting.fit_weights(request, gemma, lambda *_, **__: None)


def shape_static(plan: memory.Plan) -> int:
    """Return the bytes of a planned model's weights, wherever they are."""
    assert plan.basis is not None
    shape, _, machine = plan.basis
    return plan.parts["weights"] + shape.embedding * machine.width


def test_a_tile_is_counted_in_the_type_computed_in() -> None:
    half, full = (
        planned("gemma-3-4b-it", Machine(80 * GIB, width=width)).parts["logits tile"]
        for width in (2, 4)
    )
    assert half == 2 * 512 * memory.TILE_WORDS * 2 and full == 2 * half
    # On a CPU: beside it eight fp32 copies, and the head's part in fp32 where it is not already.
    words, hidden = memory.STREAMED_WORDS, 2560
    half, full = (
        planned("gemma-3-4b-it", Machine(80 * GIB, "cpu", False, width)).parts["logits tile"]
        for width in (2, 4)
    )
    assert half == 2 * 512 * words * 34 + words * hidden * 4 and full == 2 * 512 * words * 36


@pytest.mark.train
def test_the_plans_length_is_the_one_trained_with(
    tmp_path: Path, gemma: Path, monkeypatch: Any
) -> None:
    request = Request(action="train", model=str(gemma), train=TrainSettings(max_length=4096))
    whole = fitting.shape_in(gemma, "tiny")
    enough = memory.plan(
        whole, replace(request.train, max_length=512, gradient_checkpointing=True), "nf4",
        Machine(GIB * 9, "cpu", False, 4),
    ).total  # fmt: skip
    monkeypatch.setattr(fitting, "machine_here", lambda: Machine(enough, "cpu", False, 4))
    events: list[tuple[str, dict[str, Any]]] = []
    plan, changed = fitting.fit(request, gemma, lambda e, **v: events.append((e, v)))
    assert plan is not None and changed.train.max_length == plan.length == 512
    assert [name for name, _ in events] == ["planned", "warning"]
    assert "shorter length 512 (4096 tokens do not fit)" in events[1][1]["message"]


def ready(tmp_path: Path, gemma: Path, rows: Any = None, **train: Any) -> tuple[Any, Any]:
    """Return a DPOTrainer on a fresh tiny model, and its device."""
    device = model.choose_device()
    settings = contract.from_dict(TrainSettings, {**TRAIN, **train})
    request = Request(action="train", model=str(gemma), train=settings)
    base = model.load_base(request, gemma, device)
    trainer = dpo.make_trainer(
        base, model.load_tokenizer(gemma, "tiny"),
        Preferences(preference_rows(12) if rows is None else rows, [], 0, ""), request, device,
        tmp_path / "work", lambda *_, **__: None,
    )  # fmt: skip
    return trainer, device


@contextmanager
def passes_through(module: Any) -> Iterator[list[int]]:
    """Count a module's forward passes while it is open, one entry each.

    Of a module within a layer: transformers 5.23 keeps a layer's own hooks out of its checkpoint.
    """
    passes: list[int] = []
    hook = module.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        hook.remove()


@pytest.mark.train
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_dry_step_is_as_in_training_and_leaves_nothing_behind(
    tmp_path: Path, gemma: Path, recomputes: bool
) -> None:
    import torch

    losses = []
    for dry in (False, True):
        torch.manual_seed(3)
        trainer, device = ready(tmp_path, gemma, gradient_checkpointing=recomputes)
        if dry:
            rows = measure.longest_batch(trainer)
            sizes = sorted(measure.row_length(row) for row in trainer.train_dataset)
            assert [measure.row_length(row) for row in rows] == sizes[-2:][::-1]
            with passes_through(trainer.model.get_base_model().model.layers[1].mlp) as passes:
                assert measure.dry_step(trainer, rows, device) >= 0
            # The policy's and the reference's; on the way back the policy's once more.
            assert len(passes) == (3 if recomputes else 2)
            assert not trainer.model.is_activation_checkpointing
            assert all(p.grad is None for p in trainer.model.parameters())
        losses.append(dpo.train(trainer)["loss"])
    assert losses[0] == losses[1]


@pytest.mark.train
@pytest.mark.parametrize("times", [1.1, 1.3])
def test_a_dry_step_is_held_against_the_plan_for_what_it_was_taken_on(
    tmp_path: Path, gemma: Path, monkeypatch: Any, times: float
) -> None:
    trainer, _ = ready(tmp_path, gemma, max_length=2048)
    settings = contract.from_dict(TrainSettings, {**TRAIN, "max_length": 2048})
    shape, machine = fitting.shape_in(gemma, "tiny"), Machine(9 * GIB)
    plan = memory.plan(shape, settings, "nf4", machine)
    length = max(measure.row_length(row) for row in trainer.train_dataset)
    assert length < 1024
    parts = memory.parts_of(shape, replace(settings, max_length=length), "nf4", machine)
    wanted = sum(parts.values()) - parts["reserve"] - parts["optimiser"]
    card = model.Device("cuda", model.choose_device().dtype, "stands for one: only its count does")
    monkeypatch.setattr(fitting, "dry_step", lambda *_: int(wanted * times))
    told: list[tuple[str, dict[str, Any]]] = []
    figures = fitting.check_plan(trainer, card, plan, lambda e, **v: told.append((e, v)))
    assert told[0] == ("measured", {
        "what": "dry step", "pairs": 2, "length": length, "bytes": int(wanted * times),
        "planned": wanted, "error": pytest.approx(1 / times - 1, abs=1e-3),
    })  # fmt: skip
    assert (figures["planned"], figures["dry_step_planned"]) == (plan.total, wanted)
    said = [values["message"] for _, values in told[1:]]
    assert len(said) == (times > 1.15)
    assert all(f"on the longest 2 of the pairs ({length} tokens) takes" in each for each in said)
    assert all(each.endswith("30% more than planned.") for each in said)


@pytest.mark.train
def test_pairs_that_are_all_too_long_are_said_not_measured(tmp_path: Path, gemma: Path) -> None:
    rows = preference_rows(9, split="train")
    for row in rows:
        row["prompt"] = [{"role": "user", "content": "I feel watched. " * 200}]
    trainer, _ = ready(tmp_path, gemma, rows)
    card = model.Device("cuda", model.choose_device().dtype, "never computed on")
    plan = memory.plan(fitting.shape_in(gemma, "tiny"), TrainSettings(), "nf4", CARD)
    assert not len(trainer.train_dataset)
    assert "dry_step" not in fitting.check_plan(trainer, card, plan, pytest.fail)
    with pytest.raises(contract.ContractError, match="every pair was longer than max_length"):
        dpo.train(trainer)
