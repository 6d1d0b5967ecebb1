"""A trainer process: started, followed, adopted, stopped, and how its end is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import select

from curator import db, rounds, runs, store, workflow
from curator.errors import Busy, NotReady
from curator.judgments import Said
from curator.models import Adapter, Candidate, Pair, Round, Run, RunState, Verdict, new_uuid
from curator.seat import take_seat
from curator.workspace import Workspace, open_workspace
from tests.conftest import AddPairs, write_prompts
from trainer.contract import read_rows

Fake = Callable[[str], None]


@pytest.fixture
def prompted(workspace: Workspace, tmp_path: Path) -> Workspace:
    workflow.import_prompts(workspace, write_prompts(tmp_path / "p.jsonl", 10))
    return workspace


def wait(workspace: Workspace, folder: Path, seconds: float = 20) -> Run:
    """Wait until the run in `folder` is settled."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for run in rounds.settle(workspace):
            return run
        time.sleep(0.05)
    raise AssertionError(f"not settled: {(folder / 'log.txt').read_text()}")


def judge_all(workspace: Workspace) -> None:
    seat = take_seat(workspace, "anna", new_uuid())
    pair = seat.next()
    while pair is not None:
        pair = seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())


def test_a_finished_run_brings_candidates_and_pairs(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("ok")
    started = rounds.start_run(prompted, "generate", prompts=4)
    assert [e["event"] for e in runs.follow(started.folder)][-1] == "finished"
    run = wait(prompted, started.folder)
    assert run.state is RunState.FINISHED and run.error is None
    with db.reading(prompted.engine) as session:
        pairs = session.exec(select(Pair)).all()
        candidates = session.exec(select(Candidate)).all()
        (turn,) = session.exec(select(Round)).all()
    assert (len(pairs), len(candidates), turn.pairs, turn.number) == (4, 8, 4, 1)
    assert {c.steer for c in candidates} == {"boundaried", "agreeable"}
    assert [pair.position for pair in pairs] == [1000, 2000, 3000, 4000]
    # Sides are drawn: the boundaried reply is not always on one of them.
    rounds.start_run(prompted, "generate", prompts=6)
    wait(prompted, started.folder)
    with db.reading(prompted.engine) as session:
        steers = {c.id: c.steer for c in session.exec(select(Candidate)).all()}
        lefts = {steers[pair.left_id] for pair in session.exec(select(Pair)).all()}
        assert len(session.exec(select(Round)).all()) == 1
    assert lefts == {"boundaried", "agreeable"}


def test_a_round_puts_the_new_adapter_to_use(prompted: Workspace, fake_trainer: Fake) -> None:
    fake_trainer("ok")
    wait(prompted, rounds.start_run(prompted, "generate").folder)
    with pytest.raises(NotReady, match="0 preferences so far; a round needs at least 8"):
        rounds.start_run(prompted, "round")
    judge_all(prompted)
    for number in (2, 3):
        run = wait(prompted, rounds.start_run(prompted, "round").folder)
        with db.reading(prompted.engine) as session:
            current = store.current_adapter(session)
            newest = store.newest_round(session)
            adapters = session.exec(select(Adapter)).all()
        assert current is not None and newest is not None
        assert newest.number == number and newest.adapter_id == current.id == run.adapter_id
        assert [str(a.status) for a in adapters] == ["retired"] * (number - 2) + ["current"]
        judge_all(prompted)
    request = json.loads((prompted.runs / run.folder / "request.json").read_text())
    assert request["output_adapter"] == "../../adapters/adapter-0003"
    assert request["reference_cache"] == "../../cache/reference"
    assert request["adapter"] is None and request["generate"]["strategy"] == "sample"
    rows = [row for _, row in read_rows(prompted.runs / run.folder / "pairs.jsonl")]
    assert len(rows) == 20 and {row["split"] for row in rows} == {"train", "held_out"}


@pytest.mark.parametrize(
    ("mode", "said"),
    [("killed", "killed by SIGKILL (often: the machine ran out of memory)"),
     ("failed", "the loss is nan at step 3."), ("silent", "did not start"),
     ("garbage", "its results cannot be read")],
)  # fmt: skip
def test_a_run_that_ends_badly_changes_nothing_and_can_be_started_again(
    prompted: Workspace, fake_trainer: Fake, mode: str, said: str
) -> None:
    fake_trainer(mode)
    run = wait(prompted, rounds.start_run(prompted, "generate").folder)
    assert run.state is RunState.FAILED and said in (run.error or "")
    with db.reading(prompted.engine) as session:
        assert session.exec(select(Pair)).all() == []
        assert session.exec(select(Candidate)).all() == []
        assert store.current_adapter(session) is None
    fake_trainer("ok")
    assert wait(prompted, rounds.start_run(prompted, "generate").folder).error is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{nope"), ("manifest.json", "[]"),
        ("manifest.json", {"adapter": None}), ("manifest.json", {"request_sha256": "0" * 64}),
        ("candidates.jsonl", {"seed": "x"}), ("candidates.jsonl", {"steer": {}}),
        ("candidates.jsonl", {"seed": 2**70}), ("candidates.jsonl", {"prompt_id": "999"}),
        ("candidates.jsonl", {"text": None}), ("prompts.jsonl", {"id": "999"}),
    ],
)  # fmt: skip
def test_results_that_are_not_ours_close_the_run_and_leave_the_workspace_whole(
    prompted: Workspace, fake_trainer: Fake, name: str, content: str | dict[str, object]
) -> None:
    fake_trainer("wait")
    started = rounds.start_run(prompted, "generate", prompts=2)
    (started.folder / "go").touch()
    list(runs.follow(started.folder))
    path = started.folder / name
    if isinstance(content, dict):
        lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
        content = "\n".join([json.dumps({**json.loads(lines[0]), **content}), *lines[1:]])
    path.write_text(content)
    (run,) = rounds.settle(prompted)
    assert run.state is RunState.FAILED and "its results cannot be read" in (run.error or "")
    workflow.status(prompted)
    with db.reading(prompted.engine) as session:
        assert session.exec(select(Candidate)).all() == []
    fake_trainer("ok")
    assert wait(prompted, rounds.start_run(prompted, "generate").folder).error is None


def test_a_restored_database_never_takes_in_an_older_runs_results(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("ok")
    first = rounds.start_run(prompted, "generate", prompts=2)
    wait(prompted, first.folder)
    with db.writing(prompted.engine) as session:  # as an older copy of the file would be
        for table in (Pair, Candidate, Run, Round):
            for row in session.exec(select(table)).all():
                session.delete(row)
            session.flush()
    fake_trainer("silent")
    second = rounds.start_run(prompted, "generate", prompts=2)
    assert second.folder.name == "0001-generate-2"
    assert wait(prompted, second.folder).state is RunState.FAILED
    with db.reading(prompted.engine) as session:
        assert session.exec(select(Candidate)).all() == []


def test_a_trainer_given_up_before_it_started_does_not_start(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("silent")
    started = rounds.start_run(prompted, "generate")
    assert wait(prompted, started.folder, seconds=2).state is RunState.FAILED
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer", str(started.folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 65 and "was given up already" in done.stderr


def test_prompts_written_for_least_often_come_first(
    prompted: Workspace, fake_trainer: Fake
) -> None:
    fake_trainer("ok")
    asked = []
    for _ in range(2):
        started = rounds.start_run(prompted, "generate", prompts=5)
        list(runs.follow(started.folder))
        # Every reply near-identical: no pair comes of it, and still others are next.
        rows = [row for _, row in read_rows(started.folder / "candidates.jsonl")]
        text = "".join(json.dumps({**row, "text": "Always the same."}) + "\n" for row in rows)
        (started.folder / "candidates.jsonl").write_text(text)
        assert (wait(prompted, started.folder).metrics or {})["pairs"]["made"] == 0
        asked.append({row["prompt_id"] for row in rows})
    assert not asked[0] & asked[1]


def test_one_run_at_a_time_and_it_can_be_stopped(prompted: Workspace, fake_trainer: Fake) -> None:
    fake_trainer("hang")
    started = rounds.start_run(prompted, "generate")
    with pytest.raises(Busy, match="is under way"):
        rounds.start_run(prompted, "generate")
    while not runs.started(started.folder):
        time.sleep(0.02)
    runs.stop(started.folder, started.run.pid)
    (run,) = rounds.settle(prompted)
    assert run.state in (RunState.FAILED, RunState.CANCELLED)
    assert not runs.alive(started.folder)


def test_another_process_adopts_the_run(prompted: Workspace, fake_trainer: Fake) -> None:
    fake_trainer("wait")
    started = rounds.start_run(prompted, "generate")
    while not runs.started(started.folder):
        time.sleep(0.02)
    # Seen from a process that did not start it: alive by its lock, settled once it is done.
    child = runs._children.pop(started.folder)
    other = open_workspace(prompted.path)
    under_way = rounds.run_under_way(other)
    assert under_way is not None and under_way[1] == started.folder
    assert runs.alive(started.folder) and rounds.settle(other) == []
    (started.folder / "go").touch()
    run = wait(other, started.folder)
    assert run.state is RunState.FINISHED and child.wait() == 0
    assert rounds.settle(prompted) == []


def test_the_trainer_outlives_whoever_started_it(prompted: Workspace, fake_trainer: Fake) -> None:
    fake_trainer("wait")
    script = (
        "import sys; from pathlib import Path; from curator import rounds, runs\n"
        "from curator.workspace import open_workspace\n"
        f"runs.COMMAND = {runs.COMMAND!r}\n"
        f"started = rounds.start_run(open_workspace(Path({str(prompted.path)!r})), 'generate')\n"
        "while not runs.started(started.folder): pass\n"
        "print(started.folder); sys.stdout.flush(); import os; os._exit(9)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    folder = Path(child.stdout.strip())
    assert runs.alive(folder), child.stderr
    (folder / "go").touch()
    assert wait(prompted, folder).state is RunState.FINISHED


def test_runs_need_prompts(workspace: Workspace) -> None:
    with pytest.raises(NotReady, match="no prompts yet"):
        rounds.start_run(workspace, "generate")


def test_near_identical_replies_are_left_out_and_counted(
    prompted: Workspace, fake_trainer: Fake, add_pairs: AddPairs
) -> None:
    fake_trainer("wait")
    started = rounds.start_run(prompted, "generate", prompts=3)
    (started.folder / "go").touch()
    list(runs.follow(started.folder))
    rows = [row for _, row in read_rows(started.folder / "candidates.jsonl")]
    rows[1]["text"] = rows[0]["text"].upper()
    rows[3]["text"] = "  "
    (started.folder / "candidates.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    wait(prompted, started.folder)
    with db.reading(prompted.engine) as session:
        turn = session.exec(select(Round)).one()
        assert (turn.pairs, turn.left_out) == (1, {"near-identical": 1, "not answered": 1})
        assert len(session.exec(select(Candidate)).all()) == 6


def test_an_old_pid_is_never_signalled(tmp_path: Path) -> None:
    # No lock is held in the folder, so whatever has this number now is not our trainer.
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    runs.stop(tmp_path, other.pid)
    assert other.poll() is None
    other.communicate(b"\n")
    assert other.returncode == 0
