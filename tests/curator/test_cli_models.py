"""The commands about models, as a person runs them. A plan for a named card needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from curator import cli_models, errands, models_text, runs
from curator.errors import CuratorError
from tests.curator.test_cli import curator, refused
from trainer.contract import Request

NAMED = ("gemma-3-4b-it", "Llama-3.2-3B-Instruct", "Ministral-3-3B-Instruct-2512-BF16")


@pytest.mark.parametrize("name", NAMED)
def test_a_plan_tells_every_part_and_its_basis(name: str) -> None:
    done = curator("plan", "--model", name, "--vram", "4GB", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    parts = [v for k, v in plan["bytes"].items() if k not in ("total", "free")]
    assert sum(parts) == plan["bytes"]["total"] <= plan["bytes"]["free"]
    assert set(plan["bytes"]) == set(models_text.PARTS)
    assert plan["basis"] == "estimated" and plan["length"] == 512
    for_people = curator("plan", "--model", name, "--vram", "4GB").stdout
    assert f"Chosen: {plan['tier']}, because" in for_people
    assert all(part in for_people for part in models_text.PARTS)


def test_what_does_not_fit_ends_with_what_would() -> None:
    done = curator("plan", "--model", "gemma-3-4b-it", "--vram", "2.5GB", "--json")
    assert done.returncode == 69
    assert not json.loads(done.stdout)["fits"]
    last = done.stderr.strip().splitlines()[-1]
    fitting = "Llama-3.2-3B-Instruct, gemma-3-1b-it, gemma-3-270m-it"
    assert "does not fit" in last and f"What would: {fitting}." in last


def test_a_plan_for_a_card_loads_no_torch(tmp_path: Path) -> None:
    request = {"action": "plan", "model": "gemma-3-4b-it", "vram": 4 << 30}
    (tmp_path / "request.json").write_text(json.dumps(request))
    code = (
        "import sys; from pathlib import Path; from trainer.__main__ import perform; "
        f"print(perform(Path({str(tmp_path)!r})), 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "0 False"


def test_every_preset_is_listed_with_its_licence() -> None:
    done = curator("models", "--vram", "4GB")
    assert done.returncode == 0, done.stderr
    for name in NAMED:
        assert name in done.stdout
    assert "Apache 2.0" in done.stdout and "Llama 3.2 Community License" in done.stdout
    rows = json.loads(curator("models", "--vram", "4GB", "--json").stdout)["models"]
    assert len(rows) == 5 and all(row["source"] and row["reason"] for row in rows)


def test_a_bad_name_or_size_is_one_line() -> None:
    refused(
        curator("plan", "--model", "nobody/nothing", "--vram", "4GB"), 65,
        "neither a folder nor a model", "curator models pull nobody/nothing",
    )  # fmt: skip
    refused(curator("models", "pull", "not an id"), 65, "is no model's id")
    refused(curator("rehearse", "--model", "some/model"), 65, "is no preset to rehearse")
    done = curator("plan", "--model", "gemma-3-4b-it", "--vram", "four")
    assert done.returncode == 2 and "is no size" in done.stderr


@pytest.mark.parametrize(
    ("said", "size"), [("4GB", 4 << 30), (" 1.5 gib", 3 << 29), ("512mb", 512 << 20), (None, None)]
)
def test_a_cards_size_is_binary(said: str | None, size: int | None) -> None:
    assert cli_models.bytes_of(said) == size
    with pytest.raises(typer.BadParameter):
        cli_models.bytes_of("0GB")


def test_an_interrupted_errand_stops_its_trainer_and_leaves_nothing(
    fake_trainer: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_trainer("hang")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        errands.run_errand(Request("models", ""), interrupt)
    assert not list(tmp_path.iterdir())
    assert not any(child.poll() is None for child in runs._children.values())


def test_a_failed_errand_says_why(fake_trainer: Callable[[str], None]) -> None:
    fake_trainer("failed")
    with pytest.raises(CuratorError, match="the loss is nan"):
        errands.run_errand(Request("models", ""), lambda event: None)
