"""The training round: LoRA by DPO on TRL's DPOTrainer, published as an adapter's folder."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import (
    ADAPTER_CARD,
    FEWEST_HELD_OUT,
    FEWEST_PREFERENCES,
    ContractError,
    Request,
    TrainSettings,
    canonical_json,
    check_messages,
    read_rows,
    sha256_file,
    sha256_rows,
)
from trainer.model import LORA_TARGETS, Device, fit_messages, has_system_role

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METRICS = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
Emit = Callable[..., None]


@dataclass(frozen=True)
class Preferences:
    """Preference rows, split by prompt; each row is TRL's conversational prompt/chosen/rejected.

    Held-out rows keep the id and family they came with (or None) beside it.
    """

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    identical: int
    sha256: str


def read_preferences(
    path: Path, settings: TrainSettings, seed: int, trains: bool = True
) -> Preferences:
    """Read and split preference rows.

    Rows keep the `split` they carry (train, held_out). If none carries one, `held_out_share` of
    the *prompts* are held out by a seeded draw, so that no prompt is on both sides. A row whose
    two replies are equal is dropped and counted. Raises ContractError naming path and line, or
    saying that the preferences are too few.
    """
    rows: list[dict[str, Any]] = []
    splits: list[str | None] = []
    names: list[dict[str, str | None]] = []
    identical = 0
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        checked = {
            "prompt": check_messages(row.get("prompt"), ("user",), f"{where}: prompt"),
            "chosen": check_messages(row.get("chosen"), ("assistant",), f"{where}: chosen"),
            "rejected": check_messages(row.get("rejected"), ("assistant",), f"{where}: rejected"),
        }
        if row.get("split") not in (None, "train", "held_out"):
            raise ContractError(f"{where}: split is {row['split']!r}; it is train or held_out.")
        if checked["chosen"] == checked["rejected"]:
            identical += 1
            continue
        rows.append(checked)
        splits.append(row.get("split"))
        names.append({name: _name(row.get(name)) for name in ("id", "family")})
    if trains and len(rows) < FEWEST_PREFERENCES:
        raise ContractError(
            f"{path}: {len(rows)} preferences; a round needs at least {FEWEST_PREFERENCES}. "
            "Judge more pairs first."
        )
    if not any(splits):
        splits = list(_draw_split(rows, settings.held_out_share, seed))
    elif not all(splits):
        raise ContractError(f"{path}: some rows have a split and some have none. Give all one.")
    _check_apart(path, rows, splits)
    train = [row for row, split in zip(rows, splits, strict=True) if split != "held_out"]
    held_out = [
        {**row, **name}
        for row, name, split in zip(rows, names, splits, strict=True)
        if split == "held_out"
    ]
    if trains and not train:
        raise ContractError(f"{path}: every row is held out; none is left to train on.")
    return Preferences(train, held_out, identical, sha256_rows(rows))


def _name(value: Any) -> str | None:
    """Return an id or family from outside as a text that can be written, or None."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text.encode("utf-8", "replace").decode() or None


def _check_apart(path: Path, rows: list[dict[str, Any]], splits: list[str | None]) -> None:
    side_of: dict[str, str | None] = {}
    for row, split in zip(rows, splits, strict=True):
        if side_of.setdefault(canonical_json(row["prompt"]), split) != split:
            raise ContractError(
                f"{path}: one prompt is in train and in held_out; split by prompt, not by row."
            )


def _draw_split(rows: list[dict[str, Any]], share: float, seed: int) -> list[str]:
    prompts = sorted({canonical_json(row["prompt"]) for row in rows})
    random.Random(seed).shuffle(prompts)
    held_out = set(prompts[: round(share * len(prompts))])
    return ["held_out" if canonical_json(r["prompt"]) in held_out else "train" for r in rows]


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preferences: Preferences,
    request: Request,
    device: Device,
    output: Path,
    emit: Emit,
) -> Any:
    """Return a TRL DPOTrainer for an anchored round: a fresh LoRA, the base as reference."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import DPOTrainer

    settings = request.train
    system_role = has_system_role(tokenizer)
    rows = [
        {**row, "prompt": fit_messages(row["prompt"], None, system_role)}
        for row in preferences.train
    ]
    trainer = DPOTrainer(
        model=model,
        args=_arguments(settings, request.seed, device, output),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=LORA_TARGETS,
            task_type="CAUSAL_LM",
        ),
        callbacks=[_progress(emit)],
    )
    trainer.remove_callback(PrinterCallback)  # stdout carries events, nothing else
    if device.dtype == torch.float32:
        # TRL turns a quantised model's LoRA into bf16, meant for bf16 autocast. Without autocast
        # that would only round small updates away, so keep full precision here.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def _arguments(settings: TrainSettings, seed: int, device: Device, output: Path) -> Any:
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
        loss_type=list(settings.loss),
        loss_weights=list(settings.loss_weights),
        label_smoothing=settings.label_smoothing,
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
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )


def _progress(emit: Emit) -> Any:
    """Return a callback that emits one `step` event an optimiser step."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                values = {name: logs[name] for name in METRICS if name in logs}
                emit("step", step=state.global_step, steps=state.max_steps, **values)
                if not math.isfinite(logs["loss"]):
                    control.should_training_stop = True

    return Progress()


def train(trainer: Any) -> dict[str, Any]:
    """Train; return the figures of the last step and the number of steps.

    Raises ContractError when the loss stops being a number: nothing is published then.
    """
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    if not history:
        raise ContractError("no training step was taken: every pair was longer than max_length.")
    for row in history:
        if not math.isfinite(row["loss"]):
            raise ContractError(
                f"the loss is {row['loss']} at step {row['step']}. Nothing was published. "
                "Lower train.learning_rate."
            )
    last = {name: history[-1][name] for name in METRICS if name in history[-1]}
    return {**last, "steps": trainer.state.global_step}


def publish_adapter(
    model: Any, request: Request, base_sha256: str, preferences: Preferences, target: Path
) -> str:
    """Save the adapter to `target`, whole or not at all; return the SHA-256 of its weights.

    Raises ContractError when something is there already.
    """
    if target.exists():
        raise ContractError(f"{target} is there already; an adapter is never written over.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), selected_adapters=["default"])
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's card is a form left empty
    weights = sha256_file(temporary / "adapter_model.safetensors")
    card = {
        "base_model": request.model,
        "base_sha256": base_sha256,
        "pairs_sha256": preferences.sha256,
        "preferences": len(preferences.train),
        "sha256": weights,
        "run": request.run,
        "seed": request.seed,
        "quantization": request.quantization,
    }
    (temporary / ADAPTER_CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    for path in temporary.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    os.replace(temporary, target)
    return weights


def held_out_note(n: int) -> str | None:
    """Return why a round with n held-out preferences is not evaluated, or None when it is."""
    if n >= FEWEST_HELD_OUT:
        return None
    return (
        f"trained without evaluation: {n} held-out preferences, and fewer than "
        f"{FEWEST_HELD_OUT} tell nothing."
    )
