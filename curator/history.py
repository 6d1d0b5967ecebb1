"""What an annotator has judged: their history, and the account of a sitting.

Part of the workflow layer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Boolean, ColumnElement, Text, exists, func, or_, type_coerce
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from curator import db, judgments, queue
from curator.importing.prompts import SURROGATE
from curator.judgments import Said
from curator.models import Candidate, Judgment, Pair, Prompt, Purpose, Round, Verdict
from curator.safe_text import words_to_read
from curator.seat import Seat

MOST_ROWS = 500
# A pick faster than this could not be read first. Silent reading of English averages 238 words a
# minute (Brysbaert 2019, doi 10.1016/j.jml.2019.104047); three times that is no reading.
FASTEST_WORDS_A_MINUTE = 3 * 238


@dataclass(frozen=True)
class Judged:
    """One judgment in an annotator's history: the newest of its pair."""

    pair_id: int
    round: int
    number: int
    purpose: str
    said: Said
    revisions: int
    about: str
    client: str
    judged_at: str
    fast: bool


def history(
    seat: Seat, verdict: str | None = None, flagged: bool = False, text: str = ""
) -> list[Judged]:
    """Return the annotator's standing judgments, the latest first, at most 500.

    Filtered by verdict, flag, and a text that stands in the conversation, a reply or the note, in
    any case of letters.
    """
    left, right = aliased(Candidate), aliased(Candidate)
    query = (
        select(Judgment, Pair, Prompt, Round.number, left.text, right.text)  # type: ignore[call-overload]
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Prompt, col(Pair.prompt_id) == Prompt.id)
        .join(Round, col(Pair.round_id) == Round.id)
        .join(left, col(Pair.left_id) == left.id)
        .join(right, col(Pair.right_id) == right.id)
        .where(Judgment.annotator_id == seat.annotator.id, judgments.standing())
        .order_by(col(Judgment.sequence).desc())
        .limit(MOST_ROWS)
    )
    if verdict:
        query = query.where(col(Judgment.verdict) == Verdict(verdict))
    if flagged:
        query = query.where(Judgment.flagged == 1)
    if text.strip():
        query = query.where(_holds(text.strip(), left.text, right.text))
    with db.reading(seat.workspace.engine) as session:
        return [_judged(*row) for row in session.exec(query).all()]


def _holds(text: str, left: Any, right: Any) -> ColumnElement[bool]:
    """Whether a turn, a reply or the note holds a text, in any case of letters.

    A text in ASCII is left to SQLite, which knows its case: calling back for each row costs more.
    """
    text = SURROGATE.sub("\ufffd", text)
    turn = func.json_each(type_coerce(col(Prompt.messages), Text)).table_valued("value")
    content = func.json_extract(turn.c.value, "$.content")

    def held(column: Any) -> ColumnElement[bool]:
        if text.isascii():
            return cast(ColumnElement[bool], column.icontains(text, autoescape=True))
        return func.holds(column, db.casefold(text), type_=Boolean)

    in_turn = exists().select_from(turn).where(held(content))
    return or_(in_turn, *map(held, (left, right, col(Judgment.note))))


def _judged(
    judgment: Judgment, pair: Pair, prompt: Prompt, number: int, left: str, right: str
) -> Judged:
    client = next(m["content"] for m in reversed(prompt.messages) if m["role"] == "user")
    return Judged(
        pair_id=judgment.pair_id,
        round=number,
        number=queue.number_of(pair),
        purpose=str(pair.purpose),
        said=judgments.said(judgment),
        revisions=judgment.revision,
        about=prompt.content_label or "",
        client=client,
        judged_at=judgment.created_at,
        fast=faster_than_readable(judgment, client, left, right),
    )


def faster_than_readable(judgment: Judgment, *texts: str) -> bool:
    """Tell whether a pick came sooner than its texts can be read. Marked, never blocked.

    A pair that is judged again has been read before; a skip says nothing of what it passes by.
    """
    if judgment.elapsed_ms is None or judgment.revision > 1 or judgment.verdict is Verdict.SKIP:
        return False
    words = sum(words_to_read(text) for text in texts)
    return judgment.elapsed_ms < words / FASTEST_WORDS_A_MINUTE * 60_000


# --- a sitting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sitting:
    """The account of one sitting."""

    verdicts: dict[str, int]
    taken_back: int
    rewrites: int
    notes: int
    flagged: int
    fast: int
    again_same: int
    again: int
    minutes: float

    @property
    def judged(self) -> int:
        """How many judgments of this sitting stand."""
        return sum(self.verdicts.values())


def sitting(seat: Seat) -> Sitting:
    """Return the account of the seat's sitting so far."""
    with db.reading(seat.workspace.engine) as session:
        rows = session.exec(
            select(Judgment, Pair)
            .join(Pair, col(Judgment.pair_id) == Pair.id)
            .where(Judgment.sitting == seat.sitting, Judgment.annotator_id == seat.annotator.id)
            .order_by(col(Judgment.sequence))
        ).all()
        newest = {pair.id: (judgment, pair) for judgment, pair in rows}
        stands = [each for each in newest.values() if each[0].verdict is not Verdict.RETRACTED]
        fast = same = again = 0
        for judgment, pair in stands:
            prompt = session.get_one(Prompt, pair.prompt_id)
            texts = [m["content"] for m in prompt.messages[-1:]]
            texts += [session.get_one(Candidate, i).text for i in (pair.left_id, pair.right_id)]
            fast += faster_than_readable(judgment, *texts)
            first = _first_showing(session, judgment, pair)
            if first is not None:
                again += 1
                same += Verdict(first.verdict) is _swapped(Verdict(judgment.verdict))
    ended = datetime.fromisoformat(rows[-1][0].created_at if rows else seat.began)
    return Sitting(
        verdicts=dict(Counter(str(judgment.verdict) for judgment, _ in stands)),
        taken_back=sum(judgment.verdict is Verdict.RETRACTED for judgment, _ in rows),
        rewrites=sum(judgment.rewrite_id is not None for judgment, _ in stands),
        notes=sum(bool(judgment.note) for judgment, _ in stands),
        flagged=sum(bool(judgment.flagged) for judgment, _ in stands),
        fast=fast,
        again_same=same,
        again=again,
        minutes=(ended - datetime.fromisoformat(seat.began)).total_seconds() / 60,
    )


def _first_showing(session: Session, judgment: Judgment, pair: Pair) -> Judgment | None:
    """Return what stood for a repeat's first showing when it was judged; none: not comparable."""
    if pair.purpose is not Purpose.REPEAT or judgment.verdict is Verdict.SKIP:
        return None
    first = session.exec(
        select(Judgment)
        .where(
            Judgment.pair_id == pair.repeat_of,
            Judgment.annotator_id == judgment.annotator_id,
            col(Judgment.sequence) < judgment.sequence,
        )
        .order_by(col(Judgment.revision).desc())
        .limit(1)
    ).first()
    stood = first is not None and first.verdict not in (Verdict.RETRACTED, Verdict.SKIP)
    return first if stood else None


def _swapped(verdict: Verdict) -> Verdict:
    """Return what a verdict of a repeat, whose sides are swapped, says of the first showing."""
    return {Verdict.LEFT: Verdict.RIGHT, Verdict.RIGHT: Verdict.LEFT}.get(verdict, verdict)


def sitting_text(account: Sitting, workspace: str) -> str:
    """Return the account for the end of a sitting, in a few lines without any client's words."""
    if not account.judged and not account.taken_back:
        return "Nothing was judged in this sitting."
    names = {"left": "A", "right": "B", "both_bad": "both bad", "skip": "skipped"}
    counts = ", ".join(
        f"{account.verdicts[v]} {names.get(v, v)}"
        for v in ("left", "right", "tie", "both_bad", "skip")
        if v in account.verdicts
    )
    lines = [f"{account.judged} judged in {account.minutes:.0f} min, all kept in {workspace}."]
    if counts:
        lines.append(f"  {counts}")
    parts = [
        (account.taken_back, "taken back"), (account.rewrites, "rewritten"),
        (account.notes, "with a note"), (account.flagged, "flagged"),
        (account.fast, "faster than the texts can be read"),
    ]  # fmt: skip
    said = ", ".join(f"{n} {what}" for n, what in parts if n)
    if said:
        lines.append(f"  {said}")
    if account.again:
        lines.append(f"  {account.again_same} of {account.again} shown again got the same answer")
    return "\n".join(lines)
