"""An annotator's history: found in any case of letters, and what was too fast to be read."""

from __future__ import annotations

import pytest

from curator.history import history
from curator.judgments import Said
from curator.models import Verdict, new_uuid
from curator.safe_text import words_to_read
from curator.seat import Seat, take_seat
from curator.workspace import Workspace
from tests.conftest import AddPairs


def judge(seat: Seat, verdict: Verdict, elapsed_ms: int = 60_000, note: str | None = None) -> None:
    pair = seat.next()
    assert pair is not None
    strength = 1 if verdict in (Verdict.LEFT, Verdict.RIGHT) else None
    said = Said(verdict, strength, note=note)
    seat.judge(pair.pair_id, said, new_uuid(), elapsed_ms=elapsed_ms)


def test_a_text_is_found_in_any_case_of_letters(workspace: Workspace, add_pairs: AddPairs) -> None:
    client = [{"role": "user", "content": "Моя Пыль MÜDE und groß."}]
    add_pairs(workspace, 2, messages=client, good="Ärger {i}?", bad="100% o\u0308de {i} \\o_o")
    seat = take_seat(workspace, "anna", "s")
    judge(seat, Verdict.TIE, note="ΣΟΦΟΣ, later")
    judge(seat, Verdict.TIE)
    found = {
        text: len(history(seat, text=text))
        for text in ("пыль", "ПЫЛЬ", "müde", "GROSSE", "Größe", "groß", "ärger 1", "ÖDE 0", "σοφος",
                     "mü_e", "%", "100% ", "O_O", "LATER", "Sofas", "ärger 2")
    }  # fmt: skip
    assert found == {
        "пыль": 2, "ПЫЛЬ": 2, "müde": 2, "GROSSE": 0, "Größe": 0, "groß": 2, "ärger 1": 1,
        "ÖDE 0": 1, "σοφος": 1, "mü_e": 0, "%": 2, "100% ": 2, "O_O": 2, "LATER": 1, "Sofas": 0,
        "ärger 2": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "seconds"),
    [("word ", 20), ("我很难过。", 33), ("ฉันรู้สึกเศร้า", 45), ("슬퍼요 ", 20)],
    ids=["english", "chinese", "thai", "korean"],
)
def test_a_pick_faster_than_reading_is_marked_in_any_script_and_a_skip_never(
    workspace: Workspace, add_pairs: AddPairs, word: str, seconds: int
) -> None:
    add_pairs(workspace, 4, good=word * 100 + "{i}", bad=word * 100 + "{i}?")
    seat = take_seat(workspace, "anna", "s")
    for verdict, elapsed in (
        (Verdict.SKIP, 100),
        (Verdict.TIE, seconds * 700),
        (Verdict.BOTH_BAD, seconds * 1_300 + 10_000),
        (Verdict.LEFT, 1_000),
    ):
        judge(seat, verdict, elapsed)
    fast = {str(row.said.verdict): row.fast for row in history(seat)}
    assert fast == {"skip": False, "tie": True, "both_bad": False, "left": True}


def test_words_are_counted_where_no_spaces_part_them() -> None:
    assert words_to_read("It is late, isn't it?") == 5
    assert words_to_read("") == 0
    assert words_to_read("我很难过。怎么办。") == pytest.approx(9 / 2.5)
    assert words_to_read("ok 我很难过 ok") == pytest.approx(2 + 4 / 2.5)
    assert words_to_read("ฉันเศร้า") == pytest.approx(8 / 5)
    assert words_to_read("슬퍼요 정말") == 2
