"""Probe rows: read strictly, and refused when the preferences know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import Rows, preference_rows, probe_row
from trainer import probes
from trainer.contract import ContractError, write_rows

SHIPPED = Path(__file__).parents[2] / "data" / "probes.jsonl"


def test_the_shipped_probes_are_read_with_the_two_replies_each_has() -> None:
    read = probes.read_probes(SHIPPED)
    assert len(read) == 168
    assert {probe.kind for probe in read} == {"single", "pressure", "both_sides"}
    assert all(next(iter(probe.replies)) == "boundary_aware" for probe in read)
    controls = [probe for probe in read if "over_corrected" in probe.replies]
    assert controls and all(probe.family.startswith("C") for probe in controls)
    assert sum(probe.conflict is not None for probe in read) == 24


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "multiple"}, "kind is 'multiple'; it is single or pressure or both_sides"),
        ({"kind": ["single"]}, "it is single or"),
        ({"collusive": None}, "has boundary_aware and one of collusive and over_corrected"),
        ({"over_corrected": "No."}, "has boundary_aware and one of collusive and over_corrected"),
        ({"boundary_aware": None, "over_corrected": "No."}, "has boundary_aware and one of"),
        ({"collusive": " "}, "collusive must be a text"),
        ({"collusive": 3}, "collusive must be a text"),
        ({"collusive": "that  SOUNDS hard, 0. what would help?"}, "replies are the same"),
        ({"id": None}, "id must be a text"),
        ({"family": 4}, "family must be a text"),
        ({"conflict": 4}, "conflict must be a text"),
        ({"prompt": "am I right?"}, "prompt must be a list of messages"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt must end with user"),
        ({"id": "p1"}, "the id 'p1' is there twice"),
    ],
)
def test_a_wrong_probe_is_refused_by_path_and_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "probes.jsonl"
    write_rows(path, [probe_row(1), probe_row(0, **changes)])
    with pytest.raises(ContractError) as caught:
        probes.read_probes(path)
    assert f"{path}, line 2" in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_character_is_refused_before_it_can_break_a_file(tmp_path: Path) -> None:
    (tmp_path / "p").write_text('{"id": "\\ud800", "family": "F", "kind": "single", "prompt": '
                                '[{"role": "user", "content": "x"}], "boundary_aware": "a", '
                                '"collusive": "b"}\n')  # fmt: skip
    with pytest.raises(ContractError, match="line 1: id holds half a character"):
        probes.read_probes(tmp_path / "p")


def test_a_missing_or_empty_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"none\.jsonl: No such file"):
        probes.read_probes(tmp_path / "none.jsonl")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ContractError, match="no probes in it"):
        probes.read_probes(tmp_path / "empty")


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "PROBE 0:  am I\nright? "}],
        [{"role": "system", "content": "Be kind."},
         {"role": "user", "content": "Probe 0: am I right?"}],
    ],
)  # fmt: skip
def test_a_probe_among_the_preferences_is_refused(prompt: list[dict[str, str]]) -> None:
    rows: Rows = preference_rows(3)
    probe = probes._probe(probe_row(0), "here")
    probes.check_apart([probe], rows, Path("pairs.jsonl"))
    rows[1] = {**rows[1], "rejected": reply("That sounds hard, 0. Yes, of course.")}
    probes.check_apart([probe], rows, Path("pairs.jsonl"))  # its own words, to another prompt
    rows[2] = {**rows[2], "prompt": prompt}
    with pytest.raises(ContractError) as caught:
        probes.check_apart([probe], rows, Path("pairs.jsonl"))
    assert "pairs.jsonl: the prompt of the probe p0 is among the preferences" in str(caught.value)


@pytest.mark.train
def test_long_probes_are_left_out_and_a_conversation_that_does_not_fit_is_named(
    gemma: Path,
) -> None:
    from trainer.model import load_tokenizer

    tokenizer = load_tokenizer(gemma, "tiny")
    read = [probes._probe(probe_row(n), "here") for n in range(4)]
    groups, too_long = probes.probe_groups(tokenizer, read, 60)
    assert too_long > 0 and len(groups) == 4 - too_long > 0
    assert all(group[0].start <= 60 for _, group in groups)
    tokens = [tokenizer.decode(c.ids[c.start :]) for _, group in groups for c in group]
    assert tokens[0].startswith(read[0].replies["boundary_aware"])
    twice = probe_row(0, prompt=[{"role": "user", "content": t} for t in ("one", "two")])
    with pytest.raises(ContractError, match="the probe p0 does not fit the model's chat template"):
        probes.probe_groups(tokenizer, [probes._probe(twice, "here")], 60)
