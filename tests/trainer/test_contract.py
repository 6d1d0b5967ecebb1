"""The seam: requests read strictly, events never half-read, results whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer import contract
from trainer.contract import ContractError, GenerateSettings, Request, TrainSettings


def test_a_request_survives_the_file(tmp_path: Path) -> None:
    request = Request(
        action="round", model="m", seed=3, train=TrainSettings(loss=("robust",), loss_weights=(1,)),
        generate=GenerateSettings(strategy="sample", samples=3), measure="measure.jsonl",
    )  # fmt: skip
    contract.write_request(tmp_path, request)
    assert contract.read_request(tmp_path) == request


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"action": "tran", "model": "m"}, "action is \"tran\"; it is train or evaluate"),
        ({"model": "m"}, "missing 1 required positional argument: 'action'"),
        ({"action": "train", "model": ""}, "model is empty"),
        ({"action": "train", "model": 3}, "model is 3; it must be str"),
        ({"action": "train", "model": "m", "schema": 9}, "schema 9; this trainer reads schema 1"),
        ({"action": "train", "model": "m", "train": {"lr": 1}}, "train.lr is not known; known: a"),
        ({"action": "train", "model": "m", "train": {"epochs": "3"}}, "train.epochs is \"3\""),
        ({"action": "train", "model": "m", "train": {"epochs": True}}, "train.epochs is true"),
        ({"action": "train", "model": "m", "train": {"beta": 0}}, "beta must be above 0"),
        ({"action": "train", "model": "m", "train": {"loss": ["sigmoid"]}}, "give one for each"),
        ({"action": "train", "model": "m", "train": {"label_smoothing": 0.5}}, "below 0.5"),
        ({"action": "train", "model": "m", "generate": {"samples": 1, "strategy": "sample"}},
         "at least 2"),
        ({"action": "train", "model": "m", "generate": {"steers": {"cold": "x"}}}, "steers needs"),
        ([], "it is no JSON object"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_by_name(tmp_path: Path, values: object, said: str) -> None:
    (tmp_path / contract.REQUEST).write_text(json.dumps(values))
    with pytest.raises(ContractError) as caught:
        contract.read_request(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_request_says_what_the_least_is(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r'\{"action": "train", "model": "PATH"\}'):
        contract.read_request(tmp_path)


def test_events_are_read_whole_and_from_where_one_left_off(tmp_path: Path) -> None:
    contract.append_event(tmp_path, "phase", phase="train")
    events, offset = contract.read_events(tmp_path)
    assert [e["phase"] for e in events] == ["train"]
    with (tmp_path / contract.EVENTS).open("a") as file:
        file.write('{"event": "step", "st')
    assert contract.read_events(tmp_path, offset) == ([], offset)
    with (tmp_path / contract.EVENTS).open("a") as file:
        file.write('ep": 1}\nnot json\n[1]\n')
    events, _ = contract.read_events(tmp_path, offset)
    assert events == [{"event": "step", "step": 1}]
    assert contract.read_events(tmp_path / "nowhere") == ([], 0)


def test_rows_name_path_and_line_when_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n')
    with pytest.raises(ContractError, match=r"rows\.jsonl, line 3: not a JSON object"):
        list(contract.read_rows(path))
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a"')
    with pytest.raises(ContractError, match="line 2: not JSON"):
        list(contract.read_rows(path))
    with pytest.raises(ContractError, match="No such file"):
        list(contract.read_rows(tmp_path / "missing"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = contract.write_whole(tmp_path / "f", "old")

    class Breaks(str):
        def __len__(self) -> int:
            raise OSError

    with pytest.raises(TypeError):
        contract.write_whole(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_equal_values_have_equal_digests() -> None:
    assert contract.sha256_rows([{"a": 1, "b": "é"}]) == contract.sha256_rows([{"b": "é", "a": 1}])
    assert contract.sha256_rows(["ab", "c"]) != contract.sha256_rows(["a", "bc"])
