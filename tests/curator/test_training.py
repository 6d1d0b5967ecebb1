"""What a training is given: the measured flip rate, strength, a killed one's steps."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curator import db, rounds, training
from curator.judgments import Said
from curator.models import AdapterStatus, Pair, RunState, Verdict, new_uuid
from curator.preferences import HUMANS, preferences
from curator.repeats import repeated
from curator.run_watch import RunWatch
from curator.seat import take_seat
from curator.workspace import Workspace, create_workspace
from tests.conftest import AddPairs
from tests.curator.test_runs import wait
from trainer.contract import CHECKPOINTS, TrainSettings, read_request, read_rows

Fake = Callable[[str], None]
ROBUST = TrainSettings(loss=("robust",), loss_weights=(1.0,))
ALL_TWICE = "[judge]\nrepeat_share = 1.0\ncalibration = 0\n"


def judge_all(workspace: Workspace, turned: int) -> None:
    """Judge all pairs, and of their repeats `turned` the other way."""
    seat = take_seat(workspace, "anna", new_uuid())
    pair, first = seat.next(), dict[int, int]()
    while pair is not None:
        with db.reading(workspace.engine) as session:
            stored = session.get_one(Pair, pair.pair_id)
            repeat_of, left, right = stored.repeat_of, stored.left_id, stored.right_id
        if repeat_of is None:
            verdict = Verdict.LEFT
            first[pair.pair_id] = left
        else:
            picked = first[repeat_of]
            if turned:
                picked, turned = left if picked == right else right, turned - 1
            verdict = Verdict.LEFT if picked == left else Verdict.RIGHT
        pair = seat.judge(pair.pair_id, Said(verdict, 1 + pair.pair_id % 2), new_uuid())


def test_the_flip_rate_is_measured_on_repeats(tmp_path: Path, add_pairs: AddPairs) -> None:
    place = create_workspace(tmp_path / "study", settings=ALL_TWICE)
    add_pairs(place, 60)
    judge_all(place, turned=6)
    with db.reading(place.engine) as session:
        repeats, disagreeing = repeated(session, HUMANS)
        assert repeats >= 30 and disagreeing == 6
        given = training.measured(session, ROBUST, HUMANS)
        share = 2 * given.label_smoothing * (1 - given.label_smoothing)
        assert share == pytest.approx(6 / repeats)
        assert training.measured(session, TrainSettings(), HUMANS) == TrainSettings()
        by_hand = replace(ROBUST, label_smoothing=0.2)
        assert training.measured(session, by_hand, HUMANS) == by_hand
        assert training.measured(session, ROBUST, ()).label_smoothing is None  # nobody's repeats


def test_slight_picks_can_be_left_out_of_training(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 20, held_out=6)
    judge_all(workspace, turned=0)
    left_out: Counter[str] = Counter()
    with db.reading(workspace.engine) as session:
        found, _ = preferences(session)
    assert training.strong_enough(found, "any", left_out) == found and not left_out
    kept = training.strong_enough(found, "clear", left_out)
    assert {p.strength for p in kept if p.split == "train"} == {2}
    assert {p.strength for p in kept if p.split == "held_out"} == {1, 2}
    assert left_out["slightly"] == len(found) - len(kept) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="the fake trainer kills itself")
def test_a_run_of_the_same_goes_on_from_a_killed_ones_checkpoint(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 12)
    judge_all(workspace, turned=0)

    def killed() -> Path:
        fake_trainer("killed")
        folder = rounds.start_run(workspace, "train").folder
        assert wait(workspace, folder).state is RunState.FAILED
        return folder

    first = killed()
    (first / CHECKPOINTS / "step-00000005").mkdir(parents=True)
    # Killed once more: its steps move on with it.
    second = killed()
    assert not (first / CHECKPOINTS).exists()
    assert (second / CHECKPOINTS / "step-00000005").is_dir()
    assert read_request(second).seed == read_request(first).seed
    # Another rate is another training; so are other preferences.
    faster = replace(workspace.config.train, learning_rate=1e-3)
    other = replace(workspace, config=replace(workspace.config, train=faster))
    fake_trainer("ok")
    third = rounds.start_run(other, "train").folder
    assert wait(other, third).state is RunState.FINISHED
    assert not (third / CHECKPOINTS).exists()
    assert read_request(third).seed != read_request(first).seed
    # What came after a training that finished begins anew.
    fourth = rounds.start_run(workspace, "train").folder
    assert wait(workspace, fourth).state is RunState.FINISHED
    assert not (fourth / CHECKPOINTS).exists()


def test_a_chained_round_goes_on_with_the_adapter_in_use(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Fake
) -> None:
    add_pairs(workspace, 12)
    judge_all(workspace, turned=0)
    chained = replace(workspace.config.train, strategy="chained")
    place = replace(workspace, config=replace(workspace.config, train=chained))
    fake_trainer("ok")
    folder = rounds.start_run(place, "train").folder
    assert read_request(folder).adapter is None  # nothing to go on with yet
    run = wait(place, folder)
    assert (run.metrics or {})["adapter"]["status"] == AdapterStatus.CURRENT
    folder = rounds.start_run(place, "train").folder
    request = read_request(folder)
    assert request.adapter == request.compare == "../../adapters/adapter-0001"
    assert request.adapter_sha256 == request.compare_sha256
    # Replay: all preferences so far, as in an anchored round.
    assert len(list(read_rows(folder / "pairs.jsonl"))) == 12
    wait(place, folder)


def test_the_curves_of_a_run_that_goes_on_have_each_step_once() -> None:
    watch = RunWatch("train")

    def step(number: int) -> None:
        watch.take({"event": "step", "step": number, "steps": 9, "loss": number, "time": 0.0})

    for number in range(1, 8):
        step(number)
    said = "goes on from the checkpoint of step 5."
    watch.take({"event": "resumed", "step": 5, "message": said})
    step(6)
    assert watch.loss == [1, 2, 3, 4, 5, 6] and watch.warnings == [said]


def test_the_reference_pass_counts_pairs_and_then_makes_way_for_the_steps() -> None:
    watch = RunWatch("train")
    watch.take({"event": "phase", "phase": "reference"})
    watch.take({"event": "progress", "phase": "reference", "done": 368, "total": 400, "time": 1.0})
    assert watch.line() == "asking the reference · 368 of 400"
    watch.take({"event": "phase", "phase": "train"})
    watch.take({
        "event": "step", "step": 1, "steps": 3, "loss": 0.69, "rewards/margins": 0.0,
        "rewards/accuracies": 0.5, "time": 2.0,
    })  # fmt: skip
    assert watch.line() == "training · step 1/3 · loss 0.69 · margin +0.00 · accuracy 50%"
