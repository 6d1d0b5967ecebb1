"""Reference log-probabilities: computed once for each pair, and kept from round to round.

The reference never changes while a round trains, and with all preferences so far most pairs were
there in the round before. TRL computes it again for every pair of every step, a third of the
work; its own `precompute_ref_log_probs` runs inside its constructor, where it can be neither
followed nor stopped, and begins anew in every process. Here TRL's own function computes it
(`compute_ref_log_probs`), for the pairs that are not known yet, and TRL's own columns carry it.

Kept are two numbers a pair, under digests: no text and no tokens. A folder for each reference
(the digest of all that decides its numbers), in it a file for each process that found new ones,
a JSON object a line. Nobody writes into another's file, so trainers side by side cannot harm each
other; a line that is torn or changed does not have the check it ends with, and is passed over.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.batches import in_batches
from trainer.checkpoints import LIBRARIES
from trainer.contract import (
    ADAPTER_CONFIG,
    CHECKPOINTS,
    Request,
    canonical_json,
    sha256_file,
    sha256_text,
)
from trainer.measure import row_length
from trainer.model import Device, trainable
from trainer.processes import rank, world_size

Emit = Callable[..., None]
Sums = tuple[float, float]
"""Summed natural log-probabilities of the chosen and of the rejected reply."""

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's
# Pairs scored at once: on a CPU 8 took 1.06 s where one at a time took 1.7 s (64 pairs of the demo
# model), and 16 took longer again. Bounded by tokens too: no more than training may have.
BATCH_PAIRS = 8
# A file of the cache larger than this is none of ours: some 300,000 pairs.
MOST_BYTES = 64 * 2**20
# What a configuration says of where it came from, and what changes while a model is trained.
NAMING = ("_name_or_path", "transformers_version", "architectures", "use_cache")
DIGEST = re.compile(r"[0-9a-f]{64}")


# --- what is kept -------------------------------------------------------------------------------


def conditions(
    request: Request,
    base_sha256: str,
    adapter: tuple[str, str] | None,
    device: Device,
    config: Any,
) -> str:
    """Return the SHA-256 of all but its tokens that decides a pair's reference.

    `adapter`: digests of the weights and of the adapter_config.json of the adapter that is the
    reference (None: the base alone). `config` is the model's: the same weights under another rope
    or window are another model.
    """
    from importlib.metadata import version

    decides = {
        "base": base_sha256,
        "adapter": adapter,
        "config": _shape(config),
        "max_length": request.train.max_length,
        "quantization": request.quantization,
        "dtype": str(device.dtype),
        "device": device.kind,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return sha256_text(canonical_json(decides))


def _shape(config: Any) -> dict[str, Any]:
    """Return a configuration but for what only names it."""
    told: dict[str, Any] = json.loads(config.get_text_config().to_json_string(use_diff=False))
    return {name: told[name] for name in told if name not in NAMING}


def pair_sha256(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a pair as TRL has tokenised it."""
    return sha256_text(canonical_json([row[f"{n}_ids"] for n in ("prompt", "chosen", "rejected")]))


class Store:
    """The reference log-probabilities that are known under one set of conditions."""

    def __init__(self, folder: Path, conditions: str, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder / conditions, say
        self.mine: Path | None = self.folder / f"{uuid.uuid4().hex}.jsonl"

    def read(self) -> dict[str, Sums]:
        """Return what is known, by a pair's digest; damaged lines are passed over and told."""
        known: dict[str, Sums] = {}
        damaged = 0
        try:
            for path in sorted(self.folder.glob("*.jsonl")):
                if not path.is_file() or path.stat().st_size > MOST_BYTES:
                    damaged += 1
                    continue
                # What follows the last line's end is still being written, or was torn.
                for line in path.read_bytes().rpartition(b"\n")[0].splitlines():
                    found = _parse(line)
                    if found is None:
                        damaged += 1
                    else:
                        known.setdefault(*found)
        except OSError as error:
            self.say(f"the reference cache cannot be read ({error.strerror}).")
        if damaged:
            self.say(f"{damaged} damaged lines of the reference cache were passed over.")
        return known

    def add(self, found: Mapping[str, Sums]) -> None:
        """Append what was found. What cannot be written is told once, and costs its time again."""
        lines = [
            _line(n, *sums) + "\n" for n, sums in found.items() if all(map(math.isfinite, sums))
        ]
        if self.mine is None or not lines:
            return
        try:
            _make_private(self.folder)
            with open(self.mine, "ab", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
                file.write("".join(lines).encode())
        except OSError as error:
            self.mine = None
            self.say(f"the reference cache cannot be written ({error.strerror}); goes on without.")


def store_for(
    folder: Path, request: Request, base_sha256: str, adapter_sha256: str | None, device: Device,
    config: Any, say: Callable[[str], None],
) -> Store:  # fmt: skip
    """Return the store a request names, or one that goes when the run's checkpoints go."""
    kept = request.reference_cache
    place = folder / kept if kept is not None else folder / CHECKPOINTS / "reference"
    adapter = None
    if request.adapter is not None and adapter_sha256 is not None:
        card = folder / request.adapter / ADAPTER_CONFIG
        adapter = adapter_sha256, sha256_file(card)
    return Store(place, conditions(request, base_sha256, adapter, device, config), say)


def _make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, their user's alone."""
    for each in reversed([folder, *folder.parents]):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)


def _line(pair: str, chosen: float, rejected: float) -> str:
    row = {"pair": pair, "chosen": chosen, "rejected": rejected}
    return json.dumps({**row, "check": sha256_text(canonical_json(row))[:16]})


def _parse(line: bytes) -> tuple[str, Sums] | None:
    """Return a line's pair and sums, or None unless it is exactly as it was written."""
    try:
        row = json.loads(line)
        pair, sums = row["pair"], (float(row["chosen"]), float(row["rejected"]))
        whole = DIGEST.fullmatch(pair) and all(map(math.isfinite, sums))
        return (pair, sums) if whole and _line(pair, *sums).encode() == line else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


# --- what is computed ---------------------------------------------------------------------------


def precompute(trainer: Any, store: Store, emit: Emit) -> None:
    """Give a DPOTrainer the reference of all its pairs, computing those the store lacks.

    Each batch is in the store when the next begins, so a process that is stopped loses one.
    Several processes each do their share, and tell each other. Nothing is done, and TRL computes
    the reference at each step, where training ends before it has seen every pair.
    """
    if not _sees_all(trainer):
        return
    datasets = [d for d in (trainer.train_dataset, trainer.eval_dataset) if d is not None]
    rows = [row for dataset in datasets for row in dataset]
    names = [pair_sha256(row) for row in rows]
    # Longest first: a lack of memory shows at once, and little is padded.
    pairs = dict(sorted(zip(names, rows, strict=True), key=lambda each: -row_length(each[1])))
    known = store.read()
    mine = list(pairs)[rank() :: world_size()]
    new = [(name, pairs[name]) for name in mine if name not in known]
    if new:
        emit("phase", phase="reference")
    known |= _compute(trainer, store, new, len(mine), emit)
    if world_size() > 1:
        from accelerate.utils import gather_object

        # Each for its own share: the others may have read other files than this one.
        for part in gather_object([{name: known[name] for name in mine}]):
            known |= part
    _give(trainer, known)
    emit("reference", pairs=len(pairs), computed=len(new))
    if new:
        emit("phase", phase="train")


def _sees_all(trainer: Any) -> bool:
    """Tell whether training comes to every pair at least once."""
    args = trainer.args
    if args.max_steps <= 0:
        return bool(args.num_train_epochs >= 1)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    return bool(args.max_steps * batch >= len(trainer.train_dataset))


def _compute(
    trainer: Any, store: Store, new: list[tuple[str, Any]], share: int, emit: Emit
) -> dict[str, Sums]:
    """Return the sums of the new pairs; `share` is how many there are with those known."""
    args, found = trainer.args, dict[str, Sums]()
    most = float(args.per_device_train_batch_size * args.max_length)

    def cost(batch: list[tuple[str, Any]]) -> float:
        longest: int = min(max(row_length(row) for _, row in batch), args.max_length)
        return len(batch) * longest / most

    def one(batch: list[tuple[str, Any]]) -> list[None]:
        inputs = trainer._prepare_inputs(trainer.data_collator([row for _, row in batch]))
        sides = trainer.compute_ref_log_probs(trainer.model, inputs)
        sums = zip(*(side.float().tolist() for side in sides), strict=True)
        done = dict(zip((name for name, _ in batch), sums, strict=True))
        store.add(done)
        found.update(done)
        return [None] * len(batch)

    def progress(_: int) -> None:
        done = share - len(new) + len(found)
        emit("progress", phase="reference", done=done, total=share)

    with _evaluating(trainer.model):
        in_batches(new, BATCH_PAIRS, cost, one, store.say, progress)
    return found


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout, and as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with trainable(model):
            yield
    finally:
        model.train(was_training)


def _give(trainer: Any, known: Mapping[str, Sums]) -> None:
    """Put the sums where TRL looks for its own precomputed ones; drop its copy of the adapter."""

    def with_columns(dataset: Any) -> Any:
        sums = [known[pair_sha256(row)] for row in dataset]
        for side, column in enumerate(COLUMNS):
            dataset = dataset.add_column(column, [each[side] for each in sums])
        return dataset

    trainer.train_dataset = with_columns(trainer.train_dataset)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = with_columns(trainer.eval_dataset)
    trainer.precompute_ref_logps = True
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")  # nothing asks it any more
