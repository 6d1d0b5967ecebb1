"""Pairs for one annotator alone: shown again with sides swapped, and the same for newcomers.

Functions take a Session; none of them commits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func
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
from curator.queue import POSITION_STEP, leased


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


def drop_repeat(session: Session, pair: Pair, annotator: Annotator, sitting: str) -> None:
    """Take a repeat that was not judged yet out of the queue, its pair having been taken back.

    One that is on another screen stays.
    """
    never = ~exists().where(col(Judgment.pair_id) == col(Pair.id))
    repeat = session.exec(
        select(Pair).where(
            Pair.annotator_id == annotator.id,
            Pair.repeat_of == pair.id,
            Pair.purpose == Purpose.REPEAT,
            never,
            ~leased(sitting),
        )
    ).first()
    if repeat is not None:
        session.exec(delete(Draft).where(col(Draft.pair_id) == repeat.id))
        session.exec(delete(Lease).where(col(Lease.pair_id) == repeat.id))
        session.delete(repeat)


def repeated(session: Session, kinds: Iterable[AnnotatorKind]) -> tuple[int, int]:
    """Return (how many pairs were picked from twice by one annotator, how often differently).

    Of annotators of these kinds, the judgment that stands of each; a repeat has its sides
    swapped, so the same side twice is another reply. Ties, both bad and skips do not count.
    """
    first, again, original = aliased(Judgment), aliased(Judgment), aliased(Pair)
    picks = [Verdict.LEFT, Verdict.RIGHT]
    rows = session.exec(
        select(first.verdict, again.verdict)
        .join(Annotator, col(first.annotator_id) == Annotator.id)
        .join(original, col(first.pair_id) == original.id)
        .join(Pair, and_(col(Pair.repeat_of) == original.id, col(Pair.purpose) == Purpose.REPEAT))
        .join(
            again,
            and_(col(again.pair_id) == Pair.id, col(again.annotator_id) == first.annotator_id),
        )
        .where(
            standing(first),
            standing(again),
            col(first.verdict).in_(picks),
            col(again.verdict).in_(picks),
            col(Annotator.kind).in_(list(kinds)),
        )
    ).all()
    return len(rows), sum(one == other for one, other in rows)


def add_calibration(session: Session, annotator: Annotator, count: int) -> int:
    """Give an annotator the first pairs of the first round to judge before all others.

    Once another person has judged one of these, or has one on the screen. Pairs that came later
    are added when the next seat is taken. None is given that this annotator has already, judged or
    has on a screen; one who judges originals of these gets only what another person has judged,
    so that no pair is left to nobody. The copies yield no preferences, so that nothing is trained
    on twice. Returns how many were added.
    """
    if annotator.kind is not AnnotatorKind.HUMAN or count == 0:
        return 0
    first = session.exec(select(Round).order_by(col(Round.number)).limit(1)).first()
    if first is None:
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
    copied = set(
        session.exec(
            select(Pair.repeat_of).where(
                Pair.annotator_id == annotator.id, Pair.purpose == Purpose.CALIBRATION
            )
        )
    )
    missing = [pair for pair in pairs if pair.id not in copied]
    if not missing:
        return 0
    wanted = _wanted(session, annotator, [pair.id for pair in pairs])
    added = [pair for pair in missing if pair.id in wanted]
    for pair in added:
        _copy(session, pair, annotator, Purpose.CALIBRATION, swapped=False)
    return len(added)


def _wanted(session: Session, annotator: Annotator, ids: list[int | None]) -> set[int | None]:
    """Return which pairs an annotator is to judge again for calibration: see add_calibration."""
    me = annotator.id
    mine = _pairs_of(session, Judgment, ids, col(Judgment.annotator_id) == me)
    held = _pairs_of(session, Lease, ids, col(Lease.annotator_id) == me)
    people = select(Annotator.id).where(Annotator.kind == AnnotatorKind.HUMAN, Annotator.id != me)
    by_other = and_(
        col(Judgment.annotator_id).in_(people), col(Judgment.verdict) != Verdict.SKIP, standing()
    )
    if mine or held:
        return _pairs_of(session, Judgment, ids, by_other) - mine - held
    begun = _pairs_of(session, Judgment, ids, col(Judgment.annotator_id).in_(people))
    begun |= _pairs_of(session, Lease, ids, col(Lease.annotator_id).in_(people))
    return set(ids) if begun else set()


def _pairs_of(
    session: Session, table: Any, ids: list[int | None], condition: ColumnElement[bool]
) -> set[int | None]:
    """Return which of these pairs have a row in a table of judgments or leases."""
    query = select(table.pair_id).where(col(table.pair_id).in_(ids), condition)
    return set(session.exec(query.distinct()))


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
