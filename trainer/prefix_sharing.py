"""What the two replies of a pair begin with, put through the model once in training.

TRL puts a batch of B pairs through the model as 2B rows, the chosen ones and then the rejected
ones, each with the whole prompt. Here a pair is one row: the chosen row as it is, and behind it
the rejected one from where it branches off,

    [ prompt | chosen | last prompt token, rejected ]

The branch has the positions of its own row, and looks at the beginning it shares and at itself,
so every token sees what it sees in TRL's rows. The last shared token is there twice because two
tokens are predicted from it. What TRL's fused head says of each token is then put back into the
shape TRL's loss expects: loss and metrics are TRL's own and know nothing of it.

The policy's and the reference's pass both go this way: it is the base model's forward that is
wrapped, and an adapter is a matter of its layers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.batches import out_of_memory
from trainer.measure import row_length
from trainer.scoring import EXACT, ROUNDED

if TYPE_CHECKING:
    import torch

    from trainer.dpo import Emit

# How each family's text model takes a prepared mask: one for all layers (with the window, if the
# model has one), or one a kind of layer.
ONE_MASK = ("llama",)
ONE_WINDOWED = ("mistral", "ministral3")
MASK_A_KIND = ("gemma3_text",)
# These take a mask of our own; flash attention takes none.
ATTENTION = ("sdpa", "eager")
# A batch goes this way when it has at most this share of the stock way's tokens.
PAYS = 0.95
# What TRL's fused head says of each token.
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
# Arguments of a forward pass that say nothing of its tokens.
HARMLESS = ("use_cache", "return_dict", "output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class Layout:
    """Where the tokens of B pairs stand in B shared rows of W tokens."""

    chosen: torch.Tensor
    """Length of each chosen row, (B, 1); as many columns of the shared row are that row's."""
    fork: torch.Tensor
    """The token of the rejected row with which its branch begins, (B, 1)."""
    rejected: torch.Tensor
    """Length of each rejected row, (B, 1)."""
    spans: list[tuple[int, int, int]]
    """The three for each pair, on the host."""

    @property
    def width(self) -> int:
        """W, the longest shared row."""
        return max(chosen + rejected - fork for chosen, fork, rejected in self.spans)


def layout(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> Layout | None:
    """Return the layout of TRL's (2B, T) batch, or None if its padding is not on the right.

    A pair shares the tokens both rows begin with, as far as both rows learn the same of them:
    with none shared the branch is the whole rejected row. The one wait for the device is here.
    """
    import torch

    pairs = len(ids) // 2
    lengths = mask.sum(1)
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    alike = (ids[:pairs] == ids[pairs:]) & (labels[:pairs] == labels[pairs:])
    shared = (alike & real[:pairs] & real[pairs:]).long().cumprod(1).sum(1)
    shared_before = (shared - 1).clamp(min=0)
    padded_right = (real == mask.bool()).all()
    rows = torch.stack([lengths[:pairs], shared_before, lengths[pairs:]], 1)
    right, *flat = torch.cat([padded_right.long()[None], rows.flatten()]).tolist()
    if not right:
        return None
    spans = [(flat[n], flat[n + 1], flat[n + 2]) for n in range(0, 3 * pairs, 3)]
    chosen, fork, rejected = rows.T[:, :, None]
    return Layout(chosen, fork, rejected, spans)


@dataclass(frozen=True)
class Shared:
    """B shared rows of W tokens, ready for TRL's fused head."""

    ids: torch.Tensor
    positions: torch.Tensor
    """As in the row a token is of."""
    labels: torch.Tensor
    """The token that follows, or -100; (B, W)."""
    part: torch.Tensor
    """0 in the chosen row, 1 on the branch, 2 in padding; (B, W)."""


def shared_rows(ids: torch.Tensor, labels: torch.Tensor, at: Layout) -> Shared:
    """Return the shared rows of TRL's (2B, T) ids and labels."""
    import torch

    pairs, length = len(ids) // 2, ids.shape[1]
    column = torch.arange(at.width, device=ids.device)[None]
    on_trunk = column < at.chosen
    on_branch = ~on_trunk & (column < at.chosen + at.rejected - at.fork)
    # Padding stands at 0; nothing looks at it.
    positions = torch.where(on_trunk, column, (column - at.chosen + at.fork) * on_branch)
    source = positions + length * ~on_trunk

    def gathered(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows[:pairs], rows[pairs:]], 1).gather(1, source)

    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    part = on_branch.long() + 2 * ~(on_trunk | on_branch)
    return Shared(gathered(ids), positions, gathered(following).masked_fill(part == 2, -100), part)


def allowed(shared: Shared, at: Layout) -> torch.Tensor:
    """Return whether a token (second axis) may look at another (third); (B, W, W).

    Padding looks at padding, so that no token looks at nothing.
    """
    part, positions = shared.part, shared.positions
    behind = (part == 1) * at.fork  # how much of the chosen row a token comes after
    looks = part[:, :, None] == part[:, None]
    looks |= (positions[:, None] < behind[:, :, None]) & (part == 0)[:, None]
    looks &= positions[:, None] <= positions[:, :, None]
    return looks


def columns(at: Layout, pairs: int, length: int) -> torch.Tensor:
    """Return, for each token of TRL's (2B, T) rows, its column in the shared row."""
    import torch

    column = torch.arange(length, device=at.fork.device)[None]
    branch = column + torch.where(column < at.fork, 0, at.chosen - at.fork)
    return torch.cat([column.expand(pairs, -1), branch]).clamp(max=at.width - 1)


def attention_mask(config: Any, shared: Shared, at: Layout, dtype: torch.dtype) -> Any:
    """Return what stands in the mask's place, as the family takes it: (B, 1, W, W).

    For sdpa a SplitMask, else numbers to add to the scores. A sliding window counts positions, as
    it does in a row of its own.
    """
    import torch

    from trainer.split_attention import Span, SplitMask

    spans = [Span(*span) for span in at.spans]
    like = torch.empty(0, dtype=dtype, device=shared.ids.device)

    def mask(window: int | None) -> torch.Tensor:
        if config._attn_implementation == "sdpa":
            return SplitMask(spans, at.width, window, like)
        looks, positions = allowed(shared, at), shared.positions
        if window is not None:
            looks &= positions[:, None] > positions[:, :, None] - window
        least = torch.finfo(dtype).min
        return like.new_zeros(looks.shape).masked_fill_(~looks, least)[:, None]

    if config.model_type in ONE_MASK:
        return mask(None)
    if config.model_type in ONE_WINDOWED:
        return mask(config.sliding_window)
    windows = {"full_attention": None, "sliding_attention": config.sliding_window}
    return {kind: mask(windows[kind]) for kind in set(config.layer_types)}


# --- the wrapper --------------------------------------------------------------------------------


class PrefixSharing:
    """Wraps a base model's forward, under PEFT and over TRL's fused head; `remove` takes it off."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.active = True
        self.shared = self.stock = 0
        """Batches put through either way."""
        self.inner = model.forward
        self.had_own = "forward" in vars(model)

        @functools.wraps(type(model).forward)  # generate reads the signature
        def forward(_: Any, *args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

        self.outer = types.MethodType(forward, model)
        model.forward = self.outer

    def remove(self) -> None:
        """Restore the forward it found; what was put over it since then only passes on."""
        self.active = False
        if vars(self.model).get("forward") is self.outer:
            if self.had_own:
                self.model.forward = self.inner
            else:
                del self.model.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Put a batch through as shared rows if it is TRL's and that pays, else as it came."""
        if args or not self.active or not kwargs.get("fused_lm_head"):
            return self.inner(*args, **kwargs)
        found = self._layout(kwargs)
        if found is None:
            self.stock += 1
            return self.inner(**kwargs)
        self.shared += 1
        return self._forward(kwargs, found)

    def _layout(self, kwargs: dict[str, Any]) -> Layout | None:
        known = ("fused_lm_head", "input_ids", "attention_mask", "labels", *HARMLESS)
        if any(value is not None and name not in known for name, value in kwargs.items()):
            return None
        ids, mask, labels = (kwargs.get(name) for name in known[1:4])
        if ids is None or labels is None or mask is None or mask.ndim != 2 or len(ids) % 2:
            return None
        found = layout(ids, mask, labels)
        if found is None or found.width > PAYS * 2 * ids.shape[1]:
            return None
        return found

    def _forward(self, kwargs: dict[str, Any], at: Layout) -> Any:
        ids, labels = kwargs["input_ids"], kwargs["labels"]
        rows = shared_rows(ids, labels, at)
        config = self.model.config.get_text_config()
        rest = {name: value for name, value in kwargs.items() if name in HARMLESS}
        output = self.inner(
            input_ids=rows.ids,
            attention_mask=attention_mask(config, rows, at, self.model.dtype),
            position_ids=rows.positions,
            labels=None,
            shift_labels=rows.labels,
            fused_lm_head=True,
            **rest,
        )
        where = columns(at, len(ids) // 2, ids.shape[1] - 1)
        wanted = (labels[:, 1:] != -100).to(output.log_probs.device)
        where = where.to(wanted.device)
        for name in PER_TOKEN:
            value = getattr(output, name)
            if value is not None:
                both = value.repeat(2, 1).gather(1, where)
                setattr(output, name, both.masked_fill(~wanted, 0))
        output.label_mask = wanted
        output.loss = -output.log_probs.sum() / wanted.sum().clamp(min=1)
        return output


# --- on a trainer -------------------------------------------------------------------------------


@contextmanager
def sharing(trainer: Any, wanted: bool, emit: Emit) -> Iterator[PrefixSharing | None]:
    """Have a TRL DPOTrainer share prefixes while this is open; yield the wrapper, or None.

    Where a model does not take it, training is stock TRL's, and a `warning` says why.
    """
    if not wanted or not len(trainer.train_dataset):
        yield None
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reason = refusal(base)
    wrapper = None
    if reason is None:
        wrapper = PrefixSharing(base)
        try:
            reason = tried(trainer, wrapper)
        except BaseException:
            wrapper.remove()
            raise
        if reason is not None:
            wrapper.remove()
            wrapper = None
    if reason:
        emit("warning", message=f"no prefix sharing: {reason}. The prompt is computed twice.")
    try:
        yield wrapper
    finally:
        if wrapper is not None:
            wrapper.remove()


def refusal(base: Any) -> str | None:
    """Return why a base model cannot share prefixes, in words, or None."""
    from torch.nn import Dropout

    config = base.config.get_text_config()
    if config.model_type not in (*ONE_MASK, *ONE_WINDOWED, *MASK_A_KIND):
        return f"models of type {config.model_type} have not been tried with it"
    if getattr(config, "use_bidirectional_attention", None):
        return "this model looks both ways"
    if getattr(config, "attention_dropout", 0):
        return "its attention drops out at random"
    if any(isinstance(module, Dropout) and module.p > 0 for module in base.modules()):
        return "train.lora_dropout would drop the same of the prompt for both replies"
    if config._attn_implementation not in ATTENTION:
        return f"{config._attn_implementation} takes no mask of its own"
    return None


def tried(trainer: Any, wrapper: PrefixSharing) -> str | None:
    """Try both ways on real pairs; return why they are not shared, or None.

    The reason is empty where no pair is long enough in its prompt to be shared at all. Two pairs
    are tried, the longest and the shortest of those that are, together if training puts several
    through at once. Passes without gradients, before the first step: a mask that is not heeded
    would spoil a training without any other sign. They are taken as in training; a model that drops
    out at random has been refused before.
    """
    rows = [row for row in trainer.train_dataset if _pays(row, trainer.args.max_length)]
    if not rows:
        return ""
    ends = [max(rows, key=row_length), min(rows, key=lambda row: len(row["prompt_ids"]))]
    several = trainer.args.per_device_train_batch_size > 1
    was_training = trainer.model.training
    trainer.model.train()
    try:
        batches = [ends] if several else [[each] for each in ends]
        reasons = [_apart(trainer, wrapper, batch) for batch in batches]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise  # no verdict: training tries again with less
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return f"this model does not take its rows ({said[:200]})"
    finally:
        wrapper.active = True
        wrapper.shared = wrapper.stock = 0
        trainer.model.train(was_training)
    return next((reason for reason in reasons if reason), None)


def _pays(row: Mapping[str, Any], most: int | None) -> bool:
    """Tell whether a pair of tokens, cut at `most`, would be put through as one row."""
    prompt = len(row["prompt_ids"])
    chosen, rejected = (prompt + len(row[f"{side}_ids"]) for side in ("chosen", "rejected"))
    if most is not None:
        chosen, rejected = min(chosen, most), min(rejected, most)
    # The last token of the prompt is there twice.
    return chosen + rejected - prompt + 1 <= PAYS * 2 * max(chosen, rejected)


def _apart(trainer: Any, wrapper: PrefixSharing, rows: list[Any]) -> str | None:
    """Return why a batch is not put through as stock TRL does it, or None if it is alike."""
    import torch

    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    names = ("input_ids", "attention_mask")
    given = {**{name: inputs[name] for name in names}, "labels": labels, "use_cache": False}
    before = wrapper.shared
    with torch.no_grad(), trainer.accelerator.autocast(), trainer.compute_loss_context_manager():
        wrapper.active = True
        ours = trainer.model(**given, fused_lm_head=True).log_probs
        if wrapper.shared == before:
            if len(rows) == 1:
                return "its rows come in another way than the one known here"
            # Together they may not pay, where each does.
            return next((why for row in rows if (why := _apart(trainer, wrapper, [row]))), None)
        wrapper.active = False
        stock = trainer.model(**given, fused_lm_head=True).log_probs
    quantised = getattr(wrapper.model.config, "quantization_config", None) is not None
    full = wrapper.model.dtype == torch.float32 and not quantised
    apart = (ours - stock).abs().sum() / (labels != -100).sum().clamp(min=1)
    if apart <= (EXACT if full else ROUNDED):  # false for NaN too
        return None
    return "on a pair of these preferences it gives other numbers with this model"
