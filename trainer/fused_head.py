"""TRL's fused head with two things changed: which positions it scores, and a streamed matrix.

TRL's forward is taken as it is, by its code; only the names it looks up are others, in a copy for
one model. Nothing of TRL itself is changed, and what is put on a model can be taken off again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from trainer.memory import STREAMED_WORDS

# What TRL's forward looks up and is given another of: by tests/trainer/test_streamed_head.py too.
COMPACT, FUNCTION, WIDTH = "_use_triton", "_ChunkedLogProbFunction", "_CHUNKED_LOGPROB_CHUNK_SIZE"
NAMES = (COMPACT, FUNCTION, WIDTH)


def install(model: Any, completions_only: bool) -> Callable[[], None]:
    """Change a model's fused head, which TRL has just put on it; return what takes it off again.

    completions_only: where Triton does not run, TRL projects every position and throws away what
    is not asked for; with this only those with a label are projected, as TRL does with Triton, in
    narrower tiles. A streamed head is taken in either case. Raises RuntimeError when TRL's
    forward is not the one known here.
    """
    from trl.kernels.chunked_logprob import _use_triton

    from trainer.streamed_head import is_streamed

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    triton = _use_triton(base.device)
    streamed = is_streamed(base)
    before = base.forward
    changes: dict[str, Any] = {}
    if streamed:
        changes[FUNCTION] = _Streamed
    if completions_only and not triton:
        changes |= {COMPACT: lambda device: True, WIDTH: STREAMED_WORDS}
    if not changes:
        return lambda: None
    base.forward = MethodType(_with_names(before, changes), base)

    def take_off() -> None:
        base.forward = before

    return take_off


class _Streamed:
    """What TRL's forward finds in place of its autograd function."""

    @staticmethod
    def apply(*arguments: Any) -> Any:
        from trainer.streamed_head import StreamedLogProb

        return StreamedLogProb.apply(*arguments)  # type: ignore[no-untyped-call]


def _with_names(forward: Any, changes: dict[str, Any]) -> FunctionType:
    """Return TRL's forward with some of the names it looks up changed."""
    function = getattr(forward, "__func__", None)
    code = getattr(function, "__code__", None)
    if function is None or code is None or not set(NAMES) <= set(code.co_names):
        raise RuntimeError(
            "the model's forward is not the one TRL 1.16's add_fused_lm_head puts on it; set "
            "train.completions_only and train.host_embedding to false."
        )
    ours = FunctionType(
        code, {**function.__globals__, **changes}, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    ours.__kwdefaults__ = function.__kwdefaults__
    ours.__dict__.update(function.__dict__)  # the signature that `generate` checks against
    return ours
