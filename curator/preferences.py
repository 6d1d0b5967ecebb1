"""Preferences: what the judgments say, as chosen over rejected. Derived, never stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_
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
    """Return the preferences of training pairs, oldest first, and what gave none, counted.

    A tie, both_bad or skip gives none; a rewrite gives rewrite over both replies. Judgments of
    annotators of other kinds are counted as "KIND annotator".
    """
    kinds = tuple(kinds)
    found: list[Preference] = []
    left_out: Counter[str] = Counter()
    for judgment, annotator, prompt, left, right, rewrite in session.exec(_rows()):
        if annotator.kind not in kinds:
            left_out[f"{annotator.kind} annotator"] += 1
            continue
        if rewrite is not None:
            sides = [(rewrite, left), (rewrite, right)]
        elif judgment.verdict == Verdict.LEFT:
            sides = [(left, right)]
        elif judgment.verdict == Verdict.RIGHT:
            sides = [(right, left)]
        else:
            left_out[str(judgment.verdict)] += 1
            continue
        found += [
            Preference(
                id=judgment.uuid,
                prompt=prompt.messages,
                chosen=chosen,
                rejected=rejected,
                split=str(prompt.split),
                family=prompt.family,
                strength=judgment.strength,
                annotator_kind=str(annotator.kind),
            )
            for chosen, rejected in sides
            if chosen.strip() != rejected.strip()
        ]
    return found, left_out


def _rows() -> Any:
    """Return the query for the standing judgments of training pairs, with all they rest on."""
    left, right, rewrite = aliased(Candidate), aliased(Candidate), aliased(Candidate)
    return (
        select(Judgment, Annotator, Prompt, left.text, right.text, rewrite.text)  # type: ignore[call-overload]
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Annotator, col(Judgment.annotator_id) == Annotator.id)
        .join(Prompt, col(Pair.prompt_id) == Prompt.id)
        .join(left, col(Pair.left_id) == left.id)
        .join(right, col(Pair.right_id) == right.id)
        .outerjoin(rewrite, col(Judgment.rewrite_id) == rewrite.id)
        .where(standing(), col(Pair.purpose) == Purpose.TRAIN)
        .order_by(col(Judgment.id))
    )


def preference_count(session: Session, kinds: Iterable[AnnotatorKind] = HUMANS) -> int:
    """Return how many judgments give preferences, without reading any text."""
    query = (
        select(func.count())
        .select_from(Judgment)
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Annotator, col(Judgment.annotator_id) == Annotator.id)
        .where(
            standing(),
            col(Pair.purpose) == Purpose.TRAIN,
            col(Annotator.kind).in_(list(kinds)),
            or_(
                col(Judgment.verdict).in_([Verdict.LEFT, Verdict.RIGHT]),
                col(Judgment.rewrite_id).is_not(None),
            ),
        )
    )
    return session.exec(query).one()
