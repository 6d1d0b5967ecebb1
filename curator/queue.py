"""Which pair an annotator judges next: handed out once, repeated later, the same for newcomers.

Functions take a Session; none of them commits. Every search goes on by position from a bookmark,
so that its cost does not grow with what is judged, nor with how many pairs there are.
"""

from __future__ import annotations

import random
import time

from sqlalchemy import ColumnElement, and_, exists, func, or_
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, delete, select

from curator.judgments import standing
from curator.models import (
    Annotator,
    AnnotatorKind,
    Bookmark,
    Draft,
    Judgment,
    Lease,
    Pair,
    Purpose,
    Round,
    Verdict,
)
from curator.pairing import side_seed

LEASE_SECONDS = 15 * 60
# Room between two pairs of a queue, for repeats that come back later.
POSITION_STEP = 1_000
# A repeat comes back after 12 to 31 other judgments: drawn, so that nobody counts along.
FEWEST_BETWEEN, SPREAD_BETWEEN = 12, 20
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
    copy = aliased(Pair)
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
    """Whether a repeat is not due yet: too few judgments lie between it and its first time."""
    newest = (
        select(func.max(Judgment.sequence))
        .where(Judgment.annotator_id == annotator.id)
        .scalar_subquery()
    )
    due = exists().where(
        col(Judgment.pair_id) == col(Pair.repeat_of),
        col(Judgment.annotator_id) == annotator.id,
        standing(),
        col(Judgment.sequence) + FEWEST_BETWEEN + col(Pair.side_seed) % SPREAD_BETWEEN < newest,
    )
    return and_(col(Pair.purpose) == Purpose.REPEAT, ~due)


def _leased(sitting: str) -> ColumnElement[bool]:
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
    calibration = session.exec(
        select(Pair)
        .where(
            Pair.annotator_id == annotator.id,
            Pair.purpose == Purpose.CALIBRATION,
            ~_judged(annotator),
        )
        .order_by(col(Pair.position))
        .limit(1)
    ).first()
    if calibration is not None:
        return calibration
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
        free = session.exec(unjudged.where(~_waiting(annotator), ~_leased(sitting))).first()
        if free is not None:
            assert free.id is not None
            lease(session, free.id, annotator.id, sitting)
            return free
    return None


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


def holders(session: Session) -> list[str]:
    """Return the sittings that hold a pair."""
    return list(session.exec(select(col(Lease.sitting)).distinct()).all())


def release(session: Session, sitting: str) -> None:
    """Give back whatever pair a sitting holds."""
    session.exec(delete(Lease).where(col(Lease.sitting) == sitting))


# --- going to a pair --------------------------------------------------------------------------


def pair_at(session: Session, annotator: Annotator, round_id: int, number: int) -> Pair | None:
    """Return the pair with a number in a round, counted from 1; None when there is none."""
    return session.exec(
        select(Pair).where(
            Pair.round_id == round_id,
            Pair.position == number * POSITION_STEP,
            col(Pair.annotator_id).is_(None),
        )
    ).first()


def neighbour(session: Session, annotator: Annotator, pair: Pair, step: int) -> Pair | None:
    """Return the pair before (`step` -1) or after (+1) another in its round, judged or not."""
    beside = col(Pair.position) > pair.position if step > 0 else col(Pair.position) < pair.position
    order = col(Pair.position) if step > 0 else col(Pair.position).desc()
    return session.exec(
        select(Pair)
        .where(Pair.round_id == pair.round_id, beside, _mine(annotator), ~_waiting(annotator))
        .order_by(order)
        .limit(1)
    ).first()


def number_of(pair: Pair) -> int:
    """Return a pair's number in its round; a repeat has that of the pair it repeats."""
    return pair.position // POSITION_STEP


def judged_in_round(session: Session, round_id: int, annotator: Annotator) -> int:
    """Return how many pairs of a round for everybody need this annotator no more.

    Counted from the judgments, of which there are far fewer than pairs may be.
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
    return session.exec(judged).one()


# --- repeats and calibration ------------------------------------------------------------------


def maybe_repeat(session: Session, pair: Pair, annotator: Annotator, share: float) -> Pair | None:
    """Have a pair just judged come back later with its sides swapped, by a seeded draw.

    The draw is settled by pair and annotator: judging again changes nothing.
    """
    draw = random.Random(f"{pair.uuid} {annotator.uuid}").random()
    if pair.purpose is not Purpose.TRAIN or draw >= share:
        return None
    there = select(Pair).where(
        Pair.annotator_id == annotator.id, Pair.repeat_of == pair.id, Pair.purpose == Purpose.REPEAT
    )
    if session.exec(there).first() is not None:
        return None
    repeat = _copy(session, pair, annotator, Purpose.REPEAT, swapped=True)
    assert annotator.id is not None
    bookmark = session.get(Bookmark, (annotator.id, pair.round_id))
    if bookmark is not None and bookmark.position >= repeat.position:
        bookmark.position = repeat.position - 1  # an earlier pair was judged again
    return repeat


def drop_repeat(session: Session, pair: Pair, annotator: Annotator) -> None:
    """Take a repeat that was not judged yet out of the queue, its pair having been taken back."""
    never = ~exists().where(col(Judgment.pair_id) == col(Pair.id))
    repeat = session.exec(
        select(Pair).where(
            Pair.annotator_id == annotator.id,
            Pair.repeat_of == pair.id,
            Pair.purpose == Purpose.REPEAT,
            never,
        )
    ).first()
    if repeat is not None:
        session.exec(delete(Lease).where(col(Lease.pair_id) == repeat.id))
        session.delete(repeat)


def add_calibration(session: Session, annotator: Annotator, count: int) -> int:
    """Give a newcomer the first pairs of the first round to judge before all others.

    A newcomer is a person without a judgment where another person has judged one of these. The
    copies yield no preferences, so that nothing is trained on twice. Returns how many there are.
    """
    if annotator.kind is not AnnotatorKind.HUMAN or count == 0:
        return 0
    if session.exec(
        select(Judgment.id).where(Judgment.annotator_id == annotator.id).limit(1)
    ).first():
        return 0
    first = session.exec(select(Round).order_by(col(Round.number)).limit(1)).first()
    if (
        first is None
        or session.exec(select(Pair.id).where(Pair.annotator_id == annotator.id).limit(1)).first()
    ):
        return 0
    pairs = session.exec(
        select(Pair)
        .where(
            Pair.round_id == first.id,
            Pair.purpose == Purpose.TRAIN,
            col(Pair.position) <= count * POSITION_STEP,
        )
        .order_by(col(Pair.position))
    ).all()
    people = select(Annotator.id).where(Annotator.kind == AnnotatorKind.HUMAN)
    begun = session.exec(
        select(Judgment.id)
        .where(
            col(Judgment.pair_id).in_([pair.id for pair in pairs]),
            col(Judgment.annotator_id).in_(people),
        )
        .limit(1)
    ).first()
    if begun is None:
        return 0
    for pair in pairs:
        _copy(session, pair, annotator, Purpose.CALIBRATION, swapped=False)
    return len(pairs)


def _copy(
    session: Session, pair: Pair, annotator: Annotator, purpose: Purpose, swapped: bool
) -> Pair:
    """Add a pair's copy for one annotator, at the next free place behind it."""
    taken = session.exec(
        select(func.max(Pair.position)).where(
            Pair.round_id == pair.round_id,
            col(Pair.position) >= pair.position,
            col(Pair.position) < pair.position + POSITION_STEP,
        )
    ).one()
    sides = (pair.right_id, pair.left_id) if swapped else (pair.left_id, pair.right_id)
    copy = Pair(
        prompt_id=pair.prompt_id,
        left_id=sides[0],
        right_id=sides[1],
        side_seed=side_seed(pair.side_seed, str(purpose), annotator.uuid),
        purpose=purpose,
        repeat_of=pair.id,
        annotator_id=annotator.id,
        round_id=pair.round_id,
        position=taken + 1,
        distance=pair.distance,
    )
    session.add(copy)
    session.flush()
    return copy
