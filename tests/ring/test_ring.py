"""The whole ring with nothing faked: NF4, PEFT, TRL, the real trainer process, the real app."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlmodel import select
from textual.pilot import Pilot

from curator import db, exports, rounds, runs, store, terminal, workflow
from curator.judgments import Said
from curator.models import Adapter, Candidate, Pair, Run, RunState, Verdict, new_uuid
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.workspace import Workspace
from tests.curator.test_app import painted
from trainer.contract import (
    CHECKPOINTS,
    Action,
    read_events,
    read_manifest,
    read_request,
    read_rows,
    sha256_file,
)

pytestmark = pytest.mark.train


def work(workspace: Workspace, action: Action) -> tuple[Run, Path]:
    started = rounds.start_run(workspace, action)
    return terminal.follow_run(workspace, started.folder, show=False), started.folder


def judge_all(workspace: Workspace) -> int:
    seat = take_seat(workspace, "anna", new_uuid())
    pair, count = seat.next(), 0
    while pair is not None:
        verdict = (Verdict.LEFT, Verdict.RIGHT)[count % 2]
        pair = seat.judge(pair.pair_id, Said(verdict, 1), new_uuid())
        count += 1
    return count


def test_two_rounds(real_workspace: Workspace, gemma: Path) -> None:
    from safetensors.torch import load_file

    workspace = real_workspace
    base = sha256_file(gemma / "model.safetensors")
    work(workspace, "generate")
    assert judge_all(workspace) == 12
    for number in (1, 2):
        run, folder = work(workspace, "round")
        assert run.state is RunState.FINISHED
        manifest = read_manifest(folder)
        assert manifest is not None and manifest["model"]["quantization"] == "nf4"
        with db.reading(workspace.engine) as session:
            adapter = store.current_adapter(session)
            assert adapter is not None
            newest = store.newest_round(session)
            assert newest is not None and newest.number == number + 1
            written = session.exec(
                select(Candidate).where(Candidate.adapter_id == adapter.id)
            ).all()
        assert len(written) == 12 * 4 and {c.steer for c in written} == {None}
        assert adapter.base_sha256 == manifest["model"]["sha256"]
        assert adapter.pairs_sha256 == manifest["preferences"]["sha256"]
        assert {row["adapter_sha256"] for _, row in read_rows(folder / "candidates.jsonl")} == {
            adapter.sha256
        }
        weights = load_file(workspace.path / adapter.folder / "adapter_model.safetensors")
        moved = [name for name, value in weights.items() if "lora_B" in name and value.any()]
        assert len(moved) == 14  # lora_B starts at zero
        assert sha256_file(gemma / "model.safetensors") == base
        judge_all(workspace)
    started, target = exports.start_merge(workspace, adapter.name, "merged", None)
    merging = terminal.follow_run(workspace, started.folder, show=False)
    assert merging.state is RunState.FINISHED and (merging.metrics or {})["merged"]["bytes"] > 0
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        path.name for path in target.iterdir()
    }
    assert adapter.sha256 in (target / "README.md").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "curator", "evaluate", "--adapter", adapter.name, "--json"]
    told = subprocess.run([*command, "-w", str(workspace.path)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    (evaluation,) = json.loads(told.stdout)["evaluations"]
    assert evaluation["names"]["adapter"] == adapter.name
    for rate in ("probe_collusion_rate", "probe_over_correction_rate"):
        figure = evaluation["policies"]["adapter"][rate]
        low, high = figure["interval"]
        assert figure["n"] > 0 and 0 <= low <= figure["value"] <= high <= 1 and low < high
    # Anchored: the second round trained on everything so far, from the base.
    assert len(list(read_rows(folder / "pairs.jsonl"))) > 12
    assert read_request(folder).adapter is None


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_trainer_is_told_and_the_round_starts_again(real_workspace: Workspace) -> None:
    workspace = real_workspace
    work(workspace, "generate")
    judge_all(workspace)
    more = replace(workspace.config.train, epochs=6, save_steps=1)
    workspace = replace(workspace, config=replace(workspace.config, train=more))
    started = rounds.start_run(workspace, "train")
    for event in runs.follow(started.folder):
        if event["event"] == "step" and event["step"] >= 2:
            break
    run = rounds.run_under_way(workspace)
    assert run is not None and run[0].pid is not None
    os.kill(run[0].pid, signal.SIGKILL)
    settled: list[Run] = []
    while not settled:
        settled = rounds.settle(workspace)
        time.sleep(0.02)
    assert settled[0].state is RunState.FAILED and "SIGKILL" in (settled[0].error or "")
    with db.reading(workspace.engine) as session:
        assert session.exec(select(Adapter)).all() == []
    assert not [p for p in (workspace.path / "adapters").iterdir() if not p.name.endswith(".part")]
    kept = started.folder / CHECKPOINTS
    assert [p for p in kept.iterdir() if not p.name.endswith(".part")]
    run_again, again = work(workspace, "train")
    assert run_again.state is RunState.FINISHED
    # It went on from the checkpoint, with the seed of the killed run, and nothing is left of both.
    events = read_events(again)[0]
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(resumed["step"] + 1, steps[-1] + 1))
    assert read_request(again).seed == read_request(started.folder).seed
    assert not kept.exists() and not (again / CHECKPOINTS).exists()


def test_the_first_pair_can_be_judged_before_the_last_reply_is_written(
    real_workspace: Workspace,
) -> None:
    slow = replace(real_workspace.config.generate, batch_size=2, max_new_tokens=60)
    workspace = replace(real_workspace, config=replace(real_workspace.config, generate=slow))
    started = rounds.start_run(workspace, "generate")
    deadline = time.monotonic() + 90
    while not (made := rounds.take_in_so_far(workspace)):
        assert time.monotonic() < deadline and runs.alive(started.folder)
        time.sleep(0.01)
    seat = take_seat(workspace, "anna", new_uuid())
    pair = seat.next()
    assert pair is not None
    seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    assert runs.alive(started.folder) and read_manifest(started.folder) is None
    run = terminal.follow_run(workspace, started.folder, show=False)
    with db.reading(workspace.engine) as session:
        pairs = session.exec(select(Pair)).all()
    assert made < len(pairs) == (run.metrics or {})["pairs"]["made"]
    assert len({pair.prompt_id for pair in pairs}) == len(pairs)


def test_close_the_app_while_training_and_reopen_it(real_workspace: Workspace) -> None:
    workspace = real_workspace
    work(workspace, "generate")

    async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline, painted(pilot.app)  # type: ignore[arg-type]
            await pilot.pause(0.1)

    async def first() -> None:
        app = CuratorApp(workspace, "anna")
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.press(*"abababababab"[:10], "r", "enter", "escape")
            await until(pilot, lambda: app.run_watch is not None and app.run_watch.step >= 1)
            assert "loss" in painted(app)
            await pilot.press("a", "q")

    asyncio.run(first())
    assert rounds.run_under_way(workspace) is not None

    async def second() -> None:
        app = CuratorApp(workspace, "anna")
        async with app.run_test(size=(120, 36)) as pilot:
            # Its pairs come while it still writes; it has ended when nothing is under way.
            await until(pilot, lambda: "round 2 · 0 of" in painted(app) and app.run_watch is None)
            await pilot.press(
                "b", "b"
            )  # the last of round 1, which was on the screen, and one more
            assert "round 2 · 1 of" in painted(app)

    asyncio.run(second())
    with db.reading(workspace.engine) as session:
        states = [run.state for run in session.exec(select(Run))]
        newest = session.exec(select(Pair).order_by(Pair.id.desc()).limit(1)).one()  # type: ignore[union-attr]
    assert states == [RunState.FINISHED] * 2 and newest.round_id == 2


QUESTIONS = Path(__file__).parents[3] / "shared" / "datasets" / "counselchat" / "questions.jsonl"


@pytest.mark.skipif(not QUESTIONS.exists(), reason="the questions are not beside the checkout")
def test_real_questions_come_in_and_get_pairs(real_workspace: Workspace) -> None:
    imported = workflow.import_prompts(real_workspace, QUESTIONS, "text")
    assert imported.added == 815
    started = rounds.start_run(real_workspace, "generate", prompts=20)
    run = terminal.follow_run(real_workspace, started.folder, show=False)
    assert (run.metrics or {})["candidates"]["count"] == 40
