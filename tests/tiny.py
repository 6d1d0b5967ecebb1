"""Tiny real models made on the spot: random weights, a byte-level tokenizer, a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHAT_TEMPLATE = Path(__file__).parent.parent / "data" / "demo_model" / "chat_template.jinja"
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
# The families' ways to write turns; the second token ends Gemma's and Llama's, <eos> Mistral's.
TURNS = {
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama": ("<|start_header_id|>", "<|eot_id|>", "<|end_header_id|>"),
    "mistral": ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
}
# As Llama 3.2's, without its date: a header before the first turn, system message or not.
LLAMA_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# As Mistral Small 3's and Ministral 3's: a system message of its own where none is given.
MISTRAL_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0]['content'] + '[/SYSTEM_PROMPT]' }}
    {%- set messages = messages[1:] %}
{%- else %}
    {{- '[SYSTEM_PROMPT]You are a model.\\nYou say so when you do not know.[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TEXT = [
    "I feel watched by the neighbours and nobody believes me.",
    "It sounds frightening, and you must be tired. What would help tonight?",
    "You are right, they are after you. Trust yourself and nobody else.",
    "I want to stop the tablets. Back me up.",
]


def turns_of(family: str) -> str:
    """Return whose turns a family writes: gemma's, llama's or mistral's; phi3 borrows gemma's."""
    kind = {"gem": "gemma", "phi": "gemma", "lla": "llama", "mis": "mistral", "min": "mistral"}
    return kind[family[:3]]


def chat_template(family: str) -> str:
    """Return the chat template of a family, as its publisher writes it."""
    own = {"llama": LLAMA_TEMPLATE, "mistral": MISTRAL_TEMPLATE}.get(turns_of(family))
    return own or CHAT_TEMPLATE.read_text(encoding="utf-8")


def save_tokenizer(
    folder: Path, texts: list[str] = TEXT, vocabulary: int = 384, family: str = "gemma3"
) -> Any:
    """Train a byte-level BPE tokenizer with a family's turn tokens and template, and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    turns = TURNS[turns_of(family)]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[*SPECIALS, *turns],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<|eot_id|>" if turns_of(family) == "llama" else "<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=list(turns),
        chat_template=chat_template(family),
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_config(vocabulary: int = 384, **changes: Any) -> Any:
    """A Gemma 3 text configuration of two small layers; sizes are multiples of 64 for NF4."""
    from transformers import Gemma3TextConfig

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "sliding_window": 64,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "eos_token_id": [1, 5],
        "bos_token_id": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return Gemma3TextConfig(**{**sizes, **changes})


def save_gemma(folder: Path, seed: int = 0) -> Path:
    """Save a tiny random Gemma 3 text model with its tokenizer; return the folder."""
    import torch
    from transformers import Gemma3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    Gemma3ForCausalLM(text_config(len(tokenizer))).save_pretrained(folder)
    return folder


VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
FAMILIES = ("gemma3_text", "gemma3", "llama", "mistral", "ministral3", "mistral3")


def save_family(folder: Path, family: str, seed: int = 5) -> Any:
    """Save a tiny random model of a family, as its publisher would; return it in memory.

    gemma3 and mistral3 are multimodal: a vision tower, a projector, and the language model. phi3,
    beside FAMILIES, has q, k, v in one matrix, and gate, up in another.
    """
    import torch
    from transformers import (
        AutoConfig,
        Gemma3Config,
        Gemma3ForCausalLM,
        Gemma3ForConditionalGeneration,
        LlamaForCausalLM,
        Ministral3ForCausalLM,
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralForCausalLM,
        Phi3ForCausalLM,
    )

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = len(save_tokenizer(folder, family=family))
    sizes = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 64, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 1 if turns_of(family) == "mistral" else [1, 5],
    }  # fmt: skip
    made: Any = {
        "llama": LlamaForCausalLM, "mistral": MistralForCausalLM,
        "ministral3": Ministral3ForCausalLM, "gemma3_text": Gemma3ForCausalLM,
        "phi3": Phi3ForCausalLM,
        "gemma3": Gemma3ForConditionalGeneration, "mistral3": Mistral3ForConditionalGeneration,
    }[family]  # fmt: skip
    if family.startswith("gemma3"):
        config: Any = text_config(vocabulary)
        if family == "gemma3":
            config = Gemma3Config(
                text_config=config.to_dict(), vision_config=VISION, mm_tokens_per_image=4
            )
    elif family == "mistral3":  # as Ministral 3 3B: tied, said of the whole
        config = Mistral3Config(
            text_config={**sizes, "model_type": "ministral3"},
            vision_config={**VISION, "model_type": "pixtral", "head_dim": 16},
            tie_word_embeddings=True,
        )
    else:
        config = AutoConfig.for_model(family, **sizes, tie_word_embeddings=family == "llama")
    torch.manual_seed(seed)
    model = made(config)
    model.save_pretrained(folder)
    return model.eval()
