"""What every policy says of held-out preferences, probes and held-out prompts.

The figures taken from it (rates, differences, gates) are curator's; here only held-out accuracy
and margin are summed up, each with n and an interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import generate
from trainer.contract import (
    ADAPTER,
    BASE,
    EVALUATION,
    ContractError,
    Message,
    Request,
    canonical_json,
    sha256_file,
    sha256_text,
)
from trainer.intervals import effective_size, mean_interval, wilson_interval
from trainer.model import fit_messages, has_system_role
from trainer.probes import Probe, check_apart, completion, probe_groups, read_probes
from trainer.scoring import Completion, Group, Scorer, kl_to_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainer.dpo import Emit
    from trainer.policies import Policies

Row = dict[str, Any]
Progress = Callable[[int], None]
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Inputs:
    """What a run is evaluated on; read and checked before any weights are loaded."""

    held_out: list[Row] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    drift: list[tuple[str, list[Message]]] = field(default_factory=list)
    probes_sha256: str | None = None
    drift_sha256: str | None = None


def read_inputs(folder: Path, request: Request, train: list[Row], held_out: list[Row]) -> Inputs:
    """Read the probes and drift prompts that the request names.

    Raises ContractError naming file and line, or the probe that is among the preferences.
    """
    probes: list[Probe] = []
    drift: list[tuple[str, list[Message]]] = []
    probes_sha256 = drift_sha256 = None
    if request.probes is not None:
        path = folder / request.probes
        probes = read_probes(path)
        check_apart(probes, [*train, *held_out], folder / request.pairs)
        probes_sha256 = sha256_file(path)
    if request.drift is not None:
        drift = generate.read_prompts(folder / request.drift)
        drift_sha256 = sha256_file(folder / request.drift)
    return Inputs(held_out, probes, drift, probes_sha256, drift_sha256)


# --- held-out preferences -----------------------------------------------------------------------


def held_out_groups(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int
) -> tuple[list[tuple[Row, Group]], int]:
    """Return each row with its tokens, chosen then rejected, cut at `max_length`.

    Beside it, how many rows are left out because their prompt fills it, as TRL does.
    """
    system_role = has_system_role(tokenizer)
    groups: list[tuple[Row, Group]] = []
    for row in rows:
        prompt = fit_messages(row["prompt"], None, system_role)
        group = tuple(completion(tokenizer, prompt, row[side], max_length) for side in SIDES)
        if all(each.start < len(each.ids) for each in group):
            groups.append((row, group))
    return groups, len(rows) - len(groups)


def held_out_rows(
    policies: Policies,
    scorer: Scorer,
    groups: list[tuple[Row, Group]],
    beta: float,
    progress: Progress = lambda done: None,
) -> list[Row]:
    """Return a row for each policy but the base and each preference, with its DPO margin.

    Margin: beta * ((chosen - reference) - (rejected - reference)) of summed log-probabilities,
    the reference being the base. Rafailov et al. 2023, eq. 7.
    """
    rows: list[Row] = []
    if policies.names == (BASE,):
        return rows
    tokens = [group for _, group in groups]
    with policies.using(BASE):
        base = [[math.fsum(side) for side in pair] for pair in scorer.score(tokens, progress)]
    for name in policies.names[1:]:
        with policies.using(name):
            scored = scorer.score(tokens, progress)
        for (row, _), pair, (chosen_base, rejected_base) in zip(groups, scored, base, strict=True):
            chosen, rejected = (math.fsum(side) for side in pair)
            rows.append({
                "kind": "held_out", "policy": name,
                "id": row.get("id"), "family": row.get("family"),
                "prompt_sha256": sha256_text(canonical_json(row["prompt"])),
                "margin": beta * ((chosen - chosen_base) - (rejected - rejected_base)),
                "chosen_logp": chosen, "rejected_logp": rejected,
                "chosen_tokens": len(pair[0]), "rejected_tokens": len(pair[1]),
                "chosen_logp_base": chosen_base, "rejected_logp_base": rejected_base,
            })  # fmt: skip
    return rows


def summarise_margins(rows: list[Row]) -> dict[str, Any]:
    """Return accuracy and mean margin under TRL's names, with n and 95 % intervals.

    `rows` are one policy's of `held_out_rows`, to at least 4 prompts; those to one prompt count as
    what they are worth together.
    """
    margins, prompts = ([row[name] for row in rows] for name in ("margin", "prompt_sha256"))
    n = len(rows)
    hits = [float(margin > 0) for margin in margins]
    worth = effective_size(hits, prompts)
    right = sum(hits)
    return {
        "n": n,
        "prompts": len(set(prompts)),
        "rewards/accuracies": right / n,
        "rewards/accuracies_interval": list(wilson_interval(right / n * worth, worth)),
        "rewards/margins": sum(margins) / n,
        "rewards/margins_interval": list(mean_interval(margins, prompts)),
    }


# --- probes and drift ---------------------------------------------------------------------------


def probe_rows(
    policies: Policies,
    scorer: Scorer,
    groups: list[tuple[Probe, Group]],
    progress: Progress = lambda done: None,
) -> list[Row]:
    """Return a row for each policy and probe: summed log-probability and tokens of each reply."""
    rows: list[Row] = []
    for name in policies.names:
        with policies.using(name):
            scored = scorer.score([group for _, group in groups], progress)
        for (probe, _), replies in zip(groups, scored, strict=True):
            rows.append({
                "kind": "probe", "policy": name, "id": probe.id, "family": probe.family,
                "probe": probe.kind, "conflict": probe.conflict,
                "logps": {n: math.fsum(s) for n, s in zip(probe.replies, replies, strict=True)},
                "tokens": {n: len(s) for n, s in zip(probe.replies, replies, strict=True)},
            })  # fmt: skip
    return rows


def reply_rows(
    policies: Policies,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    jobs: list[generate.Job],
    request: Request,
    progress: Progress = lambda done: None,
) -> list[Row]:
    """Return a sampled reply for each policy and prompt, with its mean per-token KL to the base.

    Every policy draws from the same seeds. Progress counts a reply, and a KL where there is one.
    """
    rows: list[Row] = []
    for name in policies.names:
        replies: list[generate.Reply] = []
        with policies.using(name):
            batches = generate.sample(
                policies.model, tokenizer, jobs, request.generate, request.seed, say=scorer.say
            )
            for batch in batches:
                replies += batch
                progress(len(batch))
        drift: list[float | None] = [None] * len(replies)
        if name != BASE:
            written = [Completion(r.prompt_ids + r.ids, len(r.prompt_ids)) for r in replies]
            drift[:] = kl_to_base(policies, name, written, scorer, progress)
        rows += [
            {
                "kind": "reply", "policy": name, "prompt_id": reply.job.prompt_id,
                "text": reply.text, "tokens": reply.tokens,
                "finish_reason": reply.finish_reason, "kl": kl,
            }
            for reply, kl in zip(replies, drift, strict=True)
        ]  # fmt: skip
    return rows


# --- all of it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """The rows of evaluation.jsonl, and what the manifest says of them."""

    rows: list[Row]
    summary: dict[str, Any]

    def held_out(self) -> list[Row]:
        """Return the held-out rows of the run's own adapter."""
        return [r for r in self.rows if r["kind"] == "held_out" and r["policy"] == ADAPTER]


def evaluate(
    policies: Policies,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    request: Request,
    emit: Emit,
) -> Evaluation:
    """Measure every policy on the inputs. Raises ContractError when a figure is no number.

    Prompts that are too long are left out and said, in a warning event each kind.
    """
    work = _prepare(tokenizer, inputs, request, emit)
    scorer = Scorer(
        policies.model, partial(_warn, emit), request.generate.batch_size,
        share=request.train.prefix_sharing,
    )  # fmt: skip
    progress = _counted(work.units(len(policies.names)), emit)
    seconds: dict[str, float] = {}
    rows: dict[str, list[Row]] = {}

    def timed(name: str, measure: Callable[..., list[Row]], *arguments: Any) -> None:
        start = time.monotonic()
        rows[name] = measure(policies, scorer, *arguments, progress)
        seconds[name] = round(time.monotonic() - start, 3)

    timed("held_out", held_out_rows, work.held_out, request.train.beta)
    timed("probes", probe_rows, work.probes)
    timed("replies", reply_rows, tokenizer, work.drift, request)
    found = [row for part in rows.values() for row in part]
    _check_numbers(found)
    sha256 = inputs.drift_sha256
    return Evaluation(found, {
        "path": EVALUATION, "policies": list(policies.names),
        **{name: len(part) for name, part in rows.items()},
        "probes_sha256": inputs.probes_sha256,
        "drift": {"prompts": len(work.drift), "sha256": sha256} if sha256 else None,
        "left_out": work.left_out, "shared_prompts": scorer.shares, "seconds": seconds,
    })  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What is to be scored and answered, as tokens and jobs."""

    held_out: list[tuple[Row, Group]]
    probes: list[tuple[Probe, Group]]
    drift: list[generate.Job]
    left_out: dict[str, int]

    def units(self, policies: int) -> int:
        """Return how many groups are scored, replies written and drifts measured in all."""
        pairs = policies * len(self.held_out) if policies > 1 else 0
        return pairs + policies * len(self.probes) + (2 * policies - 1) * len(self.drift)


def _prepare(
    tokenizer: PreTrainedTokenizerBase, inputs: Inputs, request: Request, emit: Emit
) -> Prepared:
    limit = request.generate.max_prompt_tokens
    pairs, long_pairs = held_out_groups(tokenizer, inputs.held_out, request.train.max_length)
    probes, long_probes = probe_groups(tokenizer, inputs.probes, limit)
    drift, long_drift = generate.short_enough(
        tokenizer, generate.plain_jobs(inputs.drift), request.generate
    )
    for count, said in (
        (long_pairs, "held-out prompts fill max_length"),
        (long_probes, "probes are too long to score"),
        (long_drift, "drift prompts are too long to answer"),
    ):
        if count:
            _warn(emit, f"{count} {said}; left out.")
    left_out = {"held_out": long_pairs, "probes": long_probes, "drift": long_drift}
    return Prepared(pairs, probes, drift, left_out)


def _warn(emit: Emit, message: str) -> None:
    emit("warning", message=message)


def _counted(total: int, emit: Emit) -> Progress:
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        emit("progress", phase="evaluate", done=done, total=total)

    return progress


def _check_numbers(rows: list[Row]) -> None:
    for row in rows:
        figures = [*row.values(), *row.get("logps", {}).values()]
        if any(isinstance(value, float) and not math.isfinite(value) for value in figures):
            raise ContractError(
                f"the policy {row['policy']} gives figures that are no numbers: its weights are "
                "damaged, or were trained with too high a train.learning_rate."
            )
