"""The verbs both front ends use: import, export, tell how things stand and what comes next.

Judging is in curator.seat, rounds (generate, train, and what is between) in curator.rounds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlmodel import select

from curator import db, judgments, pairing, store
from curator.adapters import trained_rounds
from curator.errors import BadData, CannotWrite
from curator.evaluation import CURVE_FIGURES, learning_curve
from curator.exporting.trl import trl_lines
from curator.importing.prompts import SURROGATE, PromptRow, read_prompts
from curator.models import (
    Adapter,
    AdapterStatus,
    AnnotatorKind,
    Prompt,
    Round,
    Run,
    Split,
)
from curator.preferences import HUMANS, preferences
from curator.probes import FILE as PROBES
from curator.probes import index_probes, read_probes
from curator.safe_text import one_line
from curator.seat import Seat
from curator.workspace import Workspace, data_folder
from trainer.contract import FEWEST_PREFERENCES, Action, write_whole

# --- import ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    added: int
    duplicates: int
    held_out: int
    mended: Counter[str]


def import_prompts(workspace: Workspace, path: Path, field: str | None = None) -> Imported:
    """Add the prompts of a JSON lines file; those that are there already are counted, not added.

    Raises BadData, with nothing written, when any line is wrong, or nearly equals a probe: what a
    model is measured with must not be what it learns from.
    """
    rows, mended = read_prompts(path, field)
    _refuse_probes(workspace, path, rows)
    with db.writing(workspace.engine) as session:
        _check_ids(path, rows, store.external_ids(session))
        known = store.known_prompts(session, [row.sha256 for row in rows])
        new: dict[str, PromptRow] = {}
        for row in rows:
            if row.sha256 not in known:
                new.setdefault(row.sha256, row)
        held_out = pairing.held_out_draw(
            workspace.config.seed,
            [(row.family or "", row.client or row.sha256) for row in new.values()],
            workspace.config.round.held_out_share,
            store.split_groups(session),
        )
        for row, held in zip(new.values(), held_out, strict=True):
            session.add(_prompt(row, SURROGATE.sub("\ufffd", path.name), held))
    return Imported(len(new), len(rows) - len(new), sum(held_out), mended)


def _refuse_probes(workspace: Workspace, path: Path, rows: list[PromptRow]) -> None:
    paths = {data_folder() / PROBES, workspace.probes}
    indexes = [index_probes(read_probes(path)) for path in paths]
    for row in rows:
        probe = next(filter(None, (index.near(row.messages) for index in indexes)), None)
        if probe is not None:
            raise BadData(
                f"{path}, line {row.line}: equals the probe {probe}, or nearly. Probes are kept "
                "to measure with and are never trained on; take this line out."
            )


def _prompt(row: PromptRow, source: str, held_out: bool) -> Prompt:
    return Prompt(
        sha256=row.sha256,
        messages=row.messages,
        external_id=row.id,
        client=row.client,
        split=Split.HELD_OUT if held_out else Split.TRAIN,
        source=source,
        family=row.family,
        content_label=row.content_label,
        risk_cue=row.risk_cue,
    )


def _check_ids(path: Path, rows: list[PromptRow], known: dict[str, str]) -> None:
    """Refuse one id with two texts, in the file or against what is there."""
    lines: dict[str, int] = {}
    known = dict(known)
    for row in rows:
        if row.id is None:
            continue
        if known.setdefault(row.id, row.sha256) != row.sha256:
            other = f"line {lines[row.id]}" if row.id in lines else "a prompt imported before"
            raise BadData(
                f'{path}, line {row.line}: the id "{one_line(row.id, 60)}" stands for another '
                f"text in {other}. "
                "Give it an id of its own, or leave ids out."
            )
        lines.setdefault(row.id, row.line)


# --- what comes next ---------------------------------------------------------------------------


@dataclass(frozen=True)
class NextStep:
    """What to do when nothing is left to judge: a run's action, or none, and why in words."""

    action: Action | None
    text: str


def next_step(workspace: Workspace, seat: Seat, unjudged: bool = False) -> NextStep:
    """Return what comes next in the ring for this annotator, who may have a pair before them."""
    with db.reading(workspace.engine) as session:
        prompts = session.exec(select(func.count()).select_from(Prompt)).one()
        newest = store.newest_round(session)
        current = store.current_adapter(session)
        trained = store.newest_adapter(session)
        last = store.newest_finished_run(session)
        waiting = (current.id if current else None) != (newest.adapter_id if newest else None)
    if not prompts:
        return NextStep(None, "There are no prompts yet. Add some: curator import prompts FILE")
    if newest is None:
        return NextStep("generate", f"Next: the model writes the first pairs ({prompts} prompts).")
    if trained and trained.status is AdapterStatus.PROPOSED:
        return NextStep(
            None,
            f"{trained.name} waits for your decision: curator adapter show {trained.name}, then "
            "accept or refuse it.",
        )
    writer = current.name if current else "the base model"
    if waiting:
        return NextStep("generate", f"Next: {writer} writes pairs.")
    count = seat.progress().preferences
    if count < FEWEST_PREFERENCES:
        few = f"{count} preferences so far; training needs {FEWEST_PREFERENCES}. "
        if unjudged:
            return NextStep(None, few + "Next: judge the pairs that are here.")
        return NextStep("generate", few + "Next: the model writes more pairs.")
    if (
        trained
        and trained.status is AdapterStatus.REFUSED
        and last
        and last.adapter_id == trained.id
    ):
        # Trained again on the same preferences it would come out the same.
        reason = one_line(trained.status_reason or "", 160)
        return NextStep(
            "generate", f"{trained.name} was refused {reason}. Next: {writer} writes more pairs."
        )
    return NextStep(
        "round", f"Next: train on {count} preferences, then the new adapter writes pairs."
    )


# --- export ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """What an export holds, and what it left out, counted."""

    lines: list[str]
    left_out: Counter[str]


def export_preferences(workspace: Workspace, kinds: Iterable[AnnotatorKind] = HUMANS) -> Exported:
    """Return the preferences as TRL's JSON lines."""
    with db.reading(workspace.engine) as session:
        found, left_out = preferences(session, kinds)
    return Exported(list(trl_lines(found)), left_out)


def write_export(lines: Iterable[str], path: Path) -> None:
    """Write an export's lines to a file, whole or not at all; a pipe or device is written into.

    Raises CannotWrite.
    """
    try:
        target = path.resolve()
        if target.is_dir():
            raise CannotWrite(f"{path} is a folder. Name a file.")
        if target.exists() and not target.is_file():
            with target.open("w", encoding="utf-8", newline="\n") as pipe:
                pipe.writelines(lines)
            return
        write_whole(target, "".join(lines))
        os.chmod(target, 0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        said = getattr(error, "strerror", None) or error
        raise CannotWrite(f"{one_line(str(path), 100)}: {said}. Nothing was written.") from None


# --- status ---------------------------------------------------------------------------------------


def status(workspace: Workspace) -> dict[str, Any]:
    """Return how things stand, ready for JSON: prompts, rounds, adapters, the run under way."""
    with db.reading(workspace.engine) as session:
        prompts = session.exec(select(Prompt.split)).all()
        counts, judged = judgments.verdict_counts(session), judgments.judged_pairs(session)
        rounds = session.exec(select(Round).order_by("number")).all()
        adapters = {a.id: a for a in session.exec(select(Adapter)).all()}
        newest_run = session.exec(select(Run).order_by(Run.id.desc()).limit(1)).first()  # type: ignore[union-attr]
        found, left_out = preferences(session)
        return {
            "workspace": str(workspace.path),
            "model": workspace.config.model.name,
            "prompts": {
                "train": prompts.count(Split.TRAIN),
                "held_out": prompts.count(Split.HELD_OUT),
            },
            "preferences": len(found),
            "left_out": dict(left_out),
            "rounds": [
                {**_round_status(each, counts, adapters), "judged": judged.get(each.number, 0)}
                for each in rounds
            ],
            "adapters": [_adapter_status(adapter) for adapter in adapters.values()],
            "learning_curve": learning_curve(trained_rounds(session)),
            "run": _run_status(newest_run) if newest_run else None,
        }


def _round_status(
    each: Round, counts: dict[tuple[int, str, str], int], adapters: dict[int | None, Adapter]
) -> dict[str, Any]:
    verdicts: dict[str, dict[str, int]] = {}
    for (number, kind, verdict), n in counts.items():
        if number == each.number:
            verdicts.setdefault(kind, {})[verdict] = n
    writer = adapters.get(each.adapter_id)
    return {
        "round": each.number,
        "written_by": writer.name if writer else "base",
        "strategy": each.strategy,
        "pairs": each.pairs,
        "left_out": each.left_out or {},
        "judgments": verdicts,
    }


def _adapter_status(adapter: Adapter) -> dict[str, Any]:
    metrics = adapter.metrics or {}
    held_out = metrics.get("held_out", {})
    figures = metrics.get("evaluation", {}).get("policies", {}).get("adapter", {})
    return {
        "adapter": adapter.name,
        "status": str(adapter.status),
        "reason": adapter.status_reason,
        "base_model": adapter.base_model,
        "sha256": adapter.sha256,
        "held_out": held_out,
        "kinds": metrics.get("evaluation", {}).get("kinds", {}),
        **{name: figures.get(name) for name in CURVE_FIGURES if name != "held_out_accuracy"},
    }


def _run_status(run: Run) -> dict[str, Any]:
    return {
        "run": run.folder,
        "action": run.action,
        "state": str(run.state),
        "error": run.error,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
    }


def broken_judgments(workspace: Workspace) -> list[str]:
    """Return the UUIDs of judgments that no longer match their digest or their chain."""
    with db.reading(workspace.engine) as session:
        return judgments.broken_links(session)
