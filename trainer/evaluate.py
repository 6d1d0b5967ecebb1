"""Held-out reward accuracy and margin, each with n and an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.intervals import mean_interval, wilson_interval
from trainer.model import fit_messages, has_system_role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def reward_margins(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    beta: float,
    max_length: int,
) -> tuple[list[float], int]:
    """Return beta * ((chosen - reference) - (rejected - reference)) of log-probabilities, per row.

    Beside it, how many rows were left out because their prompt fills `max_length`, as TRL does.
    The reference is the model with its adapter off. Tokens are prepared as TRL's DPOTrainer
    prepares them; completions are cut at `max_length`. Rafailov et al. 2023, eq. 7.
    """
    import torch

    system_role = has_system_role(tokenizer)
    margins, too_long = [], 0
    model.eval()
    with torch.inference_mode():
        for row in rows:
            prompt = fit_messages(row["prompt"], None, system_role)
            sides = [
                _completion(tokenizer, prompt, row[side], max_length)
                for side in ("chosen", "rejected")
            ]
            if any(start >= len(ids) for ids, start in sides):
                too_long += 1
                continue
            scores = []
            for ids, start in sides:
                policy = _log_probability(model, ids, start)
                with model.disable_adapter():
                    scores.append(policy - _log_probability(model, ids, start))
            margins.append(beta * (scores[0] - scores[1]))
    return margins, too_long


def _completion(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, reply: Any, max_length: int
) -> tuple[list[int], int]:
    """Return token ids of prompt and reply, and where the reply starts."""
    from trl.data_utils import _tokenize, common_prefix_length

    prompt_ids = _tokenize(tokenizer, prompt, add_generation_prompt=True)["input_ids"]
    ids = _tokenize(tokenizer, prompt + reply)["input_ids"]
    return ids[:max_length], common_prefix_length(prompt_ids, ids)


def _log_probability(model: Any, ids: list[int], start: int) -> float:
    """Return the summed log-probability of ids[start:], given what comes before."""
    import torch

    tokens = torch.tensor([ids], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1].float()
    chosen = torch.log_softmax(logits, -1).gather(1, tokens[0, start:, None])
    return float(chosen.sum())


def summarise_margins(margins: list[float]) -> dict[str, Any]:
    """Return accuracy and mean margin under TRL's names, with n and 95 % intervals."""
    n = len(margins)
    right = sum(margin > 0 for margin in margins)
    return {
        "n": n,
        "rewards/accuracies": right / n,
        "rewards/accuracies_interval": list(wilson_interval(right, n)),
        "rewards/margins": sum(margins) / n,
        "rewards/margins_interval": list(mean_interval(margins)),
    }
