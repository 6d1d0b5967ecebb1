"""Models known by name: licence, size and true architecture. Plain data, standard library only.

The architecture is the language model's own config.json, written out in full, so that a plan and
a rehearsal need no download. Where the values come from stands with each preset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One model that can be taught here."""

    id: str
    """Its repository on the hub, in bf16."""
    licence: str
    gated: bool
    """Whether its licence must be accepted on its page before it can be downloaded."""
    download: int
    """Bytes of its safetensors, rounded; the vision part counted where there is one."""
    config: dict[str, Any]
    """The language model's configuration, under the names of config.json."""
    source: str

    @property
    def name(self) -> str:
        """Its short name, for the command line."""
        return self.id.rpartition("/")[2]


def _gemma(**sizes: Any) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        **sizes,
    }


GEMMA = "Gemma Terms of Use (ai.google.dev/gemma/terms); accept them on the model's page first"

PRESETS = (
    Preset(
        "google/gemma-3-4b-it", GEMMA, True, 8_600_000_000,
        _gemma(
            hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
            num_attention_heads=8, num_key_value_heads=4, vocab_size=262_208,
            sliding_window=1024, max_position_embeddings=131_072,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        "Gemma 3 technical report (arXiv 2503.19786) and the model's config.json",
    ),
    Preset(
        "google/gemma-3-1b-it", GEMMA, True, 2_000_000_000,
        _gemma(
            hidden_size=1152, intermediate_size=6912, num_hidden_layers=26,
            num_attention_heads=4, num_key_value_heads=1, vocab_size=262_144,
            sliding_window=512, max_position_embeddings=32_768,
        ),
        "Gemma 3 technical report (arXiv 2503.19786) and the model's config.json",
    ),
    Preset(
        "google/gemma-3-270m-it", GEMMA, True, 540_000_000,
        _gemma(
            hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
            num_attention_heads=4, num_key_value_heads=1, vocab_size=262_144,
            sliding_window=512, max_position_embeddings=32_768,
        ),
        "the model's config.json",
    ),
    Preset(
        "meta-llama/Llama-3.2-3B-Instruct",
        "Llama 3.2 Community License; accept it on the model's page first", True, 6_430_000_000,
        {
            "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": 128_256, "tie_word_embeddings": True,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072,
            "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009],
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        "the model's config.json and model card",
    ),
    Preset(
        "mistralai/Ministral-3-3B-Instruct-2512-BF16", "Apache 2.0", False, 7_700_000_000,
        {
            "model_type": "ministral3", "hidden_size": 3072, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": 131_072, "tie_word_embeddings": True,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 262_144,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
                "original_max_position_embeddings": 16_384, "beta_fast": 32.0, "beta_slow": 1.0,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
        },
        "Ministral 3 paper (arXiv 2601.08584), NVIDIA Megatron Bridge's model page, and "
        "transformers' Ministral3Config for the rope",
    ),
)  # fmt: skip


def preset(name: str) -> Preset | None:
    """Return the preset of an id or a short name, whatever its case, or None."""
    wanted = name.lower()
    return next((p for p in PRESETS if wanted in (p.id.lower(), p.name.lower())), None)


# Checkpoints quantised by their publisher, and the one to take instead.
QUANTISED = {
    "mistralai/Ministral-3-3B-Instruct-2512": "mistralai/Ministral-3-3B-Instruct-2512-BF16",
}
