"""candidates.jsonl, checked row by row, and the pair of a prompt's candidates.

Everything read here was written by a model or lay in a folder: checked, capped, stored raw.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session

from curator import pairing
from curator.importing.prompts import SURROGATE
from curator.models import Candidate, Pair, Prompt, Purpose, Run
from curator.safe_text import too_long
from curator.workspace import Workspace
from trainer.contract import CANDIDATES, PROMPTS, ContractError, read_rows, sha256_text

OPTIONAL: dict[str, type] = {
    "model": str, "model_sha256": str, "steer": str, "system_prompt": str, "sampling": dict,
    "seed": int, "template_sha256": str, "tokens": int, "finish_reason": str,
}  # fmt: skip
Found = list[tuple[Prompt, list[Candidate]]]
Rows = list[tuple[int, dict[str, Any]]]


def whole_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, row) of a file that grows, up to its last whole line."""
    block = path.read_bytes()
    rows = []
    for number, line in enumerate(block[: block.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ContractError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise ContractError(f"{path}, line {number}: not a JSON object.")
        rows.append((number, row))
    return rows


def read_candidates(
    session: Session,
    run: Run,
    folder: Path,
    rows: Rows,
    left_out: Counter[str],
    writer: Callable[[dict[str, Any]], int | None],
    already: set[int],
    so_far: bool = False,
) -> Found:
    """Return the run's prompts, but for those `already` there, with their candidates.

    In the order of the request; `so_far`: only prompts that have some, in the order of these.
    `writer` tells which adapter wrote a row. A reply over the size that is kept is left out and
    counted, with its prompt: that of a prompt not returned is counted when it is.
    """
    path = folder / CANDIDATES
    asked = [int(row["id"]) for _, row in read_rows(folder / PROMPTS)]
    found: dict[int, list[Candidate]] = {n: [] for n in asked if n not in already}
    answered: dict[int, None] = {}
    over: Counter[int] = Counter()
    for number, row in rows:
        try:
            prompt_id = int(_field(row, "prompt_id", str))
            text = SURROGATE.sub("\ufffd", _field(row, "text", str))
            candidate = Candidate(
                prompt_id=prompt_id,
                text=text,
                sha256=sha256_text(text),
                adapter_id=writer(row),
                run_id=run.id,
                **{name: _field(row, name, kind, None) for name, kind in OPTIONAL.items()},
            )
        except ValueError as error:
            raise ContractError(f"{path}, line {number}: {error}") from None
        if prompt_id not in asked:
            raise ContractError(f"{path}, line {number}: a reply to no prompt of this run.")
        if prompt_id in already:
            continue
        answered[prompt_id] = None
        if too_long(text):
            over[prompt_id] += 1
            continue
        session.add(candidate)
        found[prompt_id].append(candidate)
    session.flush()
    order = [n for n in answered if found[n]] if so_far else list(found)
    left_out.update({"too long": n} if (n := sum(over[number] for number in order)) else {})
    return [(session.get_one(Prompt, number), found[number]) for number in order]


def _field(row: dict[str, Any], name: str, kind: type, default: Any = ...) -> Any:
    """Return a field of a row if it is of its kind, whole numbers within 64 bits."""
    value = row.get(name, default)
    if value is None and default is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is no {kind.__name__}.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is too large.")
    return value


def make_pair(
    workspace: Workspace,
    round_id: int,
    prompt: Prompt,
    candidates: list[Candidate],
    left_out: Counter[str],
    purpose: Purpose = Purpose.TRAIN,
) -> Pair | None:
    """Return the pair of a prompt's candidates, or count why there is none."""
    chosen = pairing.choose_two([candidate.text for candidate in candidates])
    if chosen is None:
        written = [c for c in candidates if c.text.strip()]
        left_out["near-identical" if len(written) > 1 else "not answered"] += 1
        return None
    first, second = candidates[chosen[0]], candidates[chosen[1]]
    seed = pairing.side_seed(
        workspace.config.seed, prompt.sha256, str(round_id), *sorted((first.sha256, second.sha256))
    )
    assert prompt.id is not None and first.id is not None and second.id is not None
    # Drawn from what they say, not from the order they were written in: that order is the steer's.
    low, high = sorted((first, second), key=lambda c: (c.sha256, c.id))
    left, right = pairing.draw_sides(low.id or 0, high.id or 0, seed)
    return Pair(
        prompt_id=prompt.id,
        left_id=left,
        right_id=right,
        side_seed=seed,
        purpose=purpose,
        round_id=round_id,
        position=0,
        distance=chosen[2],
    )
