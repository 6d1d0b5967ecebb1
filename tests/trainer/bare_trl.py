"""TRL's DPOTrainer with our arguments and nothing of ours around it: what we are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import dpo
from trainer.contract import Request
from trainer.model import LORA_TARGETS, Device


def bare_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    request: Request,
    device: Device,
    output: Path,
    saves: bool = False,
) -> Any:
    """Return a stock DPOTrainer; a model with an adapter goes on with that."""
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import PrinterCallback
    from trl import DPOTrainer

    settings = request.train
    lora = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    sides = ("prompt", "chosen", "rejected")
    trainer = DPOTrainer(
        model=model,
        args=dpo._arguments(settings, request.seed, device, output, saves, False),
        train_dataset=Dataset.from_list([{name: row[name] for name in sides} for row in rows]),
        processing_class=tokenizer,
        peft_config=None if isinstance(model, PeftModel) else lora,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
