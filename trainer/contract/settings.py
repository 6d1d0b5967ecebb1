"""How a round is trained and how candidates are written: defaults, reasons, bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainer.contract.names import LOSSES, STEERS, ContractError, Strategy


def positive(settings: object, *names: str) -> None:
    """Refuse, with a ContractError, a setting that is not a number above 0."""
    for name in names:
        value = getattr(settings, name)
        if not math.isfinite(value) or value <= 0:
            raise ContractError(f"{name} must be above 0, and is {value}.")


def share(settings: object, *names: str) -> None:
    """Refuse, with a ContractError, a setting that is not at least 0 and below 1."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < 1:
            raise ContractError(f"{name} must be at least 0 and below 1, and is {value}.")


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
    prefix_sharing: bool = True
    """Put what a pair's two replies begin with through the model once (trainer.prefix_sharing):
    the same numbers, with less to compute the longer the prompt. False: twice, as stock TRL."""
    completions_only: bool = True
    """Put only the replies' tokens through the head where TRL would put all (without Triton)."""
    host_embedding: bool | None = None
    """Keep a tied embedding in host memory and stream the head in tiles. None: where the plan
    finds the card too small; false: never. On a CPU it saves nothing, and works."""
    reference_once: bool = True
    """Compute the reference log-probabilities of a pair once, not at each of its steps; see the
    request's `reference_cache`."""
    held_out_share: float = 0.2
    """Share of prompts kept from training when the rows carry no `split`."""

    def __post_init__(self) -> None:
        positive(self, "beta", "learning_rate", "epochs", "batch_size", "gradient_accumulation")
        positive(self, "max_length", "lora_rank", "lora_alpha")
        share(self, "lora_dropout", "warmup_ratio", "held_out_share")
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
    share_prefix: bool = True
    """Compute a prompt once for all its replies in a batch, where the model's cache allows it."""
    steers: Mapping[str, str] = field(default_factory=lambda: dict(STEERS))

    def __post_init__(self) -> None:
        positive(self, "samples", "max_new_tokens", "max_prompt_tokens")
        if self.temperature is not None:
            positive(self, "temperature")
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
