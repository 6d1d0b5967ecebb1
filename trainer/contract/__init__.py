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

from trainer.contract.files import (
    append_event,
    canonical_json,
    check_messages,
    read_events,
    read_manifest,
    read_rows,
    sha256_file,
    sha256_rows,
    sha256_text,
    write_manifest,
    write_rows,
    write_whole,
)
from trainer.contract.names import (
    ADAPTER,
    ADAPTER_CARD,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ASSUMED_FLIPS,
    BASE,
    CANDIDATES,
    CHECKPOINTS,
    COMPARE,
    DRIFT,
    EVALUATION,
    EVENTS,
    FEWEST_HELD_OUT,
    FEWEST_PREFERENCES,
    FEWEST_TO_STOP,
    LOCK,
    LOG,
    LOSSES,
    MANIFEST,
    MEASURE,
    PAIRS,
    PROBES,
    PROMPTS,
    REQUEST,
    SAMPLES,
    SCHEMA,
    STEERS,
    TRAINED,
    Action,
    ContractError,
    Message,
    Strategy,
)
from trainer.contract.request import (
    Request,
    from_dict,
    read_request,
    to_json,
    write_request,
)
from trainer.contract.settings import (
    GenerateSettings,
    TrainSettings,
)

__all__ = [
    "ADAPTER",
    "ADAPTER_CARD",
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "ASSUMED_FLIPS",
    "BASE",
    "CANDIDATES",
    "CHECKPOINTS",
    "COMPARE",
    "DRIFT",
    "EVALUATION",
    "EVENTS",
    "FEWEST_HELD_OUT",
    "FEWEST_PREFERENCES",
    "FEWEST_TO_STOP",
    "LOCK",
    "LOG",
    "LOSSES",
    "MANIFEST",
    "MEASURE",
    "PAIRS",
    "PROBES",
    "PROMPTS",
    "REQUEST",
    "SAMPLES",
    "SCHEMA",
    "STEERS",
    "TRAINED",
    "Action",
    "ContractError",
    "GenerateSettings",
    "Message",
    "Request",
    "Strategy",
    "TrainSettings",
    "append_event",
    "canonical_json",
    "check_messages",
    "from_dict",
    "read_events",
    "read_manifest",
    "read_request",
    "read_rows",
    "sha256_file",
    "sha256_rows",
    "sha256_text",
    "to_json",
    "write_manifest",
    "write_request",
    "write_rows",
    "write_whole",
]
