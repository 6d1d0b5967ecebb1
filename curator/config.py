"""curator.toml: what a workspace is set to. Unknown names and wrong types are refused by name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from curator.errors import BadConfig
from curator.gates import GatesConfig
from curator.safe_text import one_line
from curator.verbs import with_keys
from trainer.contract import ContractError, GenerateSettings, TrainSettings, from_dict

FILE = "curator.toml"
DEFAULT_MODEL = "google/gemma-3-4b-it"


@dataclass(frozen=True)
class ModelConfig:
    """The model that is taught."""

    name: str = DEFAULT_MODEL
    """A folder (relative to the workspace), or an id in the local model cache."""
    quantization: Literal["nf4", "none"] = "nf4"


@dataclass(frozen=True)
class RoundConfig:
    """What a round asks of model and clinician."""

    prompts: int = 40
    """Prompts a round writes candidates for; those it was asked for least often come first."""
    first_strategy: Literal["contrast", "sample"] = "contrast"
    """How the base model's candidates are made: steered apart, for clear choices."""
    strategy: Literal["contrast", "sample"] = "sample"
    """How an adapter's are made: as it would really answer."""
    held_out_share: float = 0.2
    """Share of prompts never trained on, decided when a prompt is imported."""
    strength: Literal["any", "clear"] = "any"
    """clear: picks said to be slight are not trained on. DPO as TRL has it knows no weight a pair,
    so strength can only choose."""

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ContractError("round.prompts must be above 0.")
        if not 0 <= self.held_out_share < 1:
            raise ContractError("round.held_out_share must be at least 0 and below 1.")


@dataclass(frozen=True)
class JudgeConfig:
    """How the judge's seat behaves."""

    auto_advance: bool = True
    """A verdict shows the next pair at once. Off: the pair stays, for reasons, until enter."""
    red_flags: bool = False
    """Where a prompt has a risk cue, ask the rubric's red flags of both replies, yes or no."""
    repeat_share: float = 0.1
    """Share of judged pairs shown again later with sides swapped, to measure consistency."""
    calibration: int = 20
    """Pairs of the first round that every further annotator judges too, before all others."""
    break_minutes: int = 30
    """Suggest a pause after so long a sitting; 0: never."""
    theme: Literal["dark", "light", "high-contrast"] = "dark"

    def __post_init__(self) -> None:
        if not 0 <= self.repeat_share <= 1:
            raise ContractError("judge.repeat_share must be between 0 and 1.")
        if not 0 <= self.calibration <= 200:
            raise ContractError("judge.calibration must be between 0 and 200.")
        if self.break_minutes < 0:
            raise ContractError("judge.break_minutes must be at least 0.")


@dataclass(frozen=True)
class Config:
    """All of curator.toml."""

    seed: int = 0
    """Of every draw: sides, splits, sampling, training."""
    model: ModelConfig = field(default_factory=ModelConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    keys: Mapping[str, str] = field(default_factory=dict)
    """Other keys for the verbs of the judge's seat."""
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    gates: GatesConfig = field(default_factory=GatesConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ContractError(f"seed must be at least 0, and is {self.seed}.")
        if not all(isinstance(key, str) for key in self.keys.values()):
            raise ContractError('keys: a key is a text, such as "a" or "f5".')
        with_keys(self.keys)
        for strategy in (self.round.first_strategy, self.round.strategy):
            replace(self.generate, strategy=strategy)  # refused here, not when a round needs it


TEMPLATE = """\
# A curator workspace. Every setting and its default: README.md, section Settings.
seed = {seed}

[model]
name = {name}            # a folder, or an id in the local model cache
quantization = "nf4"

[round]
prompts = 40             # pairs a round asks you to judge, at most
held_out_share = 0.2     # prompts never trained on, to measure with
"""


def template(model: str, seed: int = 0) -> str:
    """Return a new workspace's curator.toml."""
    return TEMPLATE.format(name=json.dumps(model, ensure_ascii=False), seed=seed)


def load_config(path: Path) -> Config:
    """Read a curator.toml. Raises BadConfig naming the file and the setting."""
    try:
        return read_config(path.read_text(encoding="utf-8-sig"), path)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from None


def read_config(text: str, path: Path) -> Config:
    """Return the settings in the text of a curator.toml at `path`. Raises BadConfig."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
        if "strategy" in values.get("generate", ()):
            raise ContractError("generate.strategy is set by round.first_strategy and .strategy.")
        return from_dict(Config, values)
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise BadConfig(f"{path}: {one_line(str(error), 300)}") from None
