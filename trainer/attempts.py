"""Training that survives: it goes on from a checkpoint, and tries with less memory when short."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import checkpoints, dpo, fitting, memory, reference
from trainer.batches import free, out_of_memory
from trainer.contract import Request, TrainSettings, to_json
from trainer.model import Device, attach_adapter, template_sha256, trainable
from trainer.preferences import Preferences
from trainer.prefix_sharing import sharing
from trainer.processes import is_first, world_size
from trainer.streamed_head import is_tied

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 3
SHORTEST = 64


@dataclass
class Trained:
    """A model with its trained adapter, and how it came about."""

    model: Any
    metrics: dict[str, Any]
    fit: dpo.Fit
    settings: TrainSettings
    """What it was trained with: as asked, changed by the plan and by attempts out of memory."""
    memory: dict[str, Any]
    """What the plan said, and on a GPU what a dry step took; in bytes."""


def with_less_memory(
    settings: TrainSettings, device: Device, tied: bool = False
) -> tuple[TrainSettings, str] | None:
    """Return settings that need less memory, and what changed in words; None when there are none.

    First one pair at a time, which changes no result but with `sft` in the loss (its mean is over
    the tokens of what is put through together), and activations recomputed, which changes none.
    Then on a GPU a tied embedding in host memory, and what is kept of the activations there too.
    Then a length two thirds as long, at which longer replies lose their end.
    """
    recomputes = settings.gradient_checkpointing
    if recomputes is None:
        recomputes = device.kind == "cuda"
    if settings.batch_size > 1 or not recomputes:
        less = replace(
            settings,
            batch_size=1,
            gradient_accumulation=settings.batch_size * settings.gradient_accumulation,
            gradient_checkpointing=True,
        )
        return less, "one pair at a time, activations recomputed"
    if device.kind == "cuda" and tied and settings.host_embedding is None:
        return replace(settings, host_embedding=True), "embedding in host memory"
    if device.kind == "cuda" and not settings.activation_offloading:
        return replace(settings, activation_offloading=True), "checkpoints in host memory"
    length = max(SHORTEST, settings.max_length * 2 // 3 // 64 * 64)
    if length >= settings.max_length:
        return None
    return replace(settings, max_length=length), f"max_length {length}"


class Attempts:
    """One training, in up to MOST attempts."""

    def __init__(
        self,
        folder: Path,
        request: Request,
        tokenizer: PreTrainedTokenizerBase,
        preferences: Preferences,
        device: Device,
        base_sha256: str,
        parent_sha256: str | None,
        emit: Callable[..., None],
        plan: memory.Plan | None = None,
        asked: TrainSettings | None = None,
    ) -> None:
        self.folder, self.request, self.tokenizer = folder, request, tokenizer
        self.preferences, self.device, self.emit = preferences, device, emit
        self.plan = plan
        self.base_sha256, self.parent_sha256 = base_sha256, parent_sha256
        # Of what was asked for: the plan may come out differently when the run is started again.
        self.mark = checkpoints.fingerprint(
            replace(request, train=asked or request.train),
            base_sha256,
            template_sha256(tokenizer),
            preferences.train,
            parent_sha256,
            world_size(),
        )

    def train(self, base: Any) -> Trained:
        """Train on the base model; raise what ended the last attempt."""
        settings, attempt = self.request.train, 1
        while True:
            # Within one process a shorter attempt goes on from where a longer one came to.
            lacks = self._lacks if attempt == 1 else (lambda made: None)
            found = checkpoints.latest(self.folder, self.mark, self._warn, lacks)
            if found is not None and attempt == 1 and self._takes_no_more(found.settings):
                settings = replace(found.settings, save_steps=settings.save_steps)
                attempt = min(found.attempt, MOST)  # else these settings have not been tried yet
            try:
                return self._once(base, settings, attempt, found)
            except dpo.NoNumber:
                if is_first():
                    checkpoints.remove(self.folder)  # to go on from these leads there again
                raise
            except Exception as error:
                less = with_less_memory(settings, self.device, is_tied(base))
                if not out_of_memory(error) or attempt == MOST or less is None:
                    raise
                if world_size() > 1:  # the others wait for this one in the middle of a step
                    raise
            # Past the except block, so that no traceback holds the tensors of the attempt.
            take_off(base)
            free()
            settings, attempt = less[0], attempt + 1
            self.emit(
                "warning",
                message=f"out of memory; attempt {attempt} of {MOST} with {less[1]}.",
                attempt=attempt, change=less[1],
            )  # fmt: skip

    def _takes_no_more(self, made: TrainSettings) -> bool:
        """Whether settings a checkpoint was made with take no more memory than those planned.

        Without a plan only a lack of memory can have changed them.
        """
        return self.plan is None or self.plan.with_settings(made).total <= self.plan.total

    def _lacks(self, made: TrainSettings) -> str | None:
        """Return why a checkpoint made with these settings cannot be gone on from, or None.

        At the length planned it always can: what else the plan changes changes no result, or with
        `sft` in the loss the batch that its mean is over.
        """
        if made.max_length == self.request.train.max_length or self._takes_no_more(made):
            return None
        assert self.plan is not None
        return (
            f"max_length {made.max_length}, which takes "
            f"{memory.gb(self.plan.with_settings(made).total)}; now {memory.gb(self.plan.free)} "
            f"are free, enough for {self.request.train.max_length}"
        )

    def _warn(self, message: str) -> None:
        self.emit("warning", message=message)

    def _once(
        self, base: Any, settings: TrainSettings, attempt: int, found: checkpoints.Checkpoint | None
    ) -> Trained:
        work = self.folder / "work"
        if is_first():
            shutil.rmtree(work, ignore_errors=True)

        def publish(saved: Path, step: int) -> None:
            checkpoints.publish(saved, self.folder, self.mark, step, attempt, settings)

        model, parent = base, self.request.adapter
        if parent is not None:
            model = attach_adapter(base, self.folder / parent, trainable=True)
        trainer = dpo.make_trainer(
            model, self.tokenizer, self.preferences, replace(self.request, train=settings),
            self.device, work, self.emit, publish,
        )  # fmt: skip
        fit = dpo.fit(trainer, len(self.preferences.train), settings.max_length)
        for message in fit.messages():
            self._warn(message)
        if found is not None:
            self.emit(
                "resumed", step=found.step,
                message=f"goes on from the checkpoint of step {found.step}"
                f"{_changes(self.request.train, settings)}.",
            )  # fmt: skip
        # The plan is for the first attempt, and a dry step for one process: others would wait.
        plan = self.plan if attempt == 1 and world_size() == 1 else None
        if plan is not None and settings != self.request.train:
            plan = plan.with_settings(settings)
        with trainable(base):
            # Without sharing, as the plan counts it: pairs may share nothing.
            figures = fitting.check_plan(trainer, self.device, plan, self.emit)
            with sharing(trainer, settings.prefix_sharing, self.emit):
                if settings.reference_once:
                    self._reference_once(trainer, settings)
                metrics = dpo.train(trainer, found.path if found else None)
        if attempt > 1:
            metrics["attempts"] = attempt
        if is_first():
            shutil.rmtree(work, ignore_errors=True)  # transformers'; nothing is kept there
        if "ref" in trainer.model.peft_config:
            trainer.model.delete_adapter("ref")  # TRL's frozen copy: of no more use
        return Trained(trainer.model, metrics, fit, settings, figures)

    def _reference_once(self, trainer: Any, settings: TrainSettings) -> None:
        store = reference.store_for(
            self.folder, replace(self.request, train=settings), self.base_sha256,
            self.parent_sha256, self.device, trainer.model.config, self._warn,
        )  # fmt: skip
        reference.precompute(trainer, store, self.emit)


def _changes(planned: TrainSettings, settings: TrainSettings) -> str:
    """Return in words what a checkpoint's settings change of those planned."""
    before, now = to_json(planned), to_json(settings)
    changed = [f"{name} {now[name]}" for name in now if now[name] != before[name]]
    return f", with what it was made with: {', '.join(changed)}" if changed else ""


def take_off(base: Any) -> None:
    """Take LoRA layers off a model again, whatever put them on; its own layers stay as they are.

    An attempt that ran out of memory may have died before anybody held the PEFT model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in base.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        parent, _, own = name.rpartition(".")
        setattr(base.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(base, "peft_config"):
        del base.peft_config
