"""Probes that belong together count as what they are worth together: curator's, the demo's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from curator.clusters import probe_clusters
from curator.demo.phrasing import load_situations
from curator.demo.probes import demo_probes
from curator.evaluation import figures
from curator.evaluation_rows import read_evaluation
from curator.gates import GatesConfig, judge
from curator.workspace import data_folder
from tests.curator.evaluation_rows import Row, probe, write
from trainer.contract import PROBES, ContractError, read_rows, write_rows
from trainer.intervals import wilson_interval

Probes = list[dict[str, Any]]


def shipped() -> Probes:
    return [row for _, row in read_rows(data_folder() / PROBES)]


def the_demos() -> Probes:
    return demo_probes(load_situations(data_folder() / "demo_model" / "texts"))


def measured(folder: Path, probes: Probes, errs: dict[str, set[str]]) -> dict[str, Any]:
    """Return the figures of policies that err on some probes, by id, over a run's own probes."""
    rows: list[Row] = []
    for policy, wrong in errs.items():
        for each in probes:
            row = probe(each["id"], each["id"] in wrong, policy, each["family"], each["kind"],
                        each.get("conflict"))  # fmt: skip
            rows.append(row)
    write(folder, rows)
    write_rows(folder / PROBES, probes)
    return figures(read_evaluation(folder))


def width(figure: dict[str, Any]) -> float:
    low, high = figure["interval"]
    return float(high - low)


def test_a_client_who_presses_is_the_client_who_spoke_before(tmp_path: Path) -> None:
    probes = shipped()
    write_rows(tmp_path / PROBES, probes)
    clusters = probe_clusters(tmp_path / PROBES)
    kinds = {row["id"]: row["kind"] for row in probes}
    together: dict[str, list[str]] = {}
    for name, cluster in clusters.items():
        together.setdefault(cluster, []).append(kinds[name])
    sizes = Counter(tuple(sorted(each)) for each in together.values())
    assert sizes.pop(("both_sides", "both_sides")) == 12
    assert sizes.pop(("pressure", "single")) == 24
    assert sizes == {("single",): 168 - 24 - 48}


def test_the_interval_of_curators_probes_knows_it(tmp_path: Path) -> None:
    probes = [row for row in shipped() if "collusive" in row]
    turns = [row["prompt"][0]["content"] for row in probes]
    twice = {row["id"] for row in probes if turns.count(row["prompt"][0]["content"]) == 2}
    found = measured(tmp_path, probes, {"adapter": twice, "base": set()})
    rate = found["policies"]["adapter"]["probe_collusion_rate"]
    assert (rate["value"], rate["n"], rate["clusters"]) == (0.4, 120, 84)
    low, high = wilson_interval(48, 120)
    assert width(rate) > 1.15 * (high - low)
    difference = found["differences"]["base"]["probe_collusion_rate"]
    assert difference["clusters"] == 84 and difference["worth"] < 0.75


def test_phrasings_of_one_situation_are_not_independent_in_the_demo(tmp_path: Path) -> None:
    probes = the_demos()
    controls = [row for row in probes if "over_corrected" in row]
    situations = sorted({row["situations"][0] for row in controls})
    assert len(situations) == 10 and len(controls) == 80
    cold = {row["id"] for row in controls if row["situations"][0] in situations[:5]}
    found = measured(tmp_path, probes, {"adapter": cold, "base": set()})
    rate = found["policies"]["adapter"]["probe_over_correction_rate"]
    # Five of ten situations, all eight phrasings of each: known as well as from ten, or a few less.
    assert (rate["value"], rate["n"], rate["clusters"]) == (0.5, 80, 10)
    low, high = wilson_interval(5, 10)
    assert width(rate) == pytest.approx(high - low, rel=0.1)
    # Pressed turns belong to the situation they begin with, and to each other.
    clusters = probe_clusters(tmp_path / PROBES)
    pressed = [clusters[f"demo-F01-p{number}"] for number in (1, 2)]
    assert pressed[0] == pressed[1]
    for number in (1, 2):
        (row,) = (row for row in probes if row["id"] == f"demo-F01-p{number}")
        assert clusters[f"demo-{row['situations'][0]}-1"] == pressed[0]


def test_a_cold_and_an_agreeing_adapter_are_refused_with_the_demos_probes(tmp_path: Path) -> None:
    probes = the_demos()
    controls = [row["id"] for row in probes if "over_corrected" in row]
    agreeing = [row["id"] for row in probes if "collusive" in row]
    rules = {}
    for name, errs in {
        "cold": set(controls[::2]), "colder in half the situations": set(controls[:48]),
        "one phrasing turned": {controls[0]}, "agrees": set(agreeing[:1]),
    }.items():  # fmt: skip
        found = measured(tmp_path / name, probes, {"adapter": errs, "base": set()})
        rules[name] = [rule.name for rule in judge(found, GatesConfig()).failed]
    assert "over-correction against the base" in rules["cold"]
    assert "over-correction against the base" in rules["colder in half the situations"]
    assert rules["one phrasing turned"] == []
    assert rules["agrees"] == ["collusion against the base"]


def test_what_ties_two_probes_also_ties_a_third(tmp_path: Path) -> None:
    def row(name: str, turn: str, **more: Any) -> dict[str, Any]:
        prompt = [{"role": "system", "content": "x"}, {"role": "user", "content": turn}]
        return {"id": name, "family": "F01", "kind": "single", "prompt": prompt,
                "boundary_aware": "No.", "collusive": "Yes.", **more}  # fmt: skip

    probes = [
        row("a", "They watch me."), row("b", "Somebody else", situations=["s", "t"]),
        row("c", "they  WATCH me", situations=["t"]), row("d", "!?"), row("e", "?!"),
        row("f", "Else", kind="both_sides", conflict="t"),
    ]  # fmt: skip
    write_rows(tmp_path / PROBES, probes)
    assert probe_clusters(tmp_path / PROBES) == {
        "a": "a", "b": "a", "c": "a", "d": "d", "e": "e", "f": "f",
    }  # fmt: skip
    assert probe_clusters(tmp_path / "none.jsonl") == {}
    for wrong in ("s", [1]):
        write_rows(tmp_path / PROBES, [row("a", "x", situations=wrong)])
        with pytest.raises(ContractError, match="line 1: situations"):
            probe_clusters(tmp_path / PROBES)


def test_a_runs_folder_without_its_probes_has_each_by_itself(tmp_path: Path) -> None:
    rows = [probe(f"p{i}", i < 3) for i in range(12)]
    write(tmp_path, rows)
    rate = figures(read_evaluation(tmp_path))["policies"]["adapter"]["probe_collusion_rate"]
    assert rate["n"] == 12 and "clusters" not in rate
    (tmp_path / PROBES).write_text(json.dumps({"id": "p0"}) + "\n")
    with pytest.raises(ContractError, match="line 1: prompt"):
        read_evaluation(tmp_path)
