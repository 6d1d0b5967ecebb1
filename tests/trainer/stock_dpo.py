"""The script a practitioner would write with TRL and PEFT alone.

    python stock_dpo.py MODEL PAIRS OUTPUT

Nothing of this project is imported; tests/trainer/test_dpo.py compares our trainer with it.
"""

import json
import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model_path, pairs_path, output = sys.argv[1:]
dataset = load_dataset("json", data_files=pairs_path, split="train", cache_dir=f"{output}/cache")
config = DPOConfig(
    output_dir=output, max_steps=20, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    learning_rate=1e-3, warmup_steps=0.1, lr_scheduler_type="linear", beta=0.1,
    loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1], max_length=256, optim="adamw_torch",
    seed=7, data_seed=7, bf16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1,
    save_strategy="no", report_to="none",
)  # fmt: skip
trainer = DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
    args=config,
    train_dataset=dataset,
    processing_class=AutoTokenizer.from_pretrained(model_path),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
with open(f"{output}/log.json", "w") as file:
    json.dump([row for row in trainer.state.log_history if "loss" in row], file)
