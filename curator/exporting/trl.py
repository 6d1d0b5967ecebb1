"""TRL's conversational preference rows, with the prompt explicit.

https://huggingface.co/docs/trl/dataset_formats: `prompt`, `chosen`, `rejected` as messages. The
prompt is never left implicit: TRL would take the words both replies start with for prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from curator.preferences import Preference
from curator.safe_text import HIDDEN


def trl_row(preference: Preference) -> dict[str, Any]:
    """Return one row; the columns after `rejected` are ignored by TRL."""
    return {
        "prompt": preference.prompt,
        "chosen": [{"role": "assistant", "content": preference.chosen}],
        "rejected": [{"role": "assistant", "content": preference.rejected}],
        "id": preference.id,
        "split": preference.split,
        "family": preference.family,
        "strength": preference.strength,
        "annotator_kind": preference.annotator_kind,
    }


def trl_lines(preferences: Iterable[Preference]) -> Iterator[str]:
    """Yield a JSON line for each preference; what a terminal could obey is written as \\uXXXX."""
    for preference in preferences:
        yield inert(json.dumps(trl_row(preference), ensure_ascii=False)) + "\n"


def inert(text: str) -> str:
    """Return JSON with every hidden or controlling character escaped; it reads back the same."""
    return HIDDEN.sub(lambda match: json.dumps(match.group())[1:-1], text)
