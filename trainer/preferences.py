"""Preference rows: read from outside, checked, and split by prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import (
    FEWEST_HELD_OUT,
    FEWEST_PREFERENCES,
    ContractError,
    TrainSettings,
    canonical_json,
    check_messages,
    read_rows,
    sha256_rows,
)


@dataclass(frozen=True)
class Preferences:
    """Preference rows, split by prompt; each row is TRL's conversational prompt/chosen/rejected.

    Held-out rows keep the id and family they came with (or None) beside it.
    """

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    identical: int
    sha256: str


def read_preferences(
    path: Path, settings: TrainSettings, seed: int, trains: bool = True
) -> Preferences:
    """Read and split preference rows.

    Rows keep the `split` they carry (train, held_out). If none carries one, `held_out_share` of
    the *prompts* are held out by a seeded draw, so that no prompt is on both sides. A row whose
    two replies are equal is dropped and counted. Raises ContractError naming path and line, or
    saying that the preferences are too few.
    """
    rows: list[dict[str, Any]] = []
    splits: list[str | None] = []
    names: list[dict[str, str | None]] = []
    identical = 0
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        checked = {
            "prompt": check_messages(row.get("prompt"), ("user",), f"{where}: prompt"),
            "chosen": check_messages(row.get("chosen"), ("assistant",), f"{where}: chosen"),
            "rejected": check_messages(row.get("rejected"), ("assistant",), f"{where}: rejected"),
        }
        if row.get("split") not in (None, "train", "held_out"):
            raise ContractError(f"{where}: split is {row['split']!r}; it is train or held_out.")
        if checked["chosen"] == checked["rejected"]:
            identical += 1
            continue
        rows.append(checked)
        splits.append(row.get("split"))
        names.append({name: _name(row.get(name)) for name in ("id", "family")})
    if trains and len(rows) < FEWEST_PREFERENCES:
        raise ContractError(
            f"{path}: {len(rows)} preferences; a round needs at least {FEWEST_PREFERENCES}. "
            "Judge more pairs first."
        )
    if not any(splits):
        splits = list(_draw_split(rows, settings.held_out_share, seed))
    elif not all(splits):
        raise ContractError(f"{path}: some rows have a split and some have none. Give all one.")
    _check_apart(path, rows, splits)
    train = [row for row, split in zip(rows, splits, strict=True) if split != "held_out"]
    held_out = [
        {**row, **name}
        for row, name, split in zip(rows, names, splits, strict=True)
        if split == "held_out"
    ]
    if trains and not train:
        raise ContractError(f"{path}: every row is held out; none is left to train on.")
    return Preferences(train, held_out, identical, sha256_rows(rows))


def _name(value: Any) -> str | None:
    """Return an id or family from outside as a text that can be written, or None."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text.encode("utf-8", "replace").decode() or None


def _check_apart(path: Path, rows: list[dict[str, Any]], splits: list[str | None]) -> None:
    side_of: dict[str, str | None] = {}
    for row, split in zip(rows, splits, strict=True):
        if side_of.setdefault(canonical_json(row["prompt"]), split) != split:
            raise ContractError(
                f"{path}: one prompt is in train and in held_out; split by prompt, not by row."
            )


def _draw_split(rows: list[dict[str, Any]], share: float, seed: int) -> list[str]:
    prompts = sorted({canonical_json(row["prompt"]) for row in rows})
    random.Random(seed).shuffle(prompts)
    held_out = set(prompts[: round(share * len(prompts))])
    return ["held_out" if canonical_json(r["prompt"]) in held_out else "train" for r in rows]


def held_out_note(n: int, prompts: int, trained: bool = True) -> str | None:
    """Return why n held-out preferences are not summed up, or None when they are.

    `trained`: whether the run has trained what it measures.
    """
    if prompts >= FEWEST_HELD_OUT:
        return None
    of_few = "" if n < FEWEST_HELD_OUT else f" to {prompts} prompts"
    what = "trained without evaluation" if trained else "no held-out accuracy"
    return (
        f"{what}: {n} held-out preferences{of_few}, and fewer than {FEWEST_HELD_OUT} tell nothing."
    )
