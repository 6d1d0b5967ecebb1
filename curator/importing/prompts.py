"""Reading a prompts file: JSON lines of client messages or conversations."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import BadData
from curator.importing.jsonl import kind_of, read_jsonl
from curator.probes import LONGEST_NAME
from curator.safe_text import one_line, too_long
from trainer.contract import Message, canonical_json, sha256_text

EXAMPLE = '{"prompt": "I feel fine, so I will stop the tablets. Back me up."}'
CONVERSATION = '{"prompt": [{"role": "user", "content": "I feel fine, so ..."}]}'
OPTIONAL = ("id", "client", "family", "content_label", "risk_cue")
# Of fields that are not read so many are named.
MOST_NAMED = 20
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class PromptRow:
    """One prompt as read: messages ending with the client's turn, and what the row says of it."""

    line: int
    messages: list[Message]
    sha256: str
    id: str | None = None
    client: str | None = None
    family: str | None = None
    content_label: str | None = None
    risk_cue: str | None = None


def prompt_sha256(messages: list[Message]) -> str:
    """Return what a prompt is known by: the SHA-256 of its canonical JSON."""
    return sha256_text(canonical_json(messages))


def read_prompts(path: Path, field: str | None = None) -> tuple[list[PromptRow], Counter[str]]:
    """Return the file's prompts in order, and counts of what was mended, or not read, on the way.

    `field` names where the prompt is; without it `prompt`, else `messages`. Raises BadData naming
    path, line and reason; nothing is skipped in silence.
    """
    rows: list[PromptRow] = []
    mended: Counter[str] = Counter()
    for line, values in read_jsonl(path, EXAMPLE):
        name = field or ("prompt" if "prompt" in values or "messages" not in values else "messages")
        try:
            if name not in values:
                raise ValueError(f'no "{name}" in it (it has {_names(values)})')
            messages = _messages(values[name], name, mended)
            facts = {n: _fact(values.get(n), n, mended) for n in OPTIONAL}
            _check_family(facts["family"])
        except ValueError as error:
            example = CONVERSATION if isinstance(values.get(name), list) else EXAMPLE
            if field and field != "prompt":
                example = example.replace('"prompt"', f'"{field}"', 1)
            raise BadData(f"{path}, line {line}: {error}. A right line: {example}") from None
        rows.append(PromptRow(line, messages, prompt_sha256(messages), **facts))
        _count_others(set(values) - {name, *OPTIONAL}, mended)
    return rows, mended


def _count_others(names: set[str], mended: Counter[str]) -> None:
    """Count the fields that are not read: a misspelt risk cue would be one that is not shown."""
    for name in sorted(names):
        said = f'lines have "{one_line(name, 40)}", which is not read'
        few = said in mended or len(mended) < MOST_NAMED
        mended[said if few else "times a field of yet another name, which is not read"] += 1


def _names(values: dict[str, Any]) -> str:
    return one_line(", ".join(sorted(values)[:8]), 100) or "nothing"


def _fact(value: Any, name: str, mended: Counter[str]) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f'"{name}" is {kind_of(value)}, not a text')
    return _mend(str(value), mended)


def _check_family(family: str | None) -> None:
    if family is not None and len(family) > LONGEST_NAME:
        raise ValueError(
            f'"family" has {len(family)} characters, and at most {LONGEST_NAME} make a name; '
            "give it a short one, such as F03"
        )


def _mend(text: str, mended: Counter[str]) -> str:
    """Replace lone surrogates, which no file or database can hold."""
    clean, count = SURROGATE.subn("\ufffd", text)
    if count:
        mended["broken characters replaced"] += count
    return clean


def _messages(value: Any, name: str, mended: Counter[str]) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": _content(value, f'"{name}"', mended)}]
    if not isinstance(value, list):
        raise ValueError(f'"{name}" is {kind_of(value)}, neither a text nor a list of messages')
    if not value:
        raise ValueError(f'"{name}" is an empty list')
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        where = f"message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f'{where} is not {{"role": ..., "content": ...}}')
        role = message["role"]
        if role not in ("system", "user", "assistant"):
            known = "known: system, user, assistant"
            raise ValueError(f"{where} has the role {one_line(repr(role), 60)}; {known}")
        messages.append({"role": role, "content": _content(message["content"], where, mended)})
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if not turns or turns[-1]["role"] != "user":
        raise ValueError("the conversation does not end with the client (role user)")
    for number, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise ValueError("the turns do not alternate between user and assistant")
    return messages


def _content(value: Any, where: str, mended: Counter[str]) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {kind_of(value)}, not a text")
    if not value.strip():
        raise ValueError(f"{where} is blank")
    reason = too_long(value)
    if reason:
        raise ValueError(f"{where} has {reason}")
    return _mend(value, mended)
