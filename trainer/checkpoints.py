"""Checkpoints of a training: published whole or not at all, and verified before they are used.

A checkpoint is what transformers saves (LoRA weights, optimiser, scheduler, random generators,
trainer state) and `checkpoint.json`, with the SHA-256 of each file and of all that decides how
training goes on, and the settings it was made with, which memory may have made other than those
asked for. It is put together beside its place, flushed to the disk and renamed into it: a
process that is killed leaves the checkpoint before, and a `.part` that is never read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import (
    CHECKPOINTS,
    Request,
    TrainSettings,
    canonical_json,
    from_dict,
    sha256_file,
    sha256_rows,
    sha256_text,
    to_json,
    write_whole,
)

CARD = "checkpoint.json"
SCHEMA = 2
# One beside the newest, should that turn out to be broken.
KEPT = 2
# What training goes on from. The rest (tokenizer, the pickled arguments, a card) is made anew.
NEEDED = re.compile(
    r"((ref/)?adapter_(config\.json|model\.safetensors)|trainer_state\.json|scaler\.pt"
    r"|(optimizer|scheduler)\.pt|rng_state(_\d+)?\.pth)"
)
# These change how a step is computed or when one is saved, not what is learned; but for the batch
# size where `sft` is in the loss.
MEMORY_SETTINGS = (
    "batch_size", "gradient_accumulation", "gradient_checkpointing", "activation_offloading",
    "completions_only", "host_embedding", "prefix_sharing", "reference_once", "save_steps",
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    """Optimiser steps taken."""
    attempt: int
    """Which attempt made it (trainer.attempts), from 1."""
    settings: TrainSettings
    """What it was made with: as asked, changed by the plan and by attempts out of memory."""


def fingerprint(
    request: Request,
    base_sha256: str,
    template_sha256: str,
    rows: list[dict[str, Any]],
    reference_sha256: str | None,
    processes: int,
) -> str:
    """Return the SHA-256 of all that decides how training goes on after a step.

    Two runs with the same one take the same steps, up to rounding, so that one may continue the
    other; the request's settings are those asked for, before a plan changed them. `rows` are the
    preferences in the order of the file.
    """
    from importlib.metadata import version

    settings = to_json(request.train)
    effective = settings["batch_size"] * settings["gradient_accumulation"]
    for name in MEMORY_SETTINGS:
        del settings[name]
    if "sft" in request.train.loss:  # its mean is over the tokens of a batch: 4 × 2 is not 1 × 8
        settings["batch_size"] = request.train.batch_size
    decides = {
        "train": settings,
        "batch": effective * processes,
        "processes": processes,
        "seed": request.seed,
        "quantization": request.quantization,
        "base": base_sha256,
        "template": template_sha256,
        "reference": reference_sha256,
        "rows": sha256_rows(rows),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return sha256_text(canonical_json(decides))


# --- publishing ----------------------------------------------------------------------------------


def publish_folder(temporary: Path, target: Path) -> None:
    """Flush a folder's files to the disk and rename it to `target`, which must not be there."""
    for path in (temporary, *temporary.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    os.replace(temporary, target)
    _flush_folder(target.parent)


def _flush_folder(path: Path) -> None:
    """Flush a folder's entries, where the system lets a folder be opened (Windows does not)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(handle)


def publish(
    saved: Path, folder: Path, mark: str, step: int, attempt: int, settings: TrainSettings
) -> Path:
    """Make a checkpoint in a run's `folder` of what was `saved`; drop all but the newest KEPT.

    `mark` is its fingerprint, `settings` what it was made with. `saved` is used up.
    """
    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    target = checkpoints / f"step-{step:08d}"
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(saved, temporary)
    for path in _files(temporary):
        if not NEEDED.fullmatch(path.relative_to(temporary).as_posix()):
            path.unlink()
    files = {p.relative_to(temporary).as_posix(): sha256_file(p) for p in _files(temporary)}
    card = {
        "schema": SCHEMA, "step": step, "attempt": attempt, "fingerprint": mark,
        "settings": to_json(settings), "files": files,
    }  # fmt: skip
    write_whole(temporary / CARD, json.dumps(card, indent=1))
    shutil.rmtree(target, ignore_errors=True)  # a broken one of that step
    publish_folder(temporary, target)
    kept, own = 0, (mark, settings.max_length)
    for old in _newest_first(folder):
        kept += _mark(old) == own
        # Of another training none is gone on from, however far it was; nor, once there are enough
        # of this one, of this training at another length.
        if kept > KEPT or (kept == KEPT and _mark(old) != own):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _mark(path: Path) -> tuple[str, int] | None:
    """Return the fingerprint and the length that a checkpoint says it has, or None."""
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        return card["fingerprint"], card["settings"]["max_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(folder: Path) -> None:
    """Remove a run's checkpoints: it is finished, or what they hold is of no use."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


# --- finding one to go on from ------------------------------------------------------------------


def latest(
    folder: Path,
    mark: str,
    tell: Callable[[str], None],
    lacks: Callable[[TrainSettings], str | None] = lambda settings: None,
) -> Checkpoint | None:
    """Return the newest checkpoint of a run's folder that is whole and has the fingerprint.

    `lacks` says of the settings one was made with why they cannot be gone on with, if so. `tell`
    is told of each that is passed over, and why.
    """
    for path in _newest_first(folder):
        try:
            card = _verified(path)
            if card["schema"] != SCHEMA:
                tell(f"the checkpoint {path.name} is another version's; passed over.")
                continue
            settings = from_dict(TrainSettings, card["settings"], "settings")
        except (OSError, ValueError, KeyError, TypeError) as error:
            tell(f"the checkpoint {path.name} is broken ({error}); passed over.")
            continue
        why = "is of other settings, rows or versions"
        if card["fingerprint"] == mark:
            lack = lacks(settings)
            if lack is None:
                return Checkpoint(path, card["step"], card["attempt"], settings)
            why = f"was made with {lack}"
        tell(f"the checkpoint {path.name} {why}; passed over.")
    return None


def _verified(path: Path) -> dict[str, Any]:
    """Return a checkpoint's card. Raises ValueError, KeyError, TypeError or OSError if broken."""
    card: dict[str, Any] = json.loads((path / CARD).read_text(encoding="utf-8"))
    there = {p.relative_to(path).as_posix() for p in _files(path)} - {CARD}
    listed = dict(card["files"])
    if there != set(listed):  # one too many could be read as another adapter
        raise ValueError(f"{len(there)} files, {len(listed)} listed")
    for name, sha256 in listed.items():
        if not NEEDED.fullmatch(name) or sha256_file(path / name) != sha256:
            raise ValueError(f"{name} is not what was written")
    if not (isinstance(card["step"], int) and isinstance(card["attempt"], int)):
        raise ValueError("its step is no number")
    return card


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _newest_first(folder: Path) -> list[Path]:
    found = (folder / CHECKPOINTS).glob("step-*")
    return sorted((p for p in found if p.is_dir() and p.suffix != ".part"), reverse=True)
