"""Writing candidates: batched, left-padded, sorted by length, seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import (
    ContractError,
    GenerateSettings,
    Message,
    check_messages,
    read_rows,
)
from trainer.model import fit_messages, has_system_role, parameters, template_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALL_MODEL = 100_000_000
# Tokens (prompt and reply, padding counted) that a batch may hold: bounds the key/value cache.
BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class Job:
    """One reply to write."""

    prompt_id: str
    messages: list[Message]
    steer: str | None
    system_prompt: str | None
    sample: int


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


def write_replies(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    jobs: list[Job],
    settings: GenerateSettings,
    seed: int,
    path: Path,
    origin: dict[str, Any],
    progress: Callable[[int, int], None],
) -> int:
    """Write a reply for every job to `path`, a row a line, as batches finish; return how many.

    `origin` (model, adapter) goes into every row. `progress(done, total)` is called per batch.
    """
    import torch

    sampling = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_new_tokens": settings.max_new_tokens,
    }
    system_role = has_system_role(tokenizer)
    encoded = [(_tokens(tokenizer, job, system_role), job) for job in jobs]
    encoded.sort(key=lambda pair: -len(pair[0]))  # longest first: a lack of memory shows at once
    size = settings.batch_size or (64 if parameters(model) < SMALL_MODEL else 8)
    common = {**origin, "sampling": sampling, "template_sha256": template_sha256(tokenizer)}
    model.eval()
    done = 0
    with path.open("w", encoding="utf-8", newline="\n") as file, torch.inference_mode():
        for number, batch in enumerate(_batches(encoded, size, settings.max_new_tokens)):
            batch_seed = seed * 1_000_003 + number
            torch.manual_seed(batch_seed)
            replies = _reply(model, tokenizer, [ids for ids, _ in batch], sampling)
            for (_, job), (text, tokens, reason) in zip(batch, replies, strict=True):
                row = {
                    "prompt_id": job.prompt_id,
                    "text": text,
                    "steer": job.steer,
                    "system_prompt": job.system_prompt,
                    "sample": job.sample,
                    "seed": batch_seed,
                    "tokens": tokens,
                    "finish_reason": reason,
                    **common,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done += len(batch)
            progress(done, len(jobs))
    return done


def _tokens(tokenizer: PreTrainedTokenizerBase, job: Job, system_role: bool) -> list[int]:
    messages = fit_messages(job.messages, job.system_prompt, system_role)
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _batches(
    encoded: list[tuple[list[int], Job]], size: int, new_tokens: int
) -> Iterator[list[tuple[list[int], Job]]]:
    batch: list[tuple[list[int], Job]] = []
    for ids, job in encoded:  # sorted: the first of a batch is its longest
        longest = len(batch[0][0]) if batch else len(ids)
        full = (len(batch) + 1) * (longest + new_tokens) > BATCH_TOKENS
        if batch and (len(batch) == size or full):
            yield batch
            batch = []
        batch.append((ids, job))
    if batch:
        yield batch


def _reply(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: dict[str, Any],
) -> list[tuple[str, int, str]]:
    """Return (text, tokens, why it ended) for each prompt of one batch."""
    import torch

    width = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        pad_token_id=pad,
        **sampling,
    )
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    replies = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), None)
        text = str(tokenizer.decode(row[:end], skip_special_tokens=True)).strip()
        replies.append(
            (text, len(row) if end is None else end, "length" if end is None else "stop")
        )
    return replies
