"""The base model: found, named by its content, loaded text-only in 4 bits; its chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import ADAPTER_CARD, ContractError, Message, Request, sha256_file
from trainer.processes import local_rank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The language layers' linears. A regular expression, not bare names: those would reach into the
# vision tower of a multimodal checkpoint. Embedding and head are never adapted (TRL refuses it).
LORA_TARGETS = r".*\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"

# A multimodal Gemma 3 checkpoint under the text-only class: without these renames transformers 5
# starts the language model from random weights without a word (unslothai/unsloth#5816).
TEXT_ONLY_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
VISION_KEYS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_WEIGHTS = re.compile(r"\.lora_[AB]\.weight$")
# PEFT's names for the two adapters a run can have on its model: TRL trains the first.
TRAINED, COMPARED = "default", "compare"
SMALL_MODEL = 100_000_000
# Tokens (prompt and reply, padding counted) that a batch may hold: bounds the key/value cache.
BATCH_TOKENS = 32_768
NAMES_CODE = ("auto_mapping", "megatron_config")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "chat_template.jinja")


class Refused(ContractError):
    """The model or adapter named is not one that this run can use."""


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


def find_model(name: str) -> Path:
    """Return the folder of a model named by path or by id in the local cache.

    Raises Refused when it is no model, is not on this machine, or holds no safetensors.
    Nothing is downloaded.
    """
    try:
        folder = Path(name).expanduser()
        found = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user
        raise Refused(f"{name[:60]} is no model ({error}).") from None
    if not found:
        folder = _in_cache(name)
    if not (folder / "config.json").is_file():
        raise Refused(f"{name} is no model: {folder} has no config.json. Name a model's folder.")
    if not any(folder.glob("*.safetensors")):
        raise Refused(
            f"{name} has no .safetensors weights. Pickled weights (.bin, .pt) can run code and "
            "are not loaded; convert the model first."
        )
    return folder


def _in_cache(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise Refused(
            f"{name} is neither a folder nor a model in this machine's cache, and nothing is "
            f"downloaded by itself. Fetch it once (hf download {name}), or name a folder."
        ) from None


def model_sha256(folder: Path) -> str:
    """Return the SHA-256 that names a model: of its weights' and tokenizer's digests.

    File names of the weights do not count, so a renamed or moved model is the same model.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(bytes.fromhex(sha256_file(path)))
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + bytes.fromhex(sha256_file(folder / name)))
    return digest.hexdigest()


def load_base(request: Request, folder: Path, device: Device) -> PreTrainedModel:
    """Load the language model of `folder`, quantised as the request says, on one device.

    Raises Refused when a weight is missing, or one is left over outside the vision part.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, Gemma3ForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise Refused(f"{request.model} is quantised already. Name its unquantised checkpoint.")
    options: dict[str, Any] = {}
    loader: Any = AutoModelForCausalLM
    if config.model_type == "gemma3":
        loader, config = Gemma3ForCausalLM, config.get_text_config()
        options["key_mapping"] = TEXT_ONLY_KEYS
    if request.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=device.dtype,
        )
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
    _check_keys(request.model, info)
    model.config.use_cache = True
    return model  # type: ignore[no-any-return]


def _check_keys(name: str, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    left_over = sorted(k for k in info["unexpected_keys"] if not VISION_KEYS.search(k))
    mismatched = sorted(str(k) for k in info.get("mismatched_keys", ()))
    for what, keys in (("misses", missing), ("has unknown", left_over), ("has odd", mismatched)):
        if keys:
            raise Refused(
                f"{name} {what} weights ({len(keys)}, among them {keys[0]}): it would run with "
                "random numbers. Is the checkpoint complete, and a language model?"
            )


def parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters, a 4-bit one counted as one."""
    return sum(
        p.numel() * (2 if p.__class__.__name__ == "Params4bit" else 1) for p in model.parameters()
    )


def default_batch_size(model: PreTrainedModel) -> int:
    """Return how many replies are written or scored at once, where no setting says it."""
    return 64 if parameters(model) < SMALL_MODEL else 8


# --- adapters -----------------------------------------------------------------------------------


def check_adapter(
    folder: Path, model_name: str, sha256: str, weights_sha256: str | None = None
) -> str:
    """Refuse an adapter that is none, is pickled, is no plain LoRA, or is of another base.

    `weights_sha256` is what its weights must be (none: what its own card says). Called before any
    weights are loaded; returns the SHA-256 of the adapter's weights. Raises Refused, naming both
    models where the base is another.
    """
    from peft import LoraConfig

    card, config = _read(folder / ADAPTER_CARD), _read(folder / "adapter_config.json")
    weights = folder / ADAPTER_WEIGHTS
    if config is None or not weights.is_file():
        raise Refused(
            f"{folder} is no adapter: it needs adapter_config.json and adapter_model.safetensors."
        )
    if config.get("peft_type") != "LORA":
        raise Refused(f"{folder} is a {config.get('peft_type')} adapter; only LORA is loaded.")
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    # These two name code to import.
    unknown = sorted(n for n in config if n not in known or (n in NAMES_CODE and config[n]))
    if unknown:
        raise Refused(f"{folder}: adapter_config.json has unknown fields ({', '.join(unknown)}).")
    if card is None:
        raise Refused(f"{folder} has no {ADAPTER_CARD}: its base model cannot be told. Train anew.")
    if card.get("base_sha256") != sha256:
        raise Refused(
            f"the adapter {folder.name} was trained on {card.get('base_model')} "
            f"({str(card.get('base_sha256'))[:12]}), not on {model_name} ({sha256[:12]}). "
            "Use that model, or train an adapter for this one."
        )
    digest = sha256_file(weights)
    if digest != (weights_sha256 or card.get("sha256")):
        raise Refused(
            f"{weights} is not what was trained (SHA-256 {digest[:12]}): changed, or damaged. "
            "Restore it from a backup, or train anew."
        )
    return digest


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
    """Load the tokenizer; refuse one without a chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, padding_side="left"
    )
    if not tokenizer.chat_template:
        raise Refused(f"{name} has no chat template: it is no chat model. Name an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template, recorded with every candidate."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the chat template takes a system message."""
    from jinja2 import TemplateError

    probe = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    try:
        tokenizer.apply_chat_template(probe, tokenize=False)
    except TemplateError:
        return False
    return True


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
