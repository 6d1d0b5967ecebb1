"""Adapters: proposed, gated, accepted, refused, rolled back.

The trainer is stood in for at the seam (tests/fake_trainer.py), which writes evaluation rows; the
real one is in tests/ring/test_evaluation.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from sqlmodel import select
from textual.pilot import Pilot

from curator import adapters, db, rounds, store, terminal, workflow
from curator.errors import BadData, NotReady
from curator.gates import GatesConfig
from curator.models import (
    Adapter,
    AdapterStatus,
    Candidate,
    Pair,
    Round,
    Run,
    new_uuid,
)
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.workspace import Workspace
from tests.curator.test_app import painted, play
from tests.curator.test_runs import Fake, judge_all, wait
from trainer.contract import Action, read_request, read_rows


def work(workspace: Workspace, action: Action, **options: str) -> Run:
    return wait(workspace, rounds.start_run(workspace, action, **options).folder)  # type: ignore[arg-type]


def in_use(workspace: Workspace) -> str | None:
    with db.reading(workspace.engine) as session:
        current = store.current_adapter(session)
        return current.name if current else None


def by_hand(workspace: Workspace) -> Workspace:
    config = dataclasses.replace(workspace.config, gates=GatesConfig(accept="hand"))
    return dataclasses.replace(workspace, config=config)


def next_step(workspace: Workspace) -> workflow.NextStep:
    return workflow.next_step(workspace, take_seat(workspace, "anna", new_uuid()))


def unjudged(workspace: Workspace) -> int:
    seat = take_seat(workspace, "anna", new_uuid())
    return seat.progress().pairs - seat.progress().judged


def test_an_adapter_that_passes_is_used_at_once(judged: Workspace) -> None:
    run = work(judged, "round")
    assert in_use(judged) == "adapter-0002" and unjudged(judged) == 20
    (facts,) = adapters.list_adapters(judged)
    assert facts["status"] == "current" and facts["reason"].startswith("by rule: no rule against")
    assert {rule["verdict"] for rule in facts["gates"]["rules"]} == {"pass", "unknown"}
    assert "adapter-0002 is in use" in terminal.run_text(run)
    request = read_request(judged.runs / run.folder)
    assert (request.probes, request.drift, request.compare) == ("probes.jsonl", "drift.jsonl", None)
    drift = [row["id"] for _, row in read_rows(judged.runs / run.folder / "drift.jsonl")]
    with db.reading(judged.engine) as session:
        held = {str(p.id) for p in store.held_out_prompts(session, 40, lambda p: p.sha256)}
    assert set(drift) == held and len(held) == 4
    again = work(judged, "round")
    request = read_request(judged.runs / again.folder)
    assert request.compare == "../../adapters/adapter-0002"
    assert request.compare_sha256 == facts["sha256"]


def test_a_refused_adapter_is_never_in_use_and_its_pairs_stay_out(
    judged: Workspace, fake_trainer: Fake
) -> None:
    work(judged, "round")
    judge_all(judged)
    fake_trainer("collusive")
    run = work(judged, "round")
    assert in_use(judged) == "adapter-0002" and unjudged(judged) == 0
    with db.reading(judged.engine) as session:
        refused = session.exec(select(Adapter).where(Adapter.name == "adapter-0003")).one()
        kept = session.exec(select(Candidate).where(Candidate.adapter_id == refused.id)).all()
        assert len(session.exec(select(Round)).all()) == 2
        shown = session.exec(select(Pair.left_id)).all() + session.exec(select(Pair.right_id)).all()
    assert refused.status is AdapterStatus.REFUSED and (judged.path / refused.folder).is_dir()
    assert "collusion against the adapter in use: +100 points" in (refused.status_reason or "")
    assert len(kept) == 40 and not {candidate.id for candidate in kept} & set(shown)
    said = terminal.run_text(run)
    assert "adapter-0003 is refused, and the one in use before stays" in said
    assert "no pairs are made of them" in said and "curator annotate" not in said
    # What comes next: more pairs by the adapter in use, not the same training once more.
    step = next_step(judged)
    assert step.action == "generate" and "adapter-0002 writes more pairs" in step.text
    facts = workflow.status(judged)
    assert [a["status"] for a in facts["adapters"]] == ["current", "refused"]
    assert "+100 points" in terminal.status_text(facts)

    async def look(pilot: Pilot[None], app: CuratorApp) -> None:
        await pilot.press("r")
        shown = " ".join(painted(app).split())
        assert "adapter-0003 is refused: " in shown and "collusion against the adapter" in shown
        assert "over-correction" in shown and "curator adapter show adapter-0003" in shown

    play(judged, look, size=(160, 36))
    written = work(judged, "generate")
    assert read_request(judged.runs / written.folder).adapter == "../../adapters/adapter-0002"
    assert unjudged(judged) == 20
    judge_all(judged)
    assert next_step(judged).action == "round"


def test_by_hand_an_adapter_waits_and_its_pairs_with_it(judged: Workspace) -> None:
    place = by_hand(judged)
    work(place, "round")
    assert in_use(place) is None and unjudged(place) == 0
    step = next_step(place)
    assert step.action is None and "adapter-0002 waits for your decision" in step.text
    decided = adapters.accept(place, "adapter-0002")
    assert (decided.in_use, decided.pairs) == ("adapter-0002", 20)
    assert in_use(place) == "adapter-0002" and unjudged(place) == 20
    with db.reading(place.engine) as session:
        turn = store.newest_round(session)
        assert turn is not None and turn.adapter_id == 1 and turn.pairs == 20
    with pytest.raises(BadData, match="is in use already"):
        adapters.accept(place, "adapter-0002")


def test_a_person_may_overrule_the_rules(judged: Workspace, fake_trainer: Fake) -> None:
    fake_trainer("collusive")
    work(judged, "round")
    assert in_use(judged) is None
    assert adapters.accept(judged, "adapter-0002").pairs == 20
    assert adapters.show_adapter(judged, "adapter-0002")["reason"] == "by hand, against the rules"
    # Accepted anew after a refusal, its pairs are not made twice.
    adapters.refuse(judged, "adapter-0002", "it flatters")
    assert adapters.show_adapter(judged, "adapter-0002")["reason"] == "by hand: it flatters"
    assert adapters.accept(judged, "adapter-0002").pairs == 0


def test_rolling_back_restores_the_earlier_adapter_for_generation(judged: Workspace) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    assert in_use(judged) == "adapter-0003"
    assert adapters.rollback(judged).in_use == "adapter-0002"
    assert next_step(judged).text == "Next: adapter-0002 writes pairs."
    run = work(judged, "generate")
    request = read_request(judged.runs / run.folder)
    facts = adapters.show_adapter(judged, "adapter-0002")
    assert request.adapter == "../../adapters/adapter-0002"
    assert request.adapter_sha256 == facts["sha256"] and facts["status"] == "current"
    with db.reading(judged.engine) as session:
        assert store.newest_round(session).adapter_id == 1  # type: ignore[union-attr]
    assert adapters.rollback(judged).in_use == "base"
    run = work(judged, "generate")
    assert read_request(judged.runs / run.folder).adapter is None
    with pytest.raises(BadData, match="the base is in use"):
        adapters.rollback(judged)
    # The next adapter that is accepted has the base before it, not one that was rolled back.
    work(judged, "round")
    assert adapters.rollback(judged).in_use == "base"


def test_none_comes_into_use_by_rule_for_one_it_was_not_compared_with(
    judged: Workspace, fake_trainer: Fake
) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    assert adapters.show_adapter(judged, "adapter-0003")["status"] == "current"
    fake_trainer("wait")
    started = rounds.start_run(judged, "round")
    assert adapters.rollback(judged).in_use == "adapter-0002"
    (started.folder / "go").touch()
    run = wait(judged, started.folder)
    assert in_use(judged) == "adapter-0002" and unjudged(judged) == 0
    facts = adapters.show_adapter(judged, "adapter-0004")
    assert facts["status"] == "proposed" and facts["gates"]["verdict"] == "pass"
    assert facts["reason"] == (
        "waits for you: adapter-0003 was in use when its training began; it was not compared "
        "with adapter-0002, which is in use now"
    )
    assert "adapter-0004 is proposed (waits for you" in terminal.run_text(run)
    assert adapters.accept(judged, "adapter-0004").pairs == 20
    # With the base every adapter is compared.
    started = rounds.start_run(judged, "round")
    while in_use(judged):
        adapters.rollback(judged)
    (started.folder / "go").touch()
    wait(judged, started.folder)
    assert in_use(judged) == "adapter-0005"


def test_what_cannot_be_decided_changes_nothing(judged: Workspace) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    before = adapters.list_adapters(judged)
    with pytest.raises(BadData, match=r"no adapter nobody\. There are: adapter-0003, .*base"):
        adapters.accept(judged, "nobody")
    with pytest.raises(BadData, match="the base is no adapter"):
        adapters.refuse(judged, "base")
    shutil.rmtree(judged.path / "adapters" / "adapter-0002")
    with pytest.raises(NotReady, match=r"adapter-0002 is gone from .*from a backup first\."):
        adapters.accept(judged, "adapter-0002")
    with pytest.raises(NotReady, match="curator adapter refuse adapter-0002, then roll back again"):
        adapters.rollback(judged)
    assert adapters.list_adapters(judged) == before
    # The way that was named.
    assert adapters.refuse(judged, "adapter-0002").in_use == "adapter-0003"
    assert adapters.rollback(judged).in_use == "base"


def test_an_adapter_of_another_base_does_not_come_into_use(judged: Workspace) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    model = dataclasses.replace(judged.config.model, name="another/model")
    place = dataclasses.replace(judged, config=dataclasses.replace(judged.config, model=model))
    before = adapters.list_adapters(place)
    said = "adapter-0002 was trained on google/gemma-3-4b-it, not on another/model"
    with pytest.raises(BadData, match=rf"^{said}\. Name that model in curator\.toml first"):
        adapters.accept(place, "adapter-0002")
    assert adapters.list_adapters(place) == before
    decided = adapters.rollback(place)
    assert (decided.in_use, decided.passed_over) == ("base", (said,))
    # A name proves nothing: the stand-in's models all have the same weights, once it has looked.
    work(place, "round")
    assert adapters.accept(place, "adapter-0002").in_use == "adapter-0002"
    # Made anew in its old place, the model is another.
    with db.writing(place.engine) as session:
        earlier = session.exec(select(Adapter).where(Adapter.name == "adapter-0003")).one()
        earlier.base_model, earlier.base_sha256 = "another/model", "0" * 64
    with pytest.raises(BadData, match="not on another/model as it is now"):
        adapters.accept(place, "adapter-0003")


def curator(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curator", *arguments, "-w", str(workspace.path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_commands(judged: Workspace) -> None:
    none = curator(judged, "adapter", "list")
    assert none.returncode == 0 and "no adapters yet" in none.stdout
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    listed = curator(judged, "adapter", "list")
    assert "collusion on the probes" in listed.stdout and "over-correction" in listed.stdout
    assert "0% (0% to 4%), n = 120" in listed.stdout
    shown = curator(judged, "adapter", "show", "adapter-0003")
    assert "collusion against the adapter in use" in shown.stdout and "n = 120" in shown.stdout
    assert "F12 alone" in shown.stdout
    facts = json.loads(curator(judged, "adapter", "show", "adapter-0003", "--json").stdout)
    assert facts["status"] == "current"
    back = curator(judged, "adapter", "rollback")
    assert back.returncode == 0 and "in use: adapter-0002" in back.stderr and not back.stdout
    assert curator(judged, "adapter", "accept", "adapter-0003").returncode == 0
    refused = curator(judged, "adapter", "refuse", "adapter-0003", "--reason", "cold")
    assert refused.returncode == 0 and in_use(judged) == "adapter-0002"
    wrong = curator(judged, "adapter", "show", "x\x1b[2J")
    assert wrong.returncode == 65 and wrong.stderr.count("\n") == 1 and "\x1b" not in wrong.stderr
    status = curator(judged, "status").stdout
    assert "refused" in status and "by hand: cold" in status and "too early to say" in status
