"""The plan put to work: a run's settings made to fit before loading, the estimate checked after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import memory
from trainer.contract import ContractError, Request, TrainSettings
from trainer.measure import dry_step, longest_batch, machine_here, row_length
from trainer.presets import PRESETS, preset
from trainer.processes import world_size

if TYPE_CHECKING:
    from trainer.dpo import Emit
    from trainer.model import Device

# A dry step this much above its estimate is worth a word.
WRONG = 0.15


def shape_named(name: str) -> memory.Shape:
    """Return the sizes of a preset, or of a model in a folder or in the local cache.

    Raises ContractError. Nothing is loaded; a preset need not even be there.
    """
    known = preset(name)
    if known is not None and not Path(name).exists():
        return memory.shape_of(known.config, known.name)
    from trainer.model_folder import find_model

    return shape_in(find_model(name), name)


def shape_in(folder: Path, name: str) -> memory.Shape:
    """Return the sizes of the language model in a folder. Raises ContractError."""
    from trainer.model_folder import text_config

    config, _ = text_config(folder, name)
    return memory.shape_of(config.to_dict(), name)


Planner = Callable[[memory.Shape, TrainSettings, str, memory.Machine], memory.Plan]


def alternatives(
    name: str, request: Request, machine: memory.Machine, planner: Planner = memory.plan
) -> list[str]:
    """Return the presets that fit where a model does not, the largest first."""
    found = []
    for each in PRESETS:
        shape = memory.shape_of(each.config, each.name)
        plan = planner(shape, request.train, request.quantization, machine)
        if plan.fits and name not in (each.name, each.id):
            found.append((shape.parameters, each.name))
    return [each for _, each in sorted(found, reverse=True)]


def fit(request: Request, folder: Path, emit: Emit) -> tuple[memory.Plan | None, Request]:
    """Return the plan for training here, and the request with the settings it asks for.

    A model whose sizes cannot be told is not planned, and that is said. Raises ContractError,
    before anything is loaded, when nothing that can be run fits.
    """
    machine = machine_here()
    try:
        shape = shape_in(folder, request.model)
    except ContractError as error:
        emit("warning", message=f"no memory plan: {error}")
        return None, request
    found = memory.plan(shape, request.train, request.quantization, machine)
    if world_size() > 1:  # each would decide by itself, and all must take the same steps
        emit("warning", message=f"several processes: no memory plan ({found.reason}).")
        return None, request
    if not found.fits:
        others = alternatives(request.model, request, machine)
        raise ContractError(memory.refusal(request.model, found, others))
    emit(
        "planned", tier=found.tier, reason=found.reason, length=found.length,
        bytes=found.total, free=found.free, parts=found.parts,
    )  # fmt: skip
    if found.tier != memory.RESIDENT:
        emit("warning", message=f"to fit into memory: {found.tier} ({found.reason}).")
    return found, replace(request, train=found.settings)


def fit_weights(request: Request, folder: Path, emit: Emit) -> Request:
    """Return the request as its model can be loaded here: a tied embedding on the host if need be.

    For what only writes or scores. Raises ContractError, before anything is loaded, when the
    weights with the reserve do not fit. A model whose sizes cannot be told is let through, and that
    is said.
    """
    machine = machine_here()
    try:
        shape = shape_in(folder, request.model)
    except ContractError as error:
        emit("warning", message=f"no memory plan: {error}")
        return request
    found = memory.loaded(shape, request.train, request.quantization, machine)
    if not found.fits and request.train.host_embedding is None:
        host = replace(request.train, host_embedding=True)
        if memory.leaves(shape, host, machine):
            found = memory.loaded(shape, host, request.quantization, machine)
    if not found.fits:
        others = alternatives(request.model, request, machine, memory.loaded)
        raise ContractError(memory.refusal(request.model, found, others))
    return replace(request, train=found.settings)


def check_plan(
    trainer: Any, device: Device, plan: memory.Plan | None, emit: Emit
) -> dict[str, Any]:
    """Return the plan's figures in bytes; on a GPU, beside them the peak of one dry step.

    The step is taken on the longest real pairs, as many as training puts through at once, and
    held against what the plan says of so many at their length, which may be less than the length
    planned for. On a CPU none is taken: there it is minutes, and what it lacks the system finds.
    Nor is one where every pair was left out for its length.
    """
    if plan is None:
        return {}
    figures: dict[str, Any] = {
        "tier": plan.tier, "max_length": plan.length, "free": plan.free, "planned": plan.total,
    }  # fmt: skip
    rows = longest_batch(trainer)
    if device.kind != "cuda" or not rows:
        return figures
    # As the collator cuts them.
    pairs, length = len(rows), min(row_length(rows[0]), plan.length)
    same = plan.with_settings(replace(plan.settings, batch_size=pairs, max_length=length))
    planned = same.peak - same.parts["optimiser"]  # Adam's state is made at the first real step
    measured = dry_step(trainer, rows, device)
    error = round(planned / max(measured, 1) - 1, 4)
    emit(
        "measured", what="dry step", pairs=pairs, length=length, bytes=measured, planned=planned,
        error=error,
    )  # fmt: skip
    if measured > planned * (1 + WRONG):
        emit(
            "warning",
            message=f"a step on the longest {pairs} of the pairs ({length} tokens) takes "
            f"{memory.gb(measured)}, {measured / planned - 1:.0%} more than planned.",
        )
    return {
        **figures, "dry_step": measured, "dry_step_pairs": pairs, "dry_step_length": length,
        "dry_step_planned": planned, "error": error,
    }  # fmt: skip
