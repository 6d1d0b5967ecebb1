"""The verbs of adapters: tell, accept, refuse, roll back.

Part of the workflow layer. At most one adapter is in use; those that were before are kept as
retired, the latest last, and rolling back takes them in that order, down to the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from curator import db, ingest, store
from curator.errors import BadData, NotReady
from curator.models import Adapter, AdapterStatus
from curator.safe_text import one_line
from curator.statistics import SIMULATED
from curator.store import BASE
from curator.workspace import Workspace

BY_HAND = "by hand"


@dataclass(frozen=True)
class Decided:
    """What a decision changed."""

    adapter: str
    status: str
    in_use: str
    """The adapter in use from now on, or `base`."""
    pairs: int = 0
    """Pairs of its replies that had been held back and are in the queue now."""
    passed_over: tuple[str, ...] = ()
    """Adapters that would have come back but are of another base; each with why, in words."""


def list_adapters(workspace: Workspace) -> list[dict[str, Any]]:
    """Return every adapter, the oldest first, with its figures and what the rules said."""
    with db.reading(workspace.engine) as session:
        return [_facts(each) for each in session.exec(select(Adapter).order_by(col(Adapter.id)))]


def show_adapter(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return one adapter's facts. Raises BadData when there is none of that name."""
    with db.reading(workspace.engine) as session:
        return _facts(_named(session, name))


def _facts(adapter: Adapter) -> dict[str, Any]:
    metrics = adapter.metrics or {}
    return {
        "adapter": adapter.name,
        "status": str(adapter.status),
        "reason": adapter.status_reason,
        "folder": adapter.folder,
        "base_model": adapter.base_model,
        "base_sha256": adapter.base_sha256,
        "sha256": adapter.sha256,
        "pairs_sha256": adapter.pairs_sha256,
        "created_at": adapter.created_at,
        "decided_at": adapter.decided_at,
        "preferences": metrics.get("preferences", {}),
        "kinds": metrics.get("kinds", {}),
        "gates": metrics.get("gates", {}),
        "evaluation": metrics.get("evaluation", {}),
    }


def check_names(workspace: Workspace, names: Iterable[str]) -> None:
    """Raise BadData for the first name that is neither an adapter's nor `base`."""
    with db.reading(workspace.engine) as session:
        for name in names:
            store.adapter_named(session, name)


def _named(session: Session, name: str) -> Adapter:
    adapter = store.adapter_named(session, name)
    if adapter is None:
        raise BadData("the base is no adapter. Back to it: curator adapter rollback")
    return adapter


def accept(workspace: Workspace, name: str) -> Decided:
    """Put an adapter into use, whatever the rules said; its held-back pairs join the queue.

    Raises BadData when there is none of that name, it is in use already or it is of another base,
    and NotReady when its folder is gone.
    """
    with db.writing(workspace.engine) as session:
        adapter = _named(session, name)
        if adapter.status is AdapterStatus.CURRENT:
            raise BadData(f"{name} is in use already.")
        other = _other_base(session, workspace, adapter)
        if other is not None:
            raise BadData(
                f"{other}. Name that model in curator.toml first; or, if it is the same one in "
                "another place, run curator generate once, which looks."
            )
        _need_folder(workspace, adapter)
        overruled = (adapter.metrics or {}).get("gates", {}).get("verdict") == "fail"
        store.make_current(
            session, adapter, f"{BY_HAND}, against the rules" if overruled else BY_HAND
        )
        pairs = ingest.open_held_back(session, workspace, adapter)
        return Decided(name, str(adapter.status), name, pairs)


def refuse(workspace: Workspace, name: str, reason: str | None = None) -> Decided:
    """Refuse an adapter; if it is in use, the one before it comes back. It stays on the disk.

    Raises BadData when there is none of that name.
    """
    with db.writing(workspace.engine) as session:
        adapter = _named(session, name)
        return _refuse(session, workspace, adapter, f"{BY_HAND}: {reason}" if reason else BY_HAND)


def rollback(workspace: Workspace) -> Decided:
    """Take the adapter in use out of it; the one in use before comes back, or the base.

    One of another base than the workspace's is passed over. Raises BadData when the base is in use,
    NotReady when the earlier adapter's folder is gone.
    """
    with db.writing(workspace.engine) as session:
        current = store.current_adapter(session)
        if current is None:
            raise BadData("the base is in use; there is nothing to go back from.")
        return _refuse(session, workspace, current, f"{BY_HAND}: rolled back")


def _refuse(session: Session, workspace: Workspace, adapter: Adapter, reason: str) -> Decided:
    was_in_use = adapter.status is AdapterStatus.CURRENT
    store.decide(session, adapter, AdapterStatus.REFUSED, reason)
    passed_over: list[str] = []
    if was_in_use:
        retired = session.exec(
            select(Adapter)
            .where(Adapter.status == AdapterStatus.RETIRED)
            .order_by(col(Adapter.decided_at).desc(), col(Adapter.id).desc())
        )
        for before in retired.all():
            other = _other_base(session, workspace, before)
            if other is not None:
                passed_over.append(other)
                continue
            _need_folder(
                workspace, before,
                f", or do without it: curator adapter refuse {before.name}, then roll back again",
            )  # fmt: skip
            why = f"{BY_HAND}: back after {adapter.name}"
            store.decide(session, before, AdapterStatus.CURRENT, why)
            break
    current = store.current_adapter(session)
    in_use = current.name if current else BASE
    return Decided(adapter.name, str(adapter.status), in_use, passed_over=tuple(passed_over))


def _other_base(session: Session, workspace: Workspace, adapter: Adapter) -> str | None:
    """Return, in words, that an adapter is of another base than the workspace's model, or None.

    Told by what the model's weights were when it last ran here; by its name while it has not.
    """
    model = workspace.model_path
    known = store.base_sha256(session, model)
    if adapter.base_sha256 == known or (known is None and adapter.base_model == model):
        return None
    shown = [one_line(name, 100) for name in (adapter.base_model, model)]
    if known is not None and adapter.base_model == model:
        shown[1] += " as it is now"
    return f"{adapter.name} was trained on {shown[0]}, not on {shown[1]}"


def _need_folder(workspace: Workspace, adapter: Adapter, otherwise: str = " first") -> None:
    if not (workspace.path / adapter.folder).is_dir():
        raise NotReady(
            f"{adapter.folder} is gone from {workspace.path}. Put it back from a backup{otherwise}."
        )


def trained_rounds(session: Session) -> list[tuple[int, dict[str, Any]]]:
    """Return (preferences trained on, figures) of every adapter that was evaluated, oldest first.

    Refused ones count: they too say what judging brought. Only those of the newest's base, measured
    with its probes, can be set beside it, and trained, as it was, with simulated picks or without;
    and held-out accuracies only where simulated picks were held out in both or in neither.
    """
    found = []
    for adapter in session.exec(select(Adapter).order_by(col(Adapter.id))).all():
        metrics = adapter.metrics or {}
        evaluation = metrics.get("evaluation", {})
        figures = evaluation.get("policies", {}).get("adapter")
        trained = metrics.get("preferences", {}).get("train")
        if figures and isinstance(trained, int):
            taught, held = (SIMULATED in each.get("kinds", {}) for each in (metrics, evaluation))
            key = (adapter.base_sha256, evaluation.get("probes_sha256"), taught)
            found.append((key, held, trained, figures))
    alike = [each for each in found if each[0] == found[-1][0]]
    rounds = []
    for (*_, taught), held, n, figures in alike:
        left_out = () if held == alike[-1][1] else ("held_out_accuracy",)
        told = {name: figure for name, figure in figures.items() if name not in left_out}
        rounds.append((n, {**told, SIMULATED: taught or held}))
    return rounds
