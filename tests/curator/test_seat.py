"""The seat's verbs where two windows, copies of pairs and changes of mind meet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from curator import db, queue, workflow
from curator.errors import Busy, CuratorError
from curator.history import sitting
from curator.judgments import Said
from curator.models import Draft, Judgment, Pair, Purpose, Verdict, new_uuid
from curator.preferences import preference_count
from curator.queue import next_pair
from curator.seat import Rewrite, Seat, Shown, take_seat
from curator.workspace import Workspace, create_workspace
from tests.conftest import AddPairs

REPEATS = "[judge]\nrepeat_share = 1.0\ncalibration = 0\n"
CALIBRATION = "[judge]\nrepeat_share = 0.0\ncalibration = 3\n"


def study(tmp_path: Path, settings: str) -> Workspace:
    return create_workspace(tmp_path / "study", settings=settings)


def judge(
    seat: Seat, pair: Shown | None, verdict: Verdict = Verdict.TIE, rewrite: str | None = None
) -> Shown | None:
    assert pair is not None
    strength = 1 if verdict in (Verdict.LEFT, Verdict.RIGHT) else None
    written = Rewrite(Verdict.LEFT, rewrite) if rewrite else None
    return seat.judge(pair.pair_id, Said(verdict, strength), new_uuid(), rewrite=written)


def exported(place: Workspace) -> list[dict[str, object]]:
    return [json.loads(line) for line in workflow.export_preferences(place).lines]


def test_undo_passes_over_a_repeat_that_has_a_draft(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = study(tmp_path, REPEATS)
    add_pairs(place, 30)
    seat = take_seat(place, "anna", "s")
    pair, count = seat.next(), 0
    while pair is not None and pair.purpose != Purpose.REPEAT:
        pair, count = judge(seat, pair), count + 1
    assert pair is not None and count >= queue.FEWEST_BETWEEN
    seat.save_draft(pair.pair_id, "note", "begun")
    for _ in range(count):
        assert seat.undo() is not None
    assert seat.undo() is None
    with db.reading(place.engine) as session:
        assert session.exec(select(Draft)).all() == []


def test_a_repeat_taken_back_in_another_window_is_one_line(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = study(tmp_path, REPEATS)
    add_pairs(place, 1)
    here, there = take_seat(place, "anna", "here"), take_seat(place, "anna", "there")
    judge(here, here.next())
    with db.reading(place.engine) as session:
        repeat = session.exec(select(Pair).where(Pair.purpose == Purpose.REPEAT)).one()
    held = there.open(repeat.id or 0)
    assert held is not None
    here.undo()
    judge(there, held, Verdict.LEFT)  # still on that screen: it stays, and is kept
    judge(here, here.open(repeat.repeat_of or 0))
    there.undo()
    with db.writing(place.engine) as session:
        session.exec(text("DELETE FROM judgment WHERE pair_id = :id"), params={"id": repeat.id})
        queue.release(session, "there")
    here.undo()
    with pytest.raises(CuratorError, match="that pair is gone"):
        judge(there, held)


def test_no_pair_comes_to_two_screens_by_any_way(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    anna, ben = take_seat(workspace, "anna", "a"), take_seat(workspace, "ben", "b")
    first = anna.next()
    assert first is not None
    for find in (lambda: ben.go_to(1), lambda: ben.open(first.pair_id)):
        with pytest.raises(Busy, match="on another screen"):
            find()
    second = ben.next()
    assert second is not None and second.pair_id != first.pair_id
    assert ben.beside(second.pair_id, -1) is None
    judge(anna, first, Verdict.LEFT)
    gone_to = ben.go_to(1)
    assert gone_to is not None and gone_to.by_another
    with pytest.raises(Busy, match="on another screen"):
        anna.undo()
    with db.reading(workspace.engine) as session:
        assert [row.verdict for row in session.exec(select(Judgment))] == [Verdict.LEFT]
    ben.next()
    assert anna.undo() is not None


def test_a_step_passes_by_what_is_on_another_screen(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    ids = add_pairs(workspace, 5)
    seats = [take_seat(workspace, name, name) for name in ("anna", "ben", "cleo")]
    anna, ben, cleo = seats
    assert [seat.go_to(n) is not None for seat, n in zip(seats, (1, 2, 3), strict=True)] == [
        True
    ] * 3
    after, before = anna.beside(ids[0], 1), cleo.beside(ids[3], -1)
    assert after is not None and after.number == 4
    assert before is not None and before.number == 3
    last = ben.beside(ids[1], 1)
    assert last is not None and last.number == 5


def pass_lease_time(place: Workspace) -> None:
    """Let the time of every lease be over, as where a laptop slept."""
    with db.writing(place.engine) as session:
        session.exec(text("UPDATE lease SET expires_at = 1"))


def test_a_pair_that_another_came_to_hold_is_not_taken_back_and_what_is_said_is_kept(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)
    anna, ben = take_seat(workspace, "anna", "a"), take_seat(workspace, "ben", "b")
    slept = anna.next()
    assert slept is not None
    pass_lease_time(workspace)
    anna.keep(slept.pair_id)
    second = ben.next()
    assert second is not None and second.pair_id != slept.pair_id
    pass_lease_time(workspace)
    same = ben.next()
    assert same is not None and same.pair_id == slept.pair_id
    with pytest.raises(Busy):
        anna.keep(slept.pair_id)
    with db.reading(workspace.engine) as session:
        assert queue.holders(session) == ["b"]
    following = judge(anna, slept, Verdict.LEFT)
    assert following is not None and following.pair_id != slept.pair_id
    judge(ben, same, Verdict.RIGHT)
    assert len(exported(workspace)) == 2
    with db.reading(workspace.engine) as session:
        assert [row.verdict for row in session.exec(select(Judgment))] == ["left", "right"]


def test_calibration_pairs_are_held_like_others(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = study(tmp_path, CALIBRATION)
    add_pairs(place, 6)
    anna = take_seat(place, "anna", "a")
    judge(anna, anna.next(), Verdict.LEFT)
    here, there = take_seat(place, "ben", "b1"), take_seat(place, "ben", "b2")
    first, second = here.next(), there.next()
    assert first is not None and second is not None and first.pair_id != second.pair_id
    assert first.purpose == second.purpose == Purpose.CALIBRATION


def test_two_who_begin_at_once_share_the_calibration_pairs(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = study(tmp_path, CALIBRATION)
    add_pairs(place, 6)
    anna = take_seat(place, "anna", "a")
    pair = anna.next()
    ben = take_seat(place, "ben", "b")
    theirs = []
    for seat in (anna, ben):
        for _ in range(3):
            pair = pair if seat is anna else ben.next()
            assert pair is not None
            theirs.append((seat.annotator.name, pair.number))
            pair = judge(seat, pair)
    assert theirs == [(name, n) for name in ("anna", "ben") for n in (1, 2, 3)]
    assert ben.progress().judged == 3


def test_a_rewrite_counts_wherever_it_was_written(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = study(tmp_path, CALIBRATION)
    add_pairs(place, 6)
    anna = take_seat(place, "anna", "a")
    judge(anna, anna.next(), Verdict.LEFT)
    ben = take_seat(place, "ben", "b")
    copy = ben.next()
    assert copy is not None and copy.purpose == Purpose.CALIBRATION
    judge(ben, copy, Verdict.LEFT, rewrite="Something better.")
    rows = exported(place)
    assert [row["chosen"][0]["content"] for row in rows[1:]] == ["Something better."] * 2  # type: ignore[index]
    assert {row["strength"] for row in rows[1:]} == {None}
    assert len({row["id"] for row in rows}) == 3
    with db.reading(place.engine) as session:
        assert preference_count(session) == 3


def test_a_skip_is_never_exported_whatever_was_written(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    anna, ben = take_seat(workspace, "anna", "a"), take_seat(workspace, "ben", "b")
    judge(anna, anna.next(), Verdict.SKIP, rewrite="Something better.")
    assert exported(workspace) == []
    with db.reading(workspace.engine) as session:
        assert preference_count(session) == 0
    pair = ben.next()
    assert pair is not None and pair.number == 1


def test_repeats_come_after_pairs_not_after_changes_of_mind(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = study(tmp_path, REPEATS)
    add_pairs(place, 40)
    seat = take_seat(place, "anna", "s")
    pair, seen = seat.next(), 0
    while pair is not None and pair.purpose == Purpose.TRAIN:
        for verdict in (Verdict.TIE, Verdict.BOTH_BAD, Verdict.LEFT):  # three rows a pair
            following = judge(seat, pair, verdict)
        pair, seen = following, seen + 1
    assert seen >= queue.FEWEST_BETWEEN
    assert pair is not None
    with db.reading(place.engine) as session:
        repeat = session.get_one(Pair, pair.pair_id)
        first = session.get_one(Pair, repeat.repeat_of)
        last = session.get_one(Judgment, 3 * seen).pair_id
    beside = seat.beside(first.id or 0, 1)  # an unjudged repeat is not met just behind its first
    assert beside is not None and beside.purpose == Purpose.TRAIN
    # Nor is its first time met from it: as from any pair, before it stands what was judged last.
    before, after = seat.beside(pair.pair_id, -1), seat.beside(pair.pair_id, 1)
    assert before is not None and (before.pair_id, before.number) == (last, seen)
    assert after is not None and after.number == seen + 1
    judge(seat, seat.open(first.id or 0), Verdict.LEFT)
    before = seat.beside(pair.pair_id, -1)
    assert before is not None and before.number == seen


def test_a_change_of_mind_to_skip_gives_the_pair_to_others(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 4)
    anna, ben = take_seat(workspace, "anna", "a"), take_seat(workspace, "ben", "b")
    first = anna.next()
    judge(anna, first, Verdict.LEFT)
    judge(ben, ben.next())
    assert first is not None
    judge(anna, anna.open(first.pair_id), Verdict.SKIP)
    pair = ben.next()
    assert pair is not None and pair.pair_id == first.pair_id


def test_undo_of_a_change_of_mind_says_what_was_before(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    seat = take_seat(workspace, "anna", "a")
    first = seat.next()
    judge(seat, first, Verdict.LEFT)
    assert first is not None
    judge(seat, seat.open(first.pair_id), Verdict.RIGHT)
    back = seat.undo()
    assert back is not None and back.earlier is not None and back.before is not None
    assert (back.earlier.verdict, back.before.verdict) == ("right", "left")


def test_undo_stays_in_its_own_window(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    here, there = take_seat(workspace, "anna", "here"), take_seat(workspace, "anna", "there")
    mine, theirs = here.next(), there.next()
    judge(here, mine)
    judge(there, theirs)
    back = here.undo()
    assert back is not None and mine is not None and back.pair_id == mine.pair_id


def test_what_one_says_of_oneself_is_not_lost_by_saying_nothing(workspace: Workspace) -> None:
    seat = take_seat(workspace, "anna", "a")
    seat.describe("psychotherapist", "CBT")
    seat.describe("", None)
    again = take_seat(workspace, "anna", "b")
    assert (again.annotator.role, again.annotator.orientation) == ("psychotherapist", "CBT")


def test_a_skipped_or_changed_first_showing_is_no_inconsistency(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = study(tmp_path, REPEATS)
    add_pairs(place, 2)
    seat = take_seat(place, "anna", "s")
    first, second = seat.next(), seat.go_to(2)
    judge(seat, first, Verdict.LEFT)
    judge(seat, second, Verdict.LEFT)
    with db.reading(place.engine) as session:
        repeats = session.exec(select(Pair).where(Pair.purpose == Purpose.REPEAT)).all()
    judge(seat, seat.open(repeats[0].id or 0), Verdict.SKIP)
    judge(seat, seat.open(repeats[1].id or 0), Verdict.RIGHT)  # sides swapped: the same pick
    assert second is not None
    judge(seat, seat.open(second.pair_id), Verdict.BOTH_BAD)
    account = sitting(seat)
    assert (account.again, account.again_same) == (1, 1)


def test_the_next_pair_reads_no_whole_table(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = study(tmp_path, REPEATS)
    add_pairs(place, 60)
    seat = take_seat(place, "anna", "s")
    asked: list[str] = []
    pair = seat.next()
    for _ in range(30):
        pair = judge(seat, pair)
    with db.writing(place.engine) as session:
        raw = session.connection().connection.driver_connection
        assert raw is not None
        raw.set_trace_callback(asked.append)
        next_pair(session, seat.annotator, "s")
        raw.set_trace_callback(None)
        plans = [
            row[3]
            for statement in asked
            if statement.lstrip().startswith("SELECT")
            for row in raw.execute("EXPLAIN QUERY PLAN " + statement).fetchall()
        ]
    assert plans and not [plan for plan in plans if plan.startswith("SCAN pair")]
    with db.reading(place.engine) as session:
        assert len(session.exec(select(Judgment)).all()) == 30


def test_only_drafts_that_say_what_was_saved_go_with_a_judgment(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    assert pair is not None
    for name, written in (
        ("note", " \n"),
        ("rewrite_left", "Newer."),
        ("rewrite_right", "Mi\u200bne "),
    ):
        seat.save_draft(pair.pair_id, name, written)
    said = Said(Verdict.TIE, note="kept")
    seat.judge(pair.pair_id, said, new_uuid(), rewrite=Rewrite(Verdict.RIGHT, "Mine"))
    again = seat.open(pair.pair_id)
    assert again is not None and again.drafts == {"rewrite_left": "Newer."}
    seat.judge(pair.pair_id, said, new_uuid(), rewrite=Rewrite(Verdict.LEFT, "Older."))
    again = seat.open(pair.pair_id)
    assert again is not None and again.drafts == {"rewrite_left": "Newer."}
