"""Rows of an evaluation.jsonl as trainer.contract's seam has them, written by the test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.contract import EVALUATION, write_rows

Row = dict[str, Any]


def held_out(name: str, margin: float, policy: str = "adapter", family: str | None = "F01") -> Row:
    return {
        "kind": "held_out", "policy": policy, "id": name, "family": family, "margin": margin,
        "chosen_logp": -20.0, "rejected_logp": -30.0, "chosen_tokens": 10, "rejected_tokens": 10,
        "chosen_logp_base": -25.0, "rejected_logp_base": -25.0,
    }  # fmt: skip


def probe(
    name: str,
    errs: bool,
    policy: str = "adapter",
    family: str = "F01",
    kind: str = "single",
    conflict: str | None = None,
) -> Row:
    wrong = "collusive" if family.startswith("F") else "over_corrected"
    # The wrong reply is twice as long: only a log-probability a token tells them apart.
    return {
        "kind": "probe", "policy": policy, "id": name, "family": family, "probe": kind,
        "conflict": conflict, "logps": {"boundary_aware": -20.0, wrong: -30.0 if errs else -60.0},
        "tokens": {"boundary_aware": 10, wrong: 20},
    }  # fmt: skip


def reply(
    name: str,
    text: str = "It sounds hard. What would help?",
    policy: str = "adapter",
    kl: float | None = 0.2,
) -> Row:
    return {
        "kind": "reply", "policy": policy, "prompt_id": name, "text": text, "tokens": 9,
        "finish_reason": "stop", "kl": None if policy == "base" else kl,
    }  # fmt: skip


def write(folder: Path, rows: list[Row]) -> Path:
    """Write the rows into a run's folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / EVALUATION, rows)
    return folder


def probes(
    policy: str, collusive: int, corrected: int, n: int = 60, family: str = "F01"
) -> list[Row]:
    """`n` probes of either kind over six families, of which so many err."""
    families = [f"F0{i % 6 + 1}" for i in range(n)]
    rows = [probe(f"f{i}", i < collusive, policy, families[i]) for i in range(n)]
    return rows + [probe(f"c{i}", i < corrected, policy, f"C0{i % 3 + 1}") for i in range(n)]
