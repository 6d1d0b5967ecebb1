"""What the trainer is asked for outside a study: fetch, list, plan, rehearse."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from trainer import memory
from trainer.contract import ContractError
from trainer.fitting import alternatives, shape_named
from trainer.measure import machine_here
from trainer.presets import PRESETS, preset

if TYPE_CHECKING:
    from trainer.work import Work


def perform(work: Work) -> None:
    """Do the request's errand; what it found goes into the manifest. Raises ContractError."""
    request = work.request
    match request.action:
        case "pull":
            _pull(work)
        case "models":
            machine = machine_here(request.vram)
            work.manifest["machine"] = {"free": machine.free, "words": machine.words}
            work.manifest["models"] = [_row(work, p.id, machine) for p in PRESETS]
        case "plan":
            machine = machine_here(request.vram)
            work.manifest["plan"] = _planned(work, request.model, machine)
        case "rehearse":
            from trainer.rehearse import rehearse

            try:
                work.manifest["rehearsal"] = rehearse(request, work.folder, work.emit)
            finally:
                shutil.rmtree(work.folder / "work", ignore_errors=True)


def _pull(work: Work) -> None:
    from trainer.pull import pull

    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:  # before that it may still be refused
            work.emit("phase", phase="pull")
            begun = True
        work.emit("progress", phase="pull", done=done, total=total)

    work.manifest["pulled"] = pull(work.request.model, progress)


def _planned(work: Work, name: str, machine: memory.Machine) -> dict[str, Any]:
    request = work.request
    shape = shape_named(name)
    found = memory.plan(shape, request.train, request.quantization, machine)
    return {
        "model": name,
        "parameters": shape.parameters,
        "quantization": request.quantization,
        "device": machine.device,
        "basis": "estimated",
        "asked_length": request.train.max_length,
        "length": found.length,
        "bytes": {**found.parts, "total": found.total, "free": found.free},
        "static": found.static,
        "peak": found.peak,
        "machine": machine.words,
        "fits": found.fits,
        "tier": found.tier,
        "reason": found.reason,
        "tiers": [{"tier": tier, "bytes": size} for tier, size in found.tiers],
        "refusal": None if found.fits else memory.refusal(
            name, found, alternatives(name, request, machine)
        ),
    }  # fmt: skip


def _row(work: Work, name: str, machine: memory.Machine) -> dict[str, Any]:
    known = preset(name)
    assert known is not None
    planned = _planned(work, name, machine)
    return {
        "model": known.id,
        "licence": known.licence,
        "gated": known.gated,
        "download": known.download,
        "here": _is_here(known.id),
        "source": known.source,
        **{n: planned[n] for n in ("parameters", "fits", "tier", "reason", "length", "device")},
        "bytes": planned["bytes"]["total"],
        "free": planned["bytes"]["free"],
    }


def _is_here(name: str) -> bool:
    from trainer.model_folder import find_model

    try:
        find_model(name)
    except ContractError:
        return False
    return True
