"""One run: what its request asks for, done phase by phase."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import errands, fitting
from trainer.contract import (
    ADAPTER,
    BASE,
    CANDIDATES,
    COMPARE,
    EVALUATION,
    REQUEST,
    SAMPLES,
    TRAINED,
    ContractError,
    Request,
    append_event,
    sha256_file,
    to_json,
    write_manifest,
    write_rows,
)
from trainer.preferences import Preferences, held_out_note, read_preferences
from trainer.processes import end_if_asked, is_first, part, world_size

ERRANDS = ("pull", "models", "plan", "rehearse")

if TYPE_CHECKING:
    from trainer.evaluate import Inputs
    from trainer.memory import Plan
    from trainer.model import Device
    from trainer.policies import Policies


class Work:
    """One run: the request, the folder, and what has been loaded so far."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder = folder
        self.request = request
        self.asked = request.train
        self.deaf = False
        self.manifest: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.preferences: Preferences | None = None
        self.plan: Plan | None = None
        self.device: Device
        self.base: Path
        self.base_sha256: str
        self.model: Any = None
        self.tokenizer: Any = None
        self.adapter_sha256: str | None = None
        self.compare_sha256: str | None = None
        self.inputs: Inputs

    def emit(self, event: str, **values: Any) -> None:
        """Append an event to the run's file and print it; the first process does so for all.

        A run that was asked to stop ends here, at the latest.
        """
        end_if_asked()
        if not is_first():
            return
        row = append_event(self.folder, event, **values)
        if not self.deaf:
            try:
                print(json.dumps(row), flush=True)
            except BrokenPipeError:  # nobody reads on; the file has it all
                self.deaf = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def run(self) -> None:
        """Do the request's action; the manifest is written by the caller, last."""
        action = self.request.action
        if action in ERRANDS:
            errands.perform(self)
            return
        trains = action in ("train", "round")
        self.check(trains)
        if action == "merge":
            self.phase("merge", self.merge)
            return
        self.phase("load", self.load)
        if trains:
            self.phase("train", self.train)
        if not is_first():
            return
        if action == "evaluate" or trains:
            self.phase("evaluate", self.evaluate)
        if action == "round":
            request_sha256 = sha256_file(self.folder / REQUEST)
            half = {**self.manifest, "request_sha256": request_sha256, "seconds": self.seconds}
            write_manifest(self.folder, half, TRAINED)
        if action in ("generate", "round"):
            self.phase("generate", self.generate)
        if action == "duel":
            self.phase("generate", self.duel)
        if self.request.measure:
            self.phase("measure", self.measure)

    def phase(self, name: str, work: Any) -> None:
        """Run one phase, saying so and keeping its time in seconds."""
        self.emit("phase", phase=name)
        start = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - start, 3)

    def check(self, trains: bool) -> None:
        """Refuse what cannot work before any weights are loaded."""
        from trainer import model

        request = self.request
        if world_size() > 1 and not trains:
            raise ContractError(
                f"{request.action} runs in one process; {world_size()} were started. Start it as "
                "python -m trainer RUN_DIR."
            )
        if trains and request.adapter and request.train.strategy == "anchored":
            raise ContractError(
                "an anchored round starts from the base model: leave adapter out of "
                "request.json, or set train.strategy to chained."
            )
        if trains or request.action == "evaluate":
            self._read_inputs(trains)
        self.base = model.find_model(request.model)
        model.check_weights(self.base, request.model)
        if trains:
            self.plan, self.request = fitting.fit(request, self.base, self.emit)
        elif request.action != "merge":  # a merge is on the host, in another type
            self.request = fitting.fit_weights(request, self.base, self.emit)
        self.base_sha256 = model.model_sha256(self.base)
        self.adapter_sha256 = self._check_adapter("adapter", trains)
        self.compare_sha256 = self._check_adapter("compare", trains or request.action == "evaluate")

    def _read_inputs(self, trains: bool) -> None:
        from trainer import evaluate

        request = self.request
        path = self.folder / request.pairs
        if not (trains or path.exists()):
            self.preferences = Preferences([], [], 0, "")  # nobody has judged yet
        else:
            self.preferences = read_preferences(path, request.train, request.seed, trains)
        if self.preferences.identical:
            n = self.preferences.identical
            self.emit("warning", message=f"{n} rows with two equal replies were left out.")
        self.inputs = evaluate.read_inputs(
            self.folder, request, self.preferences.train, self.preferences.held_out
        )

    def _check_adapter(self, field: str, spared: bool) -> str | None:
        """Return the SHA-256 of the adapter a field of the request names, or None without one.

        `spared`: the run can go without. One of another base is then left out, and said: a new
        base would otherwise wait for an adapter of its own that it may not train.
        """
        from trainer import model

        path, sha256 = getattr(self.request, field), getattr(self.request, f"{field}_sha256")
        if path is None:
            return None
        name = self.request.model
        try:
            return model.check_adapter(self.folder / path, name, self.base_sha256, sha256)
        except model.OtherBase as error:
            if not spared:
                raise
            self.emit("warning", message=f"left out of this {self.request.action}: {error}")
            gone: dict[str, Any] = {field: None, f"{field}_sha256": None}
            self.request = replace(self.request, **gone)
            return None

    def merge(self) -> None:
        from trainer import merge

        target = merge.check_output(self.request, self.folder, self.base)
        shas = self.base_sha256, str(self.adapter_sha256)
        self.manifest["merged"] = merge.merge(self.request, self.folder, self.base, shas, target)

    def load(self) -> None:
        from transformers import set_seed

        from trainer import model

        self.device = model.choose_device()
        set_seed(self.request.seed)
        self.tokenizer = model.load_tokenizer(self.base, self.request.model)
        self.model = model.load_base(self.request, self.base, self.device)
        sampling = model.with_sampling(self.request.generate, self.model.generation_config)
        self.request = replace(self.request, generate=sampling)
        self.manifest["model"] = {
            "name": self.request.model,
            "sha256": self.base_sha256,
            "class": type(self.model).__name__,
            "parameters": model.parameters(self.model),
            "quantization": self.request.quantization,
            "bytes": self.model.get_memory_footprint(),
        }
        kind, dtype = self.device.kind, str(self.device.dtype).removeprefix("torch.")
        self.manifest["device"] = {"kind": kind, "dtype": dtype, "reason": self.device.reason}
        self.emit("loaded", model=self.manifest["model"], device=self.manifest["device"])
        trains = self.request.action in ("train", "round")
        if self.adapter_sha256 and self.request.adapter and not trains:
            self.model = model.attach_adapter(self.model, self.folder / self.request.adapter)

    def train(self) -> None:
        from trainer import dpo
        from trainer.attempts import Attempts
        from trainer.model_folder import text_config

        assert self.preferences is not None
        request = self.request
        attempts = Attempts(
            self.folder, request, self.tokenizer, self.preferences, self.device,
            self.base_sha256, self.adapter_sha256, self.emit, self.plan, self.asked,
        )  # fmt: skip
        parent_sha256 = self.adapter_sha256
        trained = attempts.train(self.model)
        self.model = trained.model
        self.manifest["memory"] = trained.memory
        part()
        if not is_first():
            return
        target = self.folder / request.output_adapter
        self.adapter_sha256 = dpo.publish_adapter(
            self.model, replace(request, train=trained.settings), self.base_sha256,
            self.preferences, target, parent_sha256,
            multimodal=text_config(self.base, request.model)[1],
        )  # fmt: skip
        self.manifest["train"] = {**trained.metrics, "settings": to_json(trained.settings)}
        self.manifest["adapter"] = {"path": request.output_adapter, "sha256": self.adapter_sha256}
        self.manifest["preferences"] = {
            "train": trained.fit.trained,
            "held_out": len(self.preferences.held_out),
            "identical_left_out": self.preferences.identical,
            "too_long_left_out": trained.fit.too_long,
            "cut": trained.fit.cut,
            "sha256": self.preferences.sha256,
        }

    def _policies(self) -> Policies:
        from trainer.policies import Policies

        compare = self.request.compare
        policies = Policies(self.model, self.folder / compare if compare else None)
        self.model = policies.model
        return policies

    def evaluate(self) -> None:
        from trainer import evaluate

        policies = self._policies()
        found = evaluate.evaluate(policies, self.tokenizer, self.inputs, self.request, self.emit)
        self.model = policies.close()
        write_rows(self.folder / EVALUATION, found.rows)
        self.manifest["evaluation"] = found.summary
        mine = found.held_out()
        trained = self.request.action != "evaluate"
        note = held_out_note(len(mine), len({row["prompt_sha256"] for row in mine}), trained)
        if ADAPTER not in policies.names:
            note = "no adapter was evaluated: the base has no margin against itself."
        if note:
            self.manifest["held_out"] = {"n": len(mine), "note": note}
            self.emit("warning", message=note)
            return
        self.manifest["held_out"] = evaluate.summarise_margins(mine)
        self.emit("evaluated", **self.manifest["held_out"])

    def generate(self) -> None:
        from trainer import generate

        prompts = generate.read_prompts(self.folder / self.request.prompts)
        jobs = generate.candidate_jobs(prompts, self.request.generate, self.request.seed)
        count = self._write(self._short_enough(jobs), CANDIDATES, "generate")
        self.manifest["candidates"] = {"path": CANDIDATES, "count": count}

    def duel(self) -> None:
        from trainer import generate

        prompts = generate.read_prompts(self.folder / self.request.prompts)
        jobs = self._short_enough(generate.plain_jobs(prompts))
        policies = self._policies()
        count = 0
        for side, (name, sha256) in enumerate(
            ((ADAPTER, self.adapter_sha256), (COMPARE, self.compare_sha256))
        ):
            origin = {"side": name, "adapter_sha256": sha256}
            with policies.using(name if sha256 else BASE):
                count += self._write(jobs, CANDIDATES, "generate", origin, side)
        self.model = policies.close()
        self.manifest["candidates"] = {"path": CANDIDATES, "count": count}

    def _short_enough(self, jobs: list[Any]) -> list[Any]:
        from trainer import generate

        jobs, too_long = generate.short_enough(self.tokenizer, jobs, self.request.generate)
        if too_long:
            self.emit("warning", message=f"{too_long} prompts are too long to answer; left out.")
        return jobs

    def measure(self) -> None:
        from trainer import generate

        assert self.request.measure is not None
        prompts = generate.read_prompts(self.folder / self.request.measure)
        jobs = [
            generate.Job(prompt_id, messages, None, None, n)
            for prompt_id, messages in prompts
            for n in range(self.request.measure_samples)
        ]
        count = self._write(jobs, SAMPLES, "measure")
        self.manifest["samples"] = {"path": SAMPLES, "count": count}

    def _write(
        self, jobs: list[Any], name: str, phase: str, side: dict[str, Any] | None = None,
        number: int = 0,
    ) -> int:  # fmt: skip
        """Write a reply a job with the model as it stands; `side` and `number` are a duel's."""
        from trainer import generate

        origin = {
            "model": self.request.model,
            "model_sha256": self.base_sha256,
            "adapter_sha256": self.adapter_sha256,
            **(side or {}),
        }
        before, sides = number * len(jobs), 2 if side else 1
        return generate.write_replies(
            self.model, self.tokenizer, jobs, self.request.generate, self.request.seed,
            self.folder / name, origin,
            lambda done, total: self.emit(
                "progress", phase=phase, done=before + done, total=sides * total
            ),
            number, lambda message: self.emit("warning", message=message),
        )  # fmt: skip
