"""Training with the real thing: bitsandbytes NF4, PEFT, TRL, on a tiny Gemma 3."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import Run, preference_rows, run_folder
from trainer import contract, dpo
from trainer.contract import ContractError, TrainSettings
from trainer.preferences import Preferences, read_preferences

pytestmark = pytest.mark.train

SETTINGS = {
    "max_steps": 20, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 256,
}  # fmt: skip


def steps(folder: Path) -> list[dict[str, float]]:
    return [e for e in contract.read_events(folder)[0] if e["event"] == "step"]


def test_every_step_equals_a_stock_trl_script(tmp_path: Path, gemma: Path, trainer: Run) -> None:
    rows = preference_rows(24, split="train")
    folder = run_folder(
        tmp_path / "run", rows, action="train", model=str(gemma), seed=7, quantization="none",
        train=SETTINGS,
    )  # fmt: skip
    done = trainer(folder)
    assert done.returncode == 0, done.stderr
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    contract.write_rows(tmp_path / "pairs.jsonl", plain)
    script = Path(__file__).parent / "stock_dpo.py"
    stock = subprocess.run(
        [sys.executable, str(script), str(gemma), str(tmp_path / "pairs.jsonl"), str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert stock.returncode == 0, stock.stderr
    theirs = json.loads((tmp_path / "log.json").read_text())
    ours = steps(folder)
    assert len(ours) == len(theirs) == 20
    for mine, stocks in zip(ours, theirs, strict=True):
        for name in ("loss", "rewards/margins"):
            assert mine[name] == pytest.approx(stocks[name], abs=1e-3)
    assert abs(theirs[-1]["rewards/margins"]) > 0.05  # it learned: the comparison says something


def test_lora_moves_and_the_quantised_base_does_not(tmp_path: Path, gemma: Path) -> None:
    import torch
    from bitsandbytes.nn import Linear4bit

    from trainer.model import choose_device, load_base, load_tokenizer

    request = contract.Request(
        action="train", model=str(gemma),
        train=TrainSettings(learning_rate=2e-3, max_steps=4, gradient_accumulation=2),
    )  # fmt: skip
    device = choose_device()
    model = load_base(request, gemma, device)
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 14
    before = {name: value.clone() for name, value in model.state_dict().items()}
    preferences = Preferences(preference_rows(12), [], 0, "")
    trainer = dpo.make_trainer(
        model, load_tokenizer(gemma, "tiny"), preferences, request, device, tmp_path / "work",
        lambda *_, **__: None,
    )  # fmt: skip
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert start and all("lora_" in name for name in start)
    assert {value.dtype for value in start.values()} == {torch.float32}
    metrics = dpo.train(trainer)
    assert metrics["steps"] == 4
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, start[name]), name
    base = trainer.model.get_base_model().state_dict()
    for name, value in before.items():
        there = name if name in base else name.replace("proj.", "proj.base_layer.")
        assert torch.equal(base[there], value), name


def test_a_folder_made_by_hand_gives_an_adapter_plain_peft_loads(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = run_folder(
        tmp_path / "run", preference_rows(24), action="train", model=str(gemma),
        train={**SETTINGS, "max_steps": 3},
    )  # fmt: skip
    done = trainer(folder)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "finished" and all("time" in event for event in events)
    manifest = contract.read_manifest(folder)
    assert manifest is not None
    assert manifest["preferences"]["train"] + manifest["preferences"]["held_out"] == 24
    held_out = manifest["held_out"]
    assert held_out["n"] == manifest["preferences"]["held_out"] >= 4
    low, high = held_out["rewards/accuracies_interval"]
    assert low <= held_out["rewards/accuracies"] <= high
    adapter = folder / "adapter"
    assert sorted(p.name for p in adapter.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "curator_adapter.json",
    ]  # fmt: skip
    assert manifest["adapter"]["sha256"] == contract.sha256_file(
        adapter / "adapter_model.safetensors"
    )
    assert not (folder / "work").exists()

    base = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32)
    ids = torch.tensor([[2, 10, 11, 12]])
    with torch.no_grad():
        plain = base(ids).logits
        changed = PeftModel.from_pretrained(base, str(adapter))(ids).logits
    assert not torch.allclose(plain, changed)


def trainer_of(tmp_path: Path, gemma: Path, rows: int, **settings: Any) -> Any:
    from trainer.model import choose_device, load_base, load_tokenizer

    train = TrainSettings(**{"learning_rate": 2e-3, "max_length": 256, **settings})
    request = contract.Request("train", str(gemma), quantization="none", train=train)
    device = choose_device()
    return dpo.make_trainer(
        load_base(request, gemma, device), load_tokenizer(gemma, "tiny"),
        Preferences(preference_rows(rows), [], 0, ""), request, device, tmp_path / "work",
        lambda *_, **__: None,
    )  # fmt: skip


def test_a_training_of_one_step_takes_it_at_its_whole_rate(tmp_path: Path, gemma: Path) -> None:
    def moved(trainer: Any) -> bool:
        return any(p.any() for n, p in trainer.model.named_parameters() if "lora_B" in n)

    trainer = trainer_of(tmp_path, gemma, 8, epochs=1)
    assert dpo.train(trainer)["steps"] == 1 and moved(trainer)
    trainer = trainer_of(tmp_path, gemma, 8, epochs=1)
    trainer.args.warmup_steps = 0.1  # as transformers has it: of one step that is the one
    with pytest.raises(ContractError, match="the adapter learned nothing"):
        dpo.train(trainer)
    assert not moved(trainer)


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [(8, {"epochs": 1}, 1), (9, {"epochs": 1}, 2), (8, {"epochs": 1.2}, 2), (3, {"epochs": 0.3}, 1),
     (9, {"epochs": 1, "batch_size": 3, "gradient_accumulation": 3}, 1), (30, {"max_steps": 1}, 1),
     (3, {"max_steps": 2}, 2)],
)  # fmt: skip
def test_only_a_training_of_one_step_has_no_warm_up(
    tmp_path: Path, gemma: Path, rows: int, settings: dict[str, Any], steps: int
) -> None:
    trainer = trainer_of(tmp_path, gemma, rows, **settings)
    theirs = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert theirs[-1] == dpo._steps(trainer) == steps
    assert trainer.args.get_warmup_steps(steps) == (0 if steps == 1 else 1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (preference_rows(7), "7 preferences; a round needs at least 8"),
        ([{**preference_rows(1)[0], "chosen": "text"}], "line 1: chosen must be a list"),
        ([{**preference_rows(1)[0], "split": "test"}], "split is 'test'"),
        (preference_rows(9, split="held_out"), "every row is held out"),
        ([*preference_rows(9, split="train"), preference_rows(10)[9]], "some rows have a split"),
        ([*preference_rows(9, split="train"), *preference_rows(1, split="held_out")],
         "one prompt is in train and in held_out"),
        ([{**preference_rows(1)[0], "prompt": [{"role": "assistant", "content": "x"}]}],
         "prompt must end with user"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, rows: list[dict[str, object]], said: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    contract.write_rows(path, rows)
    with pytest.raises(ContractError) as caught:
        read_preferences(path, TrainSettings(), 0)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_rows_are_split_by_prompt_and_equal_replies_left_out(tmp_path: Path) -> None:
    rows = preference_rows(20) * 3
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    contract.write_rows(tmp_path / "p", rows)
    read = read_preferences(tmp_path / "p", TrainSettings(), 0)
    assert (len(read.train), len(read.held_out), read.identical) == (48, 12, 1)
    on_both = {contract.canonical_json(r["prompt"]) for r in read.train} & {
        contract.canonical_json(r["prompt"]) for r in read.held_out
    }
    assert not on_both
    assert read == read_preferences(tmp_path / "p", TrainSettings(), 0)
    contract.write_rows(tmp_path / "q", [{**row, "split": "train"} for row in rows])
    assert read_preferences(tmp_path / "q", TrainSettings(), 0).held_out == []


def test_under_four_held_out_is_trained_without_evaluation(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    rows = [{**row, "split": "held_out"} for row in preference_rows(12)[9:]]
    rows = preference_rows(9, split="train") + rows
    folder = run_folder(
        tmp_path / "run", rows, action="train", model=str(gemma), train={**SETTINGS, "max_steps": 1}
    )
    done = trainer(folder)
    assert done.returncode == 0, done.stderr
    manifest = contract.read_manifest(folder)
    assert manifest is not None
    assert "without evaluation: 3 held-out preferences" in manifest["held_out"]["note"]
    assert any(
        "without evaluation" in str(e.get("message")) for e in contract.read_events(folder)[0]
    )


def test_prompts_that_fill_the_length_are_not_measured(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    rows = preference_rows(20, split="train")
    held_out = [
        {**row, "split": "held_out", "prompt": [{"role": "user", "content": f"held out {i}"}]}
        for i, row in enumerate(preference_rows(9))
    ]
    for row in held_out[:4]:
        row["prompt"] = [{"role": "user", "content": "I feel watched. " * 500 + str(id(row))}]
    folder = run_folder(
        tmp_path / "run", [*rows, *held_out], action="train", model=str(gemma),
        train={**SETTINGS, "max_steps": 2},
    )  # fmt: skip
    done = trainer(folder)
    assert done.returncode == 0, done.stderr
    manifest = contract.read_manifest(folder)
    assert manifest is not None and manifest["held_out"]["n"] == 5
    assert "4 held-out prompts fill max_length" in done.stdout


def test_a_loss_that_is_no_number_stops_at_once_and_publishes_nothing(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    folder = run_folder(
        tmp_path / "run", preference_rows(20), action="train", model=str(gemma),
        train={**SETTINGS, "learning_rate": 1e30, "warmup_ratio": 0.0},
    )  # fmt: skip
    done = trainer(folder)
    assert done.returncode == 65 and "Nothing was published" in done.stderr
    assert len(steps(folder)) < 20 and not (folder / "adapter").exists()
    assert "NaN" not in (folder / contract.EVENTS).read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and signals")
@pytest.mark.parametrize("how", ["a reader that leaves", "Ctrl-C"])
def test_a_run_by_hand_that_is_left_or_interrupted(tmp_path: Path, gemma: Path, how: str) -> None:
    folder = run_folder(
        tmp_path / "run", preference_rows(20), action="train", model=str(gemma), train=SETTINGS
    )
    command = [sys.executable, "-P", "-m", "trainer", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        if how == "Ctrl-C":
            child.send_signal(signal.SIGINT)
            wanted = (130, "cancelled")
        else:
            child.stdout.close()
            wanted = (0, "finished")
        said = child.stderr.read()
        assert child.wait(120) == wanted[0], said
    assert "Traceback" not in said
    assert contract.read_events(folder)[0][-1]["event"] == wanted[1]


def test_held_out_margins_equal_trls_own_evaluation(tmp_path: Path, gemma: Path) -> None:
    from trainer.evaluate import held_out_groups, held_out_rows, summarise_margins
    from trainer.model import choose_device, load_base, load_tokenizer
    from trainer.policies import Policies
    from trainer.scoring import Scorer

    request = contract.Request(
        action="train", model=str(gemma), quantization="none",
        train=TrainSettings(
            learning_rate=2e-3, max_steps=6, gradient_accumulation=2, max_length=256
        ),
    )  # fmt: skip
    device = choose_device()
    rows = preference_rows(14)
    tokenizer = load_tokenizer(gemma, "tiny")
    trainer = dpo.make_trainer(
        load_base(request, gemma, device), tokenizer, Preferences(rows, [], 0, ""), request,
        device, tmp_path, lambda *_, **__: None,
    )  # fmt: skip
    dpo.train(trainer)
    from datasets import Dataset

    theirs = trainer.evaluate(Dataset.from_list(rows))
    groups, too_long = held_out_groups(tokenizer, rows, 256)
    policies = Policies(trainer.model)
    found = held_out_rows(policies, Scorer(trainer.model, pytest.fail, 4), groups, 0.1)
    ours = summarise_margins(found)
    assert too_long == 0
    assert ours["n"] == 14
    for name in ("rewards/margins", "rewards/accuracies"):
        assert ours[name] == pytest.approx(theirs[f"eval_{name}"], abs=1e-4)


def test_a_folder_in_use_finished_or_missing_is_refused(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    from filelock import FileLock

    done = trainer_on(tmp_path / "missing", tmp_path)
    assert done.returncode == 65 and "is no folder" in done.stderr
    folder = run_folder(tmp_path / "run", preference_rows(9), action="train", model=str(gemma))
    with FileLock(folder / contract.LOCK):
        done = trainer(folder)
    assert done.returncode == 75 and "another trainer works" in done.stderr
    contract.write_manifest(folder, {})
    done = trainer(folder)
    assert done.returncode == 65 and "is finished already" in done.stderr


def trainer_on(folder: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "trainer", str(folder)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )
