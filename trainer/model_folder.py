"""A model's folder, judged before a weight is loaded: found, whole, and of a kind we can load."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from trainer.contract import ADAPTER_CONFIG, ContractError, sha256_file, sha256_text
from trainer.presets import QUANTISED, preset

# The language layers' linears. A regular expression, not bare names: those would reach into the
# vision tower of a multimodal checkpoint. Embedding and head are never adapted (TRL refuses it).
# qkv and gate_up are q, k, v and gate, up in one matrix (Phi-3).
LORA_TARGETS = r".*\.layers\.\d+\.(self_attn|mlp)\.(qkv|q|k|v|o|gate_up|gate|up|down)_proj"
# What adapters of before the fused ones were made with: the same layers of any other model.
FORMER_TARGETS = r".*\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"

# A multimodal checkpoint under the text-only class: without these renames transformers 5 starts
# the language model from random weights without a word (unslothai/unsloth#5816).
TEXT_ONLY_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
VISION_KEYS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")
# Old Llama checkpoints carry this constant table; it is computed anew.
COMPUTED_KEYS = re.compile(r"rotary_emb\.inv_freq$")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", TEMPLATE_FILE)
MOST_LAYERS = 1000
HALF = "is half a checkpoint"


class Refused(ContractError):
    """The model or adapter named is not one that this run can use."""


def find_model(name: str) -> Path:
    """Return the folder of a model named by path or by id in the local cache.

    Raises Refused when it is no model, is not on this machine, is not whole, holds no safetensors,
    is quantised already, brings code of its own, or has weights where none are looked for here.
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
    check_config(read_json(folder / "config.json", name), name)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and read_json(tokenizer, name).get("auto_map"):
        raise Refused(_own_code(name, tokenizer.name))
    _check_shards(folder, name)
    _check_others(folder, name)
    return folder


def _in_cache(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    known = preset(name)
    try:  # whether the weights are all there is asked of their index, below
        folder = snapshot_download(
            known.id if known else name, local_files_only=True, allow_patterns=["config.json"]
        )
        return Path(folder)
    except IncompleteSnapshotError:
        raise Refused(f"{name} {HALF}. Get the rest: curator models pull {name}") from None
    except (LocalEntryNotFoundError, HFValidationError):
        raise Refused(
            f"{name} is neither a folder nor a model in this machine's cache, and nothing is "
            f"downloaded by itself. Fetch it once (curator models pull {name}), or name a folder."
        ) from None


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of the model's folder. Raises Refused."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{name}: {path.name} cannot be read ({error}).") from None
    if not isinstance(value, dict):
        raise Refused(f"{name}: {path.name} is no JSON object.")
    return value


def check_config(config: dict[str, Any], name: str) -> None:
    """Refuse a model that is quantised already or brings code of its own."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > MOST_LAYERS:  # each is made, if only in outline
            raise Refused(f"{name}: config.json asks for {layers} layers; no model has so many.")
        how = part.get("quantization_config")
        if how is not None:
            method = how.get("quant_method", "") if isinstance(how, dict) else ""
            instead = QUANTISED.get(name, "its unquantised checkpoint")
            raise Refused(
                f"{name} is quantised already ({method or 'by its publisher'}); a 4-bit base is "
                f"made from full weights. Name {instead}."
            )
        if part.get("auto_map"):
            raise Refused(_own_code(name, "config.json"))
        if part.get("transformers_weights"):  # loaded in the place of those that are checked
            raise Refused(f"{name}: config.json names a file of weights; only {SINGLE} is loaded.")


def _own_code(name: str, file: str) -> str:
    return (
        f"{name} brings code of its own (auto_map in {file}), and none from a model's folder is "
        "run. Name a model that transformers knows by itself."
    )


def indexed_files(index: Path, name: str) -> set[str]:
    """Return the files of weights that an index names. Raises Refused."""
    files = read_json(index, name).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
        raise Refused(f"{name}: {INDEX} has no weight_map.")
    if any(Path(f).name != f for f in files.values()):
        raise Refused(f"{name}: {INDEX} names files outside the model's folder.")
    return set(files.values())


def _check_shards(folder: Path, name: str) -> None:
    """Refuse pickled weights, and a folder in which a file of weights is missing."""
    there = {path.name for path in folder.glob("*.safetensors")}
    index = folder / INDEX
    wanted: set[str] = set()
    if index.is_file():
        wanted = indexed_files(index, name)
    for shard in filter(None, map(SHARD.search, there)):
        total = int(shard[2])
        stem = shard.string[: shard.start()]
        wanted |= {f"{stem}-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)}
    missing = sorted(wanted - there)
    if missing and there:
        raise Refused(
            f"{name} {HALF}: {len(missing)} of {len(wanted)} files of weights are missing, among "
            f"them {missing[0]}. Copy or pull it again."
        )
    if not there and not any(folder.glob("*.bin")) and not any(folder.glob("*.pt")):
        raise Refused(f"{name} {HALF}: it has no weights. Get the rest: curator models pull {name}")
    if not there:
        raise Refused(
            f"{name} has no .safetensors weights. Pickled weights (.bin, .pt) can run code and "
            "are not loaded; convert the model first."
        )


def _check_others(folder: Path, name: str) -> None:
    """Refuse a folder from which transformers would load other weights than weight_files says."""
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise Refused(f"{name} {HALF}: it has neither {SINGLE} nor {INDEX}. Copy or pull it again.")
    if (folder / ADAPTER_CONFIG).is_file():  # put on the model as it is loaded
        raise Refused(f"{name} has an adapter in the model's own folder. Merge it, or move it out.")
    if any(folder.glob("shard-*-model-*.safetensors")):  # preferred to all other files
        raise Refused(f"{name} has weights of a distributed checkpoint. Save it as a plain model.")


def weight_files(folder: Path) -> list[Path]:
    """Return the files transformers loads; others (consolidated.safetensors) are left alone.

    Where there is one whole file and an index too, it loads the file
    (`_get_resolved_checkpoint_files` of transformers 5.23).
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    return [folder / name for name in sorted(indexed_files(index, str(folder)))]


def model_sha256(folder: Path) -> str:
    """Return the SHA-256 that names a model: of its weights' and tokenizer's digests.

    File names of the weights do not count, so a renamed or moved model is the same model. A chat
    template counts wherever it is: in a file of its own, or else inside tokenizer_config.json.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(bytes.fromhex(sha256_file(path)))
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + bytes.fromhex(sha256_file(folder / name)))
    settings = folder / "tokenizer_config.json"
    if not (folder / TEMPLATE_FILE).is_file() and settings.is_file():
        template = read_json(settings, str(folder)).get("chat_template")
        if isinstance(template, str):
            digest.update(b"chat_template" + bytes.fromhex(sha256_text(template)))
    return digest.hexdigest()


# --- the language part, and whether its weights are all there ------------------------------------


def text_config(folder: Path, name: str) -> tuple[Any, bool]:
    """Return the language model's configuration, and whether it is part of a multimodal one.

    Raises Refused when transformers does not know the model, or knows it as no language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as error:
        kind = read_json(folder / "config.json", name).get("model_type")
        said = str(error).strip().splitlines()
        raise Refused(
            f"{name}: transformers cannot make a model of its config.json (model_type {kind!r}: "
            f"{said[0][:120] if said else type(error).__name__})."
        ) from None
    text = config.get_text_config()
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Refused(f"{name} is no language model (model_type {config.model_type!r}).")
    multimodal = text is not config
    if multimodal and getattr(config, "tie_word_embeddings", False):
        # Said of the whole, not of its part: true of the part when it has no head of its own.
        names = weight_shapes(folder, name)
        text.tie_word_embeddings = not any(key.endswith("lm_head.weight") for key in names)
    return text, multimodal


def weight_shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight, from the files' heads. Raises Refused."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    shapes[key] = tuple(file.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise Refused(
                f"{name} {HALF}: {path.name} cannot be read ({error}). Copy or pull it again."
            ) from None
    return shapes


def check_weights(folder: Path, name: str) -> None:
    """Refuse a checkpoint whose weights are not those of its language model.

    Compares the files' heads with the model as its configuration describes it, made without
    memory for weights. Raises Refused.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    text, multimodal = text_config(folder, name)
    shapes = weight_shapes(folder, name)
    try:
        with torch.device("meta"):
            loader: Any = AutoModelForCausalLM
            model = loader.from_config(text, attn_implementation="sdpa")
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise Refused(f"{name}: config.json describes no model ({error}).") from None
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    if not any(re.fullmatch(LORA_TARGETS, n) for n in names):
        raise Refused(
            f"{name} ({text.model_type}) has none of the layers an adapter is put on "
            "(layers.N.self_attn.q_proj and its like). Name another model."
        )
    if get_checkpoint_conversion_mapping(text.model_type):  # type: ignore[no-untyped-call]
        return  # weights are renamed or joined while they are loaded: compared after it
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {text_key(key) if multimodal else key: shape for key, shape in shapes.items()}
    if not any(key.startswith("model.") for key in given):
        given = {f"model.{k}" if f"model.{k}" in wanted else k: s for k, s in given.items()}
    tied = set(model.all_tied_weights_keys)
    refuse_keys(
        name,
        missing=[key for key in wanted if key not in given and key not in tied],
        left_over=[key for key in given if key not in wanted],
        mismatched=[key for key in given if key in wanted and given[key] != wanted[key]],
    )


def text_key(key: str) -> str:
    """Return the name a multimodal checkpoint's weight has in the language model alone."""
    for pattern, replacement in TEXT_ONLY_KEYS.items():
        key, count = re.subn(pattern, replacement, key)
        if count:
            break
    return key


def refuse_keys(name: str, missing: Any, left_over: Any, mismatched: Any = ()) -> None:
    """Raise Refused, naming one, when weights are missing, unknown or of another shape."""
    unknown = [k for k in left_over if not (VISION_KEYS.search(k) or COMPUTED_KEYS.search(k))]
    for what, keys in (
        ("misses", missing),
        ("has unknown", unknown),
        ("has odd", map(str, mismatched)),
    ):
        found = sorted(keys)
        if found:
            raise Refused(
                f"{name} {what} weights ({len(found)}, among them {found[0]}): it would run with "
                "random numbers. Is the checkpoint complete, and a language model?"
            )
