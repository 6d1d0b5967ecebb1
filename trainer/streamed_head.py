"""A tied matrix (embedding and head) in host memory; the head streamed to the device in tiles.

The head is frozen, so a pass needs each of its words once: a tile of the matrix is copied to the
device, used, and written over by the next. The embedding is looked up on the host, and only the
rows of the ids travel. Of Gemma 3 4B that leaves 84 MB of 1.34 GB on the card. The way with CUDA
(a stream of its own, page-locked memory) has not been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional
from trl.kernels import chunked_logprob as trl_head

from trainer.contract import ContractError
from trainer.memory import STREAMED_WORDS


class HostMatrix:
    """A (words, hidden) matrix in host memory, given out in tiles on another device.

    It stands where TRL looks for the head's weight: `device` is where the head computes.
    """

    def __init__(self, matrix: torch.Tensor, device: torch.device, words: int) -> None:
        self.matrix, self.device, self.words = matrix, device, words
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self._copies: torch.cuda.Stream | None = None

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first word, tile), a tile being (at most `words`, hidden) on `device`.

        A tile is valid until the next one is asked for.
        """
        if self.device.type == "cuda":
            yield from self._prefetched(dtype)
            return
        for start in range(0, len(self.matrix), self.words):
            yield start, self.matrix[start : start + self.words].to(self.device, dtype)

    def _prefetched(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """As `tiles`, the next tile on its way (on a stream of its own) while one is at work."""
        here = torch.cuda.current_stream(self.device)
        if self._copies is None:
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        copies = self._copies
        size = min(self.words, len(self.matrix))
        buffers = [
            torch.empty(size, self.shape[1], dtype=self.dtype, device=self.device) for _ in "ab"
        ]
        event: Any = torch.cuda.Event
        arrived, used = ([event() for _ in "ab"] for _ in "ab")
        for buffer, free in zip(buffers, used, strict=True):
            # Left early (an error), a buffer is given back only once its copy has ended.
            buffer.record_stream(copies)
            free.record(here)  # who had this memory before is done by then
        starts = range(0, len(self.matrix), self.words)

        def fetch(n: int) -> None:
            part = self.matrix[starts[n] : starts[n] + self.words]
            with torch.cuda.stream(copies):
                copies.wait_event(used[n % 2])
                buffers[n % 2][: len(part)].copy_(part, non_blocking=True)
                arrived[n % 2].record(copies)

        fetch(0)
        for n, start in enumerate(starts):
            if n + 1 < len(starts):
                fetch(n + 1)
            here.wait_event(arrived[n % 2])
            yield start, buffers[n % 2][: len(self.matrix) - start].to(dtype)
            used[n % 2].record(here)


class HostEmbedding(torch.nn.Module):
    """An embedding looked up in host memory; its rows go to where the ids are.

    The embedding's own module does it (Gemma's scales what it finds). It is no submodule, so that
    nothing moves, counts or saves it.
    """

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        super().__init__()
        self._held = (embedding,)

    @property
    def held(self) -> torch.nn.Embedding:
        """The embedding's own module, with the matrix."""
        return self._held[0]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of (rows, width) ids: (rows, width, hidden)."""
        rows: torch.Tensor = self.held(input_ids.cpu())
        return rows.to(input_ids.device)


class StreamedHead(torch.nn.Module):
    """The head of a HostMatrix: logits for who asks for logits, without a gradient."""

    bias = None

    def __init__(self, weight: HostMatrix) -> None:
        super().__init__()
        self._held = (weight,)

    @property
    def weight(self) -> HostMatrix:
        """What TRL's fused head finds in place of the weight."""
        return self._held[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of (…, hidden): (…, words). Raises RuntimeError with a gradient."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise RuntimeError(
                "a streamed head's logits have no gradient: train with fused_lm_head=True."
            )
        logits: torch.Tensor | None = None
        for start, tile in self.weight.tiles(self.weight.dtype):
            part = functional.linear(hidden, tile)
            if logits is None:
                logits = part.new_empty(*part.shape[:-1], len(self.weight.matrix))
            logits[..., start : start + len(tile)] = part
        assert logits is not None
        return logits


# --- on a model -----------------------------------------------------------------------------------


def is_streamed(model: Any) -> bool:
    """Tell whether the model's head is streamed already."""
    return isinstance(model.get_output_embeddings(), StreamedHead)


def is_tied(model: Any) -> bool:
    """Tell whether the model's head is its embedding, and has no bias: what can be streamed."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return (
        isinstance(head, torch.nn.Linear)
        and isinstance(embedding, torch.nn.Embedding)
        and head.weight is embedding.weight
        and head.bias is None
    )


def to_host(model: Any, words: int = STREAMED_WORDS) -> None:
    """Move a model's tied matrix to host memory and stream its head; done once, nothing more.

    accelerate's hooks would copy the whole matrix at every use. Raises ContractError when the
    head is not the embedding.
    """
    if is_streamed(model):
        return
    if not is_tied(model):
        raise ContractError(
            "train.host_embedding needs a head that is the embedding (tie_word_embeddings), and "
            "this model's is not. Leave the setting out."
        )
    embedding = model.get_input_embeddings()
    given = embedding.weight.detach()
    matrix = _on_host(given)
    embedding.weight = torch.nn.Parameter(matrix, requires_grad=False)
    model.set_input_embeddings(HostEmbedding(embedding.to("cpu")))
    model.set_output_embeddings(StreamedHead(HostMatrix(matrix, given.device, words)))


def _on_host(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix in host memory, page-locked if it came from a GPU; on a CPU itself."""
    if matrix.device.type == "cpu":
        return matrix
    try:
        place = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=True)
    except RuntimeError:  # the system locks no more: copies are slower, and as right
        place = torch.empty(matrix.shape, dtype=matrix.dtype)
    return place.copy_(matrix)


# --- log-probabilities ----------------------------------------------------------------------------


class StreamedLogProb(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction with a HostMatrix as weight; a gradient to the hidden states.

    Same arguments, outputs and arithmetic, TRL's own kernels. Here a tile of words is the outer
    loop and a chunk of tokens the inner one, so that each tile travels once a pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: HostMatrix,
        bias: None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = trl_head.OPTIONAL_OUTPUTS,
    ) -> tuple[torch.Tensor | None, ...]:
        """Return log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1, each (tokens,).

        `hidden` is (tokens, hidden), `targets` (tokens,); what `outputs` lacks is None.
        `chunk_size` is TRL's width of a tile; here it is the matrix's.
        """
        ctx.set_materialize_grads(False)
        ctx.weight, ctx.dtype = weight, _compute_dtype(hidden)
        ctx.scales = {
            "logit_scale": logit_scale,
            "softcap": final_logit_softcapping or 1.0,
            "inv_t": 1 / temperature,
            "HAS_SOFTCAP": final_logit_softcapping is not None,
        }
        wanted = {f"HAS_{n.upper()}": n in outputs for n in trl_head.OPTIONAL_OUTPUTS}
        running = _fold(hidden, weight, targets, ctx.dtype, {**wanted, **ctx.scales})
        top, sums, x_sums, sq_sums, z_sums, before, target = running
        log_z = top + sums.log()
        found = {
            "entropy": log_z - x_sums / sums,
            "log_sum_sq_probs": sq_sums.log() - 2 * sums.log(),
            "mean_logits": z_sums / len(weight.matrix),
            "is_top1": (target >= top) & (target > before),
        }
        optional = [
            found[n] if n in outputs else None
            for n in ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        ]
        entropy = log_z if optional[0] is None else optional[0]
        ctx.save_for_backward(hidden, targets, log_z, entropy)
        ctx.mark_non_differentiable(*(x for x in optional[1:] if x is not None))
        return target - log_z, *optional

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient to the hidden states: each tile is computed again."""
        hidden, targets, log_z, entropy = ctx.saved_tensors
        to_log_probs, to_entropy = (
            None if grad is None else grad.float().contiguous() for grad in grads[:2]
        )
        flags = {
            "HAS_LOGPROB_GRAD": to_log_probs is not None,
            "HAS_ENTROPY_GRAD": to_entropy is not None,
            **ctx.scales,
        }
        # Where there is no gradient TRL's kernels want a tensor in its place all the same.
        rows = [
            targets, log_z, entropy,
            log_z if to_log_probs is None else to_log_probs,
            log_z if to_entropy is None else to_entropy,
        ]  # fmt: skip
        found = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        for start, tile, at, logits in _projected(hidden, ctx.weight, ctx.dtype):
            _backward_kernel(logits)(
                logits, logits.stride(0), *(row[at] for row in rows), start, len(tile),
                BLOCK_SIZE=trl_head._BLOCK_SIZE, **flags,
            )  # fmt: skip
            trl_head._addmm_fp32(found[at], logits, tile)
        return found.to(hidden.dtype), *[None] * 8


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the type TRL's head computes in: autocast's where that is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _projected(
    hidden: torch.Tensor, weight: HostMatrix, dtype: torch.dtype
) -> Iterator[tuple[int, torch.Tensor, slice, torch.Tensor]]:
    """Yield (first word, tile, tokens, their logits for the tile).

    The logits lie in a buffer that the next ones are written to.
    """
    count = len(hidden)
    step = trl_head.TOKEN_CHUNK_SIZE
    width = min(weight.words, len(weight.matrix))
    buffer = torch.empty((min(count, step), width), dtype=dtype, device=hidden.device)
    for start, tile in weight.tiles(dtype):
        for first in range(0, count, step):
            at = slice(first, min(first + step, count))
            logits = buffer[: at.stop - first, : len(tile)]
            torch.mm(hidden[at].to(dtype), tile.t(), out=logits)
            yield start, tile, at, logits


def _fold(
    hidden: torch.Tensor,
    weight: HostMatrix,
    targets: torch.Tensor,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> list[torch.Tensor]:
    """Return TRL's running statistics over the whole vocabulary, each (tokens,) in fp32.

    In the order of its kernels: maximum, sum of exp, sum of x exp, sum of squared exp, sum of
    logits, maximum before the target, the target's logit.
    """
    running = [
        torch.full((len(hidden),), start, dtype=torch.float32, device=hidden.device)
        for start in (float("-inf"), 0.0, 0.0, 0.0, 0.0, float("-inf"), 0.0)
    ]
    for start, tile, at, logits in _projected(hidden, weight, dtype):
        _forward_kernel(logits)(
            logits, logits.stride(0), targets[at], *(row[at] for row in running), start, len(tile),
            BLOCK_SIZE=trl_head._BLOCK_SIZE, **options,
        )  # fmt: skip
    return running


def _forward_kernel(logits: torch.Tensor) -> Any:
    """Return what folds a tile of logits into the running statistics: Triton's where it runs."""
    if trl_head._use_triton(logits.device):
        return trl_head._forward_kernel[(len(logits),)]
    return trl_head._forward_tile


def _backward_kernel(logits: torch.Tensor) -> Any:
    """Return what turns a tile of logits into their gradient, in place."""
    if trl_head._use_triton(logits.device):
        blocks = -(-logits.shape[1] // trl_head._BLOCK_SIZE)
        return trl_head._backward_kernel[(len(logits), blocks)]
    return trl_head._backward_tile
