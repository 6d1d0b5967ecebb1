"""The queue, the judgments, undo, and the chain that shows a change."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from sqlmodel import select

from curator import db, judgments, queue
from curator.errors import CuratorError
from curator.judgments import Said, add_judgment
from curator.models import (
    Annotator,
    AnnotatorKind,
    Bookmark,
    Erasure,
    Judgment,
    Pair,
    Verdict,
    new_uuid,
)
from curator.preferences import preference_count, preferences
from curator.seat import Seat, take_seat
from curator.sittings import SITTINGS
from curator.workspace import DATABASE, Workspace
from tests.conftest import AddPairs

LEFT = Said(Verdict.LEFT, 2)


def rows(workspace: Workspace) -> list[Judgment]:
    with db.reading(workspace.engine) as session:
        return list(session.exec(select(Judgment).order_by("id")).all())


def judge_all(seat: Seat, said: Said = LEFT) -> list[int]:
    judged = []
    pair = seat.next()
    while pair is not None:
        judged.append(pair.pair_id)
        pair = seat.judge(pair.pair_id, said, new_uuid())
    return judged


def test_pairs_come_in_order_once_each(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 5)
    assert judge_all(take_seat(workspace, "anna", "s1")) == ids
    assert take_seat(workspace, "anna", "s2").next() is None
    # One person's judgment is enough for a training pair ...
    assert take_seat(workspace, "ben", "s3").next() is None
    # ... but a simulated one does not count for people, nor the other way round.
    assert judge_all(take_seat(workspace, "robot", "s4", AnnotatorKind.SIMULATED)) == ids


def test_a_skip_leaves_the_pair_to_others(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 2)
    judge_all(take_seat(workspace, "anna", "s1"), Said(Verdict.SKIP))
    assert take_seat(workspace, "anna", "s1").next() is None
    assert judge_all(take_seat(workspace, "ben", "s2")) == ids


def test_the_newest_round_comes_first(workspace: Workspace, add_pairs: AddPairs) -> None:
    first = add_pairs(workspace, 3, number=1)
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    assert pair is not None and pair.pair_id == first[0]
    second = add_pairs(workspace, 2, number=2)
    following = seat.judge(pair.pair_id, LEFT, "u")
    assert following is not None and (following.pair_id, following.round) == (second[0], 2)
    assert judge_all(seat) == [*second, *first[1:]]


def test_no_pair_is_handed_out_twice_at_once(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 4)
    anna, ben = take_seat(workspace, "anna", "s1"), take_seat(workspace, "ben", "s2")
    a, b = anna.next(), ben.next()
    assert a is not None and b is not None
    assert (a.pair_id, b.pair_id) == (ids[0], ids[1])
    a = anna.judge(a.pair_id, LEFT, "u1")
    assert a is not None and a.pair_id == ids[2]
    ben.leave()
    a = anna.judge(a.pair_id, LEFT, "u2")
    assert a is not None and a.pair_id == ids[1]  # given back, and still before the fourth


def test_a_lease_runs_out(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = add_pairs(workspace, 1)
    anna = take_seat(workspace, "anna", "s1")
    anna.next()
    ben = take_seat(workspace, "ben", "s2")
    assert ben.next() is None
    later = queue.time.time() + queue.LEASE_SECONDS + 1
    monkeypatch.setattr(queue.time, "time", lambda: later)
    pair = ben.next()
    assert pair is not None and pair.pair_id == ids[0]


def test_a_sitting_that_crashed_gives_its_pair_back(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    ids = add_pairs(workspace, 2)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom curator.seat import take_seat\n"
        "from curator.workspace import open_workspace\n"
        "seat = take_seat(open_workspace(Path(sys.argv[1])), 'anna', 'crashed')\n"
        "seat.save_draft(seat.next().pair_id, 'note', 'half a thought')\nos._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(workspace.path)])
    pair = take_seat(workspace, "anna", "s2").next()
    assert pair is not None and pair.pair_id == ids[0]
    assert pair.drafts == {"note": "half a thought"}
    assert [p.name for p in (workspace.path / SITTINGS).iterdir()] == ["s2.lock"]


def test_a_pair_still_on_the_screen_stays_held(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs(workspace, 1)
    anna, ben = take_seat(workspace, "anna", "s1"), take_seat(workspace, "ben", "s2")
    pair = anna.next()
    assert pair is not None
    start = queue.time.time()
    for minutes in range(5, 60, 5):
        monkeypatch.setattr(queue.time, "time", lambda later=start + minutes * 60: later)
        anna.keep(pair.pair_id)
        assert ben.next() is None


def test_what_is_taken_back_is_anybodys_again(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 3)
    anna, ben = take_seat(workspace, "anna", "s1"), take_seat(workspace, "ben", "s2")
    pair = anna.next()
    assert pair is not None
    anna.judge(pair.pair_id, LEFT, "u")
    anna.leave()
    assert judge_all(ben) == ids[1:]
    anna.undo()
    anna.leave()
    assert judge_all(ben) == ids[:1]


def test_undo_goes_back_any_number_and_adds_rows(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 3)
    seat = take_seat(workspace, "anna", "s")
    judge_all(seat)
    for pair_id in reversed(ids):
        back = seat.undo()
        assert back is not None and back.pair_id == pair_id
        assert back.earlier is not None and back.earlier.verdict is Verdict.LEFT
    assert seat.undo() is None
    assert [row.verdict for row in rows(workspace)] == ["left"] * 3 + ["retracted"] * 3
    with db.reading(workspace.engine) as session:
        assert preferences(session)[0] == []
        assert preference_count(session) == 0
    assert judge_all(seat, Said(Verdict.TIE)) == ids
    assert [row.revision for row in rows(workspace)] == [1] * 3 + [2] * 3 + [3] * 3


def test_the_newest_judgment_counts(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    assert pair is not None
    seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), "u1")
    seat.judge(pair.pair_id, Said(Verdict.RIGHT, 2), "u2")
    with db.reading(workspace.engine) as session:
        found, _ = preferences(session)
        assert preference_count(session) == 1
    assert [(p.chosen, p.rejected, p.strength) for p in found] == [(pair.right, pair.left, 2)]


def test_a_retry_with_the_same_uuid_is_one_judgment(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    assert pair is not None
    first = seat.judge(pair.pair_id, LEFT, "same")
    again = seat.judge(pair.pair_id, LEFT, "same")
    assert first == again and len(rows(workspace)) == 1


def test_retracting_nothing_is_refused(workspace: Workspace, add_pairs: AddPairs) -> None:
    (pair_id,) = add_pairs(workspace, 1)
    seat = take_seat(workspace, "anna", "s")
    with pytest.raises(CuratorError, match="no judgment"), db.writing(workspace.engine) as session:
        pair = session.get_one(Pair, pair_id)
        add_judgment(session, pair, seat.annotator, Said(Verdict.RETRACTED))


def test_a_name_keeps_its_kind(workspace: Workspace) -> None:
    take_seat(workspace, "anna", "s")
    with pytest.raises(CuratorError, match="is a human annotator already"):
        take_seat(workspace, "anna", "s", AnnotatorKind.SIMULATED)


@pytest.mark.parametrize(
    "change",
    ["UPDATE judgment SET verdict = 'right' WHERE id = 2",
     "UPDATE judgment SET note = 'x' WHERE id = 2",
     "UPDATE candidate SET sha256 = 'x' WHERE id = (SELECT left_id FROM pair WHERE id = 2)",
     "DELETE FROM judgment WHERE id = 2",
     "UPDATE judgment SET digest = 'x', salt = NULL WHERE id = 2"],
)  # fmt: skip
def test_the_chain_shows_any_change(workspace: Workspace, add_pairs: AddPairs, change: str) -> None:
    add_pairs(workspace, 3)
    judge_all(take_seat(workspace, "anna", "s"))
    with db.reading(workspace.engine) as session:
        assert judgments.broken_links(session) == []
    with closing(sqlite3.connect(workspace.path / DATABASE)) as connection:
        connection.execute(change)
        connection.commit()
    with db.reading(workspace.engine) as session:
        assert 1 <= len(judgments.broken_links(session)) <= 2  # a reply's own digest, too


def test_erasing_a_text_and_its_salt_keeps_the_chain(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)
    judge_all(take_seat(workspace, "anna", "s"), Said(Verdict.LEFT, 1, note="names a client"))
    with db.writing(workspace.engine) as session:
        judgment = session.exec(select(Judgment).where(Judgment.id == 2)).one()
        judgment.note, judgment.salt = None, None
        session.add(Erasure(kind="judgment", row_id=2, reason="asked for"))
    with db.reading(workspace.engine) as session:
        assert judgments.broken_links(session) == []


def test_the_bookmark_keeps_the_query_short(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 30)
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    for number in range(20):
        assert pair is not None
        pair = seat.judge(pair.pair_id, LEFT, f"u{number}")
    with db.reading(workspace.engine) as session:
        annotator = session.exec(select(Annotator)).one()
        bookmark = session.get_one(Bookmark, (annotator.id, 1))
    assert bookmark.position == 21 * queue.POSITION_STEP - 1
