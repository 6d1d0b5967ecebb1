"""The same run's folder under torchrun: two processes on the CPU train as one does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.trainer.conftest import manifest_of, preference_rows, run_folder
from tests.trainer.test_survive import events
from trainer import contract, processes
from trainer.__main__ import perform
from trainer.work import Work

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun's gloo on one machine"),
]

SETTINGS = {
    "max_steps": 6, "batch_size": 1, "learning_rate": 1e-3, "lora_rank": 8, "lora_alpha": 16,
    "max_length": 256, "save_steps": 2,
}  # fmt: skip


def torchrun(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node", "2", "-m", "trainer", str(folder)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("family", ["gemma3_text", "gemma3", "llama", "mistral"])
def test_two_processes_give_the_losses_of_one_with_doubled_accumulation(
    tmp_path: Path, family: str
) -> None:
    tiny.save_family(tmp_path / "model", family)
    rows = preference_rows(16, split="train")
    request = {
        "action": "train", "model": str(tmp_path / "model"), "seed": 4, "quantization": "none",
    }  # fmt: skip
    alone = run_folder(
        tmp_path / "alone", rows, **request, train={**SETTINGS, "gradient_accumulation": 4}
    )
    assert perform(alone) == 0
    both = run_folder(
        tmp_path / "both", rows, **request, train={**SETTINGS, "gradient_accumulation": 2}
    )
    done = torchrun(both)
    assert done.returncode == 0, done.stderr
    (started,) = events(both, "started")
    assert started["world_size"] == 2 and events(alone, "started")[0]["world_size"] == 1
    ones, twos = events(alone, "step"), events(both, "step")
    assert [step["step"] for step in twos] == list(range(1, 7))  # each step once
    for one, two in zip(ones, twos, strict=True):
        for name in ("loss", "rewards/margins"):
            assert two[name] == pytest.approx(one[name], abs=1e-4)
    assert len(events(both, "finished")) == len(events(both, "loaded")) == 1
    left = {p.name for p in both.iterdir()} - {contract.LOCK}  # which perform() alone does not take
    assert left == {p.name for p in alone.iterdir()}
    assert manifest_of(both)["train"]["steps"] == 6
    assert contract.read_manifest(both) is not None


# What is seen of a run before its work begins, and whether PyTorch was loaded by then.
SEEN = """
import os, sys
from trainer import __main__ as trainer
def perform(folder):
    print(os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules)
    return 0
trainer.perform = perform
trainer.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("given", "engine", "seen"),
    [(None, {}, "0"), ("", {}, "-1"), ("3,1", {}, "3"), ("GPU-5a", {}, "GPU-5a"),
     ("3,1", {"WORLD_SIZE": "1"}, "3"),
     ("3,1", {"WORLD_SIZE": "2", "RANK": "1"}, "3,1")],
)  # fmt: skip
def test_a_process_without_an_engine_sees_one_gpu(
    tmp_path: Path, given: str | None, engine: dict[str, str], seen: str
) -> None:
    """Of several transformers would make an nn.DataParallel, which TRL refuses."""
    unset = ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "RANK")
    environment = {n: v for n, v in os.environ.items() if n not in unset} | engine
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    done = subprocess.run(
        [sys.executable, "-P", "-c", SEEN, str(tmp_path)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.stdout == f"{seen} False\n", done.stderr


def test_what_is_not_trained_runs_in_one_process(
    tmp_path: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = run_folder(tmp_path / "run", None, action="generate", model=str(gemma))
    assert perform(folder) == 65
    assert "generate runs in one process; 2 were started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signum", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_stop_that_python_drops_ends_the_run_at_its_next_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, ends: type[BaseException]
) -> None:
    """As it does with what is raised while garbage is collected."""
    monkeypatch.setattr(processes, "_asked", [])
    work = Work(tmp_path, contract.Request("generate", "model"))
    work.emit("phase", phase="load")
    with contextlib.suppress(ends):
        processes.stop(signum, None)
    with pytest.raises(ends):
        work.emit("phase", phase="generate")
    assert len(contract.read_events(tmp_path)[0]) == 1
