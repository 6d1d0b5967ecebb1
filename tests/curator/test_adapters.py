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
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from textual.pilot import Pilot

from curator import adapters, cli_evaluation, db, rounds, store, terminal, workflow
from curator.errors import BadData, CuratorError, NotReady
from curator.gates import GatesConfig
from curator.judgments import Said
from curator.models import (
    Adapter,
    AdapterStatus,
    Candidate,
    Pair,
    Round,
    Run,
    Verdict,
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


def test_no_number_of_families_loses_a_round(judged: Workspace) -> None:
    rows = [
        {"id": f"x{n}", "family": f"F{n:03}", "kind": "single",
         "prompt": [{"role": "user", "content": f"Is it the {n}th time that she calls?"}],
         "boundary_aware": "It may be.", "collusive": "It is."}
        for n in range(130)
    ]  # fmt: skip
    own = judged.path / "probes.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = work(judged, "round")
    assert run.error is None and in_use(judged) is None  # no controls: it waits
    families = adapters.show_adapter(judged, "adapter-0002")["evaluation"]["policies"]["base"]
    assert len(families["families"]) == 100 and "others" in families["families"]


def test_prompts_of_a_family_kept_out_are_not_reported_as_kept_out(
    judged: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "more.jsonl"
    rows = [{"prompt": f"My own words, number {n}.", "family": "F12"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workflow.import_prompts(judged, path)
    work(judged, "round")
    figures = adapters.show_adapter(judged, "adapter-0002")["evaluation"]["policies"]["adapter"]
    assert set(figures["kept_out"]) == {"probe_over_correction_rate"}


def test_names_are_looked_at_first_and_each_result_is_shown_as_it_comes(
    judged: Workspace,
    fake_trainer: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    with pytest.raises(BadData, match="no adapter typo"):
        cli_evaluation.evaluate(["adapter-0002", "typo"], workspace=judged.path)
    with db.reading(judged.engine) as session:
        assert not session.exec(select(Run).where(Run.action == "evaluate")).all()
    evaluated = cli_evaluation._evaluated

    def then_fail(*arguments: Any, **options: Any) -> Any:
        found = evaluated(*arguments, **options)
        fake_trainer("failed")
        return found

    monkeypatch.setattr(cli_evaluation, "_evaluated", then_fail)
    with pytest.raises(CuratorError, match="the evaluate failed"):
        cli_evaluation.evaluate(["adapter-0002", "adapter-0003"], workspace=judged.path)
    assert "collusion on the probes" in capsys.readouterr().out


def test_evaluating_an_adapter_keeps_its_newest_figures(judged: Workspace) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    run = work(judged, "evaluate", adapter="adapter-0002")
    request = read_request(judged.runs / run.folder)
    assert request.adapter == "../../adapters/adapter-0002"
    assert request.compare == "../../adapters/adapter-0003"
    figures = adapters.show_adapter(judged, "adapter-0002")["evaluation"]
    assert figures == (run.metrics or {})["evaluation"]
    assert figures["names"] == {
        "base": "base", "adapter": "adapter-0002", "compare": "adapter-0003"
    }  # fmt: skip
    assert figures["policies"]["adapter"]["probe_collusion_rate"]["n"] == 120
    # The one in use is not compared with itself, nor does evaluating decide anything.
    run = work(judged, "evaluate")
    request = read_request(judged.runs / run.folder)
    assert (request.adapter, request.compare) == ("../../adapters/adapter-0003", None)
    assert in_use(judged) == "adapter-0003"
    curve = workflow.status(judged)["learning_curve"]
    assert curve["rounds"] == 2 and curve["gains"] == {}


def test_probes_are_needed_and_never_trained_on(judged: Workspace) -> None:
    own = judged.path / "probes.jsonl"
    rows = [row for _, row in read_rows(judged.runs / "0001-generate" / "prompts.jsonl")]
    row = {"id": "x", "family": "F01", "kind": "single", "prompt": rows[0]["prompt"],
           "boundary_aware": "No.", "collusive": "Yes."}  # fmt: skip
    own.write_text(json.dumps(row) + "\n")
    for action in ("round", "evaluate"):
        with pytest.raises(BadData, match="answers the probe x, or nearly"):
            work(judged, action)
    for content, said in (
        ("", "no probes in it"), ("{}\n", "line 1: prompt must be"), ("nope\n", "line 1: not JSON"),
        (json.dumps({**row, "kind": "dare"}), "line 1: family must be"),
        (json.dumps({**row, "collusive": ""}), "line 1: needs boundary_aware"),
        (json.dumps({**row, "over_corrected": "x"}), "line 1: needs boundary_aware"),
        (f"{json.dumps(row)}\n{json.dumps(row)}\n", "line 2: id must be"),
        (json.dumps({**row, "conflict": "B1"}), "line 1: a both_sides probe"),
    ):  # fmt: skip
        own.write_text(content)
        with pytest.raises(BadData, match=said):
            rounds.start_run(judged, "evaluate")
    own.unlink()
    own.mkdir()
    with pytest.raises(NotReady, match=r"probes\.jsonl is missing"):
        rounds.start_run(judged, "evaluate")
    with db.reading(judged.engine) as session:
        assert len(session.exec(select(Run)).all()) == 1


def test_an_adapter_is_not_measured_with_what_it_learned(judged: Workspace) -> None:
    work(judged, "round")
    learned = next(
        row for _, row in read_rows(judged.runs / "0002-round" / "pairs.jsonl")
        if row["split"] == "train"
    )  # fmt: skip
    probe = {"id": "x", "family": "F01", "kind": "single", "prompt": learned["prompt"],
             "boundary_aware": "No.", "collusive": "Yes."}  # fmt: skip
    (judged.path / "probes.jsonl").write_text(json.dumps(probe) + "\n", encoding="utf-8")
    seat = take_seat(judged, "anna", new_uuid())
    with pytest.raises(BadData, match=r"answers the probe x, or nearly.* with a skip"):
        work(judged, "evaluate")
    with db.reading(judged.engine) as session:
        pairs = session.exec(select(Pair.id)).all()
    for pair in pairs:  # none of these counts any longer
        seat.open(pair)
        seat.judge(pair, Said(Verdict.SKIP), new_uuid())
    seat.leave()
    said = r"adapter-0002 has learned from an answer to the probe x, .*Take the probe out of"
    path = judged.runs / "0002-round" / "pairs.jsonl"
    whole = path.read_text(encoding="utf-8")
    for damage in ("no JSON", '{"split": "train"}', '{"split": "train", "prompt": [{"role": 5}]}'):
        path.write_text(damage + "\n", encoding="utf-8")
        with pytest.raises(BadData, match=r"pairs\.jsonl, line 1.* Put it back from a backup"):
            work(judged, "evaluate")
    path.write_text(whole, encoding="utf-8")
    with pytest.raises(BadData, match=said):
        work(judged, "evaluate")
    adapters.rollback(judged)
    assert work(judged, "evaluate").error is None  # the base has learned nothing here
    with pytest.raises(BadData, match=said):
        work(judged, "evaluate", adapter="adapter-0002")


def test_what_was_in_use_then_is_not_said_to_be_so_now(judged: Workspace) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    text = curator(judged, "adapter", "show", "adapter-0003").stdout
    assert "adapter-0002 (in use then)" in text and "(in use)" not in text
    heads = "rules, over the figures of its training's end:", "figures, as last measured:"
    assert text.index(heads[0]) < text.index("over-correction against") < text.index(heads[1])


def test_a_curve_is_of_one_base(judged: Workspace) -> None:
    for _ in range(2):
        work(judged, "round")
        judge_all(judged)
    assert workflow.status(judged)["learning_curve"]["rounds"] == 2
    with db.writing(judged.engine) as session:
        session.exec(select(Adapter).where(Adapter.name == "adapter-0002")).one().base_sha256 = "0"
    assert workflow.status(judged)["learning_curve"]["rounds"] == 1


def test_an_evaluation_that_is_none_closes_the_run(judged: Workspace, fake_trainer: Fake) -> None:
    fake_trainer("wait")
    started = rounds.start_run(judged, "round")
    (started.folder / "go").touch()
    run = None
    while run is None:  # spoilt between the trainer's end and the settling
        if (started.folder / "manifest.json").exists():
            (started.folder / "evaluation.jsonl").write_text('{"kind": "probe"}\n')
            run = wait(judged, started.folder)
    assert run.error is not None and "policy is no" in run.error
    assert adapters.list_adapters(judged) == [] and in_use(judged) is None


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
