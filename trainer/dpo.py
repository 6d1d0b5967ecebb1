"""The training round: LoRA by DPO on TRL's DPOTrainer, published as an adapter's folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.callbacks import METRICS, is_done, progress, publishing, stopping
from trainer.checkpoints import publish_folder
from trainer.contract import (
    ADAPTER_CARD,
    ADAPTER_WEIGHTS,
    ASSUMED_FLIPS,
    FEWEST_TO_STOP,
    ContractError,
    Request,
    TrainSettings,
    sha256_file,
)
from trainer.measure import row_length
from trainer.model import LORA_TARGETS, TRAINED, Device, fit_messages, has_system_role
from trainer.preferences import Preferences
from trainer.processes import world_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Emit = Callable[..., None]


def make_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, preferences: Preferences,
    request: Request, device: Device, output: Path, emit: Emit,
    publish: Callable[[Path, int], None] | None = None,
) -> Any:  # fmt: skip
    """Return a TRL DPOTrainer for a round.

    On a base model: a fresh LoRA, the base as reference. On a model with an adapter: TRL goes on
    with that and keeps a frozen copy of it as reference. `publish(folder, step)` is given each
    checkpoint as transformers saved it, in the first process.
    """
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PrinterCallback
    from trl import DPOTrainer

    from trainer import fused_head, streamed_head

    settings = request.train
    rows, held_out = (
        _dataset_rows(given, has_system_role(tokenizer))
        for given in (preferences.train, preferences.held_out)
    )
    stops = _stops_early(settings, len(held_out), emit)
    if settings.host_embedding:  # done when it was loaded, but after a lack of memory
        streamed_head.to_host(model)
    trainer = DPOTrainer(
        model=model,
        args=_arguments(settings, request.seed, device, output, publish is not None, stops),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out) if stops else None,
        processing_class=tokenizer,
        peft_config=None if isinstance(model, PeftModel) else _fresh_lora(settings),
        callbacks=[progress(emit), *([publishing(publish)] if publish else [])],
    )
    if _steps(trainer) == 1:  # any warm-up would be all of it, at a rate of 0
        trainer.args.warmup_steps = 0
    fused_head.install(trainer.model, settings.completions_only)
    if stops:
        trainer.add_callback(stopping(settings.early_stopping_patience, emit))
    trainer.remove_callback(PrinterCallback)  # stdout carries events, nothing else
    trainer.create_model_card = lambda *_, **__: None  # asked for with every checkpoint
    _prepare_adapters(trainer.model, device, settings.lora_dropout)
    _keep_dtypes_on_loading(trainer)
    return trainer


def _fresh_lora(settings: TrainSettings) -> Any:
    """Return the LoRA that a round begins with: no change yet, on the language layers."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )


def _steps(trainer: Any) -> int:
    """Return how many optimiser steps a training takes, as transformers counts them."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    together = args.per_device_train_batch_size * world_size()
    batches = math.ceil(len(trainer.train_dataset) / together)
    steps: float = args.num_train_epochs * max(
        math.ceil(batches / args.gradient_accumulation_steps), 1
    )
    return math.ceil(steps)


def _dataset_rows(given: list[dict[str, Any]], system_role: bool) -> list[dict[str, Any]]:
    return [
        {name: row[name] for name in ("chosen", "rejected")}
        | {"prompt": fit_messages(row["prompt"], None, system_role)}
        for row in given
    ]


def _stops_early(settings: TrainSettings, held_out: int, emit: Emit) -> bool:
    """Return whether training may stop early; if asked for with too few held out, say so."""
    stops = bool(settings.early_stopping_patience) and held_out >= FEWEST_TO_STOP
    if settings.early_stopping_patience and not stops:
        emit(
            "warning",
            message=f"no early stopping: {held_out} held-out preferences, and fewer than "
            f"{FEWEST_TO_STOP} tell too little.",
        )
    return stops


def _prepare_adapters(model: Any, device: Device, dropout: float) -> None:
    """Give the adapter the types and dropout it is trained with, and its frozen copy no chance."""
    import torch
    from peft.tuners.lora import LoraLayer

    if device.dtype == torch.float32:
        # TRL turns a quantised model's LoRA into bf16, meant for bf16 autocast. Without autocast
        # that would only round small updates away, so keep full precision here.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    for name, parameter in model.named_parameters():
        if ".ref." in name:  # TRL's copy: in the policy's type, so that both start out equal
            trained = model.get_parameter(name.replace(".ref.", f".{TRAINED}."))
            parameter.data = parameter.data.to(trained.dtype)
    # One that is gone on with comes with its own dropout; what is asked for now counts.
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                share = dropout if name == TRAINED else 0.0
                module.lora_dropout[name] = (
                    torch.nn.Dropout(share) if share else torch.nn.Identity()
                )
    model.peft_config[TRAINED].lora_dropout = dropout


def _keep_dtypes_on_loading(trainer: Any) -> None:
    """Have weights loaded from a checkpoint keep the types they are trained in.

    PEFT turns what it loads into fp32; TRL trains a quantised model's LoRA in bf16.
    """
    load = trainer._load_from_checkpoint

    def load_as_trained(checkpoint: str, model: Any = None) -> None:
        types = {n: p.dtype for n, p in trainer.model.named_parameters() if "lora_" in n}
        load(checkpoint, model)
        for name, parameter in trainer.model.named_parameters():
            if name in types:
                parameter.data = parameter.data.to(types[name])

    trainer._load_from_checkpoint = load_as_trained


def _arguments(
    settings: TrainSettings, seed: int, device: Device, output: Path, saves: bool, stops: bool
) -> Any:
    import torch
    from trl import DPOConfig

    on_gpu = device.kind == "cuda"
    optimizer = settings.optimizer
    if optimizer == "auto":  # not the paged one: it breaks on resuming (bitsandbytes#782, #1381)
        optimizer = "adamw_8bit" if on_gpu else "adamw_torch"
    checkpointing = settings.gradient_checkpointing
    return DPOConfig(
        output_dir=str(output),
        beta=settings.beta,
        disable_dropout=not settings.lora_dropout,  # TRL's default would undo what was asked for
        loss_type=list(settings.loss),
        loss_weights=list(settings.loss_weights),
        label_smoothing=_label_smoothing(settings),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        max_length=settings.max_length,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.scheduler,
        optim=optimizer,
        gradient_checkpointing=on_gpu if checkpointing is None else checkpointing,
        activation_offloading=settings.activation_offloading and on_gpu,
        bf16=device.dtype == torch.bfloat16,
        use_cpu=not on_gpu,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        **_saving(settings, saves, stops),
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        ddp_backend=None if on_gpu or world_size() == 1 else "gloo",
        ddp_find_unused_parameters=False if world_size() > 1 else None,
    )


def _saving(settings: TrainSettings, saves: bool, stops: bool) -> dict[str, Any]:
    """Return when a checkpoint is saved, and when the held-out loss is looked at: as often."""
    return {
        "save_strategy": "steps" if saves and settings.save_steps else "no",
        "save_steps": settings.save_steps or 1,
        "restore_callback_states_from_checkpoint": True,  # how often that loss did not fall
        "eval_strategy": "steps" if stops else "no",
        "eval_steps": settings.save_steps or 1,
    }


def _label_smoothing(settings: TrainSettings) -> float:
    if "robust" not in settings.loss:
        return 0.0
    return ASSUMED_FLIPS if settings.label_smoothing is None else settings.label_smoothing


@dataclass(frozen=True)
class Fit:
    """How the preferences to train on fit into max_length tokens."""

    trained: int
    too_long: int
    """Left out: the prompt alone fills the length, so TRL drops the pair."""
    cut: int
    """Pairs of which a reply loses its end."""
    max_length: int

    def messages(self) -> list[str]:
        """Return what is to be told, in words."""
        told = []
        if self.too_long:
            told.append(
                f"{self.too_long} prompts fill max_length ({self.max_length} tokens); left out."
            )
        if self.cut:
            told.append(
                f"{self.cut} pairs have a reply that loses its end at max_length "
                f"({self.max_length} tokens)."
            )
        return told


def fit(trainer: Any, given: int, max_length: int) -> Fit:
    """Return how the `given` pairs fitted: TRL has tokenised them, and dropped some."""
    rows = trainer.train_dataset
    cut = sum(row_length(row) > max_length for row in rows)
    return Fit(len(rows), given - len(rows), cut, max_length)


class NoNumber(ContractError):
    """The loss, or a weight, stopped being a number."""


def train(trainer: Any, checkpoint: Path | None = None) -> dict[str, Any]:
    """Train, from a checkpoint on if there is one; return the last figures and the steps taken.

    Raises NoNumber when loss or weights stop being numbers, and ContractError when a fresh adapter
    is as it began: nothing is to be published then.
    """
    if not len(trainer.train_dataset):
        raise ContractError("no training step was taken: every pair was longer than max_length.")
    if checkpoint is not None and is_done(checkpoint):  # killed after training
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = type(trainer.state).load_from_json(str(checkpoint / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [row for row in trainer.state.log_history if "loss" in row]
    if not history:
        raise ContractError("no training step was taken: every pair was longer than max_length.")
    _check_numbers(trainer, history)
    learned = (p for n, p in trainer.model.named_parameters() if f"lora_B.{TRAINED}." in n)
    if not any(matrix.any() for matrix in learned):  # it would be the base under another name
        raise ContractError(
            "the adapter learned nothing: its weights are as they began. Nothing was published. "
            "Raise train.learning_rate or train.epochs."
        )
    last = {name: history[-1][name] for name in METRICS if name in history[-1]}
    return {**last, "steps": trainer.state.global_step}


def _check_numbers(trainer: Any, history: list[dict[str, Any]]) -> None:
    lower = "Nothing was published. Lower train.learning_rate."
    for row in history:
        if math.isfinite(row["loss"]):
            continue
        said = f"the loss is {row['loss']} at step {row['step']}"
        if row["step"] == 1:
            raise NoNumber(
                f"{said}, before any weight was moved: the model gives no numbers in this "
                "precision, or its file is damaged. Nothing was published."
            )
        raise NoNumber(f"{said}. {lower}")
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise NoNumber(f"after the last step {name} is no number. {lower}")


def publish_adapter(
    model: Any,
    request: Request,
    base_sha256: str,
    preferences: Preferences,
    target: Path,
    parent_sha256: str | None = None,
    *,
    multimodal: bool,
) -> str:
    """Save the adapter to `target`, whole or not at all; return the SHA-256 of its weights.

    The request's settings are those it was trained with. `multimodal`: the base's checkpoint is,
    and the adapter is of its language model alone, under the names this has by itself.
    Raises ContractError when something is there already, unless it is this very adapter: a run
    that was killed after it published comes here again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), selected_adapters=[TRAINED])
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's card is a form left empty
    weights = sha256_file(temporary / ADAPTER_WEIGHTS)
    card = {
        "base_model": request.model,
        "base_sha256": base_sha256,
        "pairs_sha256": preferences.sha256,
        "preferences": len(preferences.train),
        "sha256": weights,
        "run": request.run,
        "seed": request.seed,
        "quantization": request.quantization,
        "strategy": request.train.strategy,
        "max_length": request.train.max_length,
        "multimodal": multimodal,
        "parent_sha256": parent_sha256,
    }
    (temporary / ADAPTER_CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    if target.exists():
        same = all(
            (target / name).is_file()
            and sha256_file(target / name) == sha256_file(temporary / name)
            for name in (ADAPTER_CARD, ADAPTER_WEIGHTS)
        )
        shutil.rmtree(temporary)
        if not same:
            raise ContractError(f"{target} is there already; an adapter is never written over.")
        return weights
    publish_folder(temporary, target)
    return weights
