"""Attention over shared rows (trainer.prefix_sharing), in the parts that are not masked out.

A shared row holds two sequences, and half of a mask over both would be of tokens that may not
look at each other. Here the chosen row attends to itself, causally, as it does by itself, and the
branch to the beginning it shares and to itself: with a prompt of 1,024 tokens and replies of 128
that is half of what one mask computes, and no more than in stock TRL's two rows.

It comes to transformers' sdpa attention in the mask's place: a tensor that stands for a mask of
(B, 1, W, W), holds none, and answers nothing but `scaled_dot_product_attention`. Layers that are
recomputed in the backward pass get it again as the argument it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

# What may be asked of it without a mask being there.
ANSWERS = tuple(
    getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")
)


@dataclass(frozen=True)
class Span:
    """One pair's tokens in its shared row: the chosen row, then the rejected one from `fork` on."""

    chosen: int
    fork: int
    rejected: int


class SplitMask(torch.Tensor):
    """Stands for the mask of B shared rows of W tokens; `window` is a sliding one's, in tokens."""

    parts: list[tuple[Span, torch.Tensor | None, torch.Tensor]]
    """Each pair's span, the mask of its chosen row (None: causal), and that of its branch."""

    def __new__(
        cls, spans: Sequence[Span], width: int, window: int | None, like: torch.Tensor
    ) -> SplitMask:
        """`like` is a tensor of the type and on the device the scores are of."""
        nothing = like.new_zeros(1).expand(len(spans), 1, width, width)
        made = nothing.as_subclass(cls)
        made.parts = []
        for span in spans:
            branch = _mask(span.fork, span.rejected, window, like)
            slides = window is not None and window < span.chosen
            trunk = _mask(0, span.chosen, window, like) if slides else None
            made.parts.append((span, trunk, branch))
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _split(*args, **(kwargs or {}))
        if func in ANSWERS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise TypeError(f"a mask of shared rows was asked for {func}")


def _mask(first: int, end: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return what is added to the scores of the tokens from `first` on: (end - first, end)."""
    query = torch.arange(first, end, device=like.device)[:, None]
    key = torch.arange(end, device=like.device)[None]
    barred = key > query
    if window is not None:
        barred |= key <= query - window
    least = torch.finfo(like.dtype).min
    return like.new_zeros(barred.shape).masked_fill_(barred, least)


def _split(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: SplitMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return the attention of (B, heads, W, size) tensors; zeros where a row is padding."""
    rows = []
    how: dict[str, Any] = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
    for n, (span, trunk, branch) in enumerate(attn_mask.parts):
        end = span.chosen + span.rejected - span.fork
        q, k, v = (each[n : n + 1, :, :end] for each in (query, key, value))
        head, tail = slice(0, span.chosen), slice(span.chosen, end)
        chosen = scaled_dot_product_attention(
            q[:, :, head], k[:, :, head], v[:, :, head],
            attn_mask=trunk, is_causal=trunk is None, **how,
        )  # fmt: skip
        seen, said = (torch.cat([each[:, :, : span.fork], each[:, :, tail]], 2) for each in (k, v))
        rejected = scaled_dot_product_attention(q[:, :, tail], seen, said, attn_mask=branch, **how)
        row = torch.cat([chosen, rejected], 2)
        rows.append(pad(row, (0, 0, 0, query.shape[2] - end)))
    return torch.cat(rows) if len(rows) > 1 else rows[0]
