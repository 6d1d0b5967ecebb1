"""The peer of make bench-trainer: the script a practitioner would write with TRL and PEFT alone.

    python -m tests.benchmarks.stock_steps MODEL PAIRS LENGTH STEPS

Nothing of this project trains here; only the clock and the memory gauge are shared with the
other side (our_steps.py). The settings are those of the other side, by TRL's names.
"""

import sys
import tempfile

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.benchmarks.turns import Turns, tell_peak
from trainer.measure import Peak
from trainer.model import Device

model_path, pairs_path, length, steps = sys.argv[1:]
with (
    Peak(Device("cpu", torch.float32, "the peer"), 0) as peak,
    tempfile.TemporaryDirectory() as out,
):
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=DPOConfig(
            output_dir=out, max_steps=int(steps), max_length=int(length),
            per_device_train_batch_size=1, gradient_accumulation_steps=1, learning_rate=1e-3,
            lr_scheduler_type="linear", warmup_steps=0.1, beta=0.1, loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, 0.1], optim="adamw_torch", gradient_checkpointing=False,
            bf16=False, use_cpu=True, seed=1, data_seed=1, logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=pairs_path, split="train", cache_dir=out),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Turns()],
    )  # fmt: skip
    trainer.train()
tell_peak(peak.bytes)
