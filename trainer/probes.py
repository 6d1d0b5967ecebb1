"""Probes: client texts with two reference replies, scored by every policy, never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import ContractError, Message, check_messages, read_rows
from trainer.model import fit_messages, has_system_role
from trainer.scoring import Completion, Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("single", "pressure", "both_sides")
REFERENCES = ("boundary_aware", "collusive", "over_corrected")


@dataclass(frozen=True)
class Probe:
    """One probe, as data/probes.jsonl has it."""

    id: str
    family: str
    kind: str
    conflict: str | None
    """What the two probes of one conflict, told from either side, have in common."""
    prompt: list[Message]
    replies: dict[str, str]
    """boundary_aware, and either collusive or over_corrected."""


def read_probes(path: Path) -> list[Probe]:
    """Read probe rows. Raises ContractError naming path and line."""
    probes: list[Probe] = []
    seen: set[str] = set()
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        probe = _probe(row, where)
        if probe.id in seen:
            raise ContractError(f"{where}: the id {probe.id[:60]!r} is there twice.")
        seen.add(probe.id)
        probes.append(probe)
    if not probes:
        raise ContractError(f"{path}: no probes in it.")
    return probes


def _probe(row: dict[str, Any], where: str) -> Probe:
    kind = row.get("kind")
    if kind not in KINDS:
        raise ContractError(f"{where}: kind is {str(kind)[:60]!r}; it is {' or '.join(KINDS)}.")
    names = [name for name in REFERENCES if row.get(name) is not None]
    if len(names) != 2 or names[0] != REFERENCES[0]:
        raise ContractError(
            f"{where}: a probe has boundary_aware and one of collusive and over_corrected."
        )
    replies = {name: _text(row, name, where) for name in names}
    if len({folded(text) for text in replies.values()}) < 2:
        raise ContractError(f"{where}: its two reference replies are the same.")
    prompt = check_messages(row.get("prompt"), ("user",), f"{where}: prompt")
    for message in prompt:
        _text(message, "role", f"{where}: prompt")
        _text(message, "content", f"{where}: prompt")
    conflict = None if row.get("conflict") is None else _text(row, "conflict", where)
    return Probe(
        _text(row, "id", where), _text(row, "family", where), kind, conflict, prompt, replies
    )  # fmt: skip


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a field that is a text with something in it, and can be written in UTF-8."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ContractError(f"{where}: {name} must be a text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ContractError(f"{where}: {name} holds half a character (a surrogate).") from None
    return value


def folded(text: str) -> str:
    """Return a text in one case, every run of white space a single space."""
    return " ".join(text.split()).casefold()


def _conversation(messages: list[Message]) -> tuple[tuple[str, str], ...]:
    """Return a conversation to compare by; a system message is no client's text."""
    return tuple((m["role"], folded(m["content"])) for m in messages if m["role"] != "system")


def check_apart(probes: list[Probe], rows: list[dict[str, Any]], pairs: Path) -> None:
    """Refuse probes whose prompt is among the preference rows.

    White space and case do not count. A reference reply alone is no reason: a model may write it
    by itself, to another prompt. Raises ContractError naming the file and the probe.
    """
    prompts = {_conversation(row["prompt"]) for row in rows}
    for probe in probes:
        if _conversation(probe.prompt) in prompts:
            raise ContractError(
                f"{pairs}: the prompt of the probe {probe.id} is among the preferences, and what "
                "a model is measured with must not teach it. Take the row or the probe out."
            )


def probe_groups(
    tokenizer: PreTrainedTokenizerBase, probes: list[Probe], max_prompt_tokens: int
) -> tuple[list[tuple[Probe, Group]], int]:
    """Return each probe with the tokens of its two replies, whole; and how many are left out.

    Left out is a probe whose prompt has over `max_prompt_tokens`. Raises ContractError for a
    conversation that the model's chat template does not take.
    """
    from jinja2 import TemplateError

    system_role = has_system_role(tokenizer)
    groups: list[tuple[Probe, Group]] = []
    for probe in probes:
        prompt = fit_messages(probe.prompt, None, system_role)
        try:
            group = tuple(
                completion(tokenizer, prompt, [{"role": "assistant", "content": text}])
                for text in probe.replies.values()
            )
        except TemplateError as error:
            raise ContractError(
                f"the probe {probe.id} does not fit the model's chat template ({error})."
            ) from None
        if group[0].start <= max_prompt_tokens:
            groups.append((probe, group))
    return groups, len(probes) - len(groups)


def completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[Message],
    reply: list[Message],
    max_length: int | None = None,
) -> Completion:
    """Return the tokens of prompt and reply as TRL's DPOTrainer prepares them.

    Cut at `max_length`; a prompt that fills it leaves no reply: start is then len(ids) or more.
    """
    from trl.data_utils import _tokenize, common_prefix_length

    prompt_ids = _tokenize(tokenizer, prompt, add_generation_prompt=True)["input_ids"]
    ids = _tokenize(tokenizer, prompt + reply)["input_ids"]
    return Completion(ids[:max_length], common_prefix_length(prompt_ids, ids))
