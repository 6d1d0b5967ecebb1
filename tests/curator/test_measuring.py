"""Adapters measured: with which probes and preferences, and what is kept and shown of it.

The trainer is stood in for at the seam (tests/fake_trainer.py), which writes evaluation rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from curator import adapters, cli_evaluation, db, rounds, workflow
from curator.errors import BadData, CuratorError, NotReady
from curator.judgments import Said
from curator.models import (
    Adapter,
    Pair,
    Run,
    Verdict,
    new_uuid,
)
from curator.seat import take_seat
from curator.workspace import Workspace
from tests.curator.test_adapters import curator, in_use, work
from tests.curator.test_runs import Fake, judge_all, wait
from trainer.contract import read_request, read_rows


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
    with pytest.raises(CuratorError, match="the evaluation failed"):
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
