"""Log-probabilities of given replies, in batches, what they share computed once.

The replies to one prompt differ only from some token on. What comes before is put through the
model once; its keys and values are then repeated for each reply's rest. Before that is relied
on, it is held against plain scoring on the model at hand: where its cache is not exact, replies
are scored whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trainer.batches import Say, in_batches
from trainer.contract import BASE
from trainer.model import BATCH_TOKENS, default_batch_size

if TYPE_CHECKING:
    import torch

    from trainer.policies import Policies

# Groups scored at once on a CPU: more only leave its caches (8 took 5.0 s, 64 took 7.3 s of one
# core for 168 probes with the demo model).
CPU_BATCH = 8
# Tokens times vocabulary that a batch may ask logits for: 128 MiB in bf16, 256 MiB in fp32.
BATCH_LOGITS = 2**26
# Positions turned to fp32 at once: with Gemma 3's vocabulary 64 MiB.
FLOAT_ROWS = 64
# The mean difference a token's log-probability may show between the two ways. In fp32 they agree
# to 1e-6. In bf16, and with 4-bit kernels that choose their arithmetic by the size of a batch,
# it comes out some 0.01 apart anyway; a wrong cache moves it by far more.
EXACT, ROUNDED = 1e-4, 0.05


@dataclass(frozen=True)
class Completion:
    """Token ids of a prompt and one reply; the reply is ids[start:], with 0 < start < len(ids)."""

    ids: list[int]
    start: int


Group = tuple[Completion, ...]
"""Replies to one prompt: their ids agree at least up to where the replies begin."""


# --- one forward pass ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A padded batch: ids, mask and positions, each of shape (rows, width)."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


def _pad(rows: list[list[int]], firsts: list[int], left: bool, device: Any) -> Rows:
    """Pad token ids on one side; `firsts` are the positions of each row's first token."""
    import torch

    width = max(len(row) for row in rows)
    ids, mask, positions = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for n, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, at] = torch.tensor(row, dtype=torch.long)
        mask[n, at] = 1
        positions[n, at] = torch.arange(first, first + len(row))
    return Rows(ids.to(device), mask.to(device), positions.to(device))


def _wanted(rows: Rows, spans: list[range], left: bool) -> torch.Tensor:
    """Return a (rows, width) mask of the tokens that are in each row's span."""
    import torch

    width = rows.ids.shape[1]
    wanted = torch.zeros(rows.ids.shape, dtype=torch.bool)
    for n, span in enumerate(spans):
        offset = width - int(rows.mask[n].sum()) if left else 0
        wanted[n, span.start + offset : span.stop + offset] = True
    return wanted.to(rows.ids.device)


def plain_logits(model: Any, completions: list[Completion]) -> torch.Tensor:
    """Return the logits that predict each reply's tokens: (all replies' tokens, vocabulary).

    Rows are whole sequences padded on the right, which a causal model does not look at.
    """
    rows = _pad([c.ids[:-1] for c in completions], [0] * len(completions), False, model.device)
    wanted = _wanted(rows, [range(c.start - 1, len(c.ids) - 1) for c in completions], False)
    output = model(
        input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions,
        use_cache=False, logits_to_keep=wanted,
    )  # fmt: skip
    return output.logits  # type: ignore[no-any-return]


def _log_probabilities(logits: torch.Tensor, tokens: list[int]) -> list[float]:
    """Return the log-probability of a token for each row of logits, in fp32."""
    import torch

    ids = torch.tensor(tokens, device=logits.device)[:, None]
    found = []
    for n in range(0, len(tokens), FLOAT_ROWS):
        part = torch.log_softmax(logits[n : n + FLOAT_ROWS].float(), -1)
        found.append(part.gather(1, ids[n : n + FLOAT_ROWS])[:, 0])
    return torch.cat(found).tolist() if found else []


def _score_whole(model: Any, batch: list[Group]) -> list[list[list[float]]]:
    completions = [completion for group in batch for completion in group]
    logits = plain_logits(model, completions)
    replies = [c.ids[c.start :] for c in completions]
    flat = iter(_log_probabilities(logits, [token for reply in replies for token in reply]))
    scored = iter([[next(flat) for _ in reply] for reply in replies])
    return [[next(scored) for _ in group] for group in batch]


# --- what is shared, computed once --------------------------------------------------------------


def shared_length(group: Group) -> int:
    """Return how many tokens all of a group begin with, leaving each at least one of its own."""
    shortest = min(len(completion.ids) for completion in group)
    first = group[0].ids
    for n in range(shortest - 1):
        if any(completion.ids[n] != first[n] for completion in group):
            return n
    return shortest - 1


def _score_shared(model: Any, batch: list[Group]) -> list[list[list[float]]]:
    """Score groups with their shared beginning put through the model once.

    Two passes: the beginnings, padded on the left so that the keys kept are those next to the
    rests, also in a layer with a sliding window; then each reply's rest, on a copy of them.
    """
    import torch
    from transformers import DynamicCache

    shared = [shared_length(group) for group in batch]
    lows = [min(min(c.start for c in g), n) for g, n in zip(batch, shared, strict=True)]
    heads = [group[0].ids[:n] for group, n in zip(batch, shared, strict=True)]
    rows = _pad(heads, [0] * len(batch), True, model.device)
    # The last of them predicts where the replies part.
    spans = [range(low - 1, n) for low, n in zip(lows, shared, strict=True)]
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions,
        past_key_values=cache, use_cache=True, logits_to_keep=_wanted(rows, spans, True),
    ).logits  # fmt: skip
    starts = torch.tensor([0, *[len(span) for span in spans]]).cumsum(0).tolist()
    owners = [n for n, group in enumerate(batch) for _ in group]
    completions = [completion for group in batch for completion in group]
    rests = _rests(model, cache, rows.mask, completions, owners, shared)
    scored = []
    for completion, owner, rest in zip(completions, owners, rests, strict=True):
        low, n = lows[owner], shared[owner]
        own = logits[starts[owner] : starts[owner + 1]]
        known = _log_probabilities(own, completion.ids[low : n + 1])
        scored.append((known + rest)[completion.start - low :])
    found = iter(scored)
    return [[next(found) for _ in group] for group in batch]


def _rests(
    model: Any,
    cache: Any,
    mask: torch.Tensor,
    completions: list[Completion],
    owners: list[int],
    shared: list[int],
) -> list[list[float]]:
    """Return the log-probabilities of what follows the first token after the shared beginning."""
    import torch

    tails = [c.ids[shared[owner] :] for c, owner in zip(completions, owners, strict=True)]
    if all(len(tail) == 1 for tail in tails):
        return [[] for _ in tails]
    index = torch.tensor(owners, device=model.device)
    cache.batch_select_indices(index)
    inputs = [tail[:-1] or tail for tail in tails]  # a row cannot be empty; its logits are not used
    rows = _pad(inputs, [shared[owner] for owner in owners], False, model.device)
    wanted = _wanted(rows, [range(len(tail) - 1) for tail in tails], False)
    logits = model(
        input_ids=rows.ids, attention_mask=torch.cat([mask[index], rows.mask], 1),
        position_ids=rows.positions, past_key_values=cache, use_cache=True, logits_to_keep=wanted,
    ).logits  # fmt: skip
    flat = iter(_log_probabilities(logits, [token for tail in tails for token in tail[1:]]))
    return [[next(flat) for _ in tail[1:]] for tail in tails]


# --- scoring ------------------------------------------------------------------------------------


class Scorer:
    """Scores groups of replies on one model; tries once whether its cache can be shared.

    share=False: nothing is tried, and each reply is scored with its whole prompt.
    """

    def __init__(
        self, model: Any, say: Say, batch_size: int | None = None, share: bool = True
    ) -> None:
        self.model = model
        self.say = say
        on_cpu = model.device.type == "cpu"
        self.size = batch_size or (CPU_BATCH if on_cpu else default_batch_size(model))
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.shares: bool | None = None if share else False

    def score(
        self, groups: Sequence[Group], progress: Callable[[int], None] = lambda done: None
    ) -> list[list[list[float]]]:
        """Return, for each group, for each of its replies, its tokens' log-probabilities.

        The model answers as it stands: its adapter on, off or another, as the caller has set it.
        """
        import torch

        self.model.eval()
        order = sorted(range(len(groups)), key=lambda n: -_length(groups[n]))  # longest first
        ordered = [groups[n] for n in order]
        with torch.inference_mode():
            if self.shares is None and ordered:
                self.shares = cache_is_exact(self.model, [ordered[0], ordered[-1]])
                if not self.shares:
                    self.say("this model's cache cannot be shared: replies are scored whole.")
            one = _score_shared if self.shares else _score_whole
            results = in_batches(
                ordered, self.size, self._cost, lambda batch: one(self.model, batch), self.say,
                progress,
            )  # fmt: skip
        scored: list[list[list[float]]] = [[] for _ in groups]
        for n, result in zip(order, results, strict=True):
            scored[n] = result
        return scored

    def _cost(self, batch: list[Group]) -> float:
        """Return the share of a batch's bounds that these groups take."""
        longest = max(_length(group) for group in batch)
        count = sum(len(group) for group in batch)
        wanted = sum(len(c.ids) - c.start for group in batch for c in group)
        return max(count * longest / BATCH_TOKENS, wanted * self.vocabulary / BATCH_LOGITS)


def _length(group: Group) -> int:
    return max(len(completion.ids) for completion in group)


def cache_is_exact(model: Any, groups: list[Group]) -> bool:
    """Tell whether sharing a beginning gives what plain scoring gives, on these groups.

    Wanted are groups of unlike length, so that padding and a sliding window are tried too.
    """
    import torch

    try:
        shared = _score_shared(model, groups)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # a cache of another kind (or no room for one): the caller says so
    whole = [_score_whole(model, [group])[0] for group in groups]
    differences = [
        abs(a - b)
        for ours, plain in zip(shared, whole, strict=True)
        for left, right in zip(ours, plain, strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    quantised = getattr(model.config, "quantization_config", None) is not None
    bound = EXACT if model.dtype == torch.float32 and not quantised else ROUNDED
    return sum(differences) / len(differences) <= bound  # false for NaN too


def prompt_cache_is_exact(model: Any, prompts: list[list[int]]) -> bool:
    """Tell whether prompts computed once can be gone on from, each in two ways, on this model.

    Wanted are prompts of unlike length, as for `cache_is_exact`.
    """
    # What follows is of no matter; the prompt's own beginning, and the same from a token later.
    return cache_is_exact(model, [
        tuple(Completion(ids + ids[n : n + 8], len(ids)) for n in (0, 1)) for ids in prompts
    ])  # fmt: skip


def kl_to_base(
    policies: Policies,
    name: str,
    completions: Sequence[Completion],
    scorer: Scorer,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Return KL(policy || base) in nats, the mean over each reply's tokens, whole vocabulary.

    Both distributions are at temperature 1 and follow the same words: those of the reply.
    """
    import torch

    def one(batch: list[Completion]) -> list[float]:
        with policies.using(name):
            policy = plain_logits(policies.model, batch)
        with policies.using(BASE):
            base = plain_logits(policies.model, batch)
        terms: list[float] = []
        for n in range(0, len(policy), FLOAT_ROWS):
            log_p = torch.log_softmax(policy[n : n + FLOAT_ROWS].float(), -1)
            log_q = torch.log_softmax(base[n : n + FLOAT_ROWS].float(), -1)
            terms += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
        flat = iter(terms)
        return [fmean(islice(flat, len(c.ids) - c.start)) for c in batch]

    order = sorted(range(len(completions)), key=lambda n: -len(completions[n].ids))
    with torch.inference_mode():
        found = in_batches(
            [completions[n] for n in order], scorer.size,
            lambda batch: 2 * scorer._cost([(completion,) for completion in batch]),
            one, scorer.say, progress,
        )  # fmt: skip
    return [value for _, value in sorted(zip(order, found, strict=True))]
