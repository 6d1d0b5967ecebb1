"""What a training is given beside its rows: settings measured here, and a killed one's checkpoint.

Functions take a Session; none of them commits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from curator import store
from curator.errors import BadData, NotReady
from curator.models import Adapter, AnnotatorKind, Run, RunState
from curator.preferences import Preference
from curator.probes import index_probes, read_probes
from curator.repeats import repeated
from curator.statistics import flip_rate
from curator.workspace import Workspace
from trainer.contract import (
    CHECKPOINTS,
    FEWEST_PREFERENCES,
    PAIRS,
    PROBES,
    ContractError,
    Request,
    TrainSettings,
    check_messages,
    read_request,
    read_rows,
)


def check_enough(rows: Sequence[Mapping[str, Any]], left_out: Counter[str]) -> None:
    """Refuse to train on too little."""
    if len(rows) < FEWEST_PREFERENCES:
        raise NotReady(
            f"{len(rows)} preferences so far; a round needs at least {FEWEST_PREFERENCES}. "
            + _why_few(left_out)
        )


def check_apart(
    session: Session,
    workspace: Workspace,
    rows: Sequence[Mapping[str, Any]],
    measured: Sequence[str] = (),
) -> None:
    """Refuse to train on, or to measure by, what answers a probe or nearly. Raises BadData.

    `measured`: folders of adapters, as a request names them, that the probes are put to: what
    these learned may count no longer, and was learned all the same.
    """
    index, own = index_probes(read_probes(workspace.probes)), workspace.path / PROBES
    way = f"Take the probe out of {own}"
    if workspace.probes != own:
        way = f"Copy {workspace.probes} to {own}, without that probe"
    apart = f"what a model is measured with must not be what it learns from. {way}"
    for row in rows:
        if (probe := index.near(row["prompt"])) is not None:
            raise BadData(
                f"the preference {row['id']} answers the probe {probe}, or nearly: {apart}, or, "
                "while no adapter has learned from it, judge that pair again with a skip."
            )
    for adapter in _lineage(session, measured):
        for row in _taught(session, workspace, adapter):
            if (probe := index.near(row["prompt"])) is not None:
                raise BadData(
                    f"{adapter.name} has learned from an answer to the probe {probe}, or nearly: "
                    f"{apart}."
                )


def _lineage(session: Session, folders: Sequence[str]) -> list[Adapter]:
    """Return the adapters in these folders, and those that they went on from."""
    found: dict[int | None, Adapter] = {}
    for folder in folders:
        adapter = store.adapter_in(session, folder)
        while adapter is not None and adapter.id not in found:
            found[adapter.id] = adapter
            adapter = session.get(Adapter, adapter.parent_id) if adapter.parent_id else None
    return list(found.values())


def _taught(session: Session, workspace: Workspace, adapter: Adapter) -> list[dict[str, Any]]:
    """Return the preferences an adapter was trained on; none where its run's folder is gone."""
    run = session.exec(
        select(Run).where(Run.adapter_id == adapter.id, col(Run.action).in_(("train", "round")))
    ).first()
    path = workspace.runs / run.folder / PAIRS if run else None
    if path is None or not path.is_file():
        return []
    try:
        rows = [(n, row) for n, row in read_rows(path) if row.get("split") == "train"]
        for number, row in rows:
            check_messages(row.get("prompt"), ("user",), f"{path}, line {number}: prompt")
    except ContractError as error:
        raise BadData(f"{error} Put it back from a backup.") from None
    return [row for _, row in rows]


def _why_few(left_out: Counter[str]) -> str:
    if not left_out:
        return "Judge more pairs with: curator annotate"
    what = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in sorted(left_out.items()))
    return f"Not counted: {what}. Judge more pairs with: curator annotate"


def measured(
    session: Session, settings: TrainSettings, kinds: Iterable[AnnotatorKind]
) -> TrainSettings:
    """Return the settings, with the flip rate of these annotators where the robust loss asks.

    With too few repeats to measure it, or one set by hand, they are as they were.
    """
    if "robust" not in settings.loss or settings.label_smoothing is not None:
        return settings
    repeats, disagreeing = repeated(session, kinds)
    return replace(settings, label_smoothing=flip_rate(disagreeing, repeats))


def strong_enough(
    found: list[Preference], strength: str, left_out: Counter[str]
) -> list[Preference]:
    """Return the preferences to use; with `clear`, without slight ones to train on, counted.

    Held-out ones stay whatever their strength, so that figures of two settings compare.
    """
    if strength == "any":
        return found
    kept = [each for each in found if each.strength != 1 or each.split == "held_out"]
    if len(kept) < len(found):
        left_out["slightly"] += len(found) - len(kept)
    return kept


def to_go_on_from(
    session: Session,
    workspace: Workspace,
    request: Request,
    rows: Sequence[Mapping[str, Any]],
) -> tuple[Path, Request] | None:
    """Return the checkpoints of the last training, and the request with its seed, or None.

    Only where that one did not finish and was of the same model, settings and preferences; the
    trainer looks again, more closely, and verifies what it finds.
    """
    last = session.exec(
        select(Run)
        .where(col(Run.action).in_(("train", "round")))
        .order_by(col(Run.id).desc())
        .limit(1)
    ).first()
    if last is None or last.state not in (RunState.FAILED, RunState.CANCELLED):
        return None
    folder = workspace.runs / last.folder
    checkpoints = folder / CHECKPOINTS
    try:
        before = read_request(folder)
        same = _training(before) == _training(request) and any(checkpoints.glob("step-*"))
        same = same and [row for _, row in read_rows(folder / PAIRS)] == list(rows)
    except (ContractError, OSError):
        return None
    return (checkpoints, replace(request, seed=before.seed)) if same else None


def _training(request: Request) -> tuple[Any, ...]:
    """Return what of a request decides how it trains, but for the seed."""
    return request.model, request.quantization, request.train, request.adapter_sha256


def take_over(checkpoints: Path, folder: Path) -> None:
    """Move checkpoints into the folder of the run that goes on from them."""
    os.replace(checkpoints, folder / CHECKPOINTS)
