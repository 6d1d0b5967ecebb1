"""Our side of make bench-trainer, as a run trains: python -m tests.benchmarks.our_steps, then as
stock_steps.py has it: MODEL PAIRS LENGTH STEPS."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import set_seed

from tests.benchmarks.turns import Turns, tell_peak
from trainer import dpo
from trainer.contract import Request, TrainSettings
from trainer.measure import Peak
from trainer.model import Device, load_base, load_tokenizer
from trainer.preferences import read_preferences
from trainer.prefix_sharing import sharing


def main(model_path: str, pairs_path: str, length: str, steps: str) -> None:
    settings = TrainSettings(
        max_steps=int(steps), max_length=int(length), gradient_accumulation=1, learning_rate=1e-3,
        save_steps=0, held_out_share=0.0,
    )  # fmt: skip
    request = Request(action="train", model=model_path, quantization="none", seed=1, train=settings)
    device, folder = Device("cpu", torch.float32, "as the peer"), Path(model_path)
    with Peak(device, 0) as peak, tempfile.TemporaryDirectory() as out:
        set_seed(request.seed)
        base = load_base(request, folder, device)
        preferences = read_preferences(Path(pairs_path), settings, request.seed)
        trainer = dpo.make_trainer(
            base, load_tokenizer(folder, "the bench's"), preferences, request, device, Path(out),
            lambda *_, **__: None,
        )  # fmt: skip
        trainer.add_callback(Turns())
        with sharing(trainer, settings.prefix_sharing, lambda *_, **told: sys.exit(str(told))):
            dpo.train(trainer)
    tell_peak(peak.bytes)


if __name__ == "__main__":
    main(*sys.argv[1:])
