"""What fits: the memory of a training step by arithmetic, the way it is made to fit, or a refusal.

Standard library only. All sizes are bytes; "MB" and "GB" in words are decimal, but for a card's
own size ("4 GB"), which is binary as on its box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trainer.contract import ContractError, TrainSettings

GIB = 1 << 30
# What a CUDA context takes before the first tensor. Windows keeps more back: of a 4 GB card
# (4.29e9 bytes) 3.45e9 were free at rest on Windows 11 (Soup's gate-v0.73.1).
CUDA_CONTEXT = 300_000_000
# Kept free: a sixteenth of what is used for fragmentation, and a fixed part (Unsloth's figures).
RESERVE_SHARE, RESERVE = 16, 256_000_000
# TRL 1.16's fused head works in tiles of at most 4,096 tokens by 32,768 words of the vocabulary.
TILE_TOKENS, TILE_WORDS = 4096, 32_768
# Words of a tile of the streamed head, and of ours where TRL's does not run in Triton.
STREAMED_WORDS = 8192
# Bytes that stand beside an element of a tile, which itself is in the type computed in: with Triton
# none; without it eight fp32 copies in the backward pass (trl/kernels/chunked_logprob.py,
# _backward_tile).
BESIDE_TRITON, BESIDE_EAGER = 0, 8 * 4
# Bytes a token and hidden value that recomputing one layer keeps in bf16 (Unsloth's measured 42,
# rounded up).
RECOMPUTE = 48
# bitsandbytes' double quantisation: a byte a block of 64, an fp32 a block of 256 of those, and
# beside each matrix two tables (16 and 256 fp32) and an offset.
BLOCK, NESTED, TABLES = 64, 256, (16 + 256 + 1) * 4
LENGTHS = (2048, 1024, 768, 512, 384, 256)

# Layers' checkpoints that TRL's activation offloading lets wait on the card, and the one at work.
OFFLOAD_STASH = 5 + 1

Device = Literal["cuda", "cpu"]
RESIDENT = "resident"
RECOMPUTED = "layers computed again"
ONE_PAIR = "one pair at a time"
HOST_EMBEDDING = "embedding in host memory"
OFFLOAD = "checkpoints in host memory"
SHORTER = "shorter length"
AS_BEFORE = "as its checkpoint"


@dataclass(frozen=True)
class Shape:
    """A dense decoder's sizes: hidden width, layers, heads, words. Everything else follows."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    norms: int
    """Values of the normalisation layers, the last one's included."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of one layer's linears: q, k, v, o, gate, up, down.

        Where some of them are one matrix (Phi-3) a LoRA on it takes less than one on each.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        wide = self.intermediate
        return [
            (self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden),
            (self.hidden, wide), (self.hidden, wide), (wide, self.hidden),
        ]  # fmt: skip

    @property
    def linear(self) -> int:
        """Parameters of all layers' linears."""
        return self.layers * sum(i * o for i, o in self.matrices)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head where it is a matrix of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Parameters of the language model."""
        return self.linear + self.embedding + self.norms

    def lora(self, rank: int) -> int:
        """Parameters of a LoRA on every linear."""
        return self.layers * rank * sum(i + o for i, o in self.matrices)


def shape_of(config: Mapping[str, Any], name: str) -> Shape:
    """Return the sizes in a (language model's) configuration.

    Raises ContractError naming the field when one is missing or no whole number above 0.
    """

    def size(field_name: str, default: int | None = None) -> int:
        value = config.get(field_name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ContractError(f"{name}: its config.json has no {field_name} to plan with.")
        return value

    if any(config.get(f) for f in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ContractError(f"{name} is a mixture of experts; its memory cannot be planned.")
    layers, hidden, heads = (
        size("num_hidden_layers"), size("hidden_size"), size("num_attention_heads"),
    )  # fmt: skip
    head_dim = size("head_dim", max(hidden // heads, 1))
    gemma = str(config.get("model_type", "")).startswith("gemma3")
    norms = layers * (4 * hidden + 2 * head_dim if gemma else 2 * hidden) + hidden
    return Shape(
        layers, hidden, size("intermediate_size"), heads, size("num_key_value_heads", heads),
        head_dim, size("vocab_size"), bool(config.get("tie_word_embeddings", gemma)), norms,
    )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where a plan is for: bytes free, on what, and how it computes."""

    free: int
    device: Device = "cuda"
    triton: bool = True
    """Whether TRL's fused head runs in Triton: on CUDA under Linux."""
    width: int = 2
    """Bytes of a number that is not quantised: 2 for bf16, 4 for fp32."""
    words: str = ""
    """How the free memory was found."""


@dataclass(frozen=True)
class Plan:
    """What a training step takes, and whether and how it fits."""

    parts: dict[str, int]
    """weights, embedding, adapter, optimiser, logits tile, checkpoints, workspace, reserve."""
    free: int
    fits: bool
    tier: str
    reason: str
    length: int
    """Tokens a row of a training step; 0 where nothing is trained."""
    settings: TrainSettings = field(default_factory=TrainSettings)
    """As asked, changed where the tier needs it: what training runs with."""
    tiers: tuple[tuple[str, int], ...] = ()
    """Every tier tried: its name and its total."""
    basis: tuple[Shape, str, Machine] | None = None
    """What was planned for: the model's sizes, its quantization, the machine."""
    loading: int = 0
    """Bytes that loading takes, before anything can leave the card."""

    @property
    def total(self) -> int:
        """Bytes at the peak, the reserve included."""
        return sum(self.parts.values())

    @property
    def static(self) -> int:
        """Bytes of the base model alone; without a matrix that is in the host's memory."""
        return self.parts["weights"] + self.parts["embedding"]

    @property
    def peak(self) -> int:
        """Bytes at the peak without the reserve: what a measurement is compared with."""
        return self.total - self.parts["reserve"]

    def with_settings(self, settings: TrainSettings) -> Plan:
        """Return what other settings take of the same model on the same machine."""
        assert self.basis is not None
        shape, quantization, machine = self.basis
        parts = parts_of(shape, settings, quantization, machine)
        return replace(
            self, parts=parts, settings=settings,
            fits=max(sum(parts.values()), self.loading) <= self.free,
            length=settings.max_length, tier=AS_BEFORE, reason="a checkpoint was made so",
        )  # fmt: skip


def quantised_bytes(parameters: int) -> int:
    """Return the bytes of one matrix in NF4 with double quantisation."""
    blocks = math.ceil(parameters / BLOCK)
    return math.ceil(parameters / 2) + blocks + 4 * math.ceil(blocks / NESTED) + TABLES


def weights_bytes(shape: Shape, quantization: str, width: int) -> int:
    """Return the bytes of all layers' linears and of the norms."""
    if quantization == "nf4":
        linear = shape.layers * sum(quantised_bytes(i * o) for i, o in shape.matrices)
    else:
        linear = shape.linear * width
    return linear + shape.norms * width


def parts_of(
    shape: Shape, settings: TrainSettings, quantization: str, machine: Machine
) -> dict[str, int]:
    """Return what a step with these settings takes, in bytes.

    A batch holds both replies: two rows a pair; every position may be a reply's. On a CPU the
    matrix of `host_embedding` is in the same memory. Formulas: research on TRL 1.16's fused head,
    gradient checkpointing and bitsandbytes' workspace, each at its constant above.
    """
    width, on_gpu = machine.width, machine.device == "cuda"
    rows = 2 * settings.batch_size * settings.max_length
    hidden = shape.hidden
    lora = shape.lora(settings.lora_rank)
    eight_bit = settings.optimizer == "adamw_8bit" or (settings.optimizer == "auto" and on_gpu)
    checkpointing = _checkpointing(settings, machine)
    streamed = settings.host_embedding
    narrow = streamed or (settings.completions_only and not machine.triton)
    words = min(shape.vocabulary, STREAMED_WORDS if narrow else TILE_WORDS)
    element = width + (BESIDE_TRITON if machine.triton else BESIDE_EAGER)
    tile = min(rows, TILE_TOKENS) * words * element
    if not on_gpu and width < 4:
        tile += words * hidden * 4  # the head's part turned to fp32, for the gradient
    elif on_gpu and streamed:
        tile += 2 * words * hidden * width  # one part of the head at work, one on its way
    layer = RECOMPUTE * rows * hidden * width // 2
    boundaries = shape.layers * rows * hidden * width
    largest = max(i * o for i, o in shape.matrices)
    parts = {
        "weights": weights_bytes(shape, quantization, width),
        "embedding": 0 if streamed and on_gpu else shape.embedding * width,
        "adapter": 2 * lora * width,  # its weights, and their gradients
        "optimiser": lora * 2 if eight_bit else 2 * lora * width,
        "logits tile": tile,
        "checkpoints": boundaries if checkpointing else shape.layers * layer,
        "workspace": layer + (2 * largest * width if quantization == "nf4" else 0),
    }
    if settings.activation_offloading and checkpointing:
        parts["checkpoints"] = OFFLOAD_STASH * rows * hidden * width
    parts["reserve"] = sum(parts.values()) // RESERVE_SHARE + RESERVE
    return parts


def _checkpointing(settings: TrainSettings, machine: Machine) -> bool:
    asked = settings.gradient_checkpointing
    return machine.device == "cuda" if asked is None else asked


def plan(shape: Shape, settings: TrainSettings, quantization: str, machine: Machine) -> Plan:
    """Return the first tier that fits, or the last one tried, with `fits` false.

    The order: resident; the layers computed again on the way back (where they are not anyway); one
    pair at a time (where more are asked for; as many to a step as before, the same step but for the
    batch that `sft` is a mean over); a tied embedding in host memory and the head streamed (CUDA
    only); the layers' checkpoints in host memory (CUDA only); a shorter length. Each keeps what the
    one before it changed. Raises ContractError when `host_embedding` is asked for and the head is a
    matrix of its own.
    """
    if settings.host_embedding and not shape.tied:
        raise ContractError(
            "train.host_embedding needs a model whose head is its embedding, and this one's is a "
            "matrix of its own. Leave the setting out."
        )
    tried: list[tuple[str, int]] = []
    loading = loading_bytes(shape, quantization, machine)
    found = None
    for tier, changed, reason in _tiers(shape, settings, machine, loading):
        parts = parts_of(shape, changed, quantization, machine)
        total = sum(parts.values())
        tried.append((tier, total))
        found = Plan(
            parts, machine.free, max(total, loading) <= machine.free, tier, reason,
            changed.max_length, changed, tuple(tried), (shape, quantization, machine), loading,
        )  # fmt: skip
        if found.fits:
            return found
    assert found is not None
    return replace(found, reason="nothing that can be run here fits")


def _tiers(
    shape: Shape, settings: TrainSettings, machine: Machine, loading: int
) -> Iterator[tuple[str, TrainSettings, str]]:
    """Yield the tiers in the order they are tried: name, settings, why it is come to."""
    on_gpu, asked = machine.device == "cuda", settings
    first = HOST_EMBEDDING if settings.host_embedding and on_gpu else RESIDENT
    yield first, settings, "everything fits as it is"
    if not _checkpointing(settings, machine):
        settings = replace(settings, gradient_checkpointing=True)
        yield RECOMPUTED, settings, "what the layers keep for the way back does not fit"
    if settings.batch_size > 1:
        together = settings.batch_size * settings.gradient_accumulation
        settings = replace(settings, batch_size=1, gradient_accumulation=together)
        yield ONE_PAIR, settings, "a batch of several pairs does not fit"
    if shape.tied and on_gpu and settings.host_embedding is None:
        settings = replace(settings, host_embedding=True)
        yield HOST_EMBEDDING, settings, "the embedding must leave the card"
    if on_gpu:
        settings = replace(settings, activation_offloading=True, gradient_checkpointing=True)
        left = "the layers' checkpoints must leave the card"
        yield OFFLOAD, settings, f"{left} too" if settings.host_embedding else left
    for length in LENGTHS if loading <= machine.free else ():  # it helps no loading
        if length < asked.max_length:
            shorter = replace(settings, max_length=length)
            yield f"{SHORTER} {length}", shorter, f"{asked.max_length} tokens do not fit"


def loading_bytes(shape: Shape, quantization: str, machine: Machine) -> int:
    """Return what loading takes, in bytes: the whole model, and a matrix being quantised.

    An embedding for the host's memory is on the card until the model is whole.
    """
    largest = max(i * o for i, o in shape.matrices)
    unpacked = 2 * largest * machine.width if quantization == "nf4" else 0
    weights = weights_bytes(shape, quantization, machine.width)
    return weights + shape.embedding * machine.width + unpacked


def leaves(shape: Shape, settings: TrainSettings, machine: Machine) -> bool:
    """Tell whether the embedding leaves the card: a tied one, where that is asked for."""
    return bool(settings.host_embedding) and shape.tied and machine.device == "cuda"


def loaded(shape: Shape, settings: TrainSettings, quantization: str, machine: Machine) -> Plan:
    """Return the plan of a model that is loaded and not trained: its weights and the reserve.

    What replies and scores take on top is not in it: their batches are made smaller when short.
    """
    away = leaves(shape, settings, machine)
    parts = {
        "weights": weights_bytes(shape, quantization, machine.width),
        "embedding": 0 if away else shape.embedding * machine.width,
    }
    parts["reserve"] = sum(parts.values()) // RESERVE_SHARE + RESERVE
    loading = loading_bytes(shape, quantization, machine)
    return Plan(
        parts, machine.free, max(sum(parts.values()), loading) <= machine.free, RESIDENT,
        "the weights alone are counted", 0, settings, basis=(shape, quantization, machine),
        loading=loading,
    )  # fmt: skip


def refusal(name: str, found: Plan, alternatives: list[str]) -> str:
    """Return the line that says what does not fit, by how much, and what would."""
    takes = f"{gb(found.total)} at {found.length} tokens"
    if not found.length:
        takes = f"its weights with the reserve take {gb(found.total)}"
    if found.loading > found.free:
        takes = f"loading takes {gb(found.loading)}"
    line = f"{name} does not fit: {takes}, {gb(found.free)} free (an estimate)."
    if alternatives:
        return f"{line} What would: {', '.join(alternatives)}."
    return f"{line} Use a machine with more memory."


def gb(size: int) -> str:
    """Return bytes as decimal gigabytes, for people."""
    return f"{size / 1e9:.2f} GB"
