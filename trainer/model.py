"""The base model, loaded text-only in 4 bits; adapters on it; its tokenizer and chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.chat_template import MARK, Endless, try_template, with_one_date
from trainer.contract import (
    ADAPTER_CARD,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ContractError,
    GenerateSettings,
    Message,
    Request,
    sha256_file,
)
from trainer.model_folder import (
    FORMER_TARGETS,
    LORA_TARGETS,
    TEXT_ONLY_KEYS,
    Refused,
    check_weights,
    find_model,
    model_sha256,
    refuse_keys,
    text_config,
)
from trainer.processes import local_rank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LORA_TARGETS", "Refused", "check_weights", "find_model", "model_sha256"]

LORA_WEIGHTS = re.compile(r"\.lora_[AB]\.weight$")
# PEFT's names for the two adapters a run can have on its model: TRL trains the first.
TRAINED, COMPARED = "default", "compare"
SMALL_MODEL = 100_000_000
# Tokens (prompt and reply, padding counted) that a batch may hold: bounds the key/value cache.
BATCH_TOKENS = 32_768
# How replies are drawn where neither the settings nor the model say it.
DEFAULT_TEMPERATURE, DEFAULT_TOP_P, DEFAULT_TOP_K = 0.9, 0.95, 64
NAMES_CODE = ("auto_mapping", "megatron_config")


class OtherBase(Refused):
    """The adapter named was trained on another base model."""


@dataclass(frozen=True)
class Device:
    """Where a run computes, in which precision, and why."""

    kind: str
    dtype: torch.dtype
    reason: str


def choose_device() -> Device:
    """Return the device and precision for this machine, with the reason."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Device("cuda", torch.bfloat16, f"{name} computes in bf16")
        # fp16 is no way out: Gemma 3's activations reach 800,000, fp16 ends at 65,504.
        return Device("cuda", torch.float32, f"{name} has no bf16; fp16 overflows with Gemma 3")
    return Device("cpu", torch.float32, "no CUDA GPU; fp32 is the CPU's fastest exact type")


def nf4(dtype: torch.dtype) -> Any:
    """Return how a base is quantised: NF4 with double quantisation, computing in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_base(request: Request, folder: Path, device: Device) -> PreTrainedModel:
    """Load the language model of `folder`, quantised as the request says, on one device.

    With `train.host_embedding` its tied matrix is left in host memory. Raises Refused when a
    weight is missing, or one is left over outside the vision part; ContractError when that
    matrix is not tied.
    """
    from transformers import AutoModelForCausalLM

    config, multimodal = text_config(folder, request.model)
    options: dict[str, Any] = {"key_mapping": TEXT_ONLY_KEYS} if multimodal else {}
    if request.quantization == "nf4":
        options["quantization_config"] = nf4(device.dtype)
    loader: Any = AutoModelForCausalLM
    model, info = loader.from_pretrained(
        folder,
        config=config,
        dtype=device.dtype,
        device_map={"": local_rank() if device.kind == "cuda" else "cpu"},
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    refuse_keys(
        request.model, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]
    )
    # Kept by transformers, and done backwards on saving: the language model alone would be written
    # with the names it has inside the whole, under a configuration that knows nothing of these.
    model._weight_conversions = None
    model.config.use_cache = True
    if request.train.host_embedding:
        from trainer.streamed_head import to_host

        to_host(model)
    return model  # type: ignore[no-any-return]


def parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters, a 4-bit one counted as one."""
    held = host_matrix(model)
    return (0 if held is None else held.numel()) + sum(
        p.numel() * (2 if p.__class__.__name__ == "Params4bit" else 1) for p in model.parameters()
    )


def host_matrix(model: Any) -> torch.Tensor | None:
    """Return the tied matrix that trainer.streamed_head keeps off a model; None where it is on."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return getattr(weight, "matrix", None)


def default_batch_size(model: PreTrainedModel) -> int:
    """Return how many replies are written or scored at once, where no setting says it."""
    return 64 if parameters(model) < SMALL_MODEL else 8


@contextmanager
def trainable(model: Any) -> Iterator[None]:
    """Keep 4-bit weights such that a gradient comes through them, while this is open.

    On a CPU with AVX512-BF16 a bitsandbytes layer that is evaluated packs its weights for a kernel
    without a gradient, for good: training that evaluates in between would go on wrongly, in silence
    (bitsandbytes 0.50, `Linear4bit.forward`).
    """
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    before = [layer.support_avx512bf16_for_cpu for layer in layers]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    try:
        yield
    finally:
        for layer, packs in zip(layers, before, strict=True):
            layer.support_avx512bf16_for_cpu = packs


# --- adapters -----------------------------------------------------------------------------------


def check_adapter(
    folder: Path, model_name: str, sha256: str, weights_sha256: str | None = None
) -> str:
    """Refuse an adapter that is none, is pickled, is no plain LoRA, or is of another base.

    `weights_sha256` is what its weights must be (none: what its own card says). Called before any
    weights are loaded; returns the SHA-256 of the adapter's weights. Raises Refused, and
    where the base is another OtherBase, naming both models.
    """
    from peft import LoraConfig

    card, config = _read(folder / ADAPTER_CARD), _read(folder / ADAPTER_CONFIG)
    weights = folder / ADAPTER_WEIGHTS
    if config is None or not weights.is_file():
        raise Refused(f"{folder} is no adapter: it needs {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}.")
    if config.get("peft_type") != "LORA":
        raise Refused(f"{folder} is a {config.get('peft_type')} adapter; only LORA is loaded.")
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    # These two name code to import.
    unknown = sorted(n for n in config if n not in known or (n in NAMES_CODE and config[n]))
    if unknown:
        raise Refused(f"{folder}: {ADAPTER_CONFIG} has unknown fields ({', '.join(unknown)}).")
    odd = _unlike_plain_lora(config)
    if odd:
        raise Refused(f"{folder}: {ADAPTER_CONFIG} is no plain LoRA's ({', '.join(odd)}).")
    if card is None:
        raise Refused(f"{folder} has no {ADAPTER_CARD}: its base model cannot be told. Train anew.")
    if card.get("base_sha256") != sha256:
        raise OtherBase(
            f"the adapter {folder.name} was trained on {card.get('base_model')} "
            f"({str(card.get('base_sha256'))[:12]}), not on {model_name} ({sha256[:12]}). "
            "Use that model, train an adapter for this one, or go back to the base with: "
            "curator adapter rollback"
        )
    digest = sha256_file(weights)
    if digest != (weights_sha256 or card.get("sha256")):
        raise Refused(
            f"{weights} is not what was trained (SHA-256 {digest[:12]}): changed, or damaged. "
            "Restore it from a backup, or train anew."
        )
    return digest


# What may differ from a plain LoRA on the language layers: sizes, and where it came from. The name
# in base_model_name_or_path proves nothing: PEFT writes the path the base was loaded from, another
# on each machine and after each move, and a retrained model has the same. What the base was is told
# by the card's base_sha256, of weights and tokenizer, and an adapter without a card is refused.
FREE = (
    "r", "lora_alpha", "lora_dropout", "base_model_name_or_path", "revision", "inference_mode",
    "init_lora_weights", "peft_version", "task_type",
)  # fmt: skip
MOST_RANK = 1024


def _unlike_plain_lora(config: dict[str, Any]) -> list[str]:
    """Return the fields that make an adapter another thing than was trained here.

    Some start the adapter from the base's weights and change these, some take as much memory as
    they like, some match layers by a pattern that never ends.
    """
    from peft import LoraConfig

    plain = LoraConfig(target_modules=LORA_TARGETS).to_dict()
    if config.get("target_modules") == FORMER_TARGETS:
        plain["target_modules"] = FORMER_TARGETS
    odd = [n for n, value in config.items() if n not in FREE and value != plain.get(n)]
    for name, most in (("r", MOST_RANK), ("lora_alpha", 16 * MOST_RANK)):
        value = config.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            odd.append(name)
    if config.get("init_lora_weights", True) not in (True, False):
        odd.append("init_lora_weights")
    return sorted(odd)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def attach_adapter(model: Any, folder: Path, name: str = TRAINED, trainable: bool = False) -> Any:
    """Return the model with the (checked) adapter in `folder` on it, under a name.

    On a base model it is the active adapter; beside another it is not. Raises Refused when its
    weights are not the LoRA weights of this model's layers.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    if isinstance(model, PeftModel):
        adapted = model
        device = str(adapted.device)
        adapted.load_adapter(str(folder), name, is_trainable=False, torch_device=device)
    else:
        adapted = PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable)
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        given = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted, adapter_name=name))
    # What is missing PEFT starts from zeros; what is no LoRA would replace a layer of the base.
    odd = sorted((given ^ wanted) | {key for key in given if not LORA_WEIGHTS.search(key)})
    if odd:
        raise Refused(f"{folder}: its weights do not fit the model ({len(odd)}, as {odd[0]}).")
    return adapted


# --- tokens -------------------------------------------------------------------------------------


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer; refuse one without a chat template, or with one that has no end.

    A template that prints today's date prints one and the same each day (trainer.chat_template).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = str(error).strip().splitlines()
        raise Refused(
            f"{name} has no tokenizer that can be loaded ({said[0][:120] if said else error!r}). "
            "It needs tokenizer.json or tokenizer.model."
        ) from None
    if not tokenizer.chat_template:
        raise Refused(f"{name} has no chat template: it is no chat model. Name an instruct model.")
    if not isinstance(tokenizer.chat_template, str):
        raise Refused(f"{name} has several chat templates; leave one, as chat_template.jinja.")
    tokenizer.chat_template = with_one_date(tokenizer.chat_template)
    tokens = {n: t for n, t in tokenizer.special_tokens_map.items() if isinstance(t, str)}
    try:
        wrong = try_template(tokenizer.chat_template, tokens)
    except Endless as endless:
        raise Refused(f"{name}: its chat template is not used: {endless}.") from None
    if wrong:
        raise Refused(f"{name}: its chat template does not render a user's message ({wrong}).")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_sampling(settings: GenerateSettings, config: Any) -> GenerateSettings:
    """Return the settings with what they leave open taken from the model, else from here.

    `config` is the model's generation_config: what its publisher recommends to sample with.
    """
    known = {
        "temperature": DEFAULT_TEMPERATURE, "top_p": DEFAULT_TOP_P, "top_k": DEFAULT_TOP_K,
    }  # fmt: skip
    for name, default in known.items():
        own = getattr(config, name, None)
        value = getattr(settings, name)
        known[name] = value if value is not None else own if own is not None else default
    try:
        return replace(settings, **known)  # type: ignore[arg-type]
    except (ContractError, TypeError) as error:
        raise Refused(f"generation_config.json of the model: {error}") from None


# Settings of sampling that only a model's generation_config can bring, and what is no setting.
NO_EFFECT = {"repetition_penalty": 1.0, "min_p": 0.0, "typical_p": 1.0, "no_repeat_ngram_size": 0}


def own_sampling(config: Any) -> dict[str, float]:
    """Return what else a model's generation_config does to how replies are drawn."""
    found = {name: getattr(config, name, None) for name in NO_EFFECT}
    return {n: v for n, v in found.items() if v is not None and v != NO_EFFECT[n]}


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template, recorded with every candidate."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the chat template takes a system message, and does not just drop it."""
    from jinja2 import TemplateError

    probe = [{"role": "system", "content": MARK}, {"role": "user", "content": "u"}]
    try:
        return MARK in str(tokenizer.apply_chat_template(probe, tokenize=False))
    except TemplateError:
        return False


def fit_messages(messages: list[Message], system: str | None, system_role: bool) -> list[Message]:
    """Return the messages with `system` put first, and none in the system role if it has none.

    Without a system role the text goes before the first user turn, as Gemma 3's template does.
    """
    texts = [system] if system else []
    if messages and messages[0]["role"] == "system":
        texts.append(messages[0]["content"])
        messages = messages[1:]
    if not texts:
        return list(messages)
    text = "\n\n".join(texts)
    if system_role:
        return [{"role": "system", "content": text}, *messages]
    first = {"role": messages[0]["role"], "content": f"{text}\n\n{messages[0]['content']}"}
    return [first, *messages[1:]]
