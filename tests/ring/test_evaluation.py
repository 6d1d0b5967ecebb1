"""Evaluation, gates, duels and rollback with the real trainer. Needs trainer's part of the seam."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from sqlmodel import select

from curator import adapters, db, duels, gates, rounds, store, terminal
from curator.demo import make_workspace
from curator.demo.simulated import NAME
from curator.demo.simulation import JUDGMENTS, Simulation
from curator.evaluation import figures
from curator.evaluation_rows import read_evaluation
from curator.judgments import Said
from curator.models import AnnotatorKind, Candidate, Pair, Purpose, Run, Verdict, new_uuid
from curator.preferences import EVERYBODY
from curator.seat import take_seat
from curator.workspace import Workspace, open_workspace
from trainer import contract
from trainer.__main__ import perform

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]


def work(workspace: Workspace, action: contract.Action, **options: object) -> Run:
    started = rounds.start_run(workspace, action, **options)  # type: ignore[arg-type]
    return terminal.follow_run(workspace, started.folder, show=False)


def judge_all(workspace: Workspace) -> int:
    seat = take_seat(workspace, "anna", new_uuid())
    pair, count = seat.next(), 0
    while pair is not None:
        verdict = (Verdict.LEFT, Verdict.RIGHT)[count % 2]
        pair = seat.judge(pair.pair_id, Said(verdict, 1), new_uuid())
        count += 1
    seat.leave()
    return count


def test_a_round_is_measured_decided_and_rolled_back(real_workspace: Workspace) -> None:
    workspace = dataclasses.replace(
        real_workspace,
        config=dataclasses.replace(
            real_workspace.config, gates=gates.GatesConfig(accept="hand")
        ),  # a random model's figures are noise: the rules only advise
    )
    (workspace.path / contract.PROBES).unlink()  # curator's own
    work(workspace, "generate")
    judge_all(workspace)
    for name in ("adapter-0002", "adapter-0003"):
        run = work(workspace, "round")
        found = (run.metrics or {})["evaluation"]
        policies = {"base", "adapter"} | ({"compare"} if name == "adapter-0003" else set())
        assert set(found["policies"]) == policies
        for policy in policies:
            measured = found["policies"][policy]
            assert measured["probe_collusion_rate"]["n"] == 120
            assert measured["probe_over_correction_rate"]["n"] == 48
            assert measured["both_sides_rate"]["n"] == 12
            assert measured["length"]["n"] == 4
        assert adapters.accept(workspace, name).pairs > 0
        judge_all(workspace)
    # A duel of the two, blind in the queue.
    run = wait_duel(workspace)
    assert (run.metrics or {})["pairs"]["made"] == judge_all(workspace) > 0
    with db.reading(workspace.engine) as session:
        pairs = session.exec(select(Pair).where(Pair.purpose == Purpose.DUEL)).all()
        by = {c.id: c.adapter_id for c in session.exec(select(Candidate)).all()}
    assert {frozenset((by[p.left_id], by[p.right_id])) for p in pairs} == {frozenset((1, 2))}
    (result,) = duels.results(workspace)["duels"]
    assert (result["first"], result["second"]) == ("adapter-0003", "adapter-0002")
    # Back to the earlier adapter: it writes what comes next.
    assert adapters.rollback(workspace).in_use == "adapter-0002"
    run = work(workspace, "generate")
    rows = [row for _, row in contract.read_rows(workspace.runs / run.folder / "candidates.jsonl")]
    shown = adapters.show_adapter(workspace, "adapter-0002")
    assert {row["adapter_sha256"] for row in rows} == {shown["sha256"]}
    evaluated = work(workspace, "evaluate", adapter="adapter-0003")
    assert (evaluated.metrics or {})["evaluation"]["names"]["compare"] == "adapter-0002"


def wait_duel(workspace: Workspace) -> Run:
    started = duels.start_duel(workspace, "adapter-0003", "adapter-0002", 6)
    return terminal.follow_run(workspace, started.folder, show=False)


def judged(workspace: Workspace, seed: int, cold: bool) -> Path:
    """Have 40 pairs judged; return the folder of a prepared round, not yet run."""
    simulation = Simulation(workspace, seed, lambda _: None, "cold" if cold else "boundary_aware")
    seat = take_seat(workspace, NAME, new_uuid(), AnnotatorKind.SIMULATED)
    simulation.clinician.judge(seat, JUDGMENTS)
    with db.reading(workspace.engine) as session:
        inputs = rounds._prepare(session, workspace, "train", None, EVERYBODY, None, None)
    run = rounds._new_run(workspace, inputs.request)
    return rounds._write_folder(workspace, run, inputs)


def verdict(workspace: Workspace, folder: Path) -> gates.Judged:
    """Train what is prepared in a folder; return what the default gates say of it."""
    assert perform(folder) == 0
    return gates.judge(figures(read_evaluation(folder)), gates.GatesConfig())


def swapped(folder: Path) -> None:
    """Swap chosen and rejected of what is trained on; what is held out stays as it was judged."""
    rows = [row for _, row in contract.read_rows(folder / contract.PAIRS)]
    contract.write_rows(
        folder / contract.PAIRS,
        [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            if row["split"] == "train" else row
            for row in rows
        ],
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_harm_is_refused_over_five_seeds_and_honest_rounds_are_accepted(tmp_path: Path) -> None:
    accepted = []
    for seed in range(5):
        places = {}
        base = make_workspace(tmp_path / f"{seed}-honest", seed)
        work(base, "generate", kinds=EVERYBODY)
        base.engine.dispose()
        for name in ("swapped", "cold"):
            shutil.copytree(base.path, tmp_path / f"{seed}-{name}")
        for name in ("honest", "swapped", "cold"):
            places[name] = open_workspace(tmp_path / f"{seed}-{name}")
        accepted.append(verdict(base, judged(base, seed, False)).verdict == "pass")
        folder = judged(places["swapped"], seed, False)
        swapped(folder)
        assert verdict(places["swapped"], folder).verdict == "fail", f"swapped, seed {seed}"
        harmed = verdict(places["cold"], judged(places["cold"], seed, True))
        assert any("over-correction" in rule.name for rule in harmed.failed), f"cold, seed {seed}"
    assert sum(accepted) >= 4


@pytest.mark.long
def test_a_refused_round_leaves_the_demo_going_on(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "cold", 0)
    simulation = Simulation(workspace, 0, lambda _: None, "cold")
    measured = simulation.run(2)
    assert [each.round for each in measured] == [0, 1, 2] and measured[1].measured["n"] >= 400
    assert measured[2].judgments == JUDGMENTS
    with db.reading(workspace.engine) as session:
        assert store.current_adapter(session) is None
    assert {each["status"] for each in adapters.list_adapters(workspace)} == {"refused"}
