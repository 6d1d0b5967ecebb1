"""Which pair an annotator judges next: handed out once, repeated later, the same for newcomers.

Functions take a Session; none of them commits. Every search goes on by position from a bookmark,
so that its cost does not grow with what is judged, nor with how many pairs there are.
"""

from __future__ import annotations

import functools
import random
import time
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, delete, select

from curator.errors import Busy
from curator.judgments import newest_judgment, standing
from curator.models import (
    Annotator,
    Bookmark,
    Draft,
    Judgment,
    Lease,
    Pair,
    Purpose,
    Round,
    Verdict,
)
from curator.words import FEWEST_BETWEEN as FEWEST_BETWEEN
from curator.words import LEASE_SECONDS as LEASE_SECONDS
from curator.words import POSITION_STEP as POSITION_STEP
from curator.words import SPREAD_BETWEEN as SPREAD_BETWEEN

# Judged by one person of a kind, whoever comes first.
ONCE = (Purpose.TRAIN, Purpose.DUEL)


def last_position(session: Session, round_id: int) -> int:
    """Return the highest place in a round's queue taken by a pair for everybody, 0 when empty."""
    query = select(func.max(Pair.position)).where(
        Pair.round_id == round_id, col(Pair.annotator_id).is_(None)
    )
    return session.exec(query).one() or 0


def mix_in(session: Session, round_id: int, pairs: list[Pair], seed: int) -> None:
    """Add pairs among those of a round's queue that nobody has come to yet, by a seeded draw.

    All of these get new places, so that neither place nor number tells which ones came later.
    Pairs with a judgment, a lease or a draft, and all before them, stay where they are.
    """
    touched = or_(
        col(Pair.annotator_id).is_not(None),
        exists().where(col(Judgment.pair_id) == col(Pair.id)),
        exists().where(col(Lease.pair_id) == col(Pair.id)),
        exists().where(col(Draft.pair_id) == col(Pair.id)),
    )
    query = select(func.max(Pair.position)).where(Pair.round_id == round_id, touched)
    last = session.exec(query).one() or 0
    free = select(Pair).where(Pair.round_id == round_id, Pair.position > last)
    untouched = list(session.exec(free.order_by(col(Pair.position))).all())
    for number, pair in enumerate(untouched, 1):
        pair.position = -number  # out of the way: no two pairs may share a place
    session.flush()
    mixed = [*untouched, *pairs]
    random.Random(seed).shuffle(mixed)
    start = last // POSITION_STEP + 1
    for number, pair in enumerate(mixed, start):
        pair.position = number * POSITION_STEP
        session.add(pair)
    session.flush()


# --- what needs a judgment --------------------------------------------------------------------


@functools.cache
def _aliased(table: Any) -> Any:
    """Return a second name for a table, made once: that costs more than the queries with it."""
    return aliased(table)


def _judged(annotator: Annotator) -> ColumnElement[bool]:
    """Whether a pair needs nobody any more, from this annotator's seat.

    It has a standing judgment of theirs; or, being a training pair or a duel, one by another
    person of the same kind that is no skip; or they have it as a calibration pair.
    """
    same_kind = select(Annotator.id).where(Annotator.kind == annotator.kind)
    by_another = and_(
        col(Pair.purpose).in_(ONCE),
        col(Judgment.verdict) != Verdict.SKIP,
        col(Judgment.annotator_id).in_(same_kind),
    )
    judged = exists().where(
        col(Judgment.pair_id) == col(Pair.id),
        or_(col(Judgment.annotator_id) == annotator.id, by_another),
        standing(),
    )
    copy = _aliased(Pair)
    calibrated = exists().where(
        col(Pair.purpose) == Purpose.TRAIN,
        col(copy.annotator_id) == annotator.id,
        col(copy.purpose) == Purpose.CALIBRATION,
        col(copy.repeat_of) == col(Pair.id),
    )
    return or_(judged, calibrated)


def _mine(annotator: Annotator) -> ColumnElement[bool]:
    return or_(col(Pair.annotator_id).is_(None), col(Pair.annotator_id) == annotator.id)


def _waiting(annotator: Annotator) -> ColumnElement[bool]:
    """Whether a repeat is not due yet: too few pairs lie between it and its first time.

    Pairs are counted, by their first judgment; notes and changes of mind are no distance.
    """
    later = _aliased(Judgment)
    between = (
        select(func.count())
        .where(
            col(later.annotator_id) == annotator.id,
            col(later.sequence) > col(Judgment.sequence),
            col(later.revision) == 1,
        )
        .correlate(Judgment)
        .scalar_subquery()
    )
    due = exists().where(
        col(Judgment.pair_id) == col(Pair.repeat_of),
        col(Judgment.annotator_id) == annotator.id,
        standing(),
        between >= FEWEST_BETWEEN + col(Pair.side_seed) % SPREAD_BETWEEN,
    )
    return and_(col(Pair.purpose) == Purpose.REPEAT, ~due)


def leased(sitting: str) -> ColumnElement[bool]:
    """Whether a pair is on the screen of another sitting."""
    return exists().where(
        col(Lease.pair_id) == col(Pair.id),
        col(Lease.sitting) != sitting,
        col(Lease.expires_at) > int(time.time()),
    )


# --- the next one -----------------------------------------------------------------------------


def next_pair(session: Session, annotator: Annotator, sitting: str) -> Pair | None:
    """Return the next pair to judge, leased to this sitting; None when there is none.

    Calibration pairs come first, then the newest round. Within a round the search goes on from
    the annotator's bookmark by position.
    """
    assert annotator.id is not None
    release(session, sitting)
    calibration = _next_calibration(session, annotator, sitting)
    if calibration is not None:
        return _handed(session, calibration, annotator, sitting)
    rounds = session.exec(select(Round.id).order_by(col(Round.number).desc())).all()
    for round_id in filter(None, rounds):
        bookmark = session.get(Bookmark, (annotator.id, round_id))
        unjudged = (
            select(Pair)
            .where(
                Pair.round_id == round_id,
                Pair.position > (bookmark.position if bookmark else 0),
                _mine(annotator),
                ~_judged(annotator),
            )
            .order_by(col(Pair.position))
            .limit(1)
        )
        first = session.exec(unjudged).first()
        end = first.position - 1 if first else last_position(session, round_id)
        set_bookmark(session, annotator.id, round_id, end)
        if first is None:
            continue
        free = session.exec(unjudged.where(~_waiting(annotator), ~leased(sitting))).first()
        if free is not None:
            return _handed(session, free, annotator, sitting)
    return None


def _next_calibration(session: Session, annotator: Annotator, sitting: str) -> Pair | None:
    return session.exec(
        select(Pair)
        .where(
            Pair.annotator_id == annotator.id,
            Pair.purpose == Purpose.CALIBRATION,
            ~_judged(annotator),
            ~leased(sitting),
        )
        .order_by(col(Pair.position))
        .limit(1)
    ).first()


def _handed(session: Session, pair: Pair, annotator: Annotator, sitting: str) -> Pair:
    assert pair.id is not None and annotator.id is not None
    lease(session, pair.id, annotator.id, sitting)
    return pair


def set_bookmark(session: Session, annotator_id: int, round_id: int, position: int) -> None:
    """Move an annotator's bookmark in a round."""
    session.merge(Bookmark(annotator_id=annotator_id, round_id=round_id, position=position))


def lease(session: Session, pair_id: int, annotator_id: int, sitting: str) -> None:
    """Hand a pair to a sitting, and no other. Raises Busy while another sitting holds it."""
    release(session, sitting)
    clock = int(time.time())
    values = {
        "pair_id": pair_id,
        "annotator_id": annotator_id,
        "sitting": sitting,
        "expires_at": clock + LEASE_SECONDS,
    }
    run_out = col(Lease.expires_at) <= clock
    handed = session.exec(
        insert(Lease)
        .values(values)
        .on_conflict_do_update(index_elements=["pair_id"], set_=values, where=run_out)
        .returning(col(Lease.pair_id))
    )
    if handed.first() is None:
        raise Busy("that pair is on another screen just now; try again later.")


def judged_by_another(session: Session, pair: Pair, annotator: Annotator) -> bool:
    """Tell whether another of this kind has judged a pair for one person, and no skip."""
    others = select(Annotator.id).where(
        Annotator.kind == annotator.kind, Annotator.id != annotator.id
    )
    found = select(Judgment.id).where(
        Judgment.pair_id == pair.id,
        col(Judgment.verdict) != Verdict.SKIP,
        col(Judgment.annotator_id).in_(others),
        standing(),
    )
    return pair.purpose in ONCE and session.exec(found.limit(1)).first() is not None


def holders(session: Session) -> list[str]:
    """Return the sittings that hold a pair."""
    return list(session.exec(select(col(Lease.sitting)).distinct()).all())


def release(session: Session, sitting: str) -> None:
    """Give back whatever pair a sitting holds."""
    session.exec(delete(Lease).where(col(Lease.sitting) == sitting))


# --- going to a pair --------------------------------------------------------------------------


def pair_at(session: Session, round_id: int, number: int) -> Pair | None:
    """Return the pair with a number in a round, counted from 1; None when there is none."""
    return session.exec(
        select(Pair).where(
            Pair.round_id == round_id,
            Pair.position == number * POSITION_STEP,
            col(Pair.annotator_id).is_(None),
        )
    ).first()


def neighbour(
    session: Session, annotator: Annotator, pair: Pair, step: int, sitting: str
) -> Pair | None:
    """Return the pair before (`step` -1) or after (+1) another in its round, judged or not.

    One that is on another screen is passed by. A repeat is met once it was judged: just behind
    its first time it would be known again. From one that was not, steps go as if it stood just
    behind the annotator's latest pair, where any other pair would; never to its first time.
    """
    judged = exists().where(
        col(Judgment.pair_id) == col(Pair.id), col(Judgment.annotator_id) == annotator.id
    )
    round_id, position = pair.round_id, pair.position
    latest = _latest_before(session, annotator, pair)
    if latest is not None:
        round_id, position = latest.round_id, latest.position + (step < 0)
    beside = col(Pair.position) > position if step > 0 else col(Pair.position) < position
    return session.exec(
        select(Pair)
        .where(
            Pair.round_id == round_id,
            beside,
            _mine(annotator),
            or_(col(Pair.purpose) != Purpose.REPEAT, judged),
            ~leased(sitting),
            *([col(Pair.id) != pair.repeat_of] if latest is not None else []),
        )
        .order_by(col(Pair.position) if step > 0 else col(Pair.position).desc())
        .limit(1)
    ).first()


def _latest_before(session: Session, annotator: Annotator, pair: Pair) -> Pair | None:
    """Return the pair judged last before a repeat that was not judged yet; None: it is no such."""
    assert pair.id is not None and annotator.id is not None
    if pair.purpose is not Purpose.REPEAT or newest_judgment(session, pair.id, annotator.id):
        return None
    return session.exec(
        select(Pair)
        .join(Judgment, col(Judgment.pair_id) == Pair.id)
        .where(
            Judgment.annotator_id == annotator.id,
            Pair.purpose != Purpose.REPEAT,
            Pair.id != pair.repeat_of,
        )
        .order_by(col(Judgment.sequence).desc())
        .limit(1)
    ).first()


def number_of(pair: Pair) -> int:
    """Return a pair's number in its round; a repeat has that of the pair it repeats."""
    return pair.position // POSITION_STEP


def judged_in_round(session: Session, round_id: int, annotator: Annotator) -> int:
    """Return how many pairs of a round for everybody need this annotator no more.

    Counted from the judgments, of which there are far fewer than pairs may be. A pair judged as
    its calibration copy counts as well.
    """
    same_kind = select(Annotator.id).where(Annotator.kind == annotator.kind)
    mine = col(Judgment.annotator_id) == annotator.id
    by_another = and_(
        col(Judgment.verdict) != Verdict.SKIP, col(Judgment.annotator_id).in_(same_kind)
    )
    judged = (
        select(func.count(func.distinct(Judgment.pair_id)))
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .where(
            Pair.round_id == round_id,
            col(Pair.annotator_id).is_(None),
            or_(mine, and_(by_another, col(Pair.purpose).in_(ONCE))),
            standing(),
        )
    )
    copies = session.exec(
        select(Pair.id, Pair.repeat_of).where(
            Pair.annotator_id == annotator.id,
            Pair.purpose == Purpose.CALIBRATION,
            Pair.round_id == round_id,
            exists().where(col(Judgment.pair_id) == col(Pair.id), mine, standing()),
        )
    ).all()
    sources = [source for _, source in copies]
    counted = session.exec(
        select(func.count(func.distinct(Judgment.pair_id))).where(
            col(Judgment.pair_id).in_(sources), or_(mine, by_another), standing()
        )
    ).one()
    return session.exec(judged).one() + len(sources) - counted
