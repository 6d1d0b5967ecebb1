"""The texts that come with curator: complete, matched, and without harmful detail."""

from __future__ import annotations

import json
import re
from collections import Counter
from statistics import fmean

import pytest

from curator.demo.phrasing import KINDS, Situation, load_situations, starter_rows
from curator.importing.prompts import read_prompts
from curator.pairing import text_distance
from curator.workspace import data_folder

DATA = data_folder()
TRAINED = {*(f"F{n:02}" for n in range(1, 12)), "C01", "C03"}
ALL = {*TRAINED, "F12", "C02"}
# Means, amounts and plans, by word. Not a guarantee: a net under the writer's own care.
HARM = re.compile(
    r"""\b( \d+ | mg | milligrams? | grams? | kilos? | pounds? | calories? | units? | pills?
    | doses? | dosage | overdos\w* | taper\w* | half\ a\ tablet | all\ my\ tablets\ at\ once
    | knife | knives | blades? | razors? | ropes? | noose | bridge | roof | train\ tracks? | guns?
    | pistol | bullets? | bleach | poison\w* | hang(ing)?\ (myself|yourself) | jump(ing)?\ off
    | cut(ting)?\ (myself | yourself | my\ wrists? | your\ wrists?) | lithium | sertraline
    | fluoxetine | quetiapine | diazepam | xanax | prozac | insulin | paracetamol | vodka | whisky
    | cocaine | heroin | cannabis | laxatives? | purg\w+ | vomit\w* | every\ other\ day
    | step\ by\ step | first ,\ take )\b""",
    re.IGNORECASE | re.VERBOSE,
)


@pytest.fixture(scope="module")
def situations() -> list[Situation]:
    return load_situations(DATA / "demo_model" / "texts")


@pytest.fixture(scope="module")
def probes() -> list[dict[str, object]]:
    lines = (DATA / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def replies_of(probe: dict[str, object]) -> dict[str, str]:
    names = ("boundary_aware", "collusive", "over_corrected")
    return {name: str(probe[name]) for name in names if name in probe}


def test_every_family_has_its_situations(situations: list[Situation]) -> None:
    plain = Counter(s.family for s in situations if not s.pressure)
    assert set(plain) == TRAINED and min(plain.values()) >= 4
    assert {s.family for s in situations if s.pressure} == TRAINED
    for situation in situations:
        kinds = set(situation.replies)
        assert kinds == (
            set(KINDS) - {"over_agreeable"} if situation.family[0] == "C" else set(KINDS)
        )


def test_kinds_are_matched_in_length(situations: list[Situation]) -> None:
    for situation in situations:
        lengths = [
            sum(fmean(len(text.split()) for text in part) for part in parts)
            for parts in situation.replies.values()
        ]
        assert max(lengths) / min(lengths) < 1.08, situation.id


def test_held_out_phrasings_are_never_trained_on(situations: list[Situation]) -> None:
    for situation in situations:
        if not situation.pressure:
            trained, held_out = set(situation.messages(False)), set(situation.messages(True))
            assert trained and held_out and not trained & held_out
            assert 0.02 < len(held_out) / (len(trained) + len(held_out)) < 0.2
    assert sum(len(list(s.messages(True))) for s in situations if not s.pressure) >= 400


def test_starter_prompts_are_the_situations_own(situations: list[Situation]) -> None:
    rows, _ = read_prompts(DATA / "prompts.jsonl")
    written = [json.loads(x) for x in (DATA / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert written == starter_rows(situations)
    families = Counter(row.family for row in rows)
    assert set(families) == TRAINED and min(families.values()) >= 4 and len(rows) >= 52
    assert all(row.content_label and row.risk_cue for row in rows)
    assert len({row.sha256 for row in rows}) == len(rows)


def test_probes_are_complete_and_matched(probes: list[dict[str, object]]) -> None:
    kinds = Counter((probe["family"], probe["kind"]) for probe in probes)
    for family in ALL:
        assert kinds[family, "single"] >= (16 if family[0] == "C" else 6)
    assert sum(n for (_, kind), n in kinds.items() if kind == "pressure") == 24
    conflicts = Counter(probe["conflict"] for probe in probes if probe["kind"] == "both_sides")
    assert len(conflicts) == 12 and set(conflicts.values()) == {2}
    assert len({probe["id"] for probe in probes}) == len(probes)
    for probe in probes:
        wrong = "over_corrected" if str(probe["family"])[0] == "C" else "collusive"
        good, bad = (len(str(probe[name]).split()) for name in ("boundary_aware", wrong))
        assert 0.89 <= good / bad <= 1.12, probe["id"]
        messages = probe["prompt"]
        assert isinstance(messages, list) and messages[-1]["role"] == "user"
        assert len(messages) == (3 if probe["kind"] == "pressure" else 1)


def test_no_starter_prompt_is_near_a_probe(
    probes: list[dict[str, object]], situations: list[Situation]
) -> None:
    texts = [p["prompt"][-1]["content"] for p in probes if isinstance(p["prompt"], list)]
    for situation in situations:
        for text in texts:
            assert text_distance(situation.starter, str(text)) > 0.5 or situation.pressure


def every_text(situations: list[Situation], probes: list[dict[str, object]]) -> list[str]:
    texts = [s.starter for s in situations]
    for situation in situations:
        texts += [text for part in situation.client for text in part]
        texts += [t for parts in situation.replies.values() for part in parts for t in part]
        texts += situation.unseen.values()
    for probe in probes:
        texts += replies_of(probe).values()
        messages = probe["prompt"]
        assert isinstance(messages, list)
        texts += [message["content"] for message in messages]
    return texts


def test_no_text_holds_harmful_detail(
    situations: list[Situation], probes: list[dict[str, object]]
) -> None:
    found = [(m.group(), t) for t in every_text(situations, probes) if (m := HARM.search(t))]
    assert found == []


def test_the_scan_would_find_it() -> None:
    for text in ("take 3 of them", "half the dose", "a sharp knife", "cutting myself", "two pills"):
        assert HARM.search(text)
    assert not HARM.search("I feel cut off and hung over the news, so I stopped the tablets.")


def test_the_rubric_names_reasons_both_ways() -> None:
    rubric = json.loads((DATA / "rubric.json").read_text(encoding="utf-8"))
    directions = Counter(tag["direction"] for tag in rubric["tags"])
    assert directions == {"good": 9, "over_agreeable": 10, "over_corrected": 5}
    for name in ("tag", "key", "label", "short"):
        assert len({tag[name] for tag in rubric["tags"]}) == 24
    assert all(len(tag["key"]) == 1 and tag["definition"] and tag["sources"]
               for tag in rubric["tags"])  # fmt: skip
    names = {tag["tag"] for tag in rubric["tags"] if tag["red"]}
    assert {each["flag"] for each in rubric["red_flags"]} <= names


def test_notes_say_who_wrote_them_and_who_has_not_reviewed_them() -> None:
    assert "No clinician has reviewed" in (DATA / "README.md").read_text(encoding="utf-8")
    for name in ("guideline.md", "rubric.json"):
        assert "no clinician has reviewed" in (DATA / name).read_text(encoding="utf-8")
