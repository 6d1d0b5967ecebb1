"""Judging in lines: from a pipe, without a control sequence, with the same verbs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text as sql
from sqlmodel import select

from curator import db
from curator.judgments import standing
from curator.line_mode import Left, LineMode
from curator.models import Candidate, Draft, Judgment, Lease, Prompt
from curator.seat import take_seat
from curator.words import LEASE_SECONDS
from curator.workspace import Workspace, create_workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import rows


def annotate(workspace: Workspace, *lines: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "curator", "annotate", "--plain", "-a", "anna"],
        input="".join(line + "\n" for line in lines).encode(), capture_output=True,
        cwd=workspace.path, env={**os.environ, "TERM": "dumb"}, timeout=60,
    )  # fmt: skip


def test_ten_judgments_from_a_pipe_without_a_control_sequence(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 12, good="Fine {i} \x1b[2J \x9b1m \x07 \u202e here.")
    done = annotate(workspace, *"aAbBtxsaab")
    assert done.returncode == 0, done.stderr
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", done.stdout + done.stderr)
    text = done.stdout.decode()
    assert text.count("saved: ") == 10 and "saved: A clearly better" in text
    assert "0 of 12 judged · about: feeling watched · risk cue: none" in text
    assert "client (4 words): Round 1, message 0." in text and "hidden characters): Fine" in text
    assert "10 judged in 0 min, all kept in study." in text
    said = [(str(row.verdict), row.strength) for row in rows(workspace)]
    assert said == [
        ("left", 1), ("left", 2), ("right", 1), ("right", 2), ("tie", None), ("both_bad", None),
        ("skip", None), ("left", 1), ("left", 1), ("right", 1),
    ]  # fmt: skip


def test_every_verb_works_in_lines(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 5)
    done = annotate(
        workspace, "g", "g A nv", "g B e", "g B zz", "n a close call", "f", "left_clearly",
        "u", "e", "My own", "words.", ".", "b", ": 4", "t", "[", "]", ".", ": 99", ": x", "h",
        "h close", "r", "i", "?", "nonsense", "", "q", "a",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    for part in (
        "n  Names the feeling", "A because names feeling, validates", "not taken: zz.",
        "note: a close call", "flagged.", "taken back:", "was: A clearly better",
        "there is no such pair.", ": 17, or 2.17", "1.1  B flagged", "preferences so far",
        "How to judge", "a  A better", "nonsense is no key here; ? tells them all.",
        "2 judged", "1 taken back, 1 rewritten",
    ):  # fmt: skip
        assert part in text, part
    said = [(str(row.verdict), row.pair_id) for row in rows(workspace)]
    assert said == [("left", 1), ("retracted", 1), ("right", 1), ("tie", 4)]
    first, _, third, _ = rows(workspace)
    assert (first.tags_left, first.tags_right) == (
        ["names_feeling", "validates_not_endorses"], ["endorses_belief"],
    )  # fmt: skip
    assert (third.note, third.flagged, third.tags_left) == ("a close call", 1, first.tags_left)
    with db.reading(workspace.engine) as session:
        assert session.get_one(Candidate, third.rewrite_id).text == "My own\nwords."


def test_red_flags_are_asked_in_lines(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = create_workspace(tmp_path / "other", settings=ONCE + "red_flags = true\n")
    add_pairs(place, 1)
    with db.writing(place.engine) as session:
        session.get_one(Prompt, 1).risk_cue = "self-harm"
    done = annotate(place, "a", *"ny?nyyn")
    assert done.returncode == 0 and "A: Does it pass over a risk" in done.stdout.decode()
    (row,) = rows(place)
    assert sum(row.red_flags.values()) == 3 and len(row.red_flags) == 6


def test_an_empty_queue_says_what_to_do(workspace: Workspace) -> None:
    done = annotate(workspace, "a", "u", "r start")
    text = done.stdout.decode()
    assert done.returncode == 0 and "curator import prompts FILE" in text
    assert "there is nothing to judge." in text and "nothing to take back." in text
    assert "do that now" not in text  # there is nothing to start
    with db.reading(workspace.engine) as session:
        assert session.exec(select(Judgment).where(standing())).all() == []


def test_writing_is_kept_at_once_and_when_going_to_and_fro(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)
    done = annotate(workspace, "n a long note", "g A n", "f", ": 2", ": 1", "a", "q")
    assert done.returncode == 0 and done.stdout.decode().count("note: a long note") == 2
    (row,) = rows(workspace)
    assert (row.note, row.flagged, row.tags_left) == ("a long note", 1, ["names_feeling"])
    # The input ends in the middle of a rewrite: every line of it is there, the note as well.
    annotate(workspace, "n begun", "E", "It sounds hard.", "And \x1b[2J?")
    with db.reading(workspace.engine) as session:
        drafts = {draft.field: draft.text for draft in session.exec(select(Draft))}
    assert drafts == {"note": "begun", "rewrite_right": "It sounds hard.\nAnd \x1b[2J?"}
    done = annotate(workspace, "n", "E", "Who helps?", ".", "t", "q")
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", done.stdout)
    text = done.stdout.decode()
    assert "note begun earlier, n takes it up (1 words): begun" in text
    assert "rewrite of B begun earlier, E takes it up (5 words" in text
    assert "\n    And " in text and "E new begins anew" in text
    last = rows(workspace)[-1]
    with db.reading(workspace.engine) as session:
        written = session.get_one(Candidate, last.rewrite_id).text
        assert session.exec(select(Draft)).all() == []
    assert last.note == "begun" and written == "It sounds hard.\nAnd \x1b[2J?\nWho helps?"


def test_a_rewrite_can_be_begun_anew_and_taken_off(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    done = annotate(workspace, "e", "First.", ".", "e new", "Second.", ".", "a", "n x", "n",
                    "e", "Third.", ".", "e new", ".", "b")  # fmt: skip
    assert "no rewrite goes with your pick" in done.stdout.decode()
    first, second = rows(workspace)
    with db.reading(workspace.engine) as session:
        assert session.get_one(Candidate, first.rewrite_id).text == "Second."
        assert session.exec(select(Draft)).all() == []
    assert second.rewrite_id is None and second.note is None


def test_the_history_in_lines_is_filtered(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    done = annotate(
        workspace, "f", "a", "t", "f", "t", "h verdict=tie", "h flagged=yes", "r",
        "h verdict=tie flagged=yes message 2", "h verdict=none", "h message 9",
        "h verdict=both-bad", "q",
    )  # fmt: skip
    text = done.stdout.decode()
    listed = re.findall(r"1\.(\d)  (A|tie)( flagged)?  ", text)
    assert listed == [
        ("3", "tie", " flagged"), ("2", "tie", ""), ("3", "tie", " flagged"),
        ("1", "A", " flagged"), ("3", "tie", " flagged"),
    ]  # fmt: skip
    assert "verdict=none is none of: A, B, tie, both-bad, skipped." in text
    assert text.count("there is no such judgment.") == 2


def test_red_flags_can_be_gone_back_in_and_left_open(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = create_workspace(tmp_path / "other", settings=ONCE + "red_flags = true\n")
    add_pairs(place, 1)
    with db.writing(place.engine) as session:
        session.get_one(Prompt, 1).risk_cue = "self-harm"
    done = annotate(place, "a", *"ync", "f", "b", *"yunnnnny", "q")
    assert "not judged: the questions are open." in done.stdout.decode()
    (row,) = rows(place)
    assert (row.verdict, row.flagged, list(row.red_flags.values())) == (
        "right", 1, [False] * 5 + [True],
    )  # fmt: skip


def test_a_pause_is_suggested_in_lines(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    seat, out = take_seat(workspace, "anna", "s"), io.StringIO()
    mode = LineMode(workspace, seat, io.StringIO("a\nb\n"), out)
    mode.pause_at -= 30 * 60  # as if begun half an hour ago
    with pytest.raises(Left):
        mode.run()
    seat.leave()
    assert out.getvalue().count("another 30 minutes: a pause does the next pairs good.") == 1


def test_a_pair_on_another_screen_is_one_line_in_lines(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)
    ben = take_seat(workspace, "ben", "b")
    seat, out = take_seat(workspace, "anna", "s"), io.StringIO()
    mode = LineMode(workspace, seat, io.StringIO(), out)
    mode.show(seat.next())
    mode.do("a")
    assert ben.go_to(1) is not None
    mode.do("u")
    mode.do(": 1")
    said = "that pair is on another screen just now; try again later.\n"
    assert out.getvalue().endswith(f"not taken back: {said}{said}")
    seat.leave()
    ben.leave()


def test_a_verdict_with_words_after_it_judges_nothing(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)
    text = annotate(workspace, "A line begins", "tie so", "b ", "q").stdout.decode()
    assert text.count("not judged: nothing may follow ") == 2
    assert "nothing may follow A. n and words make a note." in text
    assert [str(row.verdict) for row in rows(workspace)] == ["right"]
    assert "r start: do that now." in text


class Freeing(io.StringIO):
    """Lines to read; the disk has room again once a certain one is read."""

    def __init__(self, lines: str, last: str, workspace: Workspace) -> None:
        super().__init__(lines)
        self.last, self.workspace = last, workspace

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline()
        if line == self.last:
            limit_pages(self.workspace, 1000)
        return line


def limit_pages(workspace: Workspace, pages: int) -> None:
    with workspace.engine.connect() as connection:  # the one connection the seat uses too
        used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={used + pages}")


@pytest.mark.parametrize("room", ["never", "at the end", "at a judgment"])
def test_a_line_that_cannot_be_kept_ends_no_rewrite(
    workspace: Workspace, add_pairs: AddPairs, room: str
) -> None:
    """The lines after it are the reply's: none of them is taken for a verb."""
    add_pairs(workspace, 2)
    begun = "word " * 4_000
    with take_seat_in_lines(workspace) as (mode, out):
        mode.show(mode.seat.next())
        limit_pages(workspace, 0)
        script = f"{begun}\nA line begins with a capital.\n.\nb\n"
        freed = {"never": "", "at the end": ".\n", "at a judgment": "b\n"}[room]
        mode.lines = Freeing(script, freed, workspace)
        mode.do("e")
        assert out.getvalue().count("not on the disk yet, write on") == 1
        assert ("still not on the disk" in out.getvalue()) is (room != "at the end")
        assert rows(workspace) == []
        written = f"{begun}\nA line begins with a capital."
        with db.reading(workspace.engine) as session:
            on_disk = [draft.text for draft in session.exec(select(Draft))]
        assert on_disk == ([written] if room == "at the end" else [])
        mode.do(mode.ask(""))
        assert ("not saved, say it again" in out.getvalue()) is (room == "never")
        limit_pages(workspace, 1000)
        if room == "never":
            mode.do("b")
    (row,) = rows(workspace)
    with db.reading(workspace.engine) as session:
        assert session.get_one(Candidate, row.rewrite_id).text == written
        assert session.exec(select(Draft)).all() == []


@contextlib.contextmanager
def take_seat_in_lines(workspace: Workspace) -> Iterator[tuple[LineMode, io.StringIO]]:
    seat, out = take_seat(workspace, "anna", "s"), io.StringIO()
    yield LineMode(workspace, seat, io.StringIO(), out), out
    seat.leave()


def test_what_was_written_after_a_judgment_is_taken_up_first(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    annotate(workspace, "n an old note", "e", "Old words.", ".", "a")
    seat = take_seat(workspace, "anna", "s")  # in the app, whose terminal was lost
    seat.save_draft(1, "note", "a new note")
    seat.save_draft(1, "rewrite_left", "New words.")
    seat.leave()
    text = annotate(workspace, ": 1", "b", ": 1", "n", "e", "And more.", ".", "a").stdout.decode()
    assert "note begun earlier, n takes it up (3 words): a new note" in text
    assert "note: a new note" in text
    _, kept, last = rows(workspace)
    assert (kept.note, last.note) == ("an old note", "a new note")
    with db.reading(workspace.engine) as session:
        assert session.get_one(Candidate, kept.rewrite_id).text == "Old words."
        assert session.get_one(Candidate, last.rewrite_id).text == "New words.\nAnd more."
        assert session.exec(select(Draft)).all() == []


def test_a_pair_is_held_as_long_as_lines_are_read(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 1)
    with take_seat_in_lines(workspace) as (mode, _):
        mode.show(mode.seat.next())
        with db.writing(workspace.engine) as session:
            session.exec(sql("UPDATE lease SET expires_at = 1"))
        mode.keep_at -= LEASE_SECONDS / 3  # as if so long ago
        mode.lines = io.StringIO("f\n")
        mode.do(mode.ask(""))
        with db.reading(workspace.engine) as session:
            assert session.exec(select(Lease)).one().expires_at > time.time() + LEASE_SECONDS / 2


def test_an_unseen_rewrite_is_none_and_leaves_the_other_replys(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    done = annotate(workspace, "e", "\u200b", ".", "a", "e", "Mine.", ".", "E", ".", "b")
    assert "that is no rewrite: the other one stays" in done.stdout.decode()
    first, second = rows(workspace)
    assert first.rewrite_id is None and second.rewrite_id is not None


@pytest.mark.parametrize("way", ["to and fro", "leaving"])
def test_what_could_not_be_kept_is_tried_again_on_going(
    workspace: Workspace, add_pairs: AddPairs, way: str
) -> None:
    add_pairs(workspace, 2)
    note = "word " * 4_000
    with take_seat_in_lines(workspace) as (mode, out):
        mode.show(mode.seat.next())
        limit_pages(workspace, 0)
        last = "]\n" if way == "to and fro" else "q\n"
        mode.lines = Freeing(f"n {note}\n{last}q\n", last, workspace)
        with pytest.raises(Left):
            mode.run()
        assert "not on the disk yet" in out.getvalue()
        assert "could not be kept" not in out.getvalue()
    with db.reading(workspace.engine) as session:
        assert [d.text for d in session.exec(select(Draft))] == [note.strip()]
