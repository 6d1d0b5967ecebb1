"""Writing candidates: batched, left-padded, sorted by length, seeded.

A prompt that has several replies in a batch is put through the model once: its keys and values are
repeated for each of them. The draws stay what they were, since they depend on a batch alone.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.batches import by_batch, out_of_memory
from trainer.contract import (
    ContractError,
    GenerateSettings,
    Message,
    check_messages,
    read_rows,
)
from trainer.model import (
    BATCH_TOKENS,
    default_batch_size,
    fit_messages,
    has_system_role,
    own_sampling,
    template_sha256,
)
from trainer.scoring import prompt_cache_is_exact

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """One reply to write."""

    prompt_id: str
    messages: list[Message]
    steer: str | None
    system_prompt: str | None
    sample: int


@dataclass(frozen=True)
class Reply:
    """One reply as it was drawn."""

    job: Job
    prompt_ids: list[int]
    ids: list[int]
    """Its tokens, the one that ends it included where there is one."""
    text: str
    tokens: int
    """Without the one that ends it."""
    finish_reason: str
    seed: int


Encoded = tuple[list[int], Job]
"""A prompt's token ids, and what is asked for with it."""


def read_prompts(path: Path) -> list[tuple[str, list[Message]]]:
    """Read rows of {"id", "prompt"}. Raises ContractError naming path and line."""
    prompts = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}: prompt"
        prompts.append(
            (str(row.get("id", number)), check_messages(row.get("prompt"), ("user",), where))
        )
    if not prompts:
        raise ContractError(f"{path}: no prompts in it.")
    return prompts


def candidate_jobs(
    prompts: list[tuple[str, list[Message]]], settings: GenerateSettings, seed: int
) -> list[Job]:
    """Return the replies to write: two steered ones a prompt, or `samples` plain ones.

    With `contrast` one of the two is always the boundaried one; the other is agreeable two
    times in three, else cold, so that both errors are judged. The draw is seeded by the prompt.
    """
    jobs = []
    for prompt_id, messages in prompts:
        if settings.strategy == "sample":
            jobs += [Job(prompt_id, messages, None, None, n) for n in range(settings.samples)]
            continue
        draw = random.Random(f"{seed}:{prompt_id}")
        for steer in ("boundaried", draw.choice(("agreeable", "agreeable", "cold"))):
            jobs.append(Job(prompt_id, messages, steer, settings.steers[steer], 0))
    return jobs


def short_enough(
    tokenizer: PreTrainedTokenizerBase, jobs: list[Job], settings: GenerateSettings
) -> tuple[list[Job], int]:
    """Return the jobs whose prompt is within `max_prompt_tokens`, and how many prompts are not."""
    system_role = has_system_role(tokenizer)
    too_long = {
        job.prompt_id
        for job in jobs
        if len(_tokens(tokenizer, job, system_role)) > settings.max_prompt_tokens
    }
    return [job for job in jobs if job.prompt_id not in too_long], len(too_long)


def plain_jobs(prompts: list[tuple[str, list[Message]]]) -> list[Job]:
    """Return one reply a prompt, without a steer: for a side of a duel, or to see drift on."""
    return [Job(prompt_id, messages, None, None, 0) for prompt_id, messages in prompts]


def sampling_of(settings: GenerateSettings, config: Any = None) -> dict[str, Any]:
    """Return how replies are drawn, under the model's own names.

    With the model's generation_config, what that brings beside: recorded with each reply, and in
    effect without being asked for.
    """
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_new_tokens": settings.max_new_tokens,
        **own_sampling(config),
    }


def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    jobs: list[Job],
    settings: GenerateSettings,
    seed: int,
    first: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[list[Reply]]:
    """Yield the replies to all jobs, a batch at a time, those to the longest prompts first.

    Batches are numbered from `first`; each is drawn from a seed of its own, so where memory is
    short and batches become smaller, other replies are drawn. `say` is told that, and when prompts
    are not shared though they could be. Raises ContractError when one reply at a time is too much.
    """
    import torch

    encoded = _longest_first(tokenizer, jobs)
    size = settings.batch_size or default_batch_size(model)
    model.eval()
    shares, number = None if settings.share_prefix else False, first

    def write(batch: list[Encoded]) -> list[Reply]:
        nonlocal shares
        prompts = [ids for ids, _ in batch]
        with torch.inference_mode():
            if shares is None and _repeat(prompts):
                shares = prompt_cache_is_exact(model, [encoded[0][0], encoded[-1][0]])
                if not shares:
                    say("this model's cache cannot be shared: a prompt is computed for each reply.")
            batch_seed = seed * 1_000_003 + number
            torch.manual_seed(batch_seed)
            drawn = _reply(model, tokenizer, prompts, sampling_of(settings), bool(shares))
        both = zip(batch, drawn, strict=True)
        return [Reply(job, prompt, *reply, batch_seed) for (prompt, job), reply in both]

    try:
        for replies in by_batch(encoded, size, _cost(settings.max_new_tokens), write, say):
            yield replies
            number += 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ContractError(_too_much(settings)) from error


def write_replies(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    jobs: list[Job],
    settings: GenerateSettings,
    seed: int,
    path: Path,
    origin: dict[str, Any],
    progress: Callable[[int, int], None],
    side: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> int:
    """Write a reply for every job to `path`, a row a line, as batches finish; return how many.

    All of them are on the disk when it returns.
    `origin` (model, adapter) goes into every row. `progress(done, total)` is called per batch.
    The replies of a second side (1) are added to those of the first, from other draws.
    """
    common = {
        **origin,
        "sampling": sampling_of(settings, model.generation_config),
        "template_sha256": template_sha256(tokenizer),
    }
    done = 0
    with path.open("a" if side else "w", encoding="utf-8", newline="\n") as file:
        # A side has at most a batch a job: the second's numbers begin after any of the first's.
        for replies in sample(model, tokenizer, jobs, settings, seed, side * len(jobs), say):
            for reply in replies:
                row = {
                    "prompt_id": reply.job.prompt_id,
                    "text": reply.text,
                    "steer": reply.job.steer,
                    "system_prompt": reply.job.system_prompt,
                    "sample": reply.job.sample,
                    "seed": reply.seed,
                    "tokens": reply.tokens,
                    "finish_reason": reply.finish_reason,
                    **common,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done += len(replies)
            progress(done, len(jobs))
        os.fsync(file.fileno())  # before the manifest that vouches for them
    return done


def _tokens(tokenizer: PreTrainedTokenizerBase, job: Job, system_role: bool) -> list[int]:
    messages = fit_messages(job.messages, job.system_prompt, system_role)
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _longest_first(tokenizer: PreTrainedTokenizerBase, jobs: list[Job]) -> list[Encoded]:
    """Return the jobs with their tokens, so that a lack of memory shows at once."""
    system_role = has_system_role(tokenizer)
    encoded = [(_tokens(tokenizer, job, system_role), job) for job in jobs]
    return sorted(encoded, key=lambda pair: -len(pair[0]))


def _cost(new_tokens: int) -> Callable[[list[Encoded]], float]:
    """Return what tells a batch's share of BATCH_TOKENS; the first prompt in it is its longest."""
    return lambda batch: len(batch) * (len(batch[0][0]) + new_tokens) / BATCH_TOKENS


def _too_much(settings: GenerateSettings) -> str:
    return (
        f"out of memory with one reply at a time, of up to {settings.max_new_tokens} tokens to a "
        f"prompt of up to {settings.max_prompt_tokens}. Lower generate.max_new_tokens or "
        "generate.max_prompt_tokens (longer prompts are left out), or take a smaller model."
    )


def _repeat(prompts: list[list[int]]) -> bool:
    """Tell whether a prompt is there twice, with something to compute but its last token."""
    return len(set(map(tuple, prompts))) < len(prompts) and min(map(len, prompts)) > 1


def _computed_once(
    model: Any, prompts: list[list[int]], ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, Any]:
    """Return generate's argument that gives it every prompt but its last token as computed.

    `ids` and `mask` are the prompts padded on the left, (prompts, width).
    """
    import torch
    from transformers import DynamicCache

    places: dict[tuple[int, ...], int] = {}
    owners = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    firsts = [owners.index(n) for n in range(len(places))]
    heads, head_mask = ids[firsts, :-1], mask[firsts, :-1]
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(
        input_ids=heads, attention_mask=head_mask,
        position_ids=(head_mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    cache.batch_select_indices(torch.tensor(owners, device=ids.device))
    return {"past_key_values": cache}


def _reply(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: dict[str, Any],
    shares: bool = False,
) -> list[tuple[list[int], str, int, str]]:
    """Return (token ids with the end, text, tokens, why it ended) for each prompt of a batch.

    With `shares`, prompts that are there several times are computed once.
    """
    import torch

    width = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    begun = _computed_once(model, prompts, ids, mask) if shares and _repeat(prompts) else {}
    output = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, pad_token_id=pad, **sampling, **begun
    )
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    replies = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        text = str(tokenizer.decode(row[:end], skip_special_tokens=True)).strip()
        if end is None:
            replies.append((row, text, len(row), "length"))
        else:
            replies.append((row[: end + 1], text, end, "stop"))
    return replies
