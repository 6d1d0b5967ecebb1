"""Queries and writes but for queue and judgments. Functions take a Session; none commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from sqlalchemy import update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from curator.errors import BadData, CuratorError
from curator.models import (
    Adapter,
    AdapterStatus,
    Annotator,
    AnnotatorKind,
    Candidate,
    Pair,
    Prompt,
    Purpose,
    Round,
    Run,
    RunState,
    Split,
    now,
)
from curator.safe_text import one_line

# SQLite takes at most 32,766 values in one statement.
CHUNK = 10_000
# What the model without an adapter is called, where adapters are named.
BASE = "base"


# --- annotators ------------------------------------------------------------------


def get_annotator(
    session: Session, name: str, kind: AnnotatorKind = AnnotatorKind.HUMAN
) -> Annotator:
    """Return the annotator of that name, made if new. A name keeps its kind for good."""
    annotator = session.exec(select(Annotator).where(Annotator.name == name)).first()
    if annotator is None:
        annotator = Annotator(name=name, kind=kind)
        session.add(annotator)
        session.flush()
    elif annotator.kind != kind:
        raise CuratorError(f"{name} is a {annotator.kind} annotator already; use another name.")
    return annotator


# --- prompts ------------------------------------------------------------------------------------


def known_prompts(session: Session, sha256s: Sequence[str]) -> set[str]:
    """Return which of these prompts (by SHA-256) are there already."""
    known: set[str] = set()
    for start in range(0, len(sha256s), CHUNK):
        wanted = sha256s[start : start + CHUNK]
        known.update(session.exec(select(Prompt.sha256).where(col(Prompt.sha256).in_(wanted))))
    return known


def external_ids(session: Session) -> dict[str, str]:
    """Return {id given in the imported file: SHA-256} of all prompts that have one."""
    rows = session.exec(
        select(Prompt.external_id, Prompt.sha256).where(col(Prompt.external_id).is_not(None))
    )
    return {str(external): sha for external, sha in rows}


def split_groups(session: Session) -> list[tuple[str, str, bool]]:
    """Return (family, client or SHA-256, held out) of every prompt."""
    rows = session.exec(select(Prompt.family, Prompt.client, Prompt.sha256, Prompt.split))
    return [
        (family or "", client or sha, split == "held_out") for family, client, sha, split in rows
    ]


def families_to_train_on(session: Session) -> set[str]:
    """Return the families of which some prompt is not held out."""
    query = select(Prompt.family).where(Prompt.split == Split.TRAIN).distinct()
    return {family for family in session.exec(query) if family}


def prompts_for_round(session: Session, count: int, order: Callable[[Prompt], int]) -> list[Prompt]:
    """Return `count` prompts, those written for least often first, then by `order(prompt)`."""
    prompts = session.exec(select(Prompt)).all()
    return sorted(prompts, key=lambda p: (p.asked, order(p)))[:count]


def held_out_prompts(session: Session, count: int, order: Callable[[Prompt], int]) -> list[Prompt]:
    """Return up to `count` held-out prompts, by `order(prompt)`: the same ones every time."""
    prompts = session.exec(select(Prompt).where(Prompt.split == Split.HELD_OUT)).all()
    return sorted(prompts, key=order)[:count]


def prompts_for_duel(
    session: Session, count: int, order: Callable[[Prompt], int], sides: tuple[str, str]
) -> list[Prompt]:
    """Return up to `count` prompts on which no pair compares these two already.

    `sides`: adapters by name, or `base`. First come those they were not asked yet (they may have
    said the same to some, and some may be too long for them), then the held-out, then by
    `order(prompt)`. Raises BadData for an unknown name.
    """
    named = [adapter_named(session, side) for side in sides]
    both = {adapter.id if adapter else None for adapter in named}
    left, right = aliased(Candidate), aliased(Candidate)
    pairs = session.exec(
        select(Pair.prompt_id, left.adapter_id, right.adapter_id)
        .join(left, col(Pair.left_id) == left.id)
        .join(right, col(Pair.right_id) == right.id)
        .where(Pair.purpose == Purpose.DUEL)
    )
    compared = {prompt for prompt, *adapters in pairs if set(adapters) == both}
    asked: Counter[str] = Counter()
    for metrics in session.exec(select(Run.metrics).where(Run.action == "duel")).all():
        pairs = (metrics or {}).get("pairs", {})
        if set(pairs.get("asked_of", ())) == both:
            asked.update(pairs.get("asked", ()))
    left_over = [p for p in session.exec(select(Prompt)).all() if p.id not in compared]
    left_over.sort(key=lambda p: (asked[str(p.id)], p.split != Split.HELD_OUT, order(p)))
    return left_over[:count]


# --- rounds and pairs -----------------------------------------------------------------------------


def newest_round(session: Session) -> Round | None:
    """Return the round with the highest number."""
    return session.exec(select(Round).order_by(col(Round.number).desc()).limit(1)).first()


# --- runs and adapters ----------------------------------------------------------------------------


def running(session: Session) -> Run | None:
    """Return the run that is under way, if one is."""
    return session.exec(select(Run).where(Run.state == RunState.RUNNING).limit(1)).first()


def newest_finished_run(session: Session) -> Run | None:
    """Return the run that finished last, of those that write or train."""
    return session.exec(
        select(Run)
        .where(Run.state == RunState.FINISHED, col(Run.action).in_(("generate", "train", "round")))
        .order_by(col(Run.id).desc())
        .limit(1)
    ).first()


def current_adapter(session: Session) -> Adapter | None:
    """Return the adapter in use, or None for the base model."""
    return session.exec(select(Adapter).where(Adapter.status == AdapterStatus.CURRENT)).first()


def adapter_named(session: Session, name: str) -> Adapter | None:
    """Return the adapter of a name, or None for the base. Raises BadData when there is none."""
    if name == BASE:
        return None
    found = session.exec(select(Adapter).where(Adapter.name == name)).first()
    if found is None:
        known = session.exec(select(Adapter.name).order_by(col(Adapter.id).desc()).limit(9)).all()
        raise BadData(
            f"there is no adapter {one_line(name, 60)}. There are: {', '.join([*known, BASE])}."
        )
    return found


def adapter_in(session: Session, folder: str) -> Adapter | None:
    """Return the adapter whose folder a request names, relative to a run's folder."""
    inside = folder.removeprefix("../../")
    return session.exec(select(Adapter).where(Adapter.folder == inside)).first()


def base_sha256(session: Session, model: str) -> str | None:
    """Return the SHA-256 that the model of this name had when last it wrote or was trained on.

    None when it has done neither here.
    """
    wrote = session.exec(
        select(Candidate.created_at, Candidate.model_sha256)
        .where(Candidate.model == model, col(Candidate.model_sha256).is_not(None))
        .order_by(col(Candidate.id).desc())
        .limit(1)
    ).first()
    trained = session.exec(
        select(Adapter.created_at, Adapter.base_sha256)
        .where(Adapter.base_model == model)
        .order_by(col(Adapter.id).desc())
        .limit(1)
    ).first()
    newest = max((found for found in (wrote, trained) if found is not None), default=None)
    return newest[1] if newest else None


def newest_adapter(session: Session) -> Adapter | None:
    """Return the adapter that was trained last."""
    return session.exec(select(Adapter).order_by(col(Adapter.id).desc()).limit(1)).first()


def make_current(session: Session, adapter: Adapter, reason: str) -> None:
    """Put an adapter into use and retire the one before."""
    session.exec(
        update(Adapter)
        .where(col(Adapter.status) == AdapterStatus.CURRENT)
        .values(status=AdapterStatus.RETIRED, decided_at=now())
    )
    decide(session, adapter, AdapterStatus.CURRENT, reason)


def decide(session: Session, adapter: Adapter, status: AdapterStatus, reason: str) -> None:
    """Give an adapter a status, and say why."""
    adapter.status, adapter.status_reason, adapter.decided_at = status, reason, now()
    session.add(adapter)
    session.flush()
