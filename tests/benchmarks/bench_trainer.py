"""make bench-trainer: training and writing against stock TRL and transformers, on the same rows."""

from __future__ import annotations

import contextlib
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import bench_cancel, bench_reuse
from tests.benchmarks.harness import Figure, main, paired
from trainer.__main__ import QUIET
from trainer.fused_head import COMPACT, WIDTH
from trainer.preferences import Preferences

# A Gemma 3 of the 270M's layers, with a vocabulary of 32k; its window is the true one.
SMALL: dict[str, Any] = {
    "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048,
    "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "vocab_size": 32_768, "sliding_window": 512, "max_position_embeddings": 4096,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
FOUR_BILLION = "gemma-3-4b-it"


def pairs(prompt: int, reply: int, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield preferences of exactly so many tokens, for the rehearsal's tokenizer of letters."""
    from trainer.rehearse import LETTERS

    draw = random.Random(seed)

    def message(role: str, size: int) -> list[dict[str, str]]:
        return [{"role": role, "content": "".join(draw.choices(LETTERS.strip(), k=size))}]

    for _ in range(count):
        # Beside the letters: the beginning and three turn marks; the reply's end.
        yield {
            "prompt": message("user", prompt - 4),
            "chosen": message("assistant", reply - 1),
            "rejected": message("assistant", reply - 1),
        }


def save_model(folder: Path, config: dict[str, Any]) -> None:
    """Save a model of random weights and its tokenizer, as a publisher would."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.rehearse import _tokenizer

    torch.manual_seed(0)
    loader: Any = AutoModelForCausalLM
    loader.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    _tokenizer(config).save_pretrained(folder)


def by_turns(
    model: Path, prompt: int, reply: int, runs: int
) -> tuple[float, float, float, float, float]:
    """Train on both sides, a step each in turn, each in a process of its own.

    Returns the median of stock's seconds a step over ours, both medians, and both peaks of
    resident memory in bytes. Raises ValueError when the two did not compute the same.
    """
    from tests.benchmarks.turns import Training
    from trainer.contract import write_rows

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pairs.jsonl"
        write_rows(file, pairs(prompt, reply, max(runs + 1, 8)))
        last = [str(model), str(file), str(prompt + reply), str(runs + 1)]
        ours, stock = (
            Training([sys.executable, "-m", f"tests.benchmarks.{side}", *last])
            for side in ("our_steps", "stock_steps")
        )
        ratio, mine, theirs = paired(ours.step, stock.step, runs)
        peaks = ours.close(), stock.close()
    apart = max(abs(a - b) for a, b in zip(ours.losses, stock.losses, strict=True))
    if apart > 1e-3:
        raise ValueError(f"the losses of both sides are {apart} apart: they did not do the same.")
    return 1 / ratio, mine, theirs, *peaks


def against_stock(runs: int = 5) -> list[Figure]:
    """Train a small model in fp32 on this CPU: with a long prompt, a longer one, a short one."""
    figures = []
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place), SMALL)
        for prompt, reply, faster, smaller in (
            (384, 128, 1.5, 0.75), (1024, 128, 1.7, None), (32, 128, 0.95, None)
        ):  # fmt: skip
            ratio, mine, theirs, peak, their_peak = by_turns(Path(place), prompt, reply, runs)
            name = f"steps/s, {prompt} + {reply} tokens, 18 layers × 640, fp32"
            peer = f"stock TRL 1.16, same rows and settings: {mine:.2f} s against {theirs:.2f} s"
            figures.append(Figure(name, ratio, faster, peer, at_most=False))
            if smaller is not None:
                peer = f"stock TRL 1.16, whole process: {peak / 1e9:.2f} against "
                peer += f"{their_peak / 1e9:.2f} GB"
                name = f"peak memory, {prompt} + {reply} tokens"
                figures.append(Figure(name, peak / their_peak, smaller, peer))
    return figures


class _Switch:
    """Times a training's steps, ours and stock TRL's in turn; of each the first is not counted.

    `names` is what the fused head looks up (trainer.fused_head), `stock` what TRL finds there.
    """

    def __init__(self, wrapper: Any, names: dict[str, Any], stock: dict[str, Any]) -> None:
        from transformers import TrainerCallback

        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        switch, ours = self, {name: names[name] for name in stock}

        class Callback(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                wrapper.active = state.global_step % 2 == 0
                names.update(ours if wrapper.active else stock)
                self.began = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step > 2:
                    switch.seconds[wrapper.active].append(time.perf_counter() - self.began)

        self.callback = Callback()


def four_billion(layers: int | None = None, runs: int = 3) -> list[Figure]:
    """Train Gemma 3 4B's true shape, NF4 and bf16, 192 + 64 tokens, as a rehearsal makes it.

    Two such models would be six gigabytes and more: one takes a step our way and a step TRL's way
    in turn, two rows a pair and every position through the head.
    """
    import torch
    from trl.trainer import utils as trl_utils

    from trainer import dpo, rehearse
    from trainer.contract import Request, TrainSettings
    from trainer.model import Device
    from trainer.prefix_sharing import sharing
    from trainer.presets import preset

    found = preset(FOUR_BILLION)
    assert found is not None
    config = {**found.config, **({"num_hidden_layers": layers} if layers else {})}
    settings = TrainSettings(
        max_steps=2 * runs + 2, max_length=256, gradient_accumulation=1,
        gradient_checkpointing=True, save_steps=0,
    )  # fmt: skip
    request = Request(action="train", model=FOUR_BILLION, seed=1, train=settings)
    device = Device("cpu", torch.bfloat16, "bf16 as on a card")
    model = rehearse.make(config, request, device, 1)
    rows = Preferences(list(pairs(192, 64, 2 * runs + 2)), [], 0, "")
    with tempfile.TemporaryDirectory() as out:
        trainer = dpo.make_trainer(
            model, rehearse._tokenizer(config), rows, request, device, Path(out),
            lambda *_, **__: None,
        )  # fmt: skip
        names = trainer.model.get_base_model().forward.__func__.__globals__
        own = {name: getattr(trl_utils, name) for name in (COMPACT, WIDTH)}
        with sharing(trainer, True, lambda *_, **told: sys.exit(str(told))) as wrapper:
            switch = _Switch(wrapper, names, own)
            trainer.add_callback(switch.callback)
            dpo.train(trainer)
    ratio = statistics.median(
        off / on for on, off in zip(switch.seconds[True], switch.seconds[False], strict=True)
    )
    ours, stock = (statistics.median(switch.seconds[on]) for on in (True, False))
    peer = f"stock TRL's steps, same model and process: {ours:.1f} s against {stock:.1f} s"
    name = f"steps/s, 192 + 64 tokens, Gemma 3 4B's {config['num_hidden_layers']} layers, NF4"
    return [Figure(name, ratio, 1.4, peer, at_most=False)]


# Each measures some figures; a further one is a line here.
PARTS: tuple[Callable[[], list[Figure]], ...] = (
    against_stock, four_billion, bench_reuse.figures, bench_cancel.figures,
)  # fmt: skip


def measure() -> list[Figure]:
    os.environ.update(QUIET)
    os.environ["PYTHONWARNINGS"] = "ignore"
    figures = []
    for part in PARTS:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers' loading bars
            measured = part()
        for each in measured:  # the rest takes minutes
            print(each.line(), file=sys.stderr, flush=True)
        figures += measured
    return figures


if __name__ == "__main__":
    main(measure, "Training and writing against stock TRL and transformers.")
