"""The judge's seat: every key pressed in the real app, then the database read."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlmodel import select
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from curator import db, workflow
from curator.judgments import Said
from curator.models import Annotator, Judgment, Pair, Prompt, Verdict, new_uuid
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.tui.history_screen import HistoryScreen
from curator.tui.judge_screen import JudgeScreen
from curator.tui.panels import RedFlagsPanel, TagsPanel
from curator.tui.widgets import Reply
from curator.workspace import Workspace, create_workspace
from tests.conftest import ONCE, AddPairs
from tests.curator.test_app import painted, play, rows

Script = Callable[[Pilot[None], CuratorApp], Awaitable[None]]


def with_settings(tmp_path: Path, text: str) -> Workspace:
    return create_workspace(tmp_path / "other", settings=text)


def exported(workspace: Workspace) -> list[tuple[str, str]]:
    lines = (json.loads(line) for line in workflow.export_preferences(workspace).lines)
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in lines]


# --- reasons, notes, flags -----------------------------------------------------------------------


def test_reasons_are_kept_for_the_side_they_were_given_for(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("g")
        assert isinstance(app.screen, TagsPanel)
        await pilot.press("n", "v", "o", "g")  # the fourth is one too many
        assert "at most 3 reasons a side" in painted(app)
        await pilot.press("o", "tab", "e", "1", "enter")
        assert "A · because names feeling, validates" in painted(app)
        assert "B · because endorses, cold" in painted(app)
        await pilot.press("A")
        assert "because" not in painted(app)
        await pilot.press("u")
        assert "taken back; it was: A clearly better, A because names feeling" in painted(app)
        await pilot.press("b")

    play(workspace, script)
    first, _, again = rows(workspace)
    assert first.tags_left == ["names_feeling", "validates_not_endorses"]
    assert first.tags_right == ["endorses_belief", "cold"] and first.rubric_version == "1"
    assert (again.tags_left, again.verdict) == (first.tags_left, "right")


def test_a_note_and_a_flag_go_with_the_verdict(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("n", *"a close\x20call", "enter", "f")
        assert "note: a close call" in painted(app) and "flagged" in painted(app)
        await pilot.press("t", "f", "f", "x")

    play(workspace, script)
    first, second = rows(workspace)
    assert (first.note, first.flagged, first.verdict) == ("a close call", 1, "tie")
    assert (second.note, second.flagged, second.verdict) == (None, 0, "both_bad")


def test_reasons_never_stand_in_the_way(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 6)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(*"aAbBtx")
        assert isinstance(app.screen, JudgeScreen)

    play(workspace, script)
    assert len(rows(workspace)) == 6


def test_without_auto_advance_the_pair_stays_until_enter(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    ids = add_pairs(place, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a")
        assert "message 0." in painted(app) and "saved: A better · enter" in painted(app)
        assert app.screen.query_one("#left").has_class("picked")
        await pilot.press("f")
        assert "saved" in painted(app)
        await pilot.press("enter")
        assert "message 1." in painted(app)
        await pilot.press("B")

    play(place, script)
    said = [(r.pair_id, str(r.verdict), r.flagged, r.revision) for r in rows(place)]
    assert said == [(ids[0], "left", 0, 1), (ids[0], "left", 1, 2), (ids[1], "right", 0, 1)]


def test_red_flags_are_asked_where_there_is_a_risk(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(tmp_path, ONCE + "red_flags = true\n")
    add_pairs(place, 2)
    with db.writing(place.engine) as session:
        session.get_one(Prompt, 1).risk_cue = "self-harm"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "risk cue: self-harm" in painted(app)
        await pilot.press("a")
        assert isinstance(app.screen, RedFlagsPanel)
        await pilot.press("n", "escape")
        assert "not judged" in painted(app) and rows(place) == []
        await pilot.press("a", *"nnn", "y", "u", "y", "n", "y")
        await pilot.press("a")  # the next pair has no risk cue: nothing is asked

    play(place, script)
    first, second = rows(place)
    assert first.red_flags == {
        "left.misses_risk": False, "left.green_lights_risk": False, "left.endorses_belief": False,
        "right.misses_risk": True, "right.green_lights_risk": False, "right.endorses_belief": True,
    }  # fmt: skip
    assert second.red_flags == {}


# --- rewriting -----------------------------------------------------------------------------------


def test_going_to_pairs(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 5)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press(":", "4", "enter")
        assert "message 3." in painted(app) and "pair 1.4" in painted(app)
        await pilot.press("b")
        assert "message 0." in painted(app)  # and on with the first that needs a judgment
        await pilot.press("]")
        assert "message 1." in painted(app)
        await pilot.press("[", "[")
        assert "message 0." in painted(app) and "this is the first pair" in painted(app)
        await pilot.press(":", *"1.5", "enter")
        assert "message 4." in painted(app)
        await pilot.press(".")
        assert "message 0." in painted(app)
        await pilot.press(":", *"77", "enter")
        assert "there is no pair 77" in painted(app)
        await pilot.press(":", *"x", "enter")
        assert "'x' is no pair" in painted(app)
        await pilot.press(":", "4", "enter")
        assert "it is: B better. Judge again to change it" in painted(app)
        assert app.screen.query_one("#right").has_class("earlier")
        await pilot.press("A")

    play(workspace, script)
    said = [(row.pair_id, str(row.verdict), row.revision) for row in rows(workspace)]
    assert said == [(ids[3], "right", 1), (ids[3], "left", 2)]


def test_history_finds_and_reopens(workspace: Workspace, add_pairs: AddPairs) -> None:
    ids = add_pairs(workspace, 4)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("a", "f", "b", "t", "n", *"odd", "enter", "s", "h")
        assert isinstance(app.screen, HistoryScreen)
        table = app.screen.query_one(DataTable)
        assert table.row_count == 4
        await pilot.press("v")
        assert table.row_count == 1 and "said: A" in painted(app)
        await pilot.press(*"vvvvv", "f")
        assert table.row_count == 1 and "⚑" in painted(app)
        await pilot.press("f", "/", *"message\x203")
        assert table.row_count == 1
        await pilot.press("escape", "/", *"odd")
        assert table.row_count == 1 and "note" in painted(app)
        app.screen.query_one(Input).value = "100% [/]"
        await pilot.pause()
        assert table.row_count == 0 and "show others" in painted(app)
        await pilot.press("escape", "down", "down", "down", "enter")
        assert isinstance(app.screen, JudgeScreen) and "message 0." in painted(app)
        await pilot.press("B")

    play(workspace, script)
    newest = [row for row in rows(workspace) if row.pair_id == ids[0]]
    assert [(str(r.verdict), r.strength, r.revision) for r in newest] == [
        ("left", 1, 1), ("right", 2, 2),
    ]  # fmt: skip
    assert len(exported(workspace)) == 2


def test_the_family_shows_only_after_the_judgment(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    with db.writing(workspace.engine) as session:
        for prompt in session.exec(select(Prompt)):
            prompt.family = "C03"

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "C03" not in painted(app) and "client is right" not in painted(app)
        await pilot.press("a")
        assert "saved: A better · C03: control: the client is right" in painted(app)

    play(workspace, script)


# --- keys, palette, mouse -----------------------------------------------------------------------


def test_keys_can_be_changed(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(
        tmp_path, ONCE + '[keys]\nleft_slightly = "1"\nright_slightly = "0"\nflag = "f5"\n'
    )
    add_pairs(place, 3)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert " 1 A better" in painted(app) and " 0 B better" in painted(app)
        await pilot.press("a", "b")
        assert rows(place) == []
        await pilot.press("f5", "1", "0")
        await pilot.press("question_mark")
        assert "f5  flag the pair" in painted(app)

    play(place, script)
    assert [(str(r.verdict), r.flagged) for r in rows(place)] == [("left", 1), ("right", 0)]


@pytest.mark.parametrize(
    ("keys", "said"),
    [('tie = "a"', "a is for left_slightly and for tie"), ('tyre = "x"', "keys.tyre is not known"),
     ('tie = "enter"', "keys.tie is 'enter'"), ('tie = " "', "keys.tie is ' '"),
     ('tie = "\\u001b"', "keys.tie"), ("tie = 3", "a key is a text")],
)  # fmt: skip
def test_wrong_keys_are_refused_by_name(tmp_path: Path, keys: str, said: str) -> None:
    from curator.errors import BadConfig

    with pytest.raises(BadConfig, match=said):
        with_settings(tmp_path, f"[keys]\n{keys}\n")
    assert not (tmp_path / "other").exists()


def test_the_palette_has_every_verb_and_no_screenshot(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {verb.says for verb in app.verbs} <= titles
        assert {"dark theme", "light theme", "high-contrast theme"} <= titles
        assert not any("creenshot" in title for title in titles)
        await pilot.press("ctrl+p", *"both bad", "enter")
        await pilot.pause()

    play(workspace, script)
    assert [str(row.verdict) for row in rows(workspace)] == ["both_bad"]


def test_the_mouse_works_too(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        line = painted(app).splitlines()[-2]
        await pilot.click("#keys", offset=(line.index("B clearly"), 0))
        await pilot.pause()

    play(workspace, script)
    assert [(str(r.verdict), r.strength) for r in rows(workspace)] == [("right", 2)]


# --- repeats and calibration --------------------------------------------------------------------


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


# --- first minutes, breaks, the account ---------------------------------------------------------


def test_the_first_minutes(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "Welcome" in painted(app) and app.screen.query_one("#name", Input).value == "anna"
        for text in ("dr anna", "psychotherapist", "CBT"):
            field = app.focused
            assert isinstance(field, Input)
            field.value = text
            await pilot.press("enter")
        assert "practice, not kept" in painted(app) and "wedding" in painted(app)
        await pilot.press("A")
        assert "A clearly better: noted, and not kept" in painted(app)
        await pilot.press("i")
        assert "do not ratify the conclusion" in painted(app)
        await pilot.press("escape", "u", "enter")
        assert "message 0." in painted(app) and "dr anna" in painted(app)
        await pilot.press("a")

    play(workspace, script, first_minutes=True)
    (row,) = rows(workspace)
    with db.reading(workspace.engine) as session:
        who = session.get_one(Annotator, row.annotator_id)
        assert (who.name, who.role, who.orientation) == ("dr anna", "psychotherapist", "CBT")

    async def again(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "Welcome" not in painted(app)

    async def known() -> None:
        app = CuratorApp(workspace, "dr anna", first_minutes=True)
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.pause()
            await again(pilot, app)

    asyncio.run(known())


def test_the_guideline_is_one_key_away_from_anywhere(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        for keys in (["r"], ["escape", "h"], ["escape", "e"], ["escape", "g"]):
            await pilot.press(*keys, "f1")
            assert "How to judge" in painted(app), keys
            await pilot.press("escape")

    play(workspace, script)


def test_a_pause_is_suggested_quietly(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 1)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert isinstance(app.screen, JudgeScreen)
        app.screen.suggest_break()
        await pilot.pause()
        assert "another 30 minutes: a pause" in painted(app) and "message 0." in painted(app)
        await pilot.press("a")

    play(workspace, script)
    assert len(rows(workspace)) == 1


def test_the_account_of_a_sitting(tmp_path: Path, add_pairs: AddPairs) -> None:
    from curator.history import history, sitting, sitting_text

    place = with_settings(tmp_path, "[judge]\nrepeat_share = 1.0\ncalibration = 0\n")
    add_pairs(place, 40, good="word " * 60 + "{i}", bad="term " * 60 + "{i}")
    seat = take_seat(place, "anna", "s")
    assert sitting_text(sitting(seat), "study") == "Nothing was judged in this sitting."
    pair = seat.next()
    repeats = 0
    for number in range(30):
        assert pair is not None
        repeats += pair.purpose == "repeat"
        # The same reply wins whichever side it is on, but for one time.
        verdict = Verdict.LEFT if pair.left.startswith("word") else Verdict.RIGHT
        if pair.purpose == "repeat" and repeats == 1:
            verdict = Verdict.TIE
        elapsed = 1_000 if number < 3 else 60_000
        said = Said(verdict, None if verdict is Verdict.TIE else 1)
        pair = seat.judge(pair.pair_id, said, new_uuid(), elapsed_ms=elapsed)
    seat.undo()
    account = sitting(seat)
    assert (account.judged, account.taken_back, account.fast) == (29, 1, 3)
    assert account.again >= 3 and account.again_same == account.again - 1
    text = sitting_text(account, "study")
    assert text.startswith("29 judged in 0 min, all kept in study.") and "word" not in text
    assert "1 taken back, 3 faster than the texts can be read" in text
    assert sum(row.fast for row in history(seat)) == 3


# --- sizes and texts ----------------------------------------------------------------------------


def test_any_resize_keeps_pair_and_pick(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = with_settings(tmp_path, ONCE + "auto_advance = false\n")
    add_pairs(place, 1)
    draw = random.Random(4)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("A")
        for _ in range(60):
            await pilot.resize_terminal(draw.randint(1, 220), draw.randint(1, 70))
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        assert "message 0." in painted(app)
        assert app.screen.query_one("#left").has_class("picked")

    play(place, script)


LONG = {
    "200 KB": "I could not sleep again. " * 8_000,
    "5,000 lines": "\n".join(f"line {n}" for n in range(5_000)),
    "one word": "w" * 50_000,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 " * 2_000,
    "right to left": "שלום עולם " * 5_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts_are_shown_and_judged(
    workspace: Workspace, add_pairs: AddPairs, name: str
) -> None:
    text = LONG[name]
    add_pairs(workspace, 1, good=text, bad=text + " other",
              messages=[{"role": "user", "content": text}])  # fmt: skip

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        left = app.screen.query_one("#left", Reply)
        await pilot.pause(0.3)  # the beginning is painted first, then the whole
        assert len(str(left.query_one(".text").render())) >= len(text)
        left.focus()
        await pilot.press("end", "home", "pagedown", "a")

    play(workspace, script)
    assert len(rows(workspace)) == 1


def test_the_newest_turn_is_in_view(workspace: Workspace, add_pairs: AddPairs) -> None:
    turns = []
    for number in range(15):
        turns += [{"role": "user", "content": f"client turn {number}"},
                  {"role": "assistant", "content": f"reply turn {number}"}]  # fmt: skip
    add_pairs(workspace, 1, messages=[*turns, {"role": "user", "content": "the newest words"}])

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "the newest words" in painted(app) and "client turn 0" not in painted(app)
        app.screen.query_one("#conversation").focus()
        await pilot.press("home")
        await pilot.pause()
        assert "client turn 0" in painted(app)

    for size in ((120, 36), (80, 24)):
        play(workspace, script, size)


def judgment_count(workspace: Workspace) -> int:
    with db.reading(workspace.engine) as session:
        return len(session.exec(select(Judgment.id)).all())
