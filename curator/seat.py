"""The judge's seat: the verbs of one annotator's sitting, used by the app and the line mode.

Part of the workflow layer. Every verb is one transaction: when it returns, it is on the disk.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, delete, select

from curator import db, judgments, queue, repeats, store
from curator.beside_draft import BESIDE, draft_text
from curator.errors import BadData, CuratorError
from curator.importing.prompts import SURROGATE
from curator.judgments import Said
from curator.models import (
    Annotator,
    AnnotatorKind,
    Bookmark,
    Candidate,
    Draft,
    Judgment,
    Lease,
    Pair,
    Prompt,
    Round,
    Verdict,
    now,
)
from curator.preferences import preference_count
from curator.safe_text import bare, too_long
from curator.sittings import sits, sitting_lock
from curator.words import Progress as Progress
from curator.words import Rewrite as Rewrite
from curator.words import Shown as Shown
from curator.workspace import Workspace
from trainer.contract import sha256_text

# What is written or said before it is saved, by the name of its draft.
DRAFTS = ("note", "rewrite_left", "rewrite_right", BESIDE)


class Seat:
    """An annotator's seat in a workspace, for one sitting."""

    def __init__(self, workspace: Workspace, annotator: Annotator, sitting: str) -> None:
        self.workspace = workspace
        self.annotator = annotator
        self.sitting = sitting
        self.rubric = workspace.rubric
        self.began = now()
        self._lock = sitting_lock(workspace, sitting)

    # --- pairs ---------------------------------------------------------------------------------

    def next(self) -> Shown | None:
        """Return the next pair to judge, handed to this sitting alone; None: nothing to judge."""
        with db.writing(self.workspace.engine) as session:
            return self._next(session)

    def go_to(self, number: int, round_number: int | None = None) -> Shown | None:
        """Return the pair with a number in a round (default: the newest); None: there is none."""
        with db.writing(self.workspace.engine) as session:
            turn = (
                store.newest_round(session)
                if round_number is None
                else session.exec(select(Round).where(Round.number == round_number)).first()
            )
            if turn is None or turn.id is None:
                return None
            return self._held(session, queue.pair_at(session, turn.id, number))

    def beside(self, pair_id: int, step: int) -> Shown | None:
        """Return the pair before (-1) or after (+1) another in its round; None: there is none.

        Pairs on another screen are passed by.
        """
        with db.writing(self.workspace.engine) as session:
            pair = session.get_one(Pair, pair_id)
            found = queue.neighbour(session, self.annotator, pair, step, self.sitting)
            return self._held(session, found)

    def open(self, pair_id: int) -> Shown | None:
        """Return a pair of one's history, to be judged again.

        This and going to a pair raise Busy while it is on another screen.
        """
        with db.writing(self.workspace.engine) as session:
            return self._held(session, session.get(Pair, pair_id))

    # --- judgments -----------------------------------------------------------------------------

    def judge(
        self,
        pair_id: int,
        said: Said,
        uuid: str,
        shown_at: str | None = None,
        elapsed_ms: int | None = None,
        *,
        rewrite: Rewrite | None = None,
        advance: bool = True,
    ) -> Shown | None:
        """Add the judgment; return the next pair, or without `advance` the same one.

        `uuid` makes a retry harmless. Raises BadData for a rewrite that cannot be kept.
        Writing that did not go into the judgment stays a draft. Where another sitting came to hold
        the pair meanwhile, the judgment is kept all the same: it was read and meant, and what two
        say of one pair counts for each.
        """
        if said.note is not None:
            said = replace(said, note=SURROGATE.sub("\ufffd", said.note))
        with db.writing(self.workspace.engine) as session:
            pair = session.get(Pair, pair_id)
            if pair is None:
                raise CuratorError("that pair is gone: it was taken back in another window.")
            done = session.exec(select(Judgment.id).where(Judgment.uuid == uuid)).first()
            if rewrite is not None and done is None:
                said = replace(said, rewrite_id=self._add_rewrite(session, pair, rewrite))
            judgments.add_judgment(
                session,
                pair,
                self.annotator,
                replace(said, rubric_version=self.rubric.version),
                uuid=uuid,
                sitting=self.sitting,
                shown_at=shown_at,
                elapsed_ms=elapsed_ms,
            )
            self._drop_drafts(session, pair_id, said.note, rewrite)
            if said.verdict is not Verdict.SKIP:
                share = self.workspace.config.judge.repeat_share
                repeats.maybe_repeat(session, pair, self.annotator, share)
            return self._next(session) if advance else self._shown(session, pair, said)

    def undo(self) -> Shown | None:
        """Take back the latest standing judgment; return its pair, or None: nothing to undo.

        Raises Busy, taking nothing back, while the pair is on another screen.
        """
        with db.writing(self.workspace.engine) as session:
            assert self.annotator.id is not None
            last = judgments.last_standing(session, self.annotator.id, self.sitting)
            if last is None:
                return None
            queue.lease(session, last.pair_id, self.annotator.id, self.sitting)
            pair = session.get_one(Pair, last.pair_id)
            before = judgments.before(session, last)
            judgments.add_judgment(
                session, pair, self.annotator, Said(Verdict.RETRACTED), sitting=self.sitting
            )
            repeats.drop_repeat(session, pair, self.annotator, self.sitting)
            said = judgments.said(last)
            shown = self._shown(session, pair, said)
            # What was taken back is said no longer, and only the screen would have it. What was
            # begun since is newer.
            back = {BESIDE: draft_text(said, None), "note": said.note or ""}
            if shown.rewrite is not None:
                back[f"rewrite_{shown.rewrite.side.value}"] = shown.rewrite.text
            for name in back.keys() - shown.drafts.keys():
                self._keep_draft(session, last.pair_id, name, back[name])
            return replace(shown, before=judgments.said(before) if before else None)

    def save_draft(self, pair_id: int, name: str, text: str, since: str | None = None) -> None:
        """Keep what is not saved yet, under a name of DRAFTS; an empty text drops it.

        So does a judgment that came after `since`, when it was said: that one holds what counts.
        """
        with db.writing(self.workspace.engine) as session:
            assert self.annotator.id is not None
            newest = judgments.newest_judgment(session, pair_id, self.annotator.id)
            late = since is not None and newest is not None and newest.created_at > since
            self._keep_draft(session, pair_id, name, "" if late else text)

    # --- the sitting ---------------------------------------------------------------------------

    def keep(self, pair_id: int) -> None:
        """Go on holding a pair, which else would be handed to another sitting after a while.

        Raises Busy where that has happened.
        """
        with db.writing(self.workspace.engine) as session:
            assert self.annotator.id is not None
            queue.lease(session, pair_id, self.annotator.id, self.sitting)

    def leave(self) -> None:
        """Give back the pair this sitting holds.

        Where the database cannot be written now, the next seat taken gives it back.
        """
        with contextlib.suppress(CuratorError), db.writing(self.workspace.engine) as session:
            queue.release(session, self.sitting)
        self._lock.release()
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def describe(self, role: str | None, orientation: str | None) -> None:
        """Keep what the annotator says of themselves; what is empty stays as it was."""
        with db.writing(self.workspace.engine) as session:
            annotator = session.get_one(Annotator, self.annotator.id)
            annotator.role = SURROGATE.sub("\ufffd", role or "") or annotator.role
            annotator.orientation = (
                SURROGATE.sub("\ufffd", orientation or "") or annotator.orientation
            )
        self.annotator = annotator

    def rename(self, name: str) -> bool:
        """Take another name, where nothing was judged under this one; tell whether it was taken.

        Not where an annotator of that name is there already.
        """
        name = SURROGATE.sub("\ufffd", name)
        with db.writing(self.workspace.engine) as session:
            there = session.exec(select(Annotator.id).where(Annotator.name == name)).first()
            if there is not None or not self._untouched(session):
                return False
            annotator = session.get_one(Annotator, self.annotator.id)
            annotator.name = name
        self.annotator = annotator
        return True

    def withdraw(self) -> None:
        """Leave; where nothing was judged, no annotator stays behind either."""
        with contextlib.suppress(CuratorError), db.writing(self.workspace.engine) as session:
            queue.release(session, self.sitting)
            if self._untouched(session):
                for table in (Draft, Bookmark, Pair):
                    mine = col(table.annotator_id) == self.annotator.id
                    session.exec(delete(table).where(mine))
                session.exec(delete(Annotator).where(col(Annotator.id) == self.annotator.id))
        self.leave()

    def is_new(self) -> bool:
        """Tell whether this annotator has never judged, nor said who they are."""
        with db.reading(self.workspace.engine) as session:
            mine = select(Judgment.id).where(Judgment.annotator_id == self.annotator.id).limit(1)
            return self.annotator.role is None and session.exec(mine).first() is None

    def progress(self) -> Progress:
        """Return how far this annotator is."""
        with db.reading(self.workspace.engine) as session:
            newest = store.newest_round(session)
            count = preference_count(session, (AnnotatorKind(self.annotator.kind),))
            if newest is None or newest.id is None:
                return Progress(0, 0, 0, count)
            judged = queue.judged_in_round(session, newest.id, self.annotator)
            return Progress(newest.number, judged, newest.pairs, count)

    # --- inside a transaction ------------------------------------------------------------------

    def _untouched(self, session: Session) -> bool:
        """Whether this annotator has judged nothing, and has a pair on no other screen."""
        me = self.annotator.id
        judged = session.exec(select(Judgment.id).where(Judgment.annotator_id == me).limit(1))
        elsewhere = select(Lease.pair_id).where(
            Lease.annotator_id == me, Lease.sitting != self.sitting
        )
        return judged.first() is None and session.exec(elsewhere).first() is None

    def _next(self, session: Session) -> Shown | None:
        pair = queue.next_pair(session, self.annotator, self.sitting)
        return self._shown(session, pair) if pair else None

    def _held(self, session: Session, pair: Pair | None) -> Shown | None:
        """Return a pair that was gone to, held by this sitting, with what was said of it."""
        if pair is None:
            return None
        assert pair.id is not None and self.annotator.id is not None
        queue.lease(session, pair.id, self.annotator.id, self.sitting)
        newest = judgments.newest_judgment(session, pair.id, self.annotator.id)
        stands = newest is not None and newest.verdict is not Verdict.RETRACTED
        return self._shown(session, pair, judgments.said(newest) if newest and stands else None)

    def _drafts_of(self, pair_id: int) -> tuple[Any, ...]:
        return col(Draft.annotator_id) == self.annotator.id, col(Draft.pair_id) == pair_id

    def _keep_draft(self, session: Session, pair_id: int, name: str, text: str) -> None:
        """Keep a draft, drop it where its text is empty; of a pair that is gone there is none."""
        assert self.annotator.id is not None
        if not text:
            mine = (*self._drafts_of(pair_id), col(Draft.field) == name)
            session.exec(delete(Draft).where(*mine))
        elif session.get(Pair, pair_id) is not None:
            text = SURROGATE.sub("\ufffd", text)
            me = self.annotator.id
            session.merge(
                Draft(annotator_id=me, pair_id=pair_id, field=name, text=text, updated_at=now())
            )

    def _drop_drafts(
        self, session: Session, pair_id: int, note: str | None, rewrite: Rewrite | None
    ) -> None:
        """Delete the drafts that say what was saved, or nothing; newer words are not.

        What was said beside no verdict is in the judgment, whatever of it stood on the disk.
        """
        saved = {"note": note or ""}
        if rewrite is not None:
            saved[f"rewrite_{rewrite.side.value}"] = SURROGATE.sub("\ufffd", rewrite.text)
        for draft in session.exec(select(Draft).where(*self._drafts_of(pair_id))).all():
            kept = bare(draft.text) in ("", bare(saved.get(draft.field, "")))
            if kept or draft.field == BESIDE:
                session.delete(draft)

    def _add_rewrite(self, session: Session, pair: Pair, rewrite: Rewrite) -> int:
        """Add a rewrite as a candidate with a human author; return its id."""
        text = SURROGATE.sub("\ufffd", rewrite.text).strip()
        replied = pair.left_id if rewrite.side is Verdict.LEFT else pair.right_id
        both = [bare(session.get_one(Candidate, i).text) for i in (pair.left_id, pair.right_id)]
        if not bare(text):
            raise BadData("the rewrite is empty. Write a reply, or take the rewrite off.")
        if bare(text) in both:
            raise BadData("the rewrite says what a reply says already. Change it, or take it off.")
        reason = too_long(text)
        if reason:
            raise BadData(f"the rewrite has {reason}.")
        mine = (Candidate.author_id == self.annotator.id, Candidate.rewrites_id == replied)
        same = select(Candidate).where(*mine, Candidate.text == text)
        candidate = session.exec(same).first() or Candidate(
            prompt_id=pair.prompt_id,
            text=text,
            sha256=sha256_text(text),
            author_id=self.annotator.id,
            rewrites_id=replied,
        )
        session.add(candidate)
        session.flush()
        assert candidate.id is not None
        return candidate.id

    def _shown(self, session: Session, pair: Pair, earlier: Said | None = None) -> Shown:
        prompt = session.get_one(Prompt, pair.prompt_id)
        assert pair.id is not None
        drafts = session.exec(select(Draft).where(*self._drafts_of(pair.id))).all()
        rewrite = None
        if earlier is not None and earlier.rewrite_id is not None:
            written = session.get_one(Candidate, earlier.rewrite_id)
            left = written.rewrites_id == pair.left_id
            rewrite = Rewrite(Verdict.LEFT if left else Verdict.RIGHT, written.text)
        return Shown(
            pair_id=pair.id,
            round=session.get_one(Round, pair.round_id).number,
            messages=prompt.messages,
            content_label=prompt.content_label,
            risk_cue=prompt.risk_cue,
            left=session.get_one(Candidate, pair.left_id).text,
            right=session.get_one(Candidate, pair.right_id).text,
            purpose=str(pair.purpose),
            number=queue.number_of(pair),
            family=prompt.family,
            earlier=earlier,
            rewrite=rewrite,
            drafts={draft.field: draft.text for draft in drafts},
            by_another=queue.judged_by_another(session, pair, self.annotator),
        )


def take_seat(
    workspace: Workspace,
    name: str,
    sitting: str,
    kind: AnnotatorKind = AnnotatorKind.HUMAN,
) -> Seat:
    """Return the seat of the annotator of that name, made if new.

    A newcomer is given the calibration pairs to begin with. Pairs that a crashed sitting held are
    given back, so that its annotator goes on where it ended.
    """
    name = SURROGATE.sub("\ufffd", name)
    with db.writing(workspace.engine) as session:
        annotator = store.get_annotator(session, name, kind)
        for other in queue.holders(session):
            if other != sitting and not sits(workspace, other):
                queue.release(session, other)
        repeats.add_calibration(session, annotator, workspace.config.judge.calibration)
        return Seat(workspace, annotator, sitting)
