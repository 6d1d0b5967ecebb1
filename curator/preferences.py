"""Preferences: what the judgments say, as chosen over rejected. Derived, never stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from curator.judgments import standing
from curator.models import (
    Annotator,
    AnnotatorKind,
    Candidate,
    Judgment,
    Pair,
    Prompt,
    Purpose,
    Verdict,
)
from trainer.contract import Message

HUMANS = (AnnotatorKind.HUMAN, AnnotatorKind.IMPORTED)
EVERYBODY = tuple(AnnotatorKind)


@dataclass(frozen=True)
class Preference:
    """One chosen reply over one rejected reply to one prompt."""

    id: str
    """UUID of the judgment."""
    prompt: list[Message]
    chosen: str
    rejected: str
    split: str
    family: str | None
    strength: int | None
    annotator_kind: str


def preferences(
    session: Session, kinds: Iterable[AnnotatorKind] = HUMANS
) -> tuple[list[Preference], Counter[str]]:
    """Return the preferences, oldest first, and the judgments of training pairs that gave none.

    A tie, both_bad or skip gives none. A rewrite beside any verdict but skip gives rewrite over
    both replies, the two ids ending in .left and .right and without a strength, which was said
    of the replies; it does so on a repeat or calibration copy too, whose verdict gives none: the
    writer cannot know which these are. Judgments of annotators of other kinds are counted as
    "KIND annotator".
    """
    kinds = tuple(kinds)
    found: list[Preference] = []
    left_out: Counter[str] = Counter()
    for judgment, annotator, prompt, left, right, rewrite in session.exec(_rows()):
        if annotator.kind not in kinds:
            left_out[f"{annotator.kind} annotator"] += 1
            continue
        sides: list[tuple[str, str, str]] = []
        if rewrite is not None and judgment.verdict != Verdict.SKIP:
            sides = [(".left", rewrite, left), (".right", rewrite, right)]
        elif judgment.verdict == Verdict.LEFT:
            sides = [("", left, right)]
        elif judgment.verdict == Verdict.RIGHT:
            sides = [("", right, left)]
        else:
            left_out[str(judgment.verdict)] += 1
        found += [
            Preference(
                id=judgment.uuid + ending,
                prompt=prompt.messages,
                chosen=chosen,
                rejected=rejected,
                split=str(prompt.split),
                family=prompt.family,
                strength=None if ending else judgment.strength,
                annotator_kind=str(annotator.kind),
            )
            for ending, chosen, rejected in sides
        ]
    return found, left_out


def _gives() -> ColumnElement[Any]:
    """Return an SQL expression: how many preferences a judgment gives."""
    written = and_(col(Judgment.rewrite_id).is_not(None), col(Judgment.verdict) != Verdict.SKIP)
    picked = and_(
        col(Pair.purpose) == Purpose.TRAIN,
        col(Judgment.verdict).in_([Verdict.LEFT, Verdict.RIGHT]),
    )
    return case((written, 2), (picked, 1), else_=0)


def _rows() -> Any:
    """Return the query for the standing judgments that count, with all they rest on."""
    left, right, rewrite = aliased(Candidate), aliased(Candidate), aliased(Candidate)
    return (
        select(Judgment, Annotator, Prompt, left.text, right.text, rewrite.text)  # type: ignore[call-overload]
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Annotator, col(Judgment.annotator_id) == Annotator.id)
        .join(Prompt, col(Pair.prompt_id) == Prompt.id)
        .join(left, col(Pair.left_id) == left.id)
        .join(right, col(Pair.right_id) == right.id)
        .outerjoin(rewrite, col(Judgment.rewrite_id) == rewrite.id)
        .where(standing(), _counts())
        .order_by(col(Judgment.id))
    )


def _counts() -> ColumnElement[bool]:
    """Whether a judgment may give preferences: a training pair's, or a rewrite on a copy."""
    copies = col(Pair.purpose).in_([Purpose.REPEAT, Purpose.CALIBRATION])
    return or_(
        col(Pair.purpose) == Purpose.TRAIN,
        and_(copies, col(Judgment.rewrite_id).is_not(None), col(Judgment.verdict) != Verdict.SKIP),
    )


def preference_count(session: Session, kinds: Iterable[AnnotatorKind] = HUMANS) -> int:
    """Return how many preferences there are, without reading any text."""
    query = (
        select(func.coalesce(func.sum(_gives()), 0))
        .select_from(Judgment)
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Annotator, col(Judgment.annotator_id) == Annotator.id)
        .where(
            standing(),
            _counts(),
            col(Annotator.kind).in_(list(kinds)),
        )
    )
    return int(session.exec(query).one())
