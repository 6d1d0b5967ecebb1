"""Duels: blind pairs mixed into the queue, counted apart, never trained on.

The trainer is stood in for at the seam (tests/fake_trainer.py writes candidates.jsonl as it has
it); the real one is in tests/ring/test_evaluation.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from curator import db, duels, evaluation_text, queue, rounds, runs, store, workflow
from curator.errors import BadData, NotReady
from curator.history import history
from curator.judgments import Said
from curator.models import (
    Adapter,
    AnnotatorKind,
    Candidate,
    Pair,
    Prompt,
    Purpose,
    Split,
    Verdict,
    new_uuid,
)
from curator.preferences import EVERYBODY
from curator.seat import Seat, take_seat
from curator.statistics import decisive_pairs_needed
from curator.workspace import Workspace
from tests.conftest import write_prompts
from tests.curator.test_adapters import curator, work
from tests.curator.test_runs import Fake, judge_all, wait
from trainer.contract import read_request, read_rows

BETTER = "what would help"


@pytest.fixture
def contested(workspace: Workspace, tmp_path: Path, fake_trainer: Fake) -> Workspace:
    """A workspace with an adapter in use, whose round of 20 pairs has 5 judged."""
    fake_trainer("ok")
    workflow.import_prompts(workspace, write_prompts(tmp_path / "p.jsonl", 20))
    work(workspace, "generate")
    judge_all(workspace)
    work(workspace, "round")
    seat = take_seat(workspace, "anna", new_uuid())
    pair = seat.next()
    for _ in range(5):
        assert pair is not None
        pair = seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    seat.leave()
    return workspace


def start(workspace: Workspace, count: int = 10, first: str = "adapter-0002") -> None:
    assert wait(workspace, duels.start_duel(workspace, first, "base", count).folder).error is None


def judge(seat: Seat, verdicts: Iterable[Verdict] | None = None) -> list[int]:
    """Judge all there is: duels for the first side, or as told; others left. Return the duels."""
    found, told = [], iter(verdicts or ())
    pair = seat.next()
    while pair is not None:
        said = Said(Verdict.LEFT, 1)
        if "Reply " in pair.left:
            found.append(pair.pair_id)
            better = Verdict.LEFT if BETTER in pair.left else Verdict.RIGHT
            verdict = next(told, better)
            sided = verdict in (Verdict.LEFT, Verdict.RIGHT)
            said = Said(verdict, 1 if sided else None)
        pair = seat.judge(pair.pair_id, said, new_uuid())
    seat.leave()
    return found


def test_duels_are_mixed_among_what_nobody_has_come_to_yet(contested: Workspace) -> None:
    with db.reading(contested.engine) as session:
        turn = store.newest_round(session)
        assert turn is not None and turn.id is not None
        before = session.exec(select(Pair).where(Pair.round_id == turn.id)).all()
        places = {pair.id: pair.position for pair in before}
    start(contested)
    with db.reading(contested.engine) as session:
        pairs = session.exec(
            select(Pair).where(Pair.round_id == turn.id).order_by("position")
        ).all()
        prompts = {p.id: p for p in session.exec(select(Prompt)).all()}
        newest = store.newest_round(session)
        assert newest is not None and newest.number == turn.number and newest.pairs == 30
    assert [pair.position for pair in pairs] == [(i + 1) * queue.POSITION_STEP for i in range(30)]
    purposes = [pair.purpose for pair in pairs]
    assert [places[pair.id] for pair in pairs[:5]] == [pair.position for pair in pairs[:5]]
    assert set(purposes[:5]) == {Purpose.TRAIN} and purposes.count(Purpose.DUEL) == 10
    first, last = purposes.index(Purpose.DUEL), 29 - purposes[::-1].index(Purpose.DUEL)
    assert {Purpose.TRAIN, Purpose.DUEL} == set(purposes[first:last])
    drawn = [prompts[p.prompt_id].split for p in pairs if p.purpose is Purpose.DUEL]
    assert drawn.count(Split.HELD_OUT) == 4  # all there are; the rest are prompts to train on
    with db.reading(contested.engine) as session:
        by = {c.id: c.adapter_id for c in session.exec(select(Candidate)).all()}
    lefts = {by[pair.left_id] for pair in pairs if pair.purpose is Purpose.DUEL}
    assert lefts == {None, 1}  # sides are drawn


def test_the_request_names_both_sides(contested: Workspace) -> None:
    run = duels.start_duel(contested, "base", "adapter-0002", 3)
    request = read_request(run.folder)
    assert (request.action, request.adapter, request.adapter_sha256) == ("duel", None, None)
    assert request.compare == "../../adapters/adapter-0002" and request.compare_sha256
    assert len(list(read_rows(run.folder / "prompts.jsonl"))) == 3
    asked = {p.id: p.asked for p in prompts(contested)}
    wait(contested, run.folder)
    assert asked == {p.id: p.asked for p in prompts(contested)}  # they go on in their turn


def prompts(workspace: Workspace) -> list[Prompt]:
    with db.reading(workspace.engine) as session:
        return list(session.exec(select(Prompt)).all())


def test_duels_leave_no_trace_and_are_never_trained_on(contested: Workspace) -> None:
    before = workflow.export_preferences(contested, EVERYBODY).lines
    start(contested)
    seat = take_seat(contested, "anna", new_uuid())
    shown = seat.next()
    seen = []
    while shown is not None:
        seen.append(shown)
        shown = seat.judge(shown.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    assert len(seen) == 25
    assert [each.number for each in seen] == list(range(6, 31))
    rows = [row for row in history(seat) if row.round == 2]
    assert sorted(row.number for row in rows) == list(range(1, 31))
    exported = workflow.export_preferences(contested, EVERYBODY)
    assert len(exported.lines) == len(before) + 15
    assert not any("Reply adapter" in line or "Reply compare" in line for line in exported.lines)
    assert workflow.status(contested)["preferences"] == len(exported.lines) == 40
    assert workflow.broken_judgments(contested) == []
    # Nothing that is told of a round says which of its pairs were a duel's, or whose they were.
    told = json.dumps(workflow.status(contested)["rounds"])
    assert "duel" not in told and '"pairs": 30' in told


def test_a_duel_is_judged_once_by_a_kind_of_annotator(contested: Workspace) -> None:
    start(contested)
    ben, cleo = (take_seat(contested, name, new_uuid()) for name in ("ben", "cleo"))
    duelled = judge(ben)
    assert len(duelled) == 10
    assert judge(cleo) == []
    assert cleo.progress().judged == cleo.progress().pairs == 30
    simulated = take_seat(contested, "simulated", new_uuid(), AnnotatorKind.SIMULATED)
    assert len(judge(simulated, [Verdict.TIE] * 10)) == 10
    found = {each["annotator"]: each for each in duels.results(contested)["duels"]}
    assert (found["human"]["wins"], found["human"]["losses"]) == (10, 0)
    assert (found["simulated"]["ties"], found["simulated"]["n"]) == (10, 0)


def test_results(contested: Workspace) -> None:
    start(contested)
    waiting = duels.results(contested)["duels"]
    assert [(each["annotator"], each["waiting"]) for each in waiting] == [("nobody", 10)]
    seat = take_seat(contested, "anna", new_uuid())
    duelled = judge(seat, [Verdict.TIE, Verdict.BOTH_BAD, Verdict.SKIP])
    # One is judged again: the latest counts.
    seat = take_seat(contested, "anna", new_uuid())
    again = seat.open(duelled[-1])
    assert again is not None
    worse = Verdict.RIGHT if BETTER in again.left else Verdict.LEFT
    seat.judge(again.pair_id, Said(worse, 2), new_uuid())
    (human, nobody) = duels.results(contested)["duels"]
    assert (human["first"], human["second"]) == ("adapter-0002", "base")
    assert (human["wins"], human["losses"], human["ties"], human["both_bad"]) == (6, 1, 1, 1)
    assert nobody["waiting"] == 1  # a skip leaves it for somebody else
    assert human["waiting"] == 0  # and does not keep those who have seen them all from a verdict
    assert human["win_rate"] == pytest.approx(6 / 7) and human["p_value"] == pytest.approx(0.125)
    assert human["settled_by"] == decisive_pairs_needed(6 / 7, 0.025)  # more pairs: another look
    held_out = {p.id for p in prompts(contested) if p.split == Split.HELD_OUT}
    with db.reading(contested.engine) as session:
        asked = {pair: session.get_one(Pair, pair).prompt_id for pair in duelled}
    decisive = [pair for n, pair in enumerate(duelled) if n > 2]
    assert 0 < human["held_out"] == sum(asked[pair] in held_out for pair in decisive)
    text = evaluation_text.duels_text(duels.results(contested))
    assert "adapter-0002 against base (human): won 86% (49% to 97%) of n = 7" in text
    assert f"n = 7 decisive pairs, {human['held_out']} of them on held-out prompts" in text
    assert f"{human['settled_by']} decisive pairs would settle it (80 % power)" in text
    assert (human["looks"], human["alpha"]) == (1, 0.05)
    found = {**human, "p_value": 0.01}
    for left, said in ((2, "Not settled while pairs wait to be judged: 2."), (0, "Settled at 5 %")):
        assert said in evaluation_text.duels_text({"duels": [{**found, "waiting": left}],
                                                   "rankings": []})  # fmt: skip


def test_a_result_that_is_looked_at_twice_takes_more_to_be_settled(contested: Workspace) -> None:
    """Nine of ten won is p = 0.021: enough for one look, and not for three."""
    for number in (4, 3, 3):
        start(contested, number)
        judge(take_seat(contested, "anna", new_uuid()))
    (found,) = duels.results(contested)["duels"]
    assert (found["n"], found["looks"]) == (10, 3) and found["alpha"] == pytest.approx(0.05 / 3)
    text = evaluation_text.duels_text({"duels": [{**found, "p_value": 0.021}], "rankings": []})
    assert "Not settled: it takes p of 0.017, 5 % over 3 duels of these two." in text
    assert "Settled at 5 %" not in text
    text = evaluation_text.duels_text({"duels": [{**found, "p_value": 0.016}], "rankings": []})
    assert "Settled at 5 % over 3 duels of these two." in text


def test_another_duel_asks_what_these_two_were_not_asked(contested: Workspace) -> None:
    first, second = (duel_prompts(contested) for _ in range(2))
    held_out = {p.id for p in prompts(contested) if p.split == Split.HELD_OUT}
    assert len(first) == len(second) == 10 and not first & second
    assert held_out < first
    with pytest.raises(NotReady, match="base and adapter-0002 have been compared on every prompt"):
        duels.start_duel(contested, "base", "adapter-0002", 5)
    # Two others have met on none of them.
    work(contested, "round")
    start(contested, 4, "adapter-0005")
    assert {each["n"] for each in duels.results(contested)["duels"]} == {0}


def duel_prompts(workspace: Workspace) -> set[int]:
    """Start a duel of 10; return which prompts it asks."""
    run = duels.start_duel(workspace, "adapter-0002", "base", 10)
    wait(workspace, run.folder)
    return {int(row["id"]) for _, row in read_rows(run.folder / "prompts.jsonl")}


def written(workspace: Workspace, fake_trainer: Fake) -> tuple[Path, list[dict[str, Any]]]:
    """Return what a duel's run wrote, and where, before it is taken in."""
    fake_trainer("wait")
    started = duels.start_duel(workspace, "adapter-0002", "base", 3)
    (started.folder / "go").touch()
    list(runs.follow(started.folder))
    path = started.folder / "candidates.jsonl"
    return path, [row for _, row in read_rows(path)]


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_prompt_that_made_no_pair_is_asked_last(
    contested: Workspace, fake_trainer: Fake, silent: int
) -> None:
    """Both said the same, or one or both said nothing, as to a prompt too long for them."""
    path, rows = written(contested, fake_trainer)
    mine = [row for row in rows if row["prompt_id"] == rows[0]["prompt_id"]]
    mine[1]["text"] = mine[0]["text"]
    kept = [row for row in rows if row not in mine[:silent]]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    rounds.settle(contested)
    fake_trainer("ok")
    run = duels.start_duel(contested, "adapter-0002", "base", 50)
    asked = [row["id"] for _, row in read_rows(run.folder / "prompts.jsonl")]
    assert len(asked) == run.prompts == 18 and asked[-1] == rows[0]["prompt_id"]
    wait(contested, run.folder)


def test_a_prompt_that_was_asked_twice_counts_once(contested: Workspace) -> None:
    start(contested)
    start(contested)
    with db.writing(contested.engine) as session:  # as versions before drew them
        pairs = session.exec(
            select(Pair).where(Pair.purpose == Purpose.DUEL).order_by("id")
        ).all()  # fmt: skip
        for one, other in zip(pairs[:10], pairs[10:], strict=True):
            other.prompt_id = one.prompt_id
    judge(take_seat(contested, "anna", new_uuid()))
    (found,) = duels.results(contested)["duels"]
    assert (found["wins"], found["n"], found["repeated"]) == (10, 10, 10)
    assert found["waiting"] == 0
    said = curator(contested, "duel")
    assert (
        "of n = 10 decisive pairs" in said.stdout and "not counted: 10 judged pairs" in said.stderr
    )


def test_what_is_no_duel(contested: Workspace, workspace: Workspace) -> None:
    with pytest.raises(BadData, match="against itself"):
        duels.start_duel(contested, "base", "base", 5)
    with pytest.raises(BadData, match="no adapter ghost"):
        duels.start_duel(contested, "ghost", "base", 5)


def test_a_duel_needs_a_round(workspace: Workspace) -> None:
    with db.writing(workspace.engine) as session:
        session.add(
            Adapter(name="a", folder="adapters/a", base_model="m", base_sha256="b", sha256="s",
                    pairs_sha256="p")
        )  # fmt: skip
    with pytest.raises(NotReady, match="there is none"):
        duels.start_duel(workspace, "a", "base", 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"side": "left"}, "side is no"), ({"adapter_sha256": "f" * 64}, "not that of the side"),
     ({"side": None}, "side is no"), ({"prompt_id": "999"}, "no prompt of this run")],
)  # fmt: skip
def test_replies_that_are_not_the_duels_are_refused(
    contested: Workspace, fake_trainer: Fake, change: dict[str, str], said: str
) -> None:
    fake_trainer("wait")
    started = duels.start_duel(contested, "adapter-0002", "base", 3)
    (started.folder / "go").touch()
    list(runs.follow(started.folder))
    path = started.folder / "candidates.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]) + "\n")
    (run,) = rounds.settle(contested)
    assert run.error is not None and said in run.error
    assert duels.results(contested)["duels"] == []


def test_two_that_say_the_same_are_counted_not_judged(
    contested: Workspace, fake_trainer: Fake
) -> None:
    path, rows = written(contested, fake_trainer)
    rows[1]["text"] = rows[0]["text"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = rounds.settle(contested)
    pairs = (run.metrics or {})["pairs"]
    assert (pairs["made"], pairs["left_out"]) == (2, {"near-identical": 1})


def test_an_earlier_models_base_is_another(contested: Workspace) -> None:
    start(contested, 4)
    with db.writing(contested.engine) as session:
        for candidate in session.exec(select(Candidate)).all():
            candidate.model_sha256 = "1" * 64
    start(contested, 4)
    judge(take_seat(contested, "anna", new_uuid()))
    found = {each["second"]: each["n"] for each in duels.results(contested)["duels"]}
    assert found == {"base": 4, "base 11111111": 4}


def test_the_command(contested: Workspace) -> None:
    done = curator(contested, "duel")
    assert done.returncode == 0 and done.stdout.startswith("no duels yet")
    assert curator(contested, "duel", "base").returncode == 2
    start(contested)
    judge(take_seat(contested, "anna", new_uuid()))
    text = curator(contested, "duel").stdout
    assert "won 100% (72% to 100%) of n = 10" in text and "Settled at 5 %" in text
    facts = json.loads(curator(contested, "duel", "--json").stdout)
    assert facts["duels"][0]["wins"] == 10 and facts["rankings"] == []
