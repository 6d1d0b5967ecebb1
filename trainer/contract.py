"""The seam between curator and trainer: a run's folder and the files in it.

Standard library only, so that both sides, and anybody's script, can import it for nothing.

A run's folder holds, in the order they appear::

    request.json      what to do (this module's Request); written by whoever starts the run
    pairs.jsonl       preferences to train on, a row a line     (train, evaluate, round)
    prompts.jsonl     prompts to write candidates for           (generate, round, duel)
    measure.jsonl     prompts to sample replies for, to measure (generate, evaluate, round)
    probes.jsonl      client texts with two reference replies   (train, evaluate, round)
    drift.jsonl       held-out prompts to see drift on          (train, evaluate, round)
    events.jsonl      what is happening, an event a line, appended by trainer
    log.txt           what the libraries say
    checkpoints/      while it trains: what a killed run is gone on from
    trained.json      round: the manifest of its first half, before candidates are written
    candidates.jsonl, samples.jsonl, evaluation.jsonl, adapter/    results
    manifest.json     written last: without it the run is not finished

candidates.jsonl grows by whole lines while the run goes on; a reader may take what is there. What
trained.json names (the adapter, its evaluation) is whole and on the disk when it appears.

The errands pull, models, plan and rehearse need request.json alone; what they find is in the
manifest, under pulled, models, plan and rehearsal.

Paths in a request are relative to the run's folder, so that a workspace can be moved.

evaluation.jsonl has a row for each policy and thing measured; log-probabilities are natural and
summed over a reply's tokens (divide by the tokens for a length-normalised mean)::

    {"kind": "held_out", "policy", "id", "family", "margin", "chosen_logp", "rejected_logp",
     "chosen_tokens", "rejected_tokens", "chosen_logp_base", "rejected_logp_base"}
    {"kind": "probe", "policy", "id", "family", "probe", "conflict",
     "logps": {"boundary_aware": x, "collusive" or "over_corrected": y}, "tokens": {...}}
    {"kind": "reply", "policy", "prompt_id", "text", "tokens", "finish_reason", "kl"}

`margin` is beta times the DPO margin against the base; `kl` is KL(policy || base) in nats, the
mean over the reply's tokens and the one that ends it, null for the base.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1

# The first six do a run's work; the others are errands that belong to no study.
Action = Literal[
    "train", "evaluate", "generate", "round", "duel", "merge",
    "pull", "models", "plan", "rehearse",
]  # fmt: skip
Strategy = Literal["contrast", "sample"]
Message = dict[str, str]
T = typing.TypeVar("T")

REQUEST = "request.json"
PAIRS = "pairs.jsonl"
PROMPTS = "prompts.jsonl"
MEASURE = "measure.jsonl"
PROBES = "probes.jsonl"
DRIFT = "drift.jsonl"
CANDIDATES = "candidates.jsonl"
SAMPLES = "samples.jsonl"
EVALUATION = "evaluation.jsonl"
EVENTS = "events.jsonl"
LOG = "log.txt"
LOCK = "trainer.lock"
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
TRAINED = "trained.json"
ADAPTER_CARD = "curator_adapter.json"

# Policies: the model without an adapter, with the run's own, with the one it is compared with.
BASE, ADAPTER, COMPARE = "base", "adapter", "compare"

# TRL 1.16's DPO losses that have been tried here with human labels; `sft` only beside another.
LOSSES = ("sigmoid", "sigmoid_norm", "ipo", "robust", "apo_zero", "sft")

# The fewest preferences a round is run on, and the fewest held-out ones it is evaluated on.
FEWEST_PREFERENCES = 8
FEWEST_HELD_OUT = 4
# The fewest held-out preferences to stop a training early by.
FEWEST_TO_STOP = 20
# The flip rate the robust loss assumes where none was measured.
ASSUMED_FLIPS = 0.1

# How the three steering prompts of the `contrast` strategy read. They are put before the
# conversation while a candidate is written and are no part of the preference it ends up in.
STEERS: dict[str, str] = {
    "agreeable": (
        "Be warm and supportive: agree with the client, confirm that they see it rightly and "
        "encourage their plan. Answer in three short sentences."
    ),
    "boundaried": (
        "Be warm: validate the feeling, not the conclusion, the blame or the plan. Stay curious, "
        "notice risk, leave the choice with the client. Answer in three short sentences."
    ),
    "cold": (
        "Be correct and detached: doubt the client's account, say what is wrong with it and what "
        "to do instead. Answer in three short sentences."
    ),
}


class ContractError(ValueError):
    """A file of the run's folder is not what this module says it is."""


@dataclass(frozen=True)
class TrainSettings:
    """How a round is trained. Names are TRL's and PEFT's where these have one.

    The defaults are for tens to hundreds of human preferences and a 1B to 4B model.
    """

    beta: float = 0.1
    """Pull towards the reference model; TRL's default."""
    learning_rate: float = 5e-5
    """Above TRL's 1e-5 for adapters, which is meant for thousands of pairs: Adam moves a weight
    by at most about this much a step, and a round of 40 to 300 pairs has 15 to 120 steps."""
    epochs: float = 3.0
    """Passes over the preferences."""
    batch_size: int = 1
    """Pairs a device holds at once."""
    gradient_accumulation: int = 8
    """Batches an optimiser step adds up."""
    max_steps: int | None = None
    """Stop after this many optimiser steps; none: by epochs."""
    max_length: int = 512
    """Tokens of prompt and reply together; a longer reply loses its end."""
    loss: tuple[str, ...] = ("sigmoid", "sft")
    """TRL loss types, added up."""
    loss_weights: tuple[float, ...] = (1.0, 0.1)
    """Weight of each loss. A little `sft` keeps the chosen replies likely: DPO alone may lower
    both (iterative RPO, arXiv 2404.19733, calls the term crucial)."""
    label_smoothing: float | None = None
    """Share of flipped labels that the `robust` loss assumes; the other losses have no such thing.
    None: 0.1 (curator gives what it measured on repeated pairs)."""
    early_stopping_patience: int = 0
    """Stop once the loss on held-out preferences has not fallen for so many evaluations (one
    every `save_steps`); 0: never. Needs FEWEST_TO_STOP held-out preferences, else it is passed
    over and told. What was looked at to stop is a rosier measure afterwards."""
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises."""
    scheduler: str = "linear"
    """A transformers learning-rate schedule."""
    optimizer: str = "auto"
    """A transformers optimiser name; `auto`: adamw_8bit on a GPU, adamw_torch on a CPU."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory; none: on a GPU only."""
    save_steps: int = 5
    """Optimiser steps between two checkpoints: what a killed run loses at most. 0: none."""
    strategy: Literal["anchored", "chained"] = "anchored"
    """anchored: a fresh LoRA on the base, the base as reference, all preferences so far.
    chained: goes on with the request's `adapter`, a frozen copy of it as reference."""
    activation_offloading: bool = False
    """Keep the layers' checkpoints in host memory between the passes (TRL's option; CUDA only)."""
    held_out_share: float = 0.2
    """Share of prompts kept from training when the rows carry no `split`."""

    def __post_init__(self) -> None:
        _positive(self, "beta", "learning_rate", "epochs", "batch_size", "gradient_accumulation")
        _positive(self, "max_length", "lora_rank", "lora_alpha")
        _share(self, "lora_dropout", "warmup_ratio", "held_out_share")
        unknown = [name for name in self.loss if name not in LOSSES]
        if unknown or not self.loss:
            raise ContractError(f"train.loss is {list(self.loss)}; known: {', '.join(LOSSES)}.")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.loss_weights):
            raise ContractError("train.loss_weights must be numbers of at least 0.")
        if len(self.loss) != len(self.loss_weights):
            raise ContractError(
                f"train.loss_weights has {len(self.loss_weights)} numbers for "
                f"{len(self.loss)} losses in train.loss; give one for each."
            )
        if set(self.loss) == {"sft"}:
            raise ContractError("train.loss is sft alone, which learns no preference: add one.")
        if len(set(self.loss)) != len(self.loss):
            raise ContractError(f"train.loss names one twice: {', '.join(self.loss)}.")
        if self.label_smoothing is not None:
            if not 0 <= self.label_smoothing < 0.5:
                raise ContractError("train.label_smoothing must be at least 0 and below 0.5.")
            if self.label_smoothing and "robust" not in self.loss:
                raise ContractError(
                    "train.label_smoothing acts on the robust loss alone, and train.loss is "
                    f"{', '.join(self.loss)}. Leave it out, or use robust."
                )
        if self.early_stopping_patience < 0:
            raise ContractError("train.early_stopping_patience must be at least 0 (0: never).")
        if self.early_stopping_patience and not self.save_steps:
            raise ContractError(
                "train.early_stopping_patience needs train.save_steps: it looks as often."
            )
        if self.save_steps < 0:
            raise ContractError("train.save_steps must be at least 0 (0: no checkpoints).")
        if self.max_steps is not None and self.max_steps < 1:
            raise ContractError("train.max_steps must be above 0.")


@dataclass(frozen=True)
class GenerateSettings:
    """How candidates are written."""

    strategy: Strategy = "contrast"
    """contrast: two replies a prompt under two different steering prompts.
    sample: `samples` replies a prompt from the model as it is; curator pairs two of them."""
    samples: int = 4
    """Replies a prompt with `sample`."""
    max_new_tokens: int = 200
    max_prompt_tokens: int = 2048
    """A longer prompt is left out and counted: its attention alone could fill the memory."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """None of the three: as the model's generation_config.json has it, else 0.9, 0.95 and 64."""
    batch_size: int | None = None
    """Replies written at once; none: 64 for a model under 100 M parameters, else 8."""
    steers: Mapping[str, str] = field(default_factory=lambda: dict(STEERS))

    def __post_init__(self) -> None:
        _positive(self, "samples", "max_new_tokens", "max_prompt_tokens")
        if self.temperature is not None:
            _positive(self, "temperature")
        if self.top_k is not None and self.top_k < 0:
            raise ContractError("generate.top_k must be at least 0 (0: no limit).")
        if self.batch_size is not None and self.batch_size < 1:
            raise ContractError("generate.batch_size must be above 0.")
        if not all(isinstance(text, str) for text in self.steers.values()):
            raise ContractError("generate.steers must be texts.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ContractError("generate.top_p must be above 0 and at most 1.")
        if self.strategy == "sample" and self.samples < 2:
            raise ContractError("generate.samples must be at least 2: a pair needs two replies.")
        if self.strategy == "contrast" and not set(STEERS) <= set(self.steers):
            raise ContractError(f"generate.steers needs {', '.join(STEERS)}.")


@dataclass(frozen=True)
class Request:
    """What a run is asked to do; the whole of request.json."""

    action: Action
    model: str
    """A folder (absolute, or as seen from where the trainer is started), or an id that is in the
    local model cache."""
    seed: int = 0
    quantization: Literal["nf4", "none"] = "nf4"
    adapter: str | None = None
    """Folder of the adapter to generate or evaluate with, relative to the run's folder; a duel's
    first side; with train.strategy chained, the adapter to go on with. None: the base model."""
    adapter_sha256: str | None = None
    """SHA-256 its weights must have; none: as the folder's own card says."""
    compare: str | None = None
    """Folder of the adapter to compare with (the one in use), relative to the run's folder; a
    duel's second side. None: no comparison, or in a duel the base model."""
    compare_sha256: str | None = None
    """As adapter_sha256."""
    output_adapter: str = "adapter"
    """Where train and round publish the new adapter, relative to the run's folder."""
    output: str | None = None
    """merge: the folder to make, relative to the run's folder, or absolute."""
    form: Literal["merged", "ollama"] = "merged"
    """merge: ollama puts a Modelfile into it."""
    card: str | None = None
    """merge: the text of its README.md; none: a short one."""
    pairs: str = PAIRS
    prompts: str = PROMPTS
    measure: str | None = None
    """Prompts to sample `measure_samples` replies each for, without a steer; none: skip."""
    measure_samples: int = 1
    probes: str | None = None
    """Probes to score when evaluating; none: skip."""
    drift: str | None = None
    """Held-out prompts to answer once by every policy when evaluating; none: skip."""
    train: TrainSettings = field(default_factory=TrainSettings)
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    vram: int | None = None
    """plan, models, rehearse: bytes of GPU memory to plan for; none: what this machine has."""
    layers: int | None = None
    """rehearse: make only so many layers; none: all."""
    run: str = ""
    """A name for people."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ContractError(
                f"the request has schema {self.schema}; this trainer reads schema {SCHEMA}. "
                "Use the trainer that came with the curator that wrote it."
            )
        if not self.model and self.action != "models":
            raise ContractError("model is empty; name a model folder or an id.")
        if self.action == "duel" and self.adapter is None and self.compare is None:
            raise ContractError("a duel needs adapter, compare, or both; both are missing.")
        _positive(self, "measure_samples")
        for name in ("vram", "layers"):
            if getattr(self, name) is not None:
                _positive(self, name)
        if not 0 <= self.seed < 2**32:
            raise ContractError(f"seed must be between 0 and 2**32 - 1, and is {self.seed}.")


def _positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not math.isfinite(value) or value <= 0:
            raise ContractError(f"{name} must be above 0, and is {value}.")


def _share(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < 1:
            raise ContractError(f"{name} must be at least 0 and below 1, and is {value}.")


# --- reading and writing the request ----------------------------------------------------------


def to_json(value: Any) -> Any:
    """Return a dataclass (or a plain value) as JSON-ready dicts and lists."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _brief(value: Any) -> str:
    """Return a value as JSON has it, or as Python has it, cut short."""
    try:
        return json.dumps(value)[:60]
    except (TypeError, ValueError):
        return repr(value)[:60]


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as the annotated type `kind`, or raise a ContractError that says where."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            known = " or ".join(map(str, arguments))
            raise ContractError(f"{where} is {_brief(value)}; it is {known}.")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], each, where) for each in value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ContractError(f"{where} is too large a number.") from None
    wanted = origin or kind
    if (isinstance(value, bool) and wanted is not bool) or not isinstance(value, wanted):
        name = getattr(kind, "__name__", str(kind))
        raise ContractError(f"{where} is {_brief(value)}; it must be {name}.")
    return value


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Build a dataclass from a dict, refusing unknown names and wrong types by name.

    Raises ContractError.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in fields:
            raise ContractError(f"{prefix}{name} is not known; known: {', '.join(sorted(fields))}.")
    try:
        return cls(**{n: _convert(hints[n], v, prefix + n) for n, v in values.items()})
    except TypeError as error:
        raise ContractError(f"{where or 'request'}: {error}") from None


def write_request(folder: Path, request: Request) -> Path:
    """Write request.json into the run's folder and return its path."""
    return write_whole(folder / REQUEST, json.dumps(to_json(request), indent=1, ensure_ascii=False))


def read_request(folder: Path) -> Request:
    """Read request.json. Raises ContractError naming the file and what is wrong in it."""
    path = folder / REQUEST
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ContractError("it is no JSON object.")
        return from_dict(Request, values)
    except FileNotFoundError:
        raise ContractError(
            f"{path}: not found. A run's folder needs one; the least is "
            '{"action": "train", "model": "PATH"}.'
        ) from None
    except ValueError as error:
        raise ContractError(f"{path}: {error}") from None


# --- rows, a JSON object a line ----------------------------------------------------------------


def write_whole(path: Path, text: str) -> Path:
    """Write a file so that a reader sees all of it or none; flushed to the disk.

    A write that fails leaves nothing behind.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows a line each, whole or not at all; return how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_whole(path, "".join(line + "\n" for line in lines))
    return len(lines)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row). Blank lines are passed over.

    Raises ContractError naming path and line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ContractError(f"{path}: {error.strerror or error}.") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise ContractError(f"{path}, line {number}: not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise ContractError(f"{path}, line {number}: not a JSON object.")
            yield number, row


def check_messages(value: Any, roles: tuple[str, ...], where: str) -> list[Message]:
    """Return `value` as chat messages whose last role is in `roles`. Raises ContractError."""
    if not isinstance(value, list) or not value:
        raise ContractError(f"{where} must be a list of messages.")
    for message in value:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise ContractError(f'{where}: a message is {{"role": "user", "content": "text"}}.')
    if value[-1]["role"] not in roles:
        raise ContractError(f"{where} must end with {' or '.join(roles)}.")
    return [{"role": m["role"], "content": m["content"]} for m in value]


# --- events and the manifest --------------------------------------------------------------------


def append_event(folder: Path, event: str, **values: Any) -> dict[str, Any]:
    """Append one event to events.jsonl and return it as written.

    One write of one line, so a reader never sees half an event joined to another.
    """
    row = {"event": event, "time": time.time(), **{n: _number(v) for n, v in values.items()}}
    line = json.dumps(row, ensure_ascii=False) + "\n"
    with (folder / EVENTS).open("ab") as file:
        file.write(line.encode("utf-8"))
    return row


def _number(value: Any) -> Any:
    """Return null for what is not a number: NaN and infinity are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the whole events after byte `offset`, and the offset to go on from."""
    try:
        with (folder / EVENTS).open("rb") as file:
            file.seek(offset)
            block = file.read()
    except FileNotFoundError:
        return [], offset
    end = block.rfind(b"\n") + 1
    events = []
    for line in block[:end].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events, offset + end


def write_manifest(folder: Path, manifest: Mapping[str, Any], name: str = MANIFEST) -> None:
    """Write manifest.json: the last act of a run, after every result is on the disk."""
    write_whole(folder / name, json.dumps(manifest, indent=1, ensure_ascii=False))


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """Return the manifest, or None when the run (or, for TRAINED, its first half) has not ended."""
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ContractError(f"{folder / name}: not JSON ({error}).") from None
    if not isinstance(manifest, dict):
        raise ContractError(f"{folder / name}: not a JSON object.")
    return manifest


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_rows(rows: Iterable[Any]) -> str:
    """Return the SHA-256 of rows in canonical JSON (sorted keys, no spaces), in hexadecimal."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON that is the same for equal values: sorted keys, no spaces, no escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
