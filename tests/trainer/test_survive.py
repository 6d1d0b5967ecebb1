"""A training killed, short of memory, cancelled or no number: what is left, what goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import GENERATE, PROMPTS, manifest_of, preference_rows, run_folder
from trainer import checkpoints, contract, dpo, model
from trainer.__main__ import perform
from trainer.batches import out_of_memory
from trainer.contract import ADAPTER_CARD, TrainSettings
from trainer.preferences import Preferences
from trainer.work import Work

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]

SETTINGS = {
    "max_steps": 40, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3,
    "lora_rank": 8, "lora_alpha": 16, "max_length": 256, "save_steps": 3,
}  # fmt: skip


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in contract.read_events(folder)[0] if e["event"] == name]


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "trainer", str(folder)]
    with (folder / contract.LOG).open("ab") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)


def wait_until(child: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_training_goes_on_and_comes_out_as_if_it_had_not_been(
    tmp_path: Path, gemma: Path
) -> None:
    # The optimiser of a GPU, at a rank from which its states really are in 8 bits.
    settings = {**SETTINGS, "max_steps": 28, "optimizer": "adamw_8bit", "lora_rank": 64}
    request = {"action": "train", "model": str(gemma), "seed": 3, "train": settings}
    rows = preference_rows(14, split="train")
    whole = run_folder(tmp_path / "whole", rows, **request)
    assert perform(whole) == 0
    wanted = {e["step"]: e for e in events(whole, "step")}
    assert len(wanted) == 28 and not (whole / contract.CHECKPOINTS).exists()

    killed = run_folder(tmp_path / "killed", rows, **request)
    child = start(killed)
    wait_until(child, lambda: len(events(killed, "step")) >= 8)
    child.kill()
    child.wait()
    last = events(killed, "step")[-1]["step"]
    assert last < 28 and not (killed / "adapter").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(killed, damaged)
    newest = max((damaged / contract.CHECKPOINTS).glob("step-*[0-9]"))
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-7] + b"changed")

    begun = {}
    for folder in (killed, damaged):
        assert perform(folder) == 0
        (resumed,) = events(folder, "resumed")
        begun[folder.name] = resumed["step"]
        again = events(folder, "step")[last:]
        assert [e["step"] for e in again] == list(range(resumed["step"] + 1, 29))
        for event in again:
            for name in ("loss", "rewards/margins"):
                assert event[name] == pytest.approx(wanted[event["step"]][name], abs=1e-6)
        assert manifest_of(folder)["adapter"]["sha256"] == manifest_of(whole)["adapter"]["sha256"]
        assert manifest_of(folder)["train"]["steps"] == 28
    assert last - begun["killed"] <= 3 and begun["damaged"] == begun["killed"] - 3
    (warning,) = [w for w in events(damaged, "warning") if "checkpoint" in w["message"]]
    assert "is broken (optimizer.pt is not what was written); passed over" in warning["message"]


def test_a_run_killed_after_training_takes_no_step_again(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(
        tmp_path / "run", preference_rows(9, split="train"), action="train", model=str(gemma),
        train={**SETTINGS, "max_steps": 4},
    )  # fmt: skip

    def ended(self: Work) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "evaluate", ended)
        assert perform(folder) == 143
    sha256 = contract.sha256_file(folder / "adapter" / "adapter_model.safetensors")
    assert perform(folder) == 0
    assert [e["step"] for e in events(folder, "step")] == [1, 2, 3, 4]
    assert manifest_of(folder)["adapter"]["sha256"] == sha256
    assert manifest_of(folder)["train"]["steps"] == 4


def test_a_checkpoint_of_other_rows_or_settings_is_passed_over(tmp_path: Path) -> None:
    saved = tmp_path / "work" / "checkpoint-2"
    saved.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "training_args.bin", "README.md"):
        (saved / name).write_text("x")
    request = contract.Request(action="train", model="m")
    rows = preference_rows(3)
    mark = checkpoints.fingerprint(request, "base", "template", rows, None, 1)
    for step in (2, 4, 6):
        shutil.copytree(saved, tmp_path / "again", dirs_exist_ok=True)
        path = checkpoints.publish(tmp_path / "again", tmp_path, mark, step, 1, request.train)
    assert sorted(p.name for p in path.parent.iterdir()) == ["step-00000004", "step-00000006"]
    assert sorted(p.name for p in path.iterdir()) == [
        "adapter_model.safetensors", "checkpoint.json", "optimizer.pt",
    ]  # fmt: skip
    said: list[str] = []
    found = checkpoints.latest(tmp_path, mark, said.append)
    assert found is not None and found.step == 6 and said == []
    others = [
        checkpoints.fingerprint(request, "base", "template", rows[:2], None, 1),
        checkpoints.fingerprint(request, "base", "template", rows, "parent", 1),
        checkpoints.fingerprint(
            contract.Request(action="train", model="m", train=TrainSettings(beta=0.2)),
            "base", "template", rows, None, 1,
        ),
    ]  # fmt: skip
    for other in others:
        assert checkpoints.latest(tmp_path, other, said.append) is None
    assert len(said) == 6 and "is of other settings, rows or versions" in said[0]
    # How much is held at once does not decide what is learned, but for the mean that sft is.
    for loss, weights in ((("sigmoid",), (1.0,)), (("sigmoid", "sft"), (1.0, 0.1))):
        as_asked = TrainSettings(loss=loss, loss_weights=weights)
        recomputed = replace(as_asked, gradient_checkpointing=True)
        smaller = replace(recomputed, batch_size=2, gradient_accumulation=4)
        marks = [
            checkpoints.fingerprint(
                contract.Request(action="round", model="m", run=loss[-1], train=each),
                "base", "template", rows, None, 1,
            )
            for each in (as_asked, recomputed, smaller)
        ]  # fmt: skip
        assert marks[0] == marks[1] and (marks[1] == marks[2]) is ("sft" not in loss)
    assert marks[0] == mark
    (path / "extra.safetensors").touch()
    (path.with_name("step-00000004") / "optimizer.pt").unlink()
    said.clear()
    assert checkpoints.latest(tmp_path, mark, said.append) is None
    assert len(said) == 2 and all("is broken" in message for message in said)
    checkpoints.publish(saved, tmp_path, mark, 8, 1, request.train)
    card = path.with_name("step-00000008") / checkpoints.CARD
    card.write_text(card.read_text().replace('"schema": 2', '"schema": 1'))
    said.clear()
    assert checkpoints.latest(tmp_path, mark, said.append) is None
    assert "step-00000008 is another version's; passed over" in said[0]


@pytest.mark.parametrize(
    ("kind", "said", "lacks"),
    [("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB.", True),
     ("AcceleratorError", "CUDA error: out of memory\nCUDA kernel errors might be …", True),
     ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
     ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you …", True),
     ("RuntimeError", "[enforce fail] DefaultCPUAllocator: not enough memory: you …", True),
     ("AcceleratorError", "CUDA error: an illegal memory access was encountered", False),
     ("RuntimeError", "expected scalar type Float but found Half", False),
     ("ValueError", "the text is: I ran out of memory", False)],
)  # fmt: skip
def test_every_lack_of_memory_is_known_as_one(kind: str, said: str, lacks: bool) -> None:
    import builtins

    import torch

    made: Any = getattr(torch, kind, None) or getattr(builtins, kind)
    assert out_of_memory(made(said)) is lacks
    assert out_of_memory(MemoryError())


@pytest.mark.parametrize(
    ("times", "changes"),
    [(1, ["one pair at a time"]), (2, ["one pair at a time", "max_length 128"]), (99, [])],
)
def test_out_of_memory_tries_with_less_at_most_three_times(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch, times: int, changes: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import torch

    load, left = model.load_base, [times]

    def load_and_hook(*arguments: Any) -> Any:
        loaded = load(*arguments)

        def short_of_memory(layer: Any, inputs: Any) -> None:
            if left[0] and loaded.training:
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory.")

        loaded.model.layers[1].register_forward_pre_hook(short_of_memory)
        return loaded

    monkeypatch.setattr(model, "load_base", load_and_hook)
    folder = run_folder(
        tmp_path / "run", preference_rows(12, split="train"), action="train", model=str(gemma),
        train={**SETTINGS, "max_steps": 2},
    )  # fmt: skip
    status = perform(folder)
    told = [e for e in events(folder, "warning") if "attempt" in e]
    if not changes:
        assert status == 1 and len(told) == 2
        assert events(folder, "failed")[-1]["message"].startswith("out of memory.")
        assert not (folder / "adapter").exists() and "trainer: out of memory" in (
            capsys.readouterr().err
        )
        return
    assert status == 0
    assert [e["message"] for e in told] == [
        f"out of memory; attempt {n} of 3 with {e['change']}." for n, e in enumerate(told, 2)
    ]
    for event, change in zip(told, changes, strict=True):
        assert event["change"].startswith(change)
    told_of = manifest_of(folder)["train"]
    assert told_of["attempts"] == 1 + times and told_of["steps"] == 2
    # What trained the adapter, not what was asked for.
    length = 128 if times == 2 else 256
    made = contract.from_dict(TrainSettings, told_of["settings"])
    assert (made.batch_size, made.gradient_accumulation, made.max_length) == (1, 4, length)
    assert made.gradient_checkpointing and made.learning_rate == SETTINGS["learning_rate"]
    assert json.loads((folder / "adapter" / ADAPTER_CARD).read_text())["max_length"] == length


@pytest.mark.parametrize("during", ["tokenising", "training", "generating"])
def test_a_run_is_cancelled_wherever_it_is(tmp_path: Path, gemma: Path, during: str) -> None:
    rows = preference_rows(8, split="train")
    if during == "tokenising":
        rows = preference_rows(6000, split="train")
    folder = run_folder(
        tmp_path / "run", rows, action="generate" if during == "generating" else "train",
        model=str(gemma), train={**SETTINGS, "max_steps": 4000},
        generate={**GENERATE, "max_new_tokens": 2000},
    )  # fmt: skip
    contract.write_rows(folder / contract.PROMPTS, PROMPTS)
    child = start(folder)
    sign = {"tokenising": "loaded", "training": "step", "generating": "loaded"}[during]
    wait_until(child, lambda: bool(events(folder, sign)))
    time.sleep(0.4)
    assert child.poll() is None
    if during == "tokenising":
        assert events(folder, "phase")[-1]["phase"] == "train" and not events(folder, "step")
    child.terminate()
    assert (
        child.wait(20) == 143
    )  # within 2 s on a machine that has nothing else to do: bench_cancel
    assert contract.read_events(folder)[0][-1]["event"] == "cancelled"
    assert "Traceback" not in (folder / contract.LOG).read_text()
    assert not (folder / "adapter").exists()


def test_a_model_that_gives_no_numbers_is_told_from_a_rate_too_high(
    tmp_path: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    poisoned = tmp_path / "poisoned"
    shutil.copytree(gemma, poisoned)
    weights = load_file(gemma / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    folder = run_folder(
        tmp_path / "run", preference_rows(9, split="train"), action="train", model=str(poisoned),
        quantization="none", train={**SETTINGS, "save_steps": 1},
    )  # fmt: skip
    assert perform(folder) == 65
    assert "the loss is nan at step 1, before any weight was moved" in capsys.readouterr().err
    assert not (folder / "adapter").exists() and not (folder / contract.CHECKPOINTS).exists()


def test_a_last_step_that_leaves_no_numbers_publishes_nothing(tmp_path: Path, gemma: Path) -> None:
    from transformers import TrainerCallback

    class Poison(TrainerCallback):
        """After the last step, of which the loss was finite, a weight is none."""

        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("inf")

    request = contract.Request(
        action="train", model=str(gemma), train=TrainSettings(max_steps=1, max_length=256)
    )
    device = model.choose_device()
    trainer = dpo.make_trainer(
        model.load_base(request, gemma, device), model.load_tokenizer(gemma, "tiny"),
        Preferences(preference_rows(9), [], 0, ""), request, device, tmp_path,
        lambda *_, **__: None,
    )  # fmt: skip
    trainer.add_callback(Poison())
    with pytest.raises(dpo.NoNumber, match=r"after the last step .*lora_A.* is no number"):
        dpo.train(trainer)


def test_what_does_not_fit_the_length_is_counted(tmp_path: Path, gemma: Path) -> None:
    rows = preference_rows(12, split="train")
    rows[2]["prompt"] = [{"role": "user", "content": "I feel watched. " * 100}]
    rows[3]["chosen"] = [{"role": "assistant", "content": "Tell me more. " * 100}]
    rows[4]["rejected"] = [{"role": "assistant", "content": "Trust nobody. " * 100}]
    folder = run_folder(
        tmp_path / "run", rows, action="train", model=str(gemma), train={**SETTINGS, "max_steps": 1}
    )
    assert perform(folder) == 0
    counted = manifest_of(folder)["preferences"]
    assert (counted["train"], counted["too_long_left_out"], counted["cut"]) == (11, 1, 2)
    said = [e["message"] for e in events(folder, "warning")]
    assert "1 prompts fill max_length (256 tokens); left out." in said
    assert "2 pairs have a reply that loses its end at max_length (256 tokens)." in said


# --- an adapter and a checkpoint, killed while they are saved --------------------------------


def save_for_ever(folder: Path, adapted: Any, request: contract.Request) -> None:
    """Publish adapter after adapter, checkpoint after checkpoint, until killed."""
    preferences = Preferences(preference_rows(2), [], 0, "0" * 64)
    (folder / "begun").touch()
    for number in range(10_000):
        target = folder / f"adapter-{number}"
        dpo.publish_adapter(adapted, request, "b" * 64, preferences, target, multimodal=False)
        adapted.save_pretrained(str(folder / "saved"))
        (folder / "saved" / "optimizer.pt").write_bytes(os.urandom(100_000))
        checkpoints.publish(folder / "saved", folder, "mark", number, 1, request.train)


def kill_saving(tmp_path: Path, gemma: Path, kills: int) -> int:
    """Kill a process that saves `kills` times at random moments; return how many it published."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(gemma)
    adapted = get_peft_model(
        base, LoraConfig(r=8, target_modules=model.LORA_TARGETS, task_type="CAUSAL_LM")
    )
    request = contract.Request(action="train", model=str(gemma))
    draw, published = random.Random(0), 0
    for kill in range(kills):
        folder = tmp_path / f"kill-{kill}"
        folder.mkdir()
        pid = os.fork()
        if pid == 0:
            try:
                save_for_ever(folder, adapted, request)
            finally:
                os._exit(1)
        while not (folder / "begun").exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.6))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        for adapter in folder.glob("adapter-*[0-9]"):
            model.check_adapter(adapter, str(gemma), "b" * 64)
            assert json.loads((adapter / ADAPTER_CARD).read_text())["base_model"] == str(gemma)
            published += 1
        there = list((folder / contract.CHECKPOINTS).glob("step-*[0-9]"))
        found = checkpoints.latest(folder, "mark", pytest.fail)
        assert (found is None) == (not there)
    return published


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads; they hold nothing
def test_an_adapter_killed_while_it_is_saved_is_never_published_broken(
    tmp_path: Path, gemma: Path
) -> None:
    assert kill_saving(tmp_path, gemma, 8) > 8


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hundred_kills_while_saving(tmp_path: Path, gemma: Path) -> None:
    published = kill_saving(tmp_path, gemma, 100)
    print(f"100 kills, {published} adapters published, none broken")
    assert published > 100
