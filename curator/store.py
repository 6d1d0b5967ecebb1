"""Every query and every write. Functions take a Session; none of them commits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, update
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import Session, col, delete, select

from curator.errors import CuratorError
from curator.judgments import standing
from curator.models import (
    Adapter,
    AdapterStatus,
    Annotator,
    AnnotatorKind,
    Bookmark,
    Judgment,
    Lease,
    Pair,
    Prompt,
    Purpose,
    Round,
    Run,
    RunState,
    Setting,
    Verdict,
    now,
)

LEASE_SECONDS = 15 * 60
# Room between two pairs of a queue, for repeats that come back later.
POSITION_STEP = 1_000
# SQLite takes at most 32,766 values in one statement.
CHUNK = 10_000


# --- annotators and settings ------------------------------------------------------------------


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


def get_setting(session: Session, name: str) -> str | None:
    """Return a fact kept about the workspace, or None."""
    setting = session.get(Setting, name)
    return setting.value if setting else None


def set_setting(session: Session, name: str, value: str) -> None:
    """Keep a fact about the workspace."""
    session.merge(Setting(name=name, value=value))


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


def prompts_for_round(session: Session, count: int, order: Any) -> list[Prompt]:
    """Return `count` prompts, those written for least often first, then by `order(prompt)`."""
    prompts = session.exec(select(Prompt)).all()
    return sorted(prompts, key=lambda p: (p.asked, order(p)))[:count]


# --- rounds and pairs -----------------------------------------------------------------------------


def newest_round(session: Session) -> Round | None:
    """Return the round with the highest number."""
    return session.exec(select(Round).order_by(col(Round.number).desc()).limit(1)).first()


def last_position(session: Session, round_id: int) -> int:
    """Return the highest position in a round's queue, 0 when it is empty."""
    query = select(func.max(Pair.position)).where(Pair.round_id == round_id)
    return session.exec(query).one() or 0


def _judged(annotator: Annotator) -> ColumnElement[bool]:
    """Whether a pair needs nobody any more, from this annotator's seat.

    It has a standing judgment of theirs; or, being a training pair, one by another person of the
    same kind that is no skip.
    """
    same_kind = select(Annotator.id).where(Annotator.kind == annotator.kind)
    by_another = and_(
        col(Pair.purpose) == Purpose.TRAIN,
        col(Judgment.verdict) != Verdict.SKIP,
        col(Judgment.annotator_id).in_(same_kind),
    )
    return exists().where(
        col(Judgment.pair_id) == col(Pair.id),
        or_(col(Judgment.annotator_id) == annotator.id, by_another),
        standing(),
    )


def _leased(sitting: str) -> ColumnElement[bool]:
    return exists().where(
        col(Lease.pair_id) == col(Pair.id),
        col(Lease.sitting) != sitting,
        col(Lease.expires_at) > int(time.time()),
    )


def next_pair(session: Session, annotator: Annotator, sitting: str) -> Pair | None:
    """Return the next pair to judge, leased to this sitting; None when there is none.

    The newest round comes first. Within a round the search goes on from the annotator's bookmark
    by position, so its cost does not grow with what is judged already.
    """
    assert annotator.id is not None
    release(session, sitting)
    rounds = session.exec(select(Round.id).order_by(col(Round.number).desc())).all()
    for round_id in filter(None, rounds):
        bookmark = session.get(Bookmark, (annotator.id, round_id))
        after = bookmark.position if bookmark else 0
        unjudged = (
            select(Pair)
            .where(
                Pair.round_id == round_id,
                Pair.position > after,
                or_(col(Pair.annotator_id).is_(None), col(Pair.annotator_id) == annotator.id),
                ~_judged(annotator),
            )
            .order_by(col(Pair.position))
            .limit(1)
        )
        first = session.exec(unjudged).first()
        set_bookmark(session, annotator.id, round_id, _end(session, round_id, first))
        if first is None:
            continue
        free = session.exec(unjudged.where(~_leased(sitting))).first()
        if free is not None:
            assert free.id is not None
            lease(session, free.id, annotator.id, sitting)
            return free
    return None


def _end(session: Session, round_id: int, first: Pair | None) -> int:
    return first.position - 1 if first else last_position(session, round_id)


def set_bookmark(session: Session, annotator_id: int, round_id: int, position: int) -> None:
    """Move an annotator's bookmark in a round."""
    session.merge(Bookmark(annotator_id=annotator_id, round_id=round_id, position=position))


def lease(session: Session, pair_id: int, annotator_id: int, sitting: str) -> None:
    """Hand a pair to a sitting, and no other."""
    release(session, sitting)
    values = {
        "pair_id": pair_id,
        "annotator_id": annotator_id,
        "sitting": sitting,
        "expires_at": int(time.time()) + LEASE_SECONDS,
    }
    statement = insert(Lease).values(values)
    session.exec(statement.on_conflict_do_update(index_elements=["pair_id"], set_=values))


def release(session: Session, sitting: str) -> None:
    """Give back whatever pair a sitting holds."""
    session.exec(delete(Lease).where(col(Lease.sitting) == sitting))


def judged_in_round(session: Session, round_id: int, annotator: Annotator) -> int:
    """Return how many pairs of a round need this annotator no more."""
    query = (
        select(func.count()).select_from(Pair).where(Pair.round_id == round_id, _judged(annotator))
    )
    return session.exec(query).one()


# --- runs and adapters ----------------------------------------------------------------------------


def running(session: Session) -> Run | None:
    """Return the run that is under way, if one is."""
    return session.exec(select(Run).where(Run.state == RunState.RUNNING).limit(1)).first()


def current_adapter(session: Session) -> Adapter | None:
    """Return the adapter in use, or None for the base model."""
    return session.exec(select(Adapter).where(Adapter.status == AdapterStatus.CURRENT)).first()


def make_current(session: Session, adapter: Adapter, reason: str) -> None:
    """Put an adapter into use and retire the one before."""
    session.exec(
        update(Adapter)
        .where(col(Adapter.status) == AdapterStatus.CURRENT)
        .values(status=AdapterStatus.RETIRED, decided_at=now())
    )
    adapter.status, adapter.status_reason, adapter.decided_at = AdapterStatus.CURRENT, reason, now()
    session.add(adapter)
