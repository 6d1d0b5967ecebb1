"""A rehearsal: a preset's true architecture with random weights, trained for a few real steps.

Nothing is downloaded and no full copy of the weights is ever made: each linear is drawn in bf16,
quantised, and let go of, before the next. What it takes and how fast it is are the real model's;
what it says is noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer import dpo
from trainer.contract import ContractError, Request
from trainer.measure import Peak, machine_here, model_bytes, resident
from trainer.memory import Plan, plan, refusal, shape_of
from trainer.model import Device, nf4
from trainer.preferences import Preferences
from trainer.presets import PRESETS, Preset, preset

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.dpo import Emit

# A byte-level tokenizer: a letter is a token, so lengths are exact.
LETTERS = "abcdefghijklmnopqrstuvwxyz "
SPECIALS = ["<pad>", "<eos>", "<bos>", "<turn>", "<end>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<turn>{% endif %}"
)
REPLY_SHARE = 4  # one token in so many is the reply's
NEW_TOKENS = 8


def rehearse(request: Request, folder: Path, emit: Emit) -> dict[str, Any]:
    """Make the model, train it, have it write; return what was planned and what was measured.

    Raises ContractError when it is no preset or does not fit.
    """
    import torch

    chosen = preset(request.model)
    if chosen is None:
        known = ", ".join(p.name for p in PRESETS)
        raise ContractError(f"{request.model} is no preset to rehearse; known: {known}.")
    config = {**chosen.config}
    if request.layers is not None:
        config["num_hidden_layers"] = min(request.layers, config["num_hidden_layers"])
    device, found, request = _prepared(request, chosen, config)
    run = _run(request, config, device, folder, emit)
    return {
        "model": chosen.id,
        "layers": config["num_hidden_layers"],
        "length": request.train.max_length,
        "device": {"kind": device.kind, "dtype": str(device.dtype).removeprefix("torch."),
                   "reason": device.reason, "threads": torch.get_num_threads()},
        "vram": _limit(request, device),
        "tier": found.tier,
        **_figures(run, found, request.train.max_length),
    }  # fmt: skip


def _limit(request: Request, device: Device) -> dict[str, Any] | None:
    """Return the card's size asked for, in bytes, and whether it was kept to; None if not asked."""
    if request.vram is None:
        return None
    return {"asked": request.vram, "kept": device.kind == "cuda"}


@dataclass(frozen=True)
class _Run:
    """What one rehearsal measured, in bytes, seconds and tokens."""

    footprint: int
    loading_peak: int
    peak: int
    steps: int
    seconds: float
    loss: float
    wrote: int
    write_seconds: float


def _run(
    request: Request, config: dict[str, Any], device: Device, folder: Path, emit: Emit
) -> _Run:
    """Make the model, train it, have it write."""
    emit("phase", phase="load")
    _import_all()
    start = resident()
    with Peak(device, start) as loading:
        model = make(config, request, device, request.seed)
    footprint = model_bytes(model)
    tokenizer = _tokenizer(config)
    rows = list(_rows(request.train.max_length, request.train.max_steps or 1, request.seed))
    emit("phase", phase="train")
    trainer = dpo.make_trainer(
        model, tokenizer, Preferences(rows, [], 0, ""), request, device, folder / "work", emit
    )
    began = time.monotonic()
    with Peak(device, start) as training:
        figures = dpo.train(trainer)
    seconds = time.monotonic() - began
    emit("phase", phase="generate")
    wrote, write_seconds = _write(trainer.model)
    return _Run(
        footprint, loading.bytes, max(training.bytes, 1), figures["steps"], seconds,
        figures["loss"], wrote, write_seconds,
    )  # fmt: skip


def _figures(run: _Run, found: Plan, length: int) -> dict[str, Any]:
    """Return what was measured beside what was planned."""
    return {
        "steps": run.steps,
        "seconds_a_step": round(run.seconds / run.steps, 2),
        "tokens_a_second": {
            # Of both replies' rows, prompt and all, as they are computed; there is no padding.
            "training": round(2 * length * run.steps / run.seconds, 1),
            "writing": round(run.wrote / run.write_seconds, 2),
        },
        "loss": run.loss,
        "bytes": {
            "footprint": run.footprint,
            "footprint_planned": found.static,
            "loading_peak": run.loading_peak,
            "peak": run.peak,
            "peak_planned": found.peak,
        },
        "error": {
            "footprint": round(found.static / run.footprint - 1, 4),
            "peak": round(found.peak / run.peak - 1, 4),
        },
    }


def _import_all() -> None:
    """Import what a run needs, so that its own size is not taken for the model's."""
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, Trainer  # noqa: F401
    from trl import DPOTrainer  # noqa: F401


def _prepared(
    request: Request, chosen: Preset, config: dict[str, Any]
) -> tuple[Device, Plan, Request]:
    """Return the device, the plan, and the request with the settings that the plan asks for."""
    import torch

    from trainer.model import choose_device

    device = choose_device()
    settings = replace(
        request.train, gradient_checkpointing=True, gradient_accumulation=1, epochs=1.0,
        warmup_ratio=0.0, max_steps=request.train.max_steps or 2,
    )  # fmt: skip
    machine = machine_here()
    if device.kind == "cuda":
        if request.vram is not None:
            total = torch.cuda.get_device_properties(0).total_memory
            machine = replace(machine_here(request.vram), width=machine.width)
            # The allocator's share alone: what CUDA itself takes of a card comes on top.
            torch.cuda.set_per_process_memory_fraction(min(1.0, machine.free / total))
    else:
        device = Device("cpu", torch.bfloat16, "bf16 as on the card that is rehearsed for")
        machine = replace(machine, width=2)
    if device.dtype == torch.float32:
        machine = replace(machine, width=4)
    found = plan(shape_of(config, chosen.name), settings, request.quantization, machine)
    if not found.fits:
        raise ContractError(refusal(chosen.name, found, []))
    return device, found, replace(request, train=found.settings)


def make(config: dict[str, Any], request: Request, device: Device, seed: int) -> Any:
    """Return the model with random weights, each linear quantised as soon as it is drawn."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    from trainer.streamed_head import to_host

    values = {name: value for name, value in config.items() if name != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **values)
    where = torch.device("cuda", 0) if device.kind == "cuda" else torch.device("cpu")
    torch.manual_seed(seed)
    with init_empty_weights():
        loader: Any = AutoModelForCausalLM
        model = loader.from_config(made, attn_implementation="sdpa", dtype=device.dtype)
    if request.quantization == "nf4":
        replace_with_bnb_linear(model, ["lm_head"], nf4(device.dtype))
        model.is_loaded_in_4bit = True
    model.tie_weights()
    for name, module in model.named_modules():
        if f"{name}.weight" not in model.all_tied_weights_keys:  # a tied head is the embedding
            _fill(model, module, where, device.dtype)
    model.tie_weights()
    model.hf_device_map = {"": 0 if device.kind == "cuda" else "cpu"}
    model.requires_grad_(False)
    if request.train.host_embedding:
        to_host(model)
    return model.to(where).eval() if request.quantization == "none" else model.eval()


def _fill(model: Any, module: Any, where: Any, dtype: Any) -> None:
    """Give one module's own weights memory and random values; quantise a 4-bit one."""
    import torch

    for name, parameter in list(module.named_parameters(recurse=False)):
        if not parameter.is_meta:
            continue
        value = torch.empty(parameter.shape, dtype=dtype, device=where)
        if parameter.__class__.__name__ == "Params4bit":
            value.normal_(0.0, 0.02)
            options = dict(parameter.__dict__)
            setattr(module, name, type(parameter)(value, requires_grad=False, **options).to(where))
            continue
        setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
        if name == "weight" and value.ndim == 2:
            value.normal_(0.0, 0.02)
        else:
            with torch.no_grad():
                model._init_weights(module)
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(where))


def _tokenizer(config: dict[str, Any]) -> Any:
    """Return a tokenizer of single letters for a model whose own is not here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate([*SPECIALS, *LETTERS])}
    raw = Tokenizer(models.WordLevel(words, unk_token=" "))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    maker: Any = PreTrainedTokenizerFast
    return maker(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        additional_special_tokens=SPECIALS[3:], chat_template=TEMPLATE, padding_side="left",
        model_max_length=config.get("max_position_embeddings", 2048),
    )  # fmt: skip


def _rows(length: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield preferences of exactly `length` tokens: three in four the prompt's."""
    import random

    draw = random.Random(seed)
    reply = max(length // REPLY_SHARE, 4)
    # Beside the letters: the beginning, three turn marks, the prompt's end and the reply's.
    prompt = max(length - reply - 4, 1)

    def text(size: int) -> str:
        return "".join(draw.choices(LETTERS, k=size))

    for _ in range(count):
        yield {
            "prompt": [{"role": "user", "content": text(prompt)}],
            "chosen": [{"role": "assistant", "content": text(reply - 1)}],
            "rejected": [{"role": "assistant", "content": text(reply - 1)}],
        }


def _write(model: Any) -> tuple[int, float]:
    """Have the model write one reply; return its tokens and the seconds it took."""
    import torch

    ids = torch.randint(len(SPECIALS), len(SPECIALS) + len(LETTERS), (1, 32))
    ids = ids.to(model.device)
    model.eval()
    began = time.monotonic()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, use_cache=True,
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
    return int(output.shape[1] - ids.shape[1]), time.monotonic() - began
