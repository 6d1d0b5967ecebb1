"""The names of a run's files and actions, and the bounds both sides know."""

from __future__ import annotations

from typing import Literal

SCHEMA = 1

# The first six do a run's work; the others are errands that belong to no study.
Action = Literal[
    "train", "evaluate", "generate", "round", "duel", "merge",
    "pull", "models", "plan", "rehearse",
]  # fmt: skip
Strategy = Literal["contrast", "sample"]
Message = dict[str, str]

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
# PEFT's own names of an adapter's two files.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

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
