"""The demo with its real model: a round helps, and the measure can see harm.

One base generation and its 40 simulated judgments serve three ways of training on them: as they
are, with chosen and rejected swapped in the run's folder, and by a clinician who loves coldness.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curator import workflow
from curator.demo import make_workspace, report
from curator.demo.measure import Classifier, measure
from curator.demo.phrasing import load_situations
from curator.demo.simulated import SimulatedClinician
from curator.demo.simulation import Figures, Simulation, figures_text
from curator.preferences import EVERYBODY
from curator.seat import Shown
from curator.workspace import data_folder
from trainer import contract

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]
KEYS = {
    "round", "judgments", "preferences", "train_seconds", "reward_accuracy", "reward_accuracy_n",
    "collusion_rate", "over_correction_rate", "boundary_aware_rate", "unclassified_rate",
    "situation_match_rate", "n", "mean_length", "intervals",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Played:
    """A demo workspace after the base and one honest round."""

    simulation: Simulation
    base: Figures
    honest: Figures

    @property
    def folder(self) -> Path:
        return self.simulation.workspace.runs / "0002-round"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    workspace = make_workspace(tmp_path_factory.mktemp("demo") / "study", 0)
    simulation = Simulation(workspace, 0, lambda _: None)
    return Played(simulation, simulation.turn(0), simulation.turn(1))


def test_one_round_lowers_collusion(played: Played) -> None:
    before, after = played.base.measured, played.honest.measured
    assert played.honest.judgments == 40 and before["n"] == after["n"] >= 400
    assert 0.45 <= before["collusion_rate"] <= 0.70
    assert 0.05 <= before["over_correction_rate"] <= 0.15
    assert before["collusion_rate"] - after["collusion_rate"] >= 0.25
    assert after["over_correction_rate"] <= before["over_correction_rate"] + 0.05
    assert after["unclassified_rate"] <= 0.05
    rates = ("collusion_rate", "over_correction_rate", "boundary_aware_rate", "unclassified_rate")
    assert sum(after[name] for name in rates) == pytest.approx(1)


def test_the_figures_say_all_they_must(played: Played) -> None:
    figures = [played.base, played.honest]
    accuracy = played.simulation.classifier.accuracy()
    printed = json.loads(json.dumps(report(played.simulation.workspace, figures, accuracy)))
    assert [set(row) for row in printed["rounds"]] == [KEYS, KEYS]
    assert (
        printed["annotator"] == "simulated"
        and accuracy["n"] >= 100
        and accuracy["nearest_kind"] > 0.9
    )
    assert accuracy["near_enough"] < 0.05  # other words than the build's are unclear, not virtue
    assert accuracy["nonsense"] == {"n": 100, "unclassified": 100}
    text = figures_text(figures, accuracy)
    assert text.count("client: ") == 3 and "simulated judgments" in text


def test_simulated_picks_stay_out_of_exports_unless_asked_for(played: Played) -> None:
    workspace = played.simulation.workspace
    assert workflow.export_preferences(workspace).lines == []
    rows = [json.loads(x) for x in workflow.export_preferences(workspace, EVERYBODY).lines]
    assert len(rows) == played.honest.preferences
    assert {row["annotator_kind"] for row in rows} == {"simulated"}


def train_on(played: Played, name: str, rows: list[dict[str, object]]) -> dict[str, float]:
    """Train on rows in a folder of its own, as the round did; return the measure."""
    folder = played.folder.with_name(name)
    folder.mkdir()
    shutil.copy(played.folder / contract.MEASURE, folder)
    contract.write_rows(folder / contract.PAIRS, rows)
    request = contract.read_request(played.folder)
    contract.write_request(
        folder,
        dataclasses.replace(
            request, action="train", output_adapter="adapter", probes=None, drift=None
        ),
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer", str(folder)],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    simulation = played.simulation
    return measure(
        simulation.classifier,
        [
            (simulation.prompts[row["prompt_id"]][0], row["text"])
            for _, row in contract.read_rows(folder / contract.SAMPLES)
        ],
    )


def test_swapped_pairs_raise_collusion_above_the_base(played: Played) -> None:
    rows = [row for _, row in contract.read_rows(played.folder / contract.PAIRS)]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    figures = train_on(played, "swapped", swapped)
    assert figures["collusion_rate"] > played.base.measured["collusion_rate"]


def test_a_clinician_who_loves_coldness_raises_over_correction(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "cold", 0)
    simulation = Simulation(workspace, 0, lambda _: None, "cold")
    base, after = simulation.run(1)
    assert after.measured["over_correction_rate"] > base.measured["over_correction_rate"] + 0.05


def test_the_simulated_clinician_errs_one_time_in_ten() -> None:
    situations = load_situations(data_folder() / "demo_model" / "texts")
    classifier = Classifier(situations)
    plain = next(s for s in situations if not s.control and not s.pressure)
    texts = {kind: " ".join(part[0] for part in parts) for kind, parts in plain.replies.items()}
    clinician = SimulatedClinician(classifier, seed=3)
    shown = Shown(1, 1, [], None, None, texts["boundary_aware"], texts["over_agreeable"], "train")
    said = [str(clinician.verdict(shown).verdict) for _ in range(1000)]
    assert 60 < said.count("right") < 140 and said.count("left") == 1000 - said.count("right")
    cold = dataclasses.replace(shown, right=texts["over_corrected"])
    said = [str(clinician.verdict(cold).verdict) for _ in range(100)]
    assert said.count("left") > 75
    both_bad = dataclasses.replace(cold, left=texts["over_agreeable"])
    assert str(clinician.verdict(both_bad).verdict) == "both_bad"


def test_nonsense_is_unclassified() -> None:
    situations = load_situations(data_folder() / "demo_model" / "texts")
    classifier = Classifier(situations)
    words = "you the are so tablets pipes right behind Thursday lamp and whether carry".split()
    nonsense = " ".join(words[(i * 7) % len(words)] for i in range(40)) + "."
    assert classifier.classify(nonsense).kind == "unclassified"
    assert classifier.classify("").kind == "unclassified"


def test_known_sentences_put_together_wrongly_are_no_virtue() -> None:
    situations = load_situations(data_folder() / "demo_model" / "texts")
    classifier = Classifier(situations)
    first, second = [each for each in situations if not each.control][:2]
    aware = [part[0] for part in first.replies["boundary_aware"]]
    agreeing = [part[0] for part in first.replies["over_agreeable"]]

    def kind(*parts: str) -> str:
        return classifier.classify(" ".join(parts)).kind

    assert kind(*aware) == "boundary_aware" and kind(*agreeing) == "over_agreeable"
    assert kind(aware[0], agreeing[1], aware[2]) == "unclassified"
    assert kind(aware[0], second.replies["boundary_aware"][1][0], agreeing[2]) == "unclassified"
    assert kind(aware[0], aware[0], aware[0]) == "unclassified"
    assert kind("I hear you.") == kind(*["I hear you."] * 8) == kind(aware[0]) == "unclassified"


def test_the_shipped_model_is_small_and_the_one_its_readme_describes() -> None:
    from safetensors import safe_open

    folder = data_folder() / "demo_model"
    weights = folder / "model" / "model.safetensors"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert contract.sha256_file(weights) in readme
    with safe_open(str(weights), "pt") as file:
        sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]
    assert sum(sizes) < 5_000_000 and f"{sum(sizes):,} parameters" in readme
    shipped = sum(p.stat().st_size for p in (folder / "model").rglob("*") if p.is_file())
    assert shipped < 12_000_000


def test_the_steering_prompts_steer(played: Played) -> None:
    classifier = played.simulation.classifier
    folder = played.folder.with_name("0001-generate")
    kinds: dict[str, list[str]] = {}
    for _, row in contract.read_rows(folder / contract.CANDIDATES):
        kinds.setdefault(row["steer"], []).append(classifier.classify(row["text"]).kind)
    assert {"boundaried", "agreeable"} <= set(kinds)
    for steer, kind in (("boundaried", "boundary_aware"), ("agreeable", "over_agreeable")):
        # Of the controls' two warm kinds there is but one.
        assert kinds[steer].count(kind) > 0.6 * len(kinds[steer])
