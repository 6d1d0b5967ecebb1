"""A request: what a run is asked to do, as a dataclass and as request.json."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.contract.files import write_whole
from trainer.contract.names import PAIRS, PROMPTS, REQUEST, SCHEMA, Action, ContractError
from trainer.contract.settings import GenerateSettings, TrainSettings, positive

T = typing.TypeVar("T")


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
    reference_cache: str | None = None
    """Folder to keep reference log-probabilities in from run to run, relative to the run's folder;
    none: they are kept until the run is finished."""
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
        positive(self, "measure_samples")
        for name in ("vram", "layers"):
            if getattr(self, name) is not None:
                positive(self, name)
        if not 0 <= self.seed < 2**32:
            raise ContractError(f"seed must be between 0 and 2**32 - 1, and is {self.seed}.")


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
