"""Pairs shown again, and the same pairs for everybody: judged, then the database read."""

from __future__ import annotations

from pathlib import Path

from sqlmodel import select
from textual.pilot import Pilot

from curator import db
from curator.judgments import Said
from curator.models import Annotator, Pair, Verdict, new_uuid
from curator.queue import POSITION_STEP
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.tui.judge_screen import JudgeScreen
from curator.tui.widgets import Reply
from curator.workspace import create_workspace
from tests.conftest import AddPairs
from tests.curator.test_app import play, rows
from tests.curator.test_judge import exported, with_settings


def test_repeats_come_back_later_with_sides_swapped_and_are_not_exported(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, "[judge]\nrepeat_share = 1.0\ncalibration = 0\n")
    ids = add_pairs(place, 40)
    seen: list[tuple[str, str]] = []

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for _ in range(60):
            assert isinstance(app.screen, JudgeScreen) and app.screen.pair is not None
            boxes = [app.screen.query_one(f"#{side}", Reply) for side in ("left", "right")]
            seen.append((str(boxes[0].query_one(".text").render()),
                         str(boxes[1].query_one(".text").render())))  # fmt: skip
            await pilot.press("a")

    play(place, script)
    with db.reading(place.engine) as session:
        pairs = {pair.id: pair for pair in session.exec(select(Pair))}
    judged = [pairs[row.pair_id] for row in rows(place)]
    repeats = [i for i, pair in enumerate(judged) if pair.purpose == "repeat"]
    assert len(repeats) > 10 and {p.id for p in judged if p.purpose == "train"} <= set(ids)
    for i in repeats:
        first = next(j for j, pair in enumerate(judged) if pair.id == judged[i].repeat_of)
        assert i - first > 12
        assert seen[i] == (seen[first][1], seen[first][0])  # swapped as painted
        assert judged[i].left_id == judged[first].right_id
    # What is painted left is what `left` means in the export; repeats are not in it.
    wanted = [pair for pair, row in zip(seen, judged, strict=True) if row.purpose == "train"]
    assert exported(place) == wanted


def test_a_repeat_of_what_was_taken_back_does_not_come(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(tmp_path, "[judge]\nrepeat_share = 1.0\ncalibration = 0\n")
    add_pairs(place, 3)
    seat = take_seat(place, "anna", "s")
    pair = seat.next()
    assert pair is not None
    seat.judge(pair.pair_id, Said(Verdict.TIE), new_uuid())
    with db.reading(place.engine) as session:
        assert len(session.exec(select(Pair)).all()) == 4
    seat.undo()
    with db.reading(place.engine) as session:
        assert len(session.exec(select(Pair)).all()) == 3
    seat.judge(pair.pair_id, Said(Verdict.SKIP), new_uuid())
    with db.reading(place.engine) as session:
        assert len(session.exec(select(Pair)).all()) == 3


def test_every_further_annotator_begins_with_the_same_pairs(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, "[judge]\nrepeat_share = 0.0\ncalibration = 4\n")
    ids = add_pairs(place, 10)

    def judge(name: str, count: int) -> list[str]:
        seat, texts = take_seat(place, name, new_uuid()), []
        pair = seat.next()
        while pair is not None and len(texts) < count:
            texts.append(pair.left)
            pair = seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
        seat.leave()
        return texts

    first = judge("anna", 6)
    add_pairs(place, 2, number=2)
    assert judge("ben", 4) == first[:4] == judge("cleo", 4)
    with db.reading(place.engine) as session:
        purposes = [str(pair.purpose) for pair in session.exec(select(Pair).order_by("id"))]
    assert purposes.count("calibration") == 8 and purposes[:10] == ["train"] * 10
    # Nothing is trained on twice, and the rest is shared out as ever: the newest round first.
    assert len(exported(place)) == 6
    assert len(judge("ben", 9)) == 6 and len(exported(place)) == 12
    assert judge("anna", 9) == [] and ids


def test_the_first_annotator_has_no_calibration_of_their_own(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = create_workspace(tmp_path / "default")
    add_pairs(place, 3)
    for name in ("anna", "ben"):  # nobody has judged yet: both begin with what there is
        seat = take_seat(place, name, new_uuid())
        pair = seat.next()
        assert pair is not None and pair.purpose == "train"
        seat.leave()


def test_one_who_joined_while_the_first_pairs_were_written_gets_the_rest_later(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, "[judge]\nrepeat_share = 0.0\ncalibration = 6\n")
    ids = add_pairs(place, 2)

    def sit(name: str, count: int) -> list[tuple[str, str]]:
        seat, seen = take_seat(place, name, new_uuid()), []
        pair = seat.next()
        while pair is not None and len(seen) < count:
            seen.append((pair.purpose, pair.left))
            pair = seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
        seat.leave()
        return seen

    def copies(name: str) -> list[int | None]:
        with db.reading(place.engine) as session:
            who = session.exec(select(Annotator).where(Annotator.name == name)).one()
            mine = select(Pair.repeat_of).where(Pair.annotator_id == who.id).order_by("position")
            return list(session.exec(mine))

    sit("anna", 1)
    assert [purpose for purpose, _ in sit("ben", 2)] == ["calibration"] * 2
    ids += add_pairs(place, 8, number=2)
    with db.writing(place.engine) as session:  # written for the first round, as the run went on
        for number, pair_id in enumerate(ids[2:], 3):
            pair = session.get_one(Pair, pair_id)
            pair.round_id, pair.position = 1, number * POSITION_STEP
    assert [purpose for purpose, _ in sit("ben", 5)] == ["calibration"] * 4 + ["train"]
    assert copies("ben") == ids[:6]  # the configured number, and none of them twice
    sit("cleo", 0)
    assert copies("cleo") == ids[:6]
    # Anna judges the originals: they stay hers, and so do the preferences of them.
    assert {purpose for purpose, _ in sit("anna", 9)} == {"train"} and copies("anna") == []
    assert len(exported(place)) == 10


def test_two_who_share_the_first_pairs_get_each_others_as_calibration(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, "[judge]\nrepeat_share = 0.0\ncalibration = 4\n")
    ids = add_pairs(place, 6)
    anna, ben = take_seat(place, "anna", "a"), take_seat(place, "ben", "b")
    for seat in (anna, ben):
        pair = seat.next()
        assert pair is not None and pair.purpose == "train"
        seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid(), advance=False)
    anna.leave()
    ben.leave()
    for name, others in (("anna", ids[1]), ("ben", ids[0])):
        seat = take_seat(place, name, new_uuid())
        seat.leave()
        with db.reading(place.engine) as session:
            mine = select(Pair.repeat_of).where(Pair.annotator_id == seat.annotator.id)
            assert list(session.exec(mine)) == [others]
    assert len(exported(place)) == 2
