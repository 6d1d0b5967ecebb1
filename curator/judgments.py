"""The judgments: added, chained, taken back by another row, never changed.

Functions take a Session; none of them commits.
"""

from __future__ import annotations

import functools
import hashlib
import os

from sqlalchemy import ColumnElement, and_, exists, func, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from curator.errors import CuratorError
from curator.models import (
    Annotator,
    Bookmark,
    Candidate,
    Erasure,
    Judgment,
    Pair,
    Prompt,
    Round,
    Setting,
    Verdict,
    new_uuid,
)
from curator.words import Said as Said
from trainer.contract import canonical_json, sha256_text


def newest_judgment(session: Session, pair_id: int, annotator_id: int) -> Judgment | None:
    """Return an annotator's newest row for a pair (which may be a retraction)."""
    return session.exec(
        select(Judgment)
        .where(Judgment.pair_id == pair_id, Judgment.annotator_id == annotator_id)
        .order_by(col(Judgment.revision).desc())
        .limit(1)
    ).first()


def add_judgment(
    session: Session,
    pair: Pair,
    annotator: Annotator,
    said: Said,
    *,
    uuid: str | None = None,
    sitting: str | None = None,
    shown_at: str | None = None,
    elapsed_ms: int | None = None,
) -> Judgment:
    """Add a judgment to an annotator's chain.

    `uuid` makes a retry harmless: a row with it is returned as it is. A retraction needs a
    standing judgment to take back; raises CuratorError without one.
    """
    assert pair.id is not None and annotator.id is not None
    if uuid is not None:
        done = session.exec(select(Judgment).where(Judgment.uuid == uuid)).first()
        if done is not None:
            return done
    earlier = newest_judgment(session, pair.id, annotator.id)
    if said.verdict is Verdict.RETRACTED and (earlier is None or earlier.verdict == "retracted"):
        raise CuratorError("there is no judgment of that pair to take back.")
    sequence, chain = _end_of_chain(session, annotator)
    judgment = Judgment(
        uuid=uuid or new_uuid(),
        pair_id=pair.id,
        annotator_id=annotator.id,
        revision=earlier.revision + 1 if earlier else 1,
        sequence=sequence + 1,
        verdict=said.verdict,
        strength=said.strength,
        tags_left=list(said.tags_left),
        tags_right=list(said.tags_right),
        red_flags=said.red_flags,
        note=said.note,
        flagged=int(said.flagged),
        rewrite_id=said.rewrite_id,
        rubric_version=said.rubric_version,
        sitting=sitting,
        shown_at=shown_at,
        elapsed_ms=elapsed_ms,
        salt=os.urandom(16),
        digest="",
        chain="",
    )
    judgment.digest = judgment_digest(session, judgment)
    judgment.chain = link(chain, judgment.digest)
    session.add(judgment)
    session.merge(Setting(name=_head(annotator), value=f"{judgment.sequence} {judgment.chain}"))
    if said.verdict is Verdict.RETRACTED or (said.verdict is Verdict.SKIP and earlier):
        _open_again(session, pair)
    session.flush()
    return judgment


def _end_of_chain(session: Session, annotator: Annotator) -> tuple[int, str]:
    """Return sequence and link of an annotator's last judgment; 0 and "" before the first."""
    last = session.exec(
        select(Judgment.sequence, Judgment.chain)
        .where(Judgment.annotator_id == annotator.id)
        .order_by(col(Judgment.sequence).desc())
        .limit(1)
    ).first()
    return last or (0, "")


def _open_again(session: Session, pair: Pair) -> None:
    """Put every annotator's bookmark before a pair: it may be anybody's next one again."""
    session.exec(
        update(Bookmark)
        .where(col(Bookmark.round_id) == pair.round_id)
        .where(col(Bookmark.position) >= pair.position)
        .values(position=pair.position - 1)
    )


def _head(annotator: Annotator) -> str:
    """Return the name of the setting that holds where an annotator's chain ends."""
    return f"chain {annotator.uuid}"


def said(judgment: Judgment) -> Said:
    """Return what a judgment says."""
    return Said(
        verdict=Verdict(judgment.verdict),
        strength=judgment.strength,
        tags_left=tuple(judgment.tags_left or ()),
        tags_right=tuple(judgment.tags_right or ()),
        red_flags=judgment.red_flags or {},
        note=judgment.note,
        flagged=bool(judgment.flagged),
        rewrite_id=judgment.rewrite_id,
        rubric_version=judgment.rubric_version,
    )


def judgment_digest(session: Session, judgment: Judgment) -> str:
    """Return the salted SHA-256 of what was judged and what was said of it."""
    pair = session.get_one(Pair, judgment.pair_id)
    rewrite = session.get(Candidate, judgment.rewrite_id) if judgment.rewrite_id else None
    annotator = session.get_one(Annotator, judgment.annotator_id)
    content = {
        "uuid": judgment.uuid,
        "annotator": annotator.uuid,
        "kind": str(annotator.kind),
        "pair": pair.uuid,
        "purpose": str(pair.purpose),
        "prompt": session.get_one(Prompt, pair.prompt_id).sha256,
        "left": session.get_one(Candidate, pair.left_id).sha256,
        "right": session.get_one(Candidate, pair.right_id).sha256,
        "rewrite": rewrite.sha256 if rewrite else None,
        **{
            name: getattr(judgment, name)
            for name in (
                "revision", "sequence", "verdict", "strength", "tags_left", "tags_right",
                "red_flags", "note", "flagged", "rubric_version", "created_at",
            )
        },
    }  # fmt: skip
    return hashlib.sha256((judgment.salt or b"") + canonical_json(content).encode()).hexdigest()


def link(chain: str, digest: str) -> str:
    """Return the next value of a chain."""
    return hashlib.sha256(f"{chain}{digest}".encode()).hexdigest()


def broken_links(session: Session) -> list[str]:
    """Return what no longer is as it was judged, a line each.

    A judgment that was changed, whose predecessor is gone, or that is missing at the end of its
    chain; a prompt or reply whose text is no longer what its SHA-256 says. A judgment whose salt
    was erased, with an Erasure row to say so, cannot be checked against its text; its digest
    still links.
    """
    erased = {
        kind: set(session.exec(select(Erasure.row_id).where(Erasure.kind == kind)))
        for kind in ("judgment", "candidate", "prompt")
    }
    broken = []
    for annotator in session.exec(select(Annotator)).all():
        chain, sequence = "", 0
        rows = session.exec(
            select(Judgment)
            .where(Judgment.annotator_id == annotator.id)
            .order_by(col(Judgment.sequence))
        )
        for row in rows.all():
            sequence += 1
            chain = link(chain, row.digest)
            if row.salt is None:
                changed = row.id not in erased["judgment"]
            else:
                changed = judgment_digest(session, row) != row.digest
            if changed or row.chain != chain or row.sequence != sequence:
                broken.append(f"judgment {row.uuid}")
                chain, sequence = row.chain, row.sequence
        head = session.get(Setting, _head(annotator))
        if (head.value if head else "0 ") != f"{sequence} {chain}":
            broken.append(f"the newest judgments of {annotator.uuid}")
    return broken + _changed_texts(session, erased)


def _changed_texts(session: Session, erased: dict[str, set[int]]) -> list[str]:
    replies = session.exec(select(Candidate.id, Candidate.text, Candidate.sha256))
    broken = [
        f"reply {number}"
        for number, text, sha256 in replies
        if number not in erased["candidate"] and sha256_text(text) != sha256
    ]
    prompts = session.exec(select(Prompt.id, Prompt.messages, Prompt.sha256))
    return broken + [
        f"prompt {number}"
        for number, messages, sha256 in prompts
        if number not in erased["prompt"] and sha256_text(canonical_json(messages)) != sha256
    ]


@functools.lru_cache(maxsize=8)
def standing(judgment: type[Judgment] = Judgment) -> ColumnElement[bool]:
    """Whether a judgment (or its alias) is the newest of pair and annotator, no retraction.

    Made once: building it, and an alias above all, costs more than the query it goes into.
    """
    newer = aliased(Judgment)
    superseded = exists().where(
        col(newer.pair_id) == col(judgment.pair_id),
        col(newer.annotator_id) == col(judgment.annotator_id),
        col(newer.revision) > col(judgment.revision),
    )
    return and_(col(judgment.verdict) != Verdict.RETRACTED, ~superseded)


def last_standing(session: Session, annotator_id: int, sitting: str) -> Judgment | None:
    """Return what undo would take back: the annotator's latest standing judgment.

    Of this sitting while there is one: another window of theirs has an undo of its own.
    """
    latest = (
        select(Judgment)
        .where(Judgment.annotator_id == annotator_id, standing())
        .order_by(col(Judgment.sequence).desc())
        .limit(1)
    )
    mine = session.exec(latest.where(Judgment.sitting == sitting)).first()
    return mine or session.exec(latest).first()


def before(session: Session, judgment: Judgment) -> Judgment | None:
    """Return what the same annotator said of the same pair before, unless that was taken back."""
    earlier = session.exec(
        select(Judgment).where(
            Judgment.pair_id == judgment.pair_id,
            Judgment.annotator_id == judgment.annotator_id,
            Judgment.revision == judgment.revision - 1,
        )
    ).first()
    return earlier if earlier and earlier.verdict is not Verdict.RETRACTED else None


def judged_pairs(session: Session) -> dict[int, int]:
    """Return {round number: pairs that somebody has judged}; pairs shown again are not counted."""
    query = (
        select(Round.number, func.count(func.distinct(Judgment.pair_id)))
        .select_from(Judgment)
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Round, col(Pair.round_id) == Round.id)
        .where(standing(), col(Pair.repeat_of).is_(None))
        .group_by(col(Round.number))
    )
    return dict(session.exec(query).all())


def verdict_counts(session: Session) -> dict[tuple[int, str, str], int]:
    """Return {(round number, annotator kind, verdict): standing judgments}."""
    query = (
        select(Round.number, Annotator.kind, Judgment.verdict, func.count())
        .select_from(Judgment)
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Round, col(Pair.round_id) == Round.id)
        .join(Annotator, col(Judgment.annotator_id) == Annotator.id)
        .where(standing())
        .group_by(col(Round.number), col(Annotator.kind), col(Judgment.verdict))
    )
    return {
        (number, str(kind), str(verdict)): n for number, kind, verdict, n in session.exec(query)
    }
