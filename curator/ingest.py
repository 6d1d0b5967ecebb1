"""What a finished run wrote, taken into the database: the adapter, the candidates, the pairs.

Everything read here was written by a model or lay in a folder: checked, capped, stored raw.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sqlmodel import Session

from curator import pairing, queue, store
from curator.importing.prompts import SURROGATE
from curator.models import Adapter, Candidate, Pair, Prompt, Round, Run
from curator.safe_text import too_long
from curator.workspace import Workspace
from trainer.contract import (
    CANDIDATES,
    PROMPTS,
    ContractError,
    read_request,
    read_rows,
    sha256_text,
)

OPTIONAL: dict[str, type] = {
    "model": str, "model_sha256": str, "steer": str, "system_prompt": str, "sampling": dict,
    "seed": int, "template_sha256": str, "tokens": int, "finish_reason": str,
}  # fmt: skip
ACCEPTED = "the newest round's adapter is used at once"


def take_in(
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> None:
    """Add a finished run's results. Raises ContractError (a ValueError) on malformed ones."""
    if run.request_sha256 and manifest.get("request_sha256") != run.request_sha256:
        raise ContractError(f"{folder.name}/manifest.json answers another request.")
    run.metrics = {
        name: manifest[name]
        for name in ("train", "held_out", "preferences", "candidates", "samples", "seconds")
        if name in manifest
    }
    if "adapter" in manifest:
        adapter = _add_adapter(session, run, folder, manifest)
        run.adapter_id = adapter.id
    if "candidates" in manifest:
        made, left_out = _add_round(session, workspace, run, folder)
        run.metrics = {**run.metrics, "pairs": {"made": made, "left_out": dict(left_out)}}


def _add_adapter(session: Session, run: Run, folder: Path, manifest: dict[str, Any]) -> Adapter:
    name = Path(manifest["adapter"]["path"]).name
    adapter = Adapter(
        name=name,
        folder=f"adapters/{name}",
        base_model=manifest["model"]["name"],
        base_sha256=manifest["model"]["sha256"],
        sha256=manifest["adapter"]["sha256"],
        pairs_sha256=manifest["preferences"]["sha256"],
        metrics=run.metrics,
    )
    session.add(adapter)
    session.flush()
    store.make_current(session, adapter, ACCEPTED)
    return adapter


def _add_round(
    session: Session, workspace: Workspace, run: Run, folder: Path
) -> tuple[int, Counter[str]]:
    """Add the candidates and a pair for each prompt, to a new round or the one they belong to.

    Return how many pairs were made, and why other prompts have none.
    """
    strategy = read_request(folder).generate.strategy
    newest = store.newest_round(session)
    if newest is None or newest.adapter_id != run.adapter_id:
        number = newest.number + 1 if newest else 1
        newest = Round(number=number, adapter_id=run.adapter_id, strategy=strategy, left_out={})
        session.add(newest)
        session.flush()
    assert newest.id is not None
    run.round_id = newest.id
    left_out: Counter[str] = Counter()
    position, made = queue.last_position(session, newest.id), 0
    for prompt, candidates in _candidates(session, run, folder, left_out):
        prompt.asked += 1
        pair = _pair(workspace, newest.id, prompt, candidates, left_out)
        if pair is not None:
            position += queue.POSITION_STEP
            pair.position = position
            session.add(pair)
            made += 1
    newest.pairs += made
    newest.left_out = dict(Counter(newest.left_out or {}) + left_out)
    return made, left_out


def _candidates(
    session: Session, run: Run, folder: Path, left_out: Counter[str]
) -> list[tuple[Prompt, list[Candidate]]]:
    """Return the run's prompts with their candidates, in the order of the request.

    A reply over the size that is kept is left out and counted.
    """
    path = folder / CANDIDATES
    order = [int(row["id"]) for _, row in read_rows(folder / PROMPTS)]
    found: dict[int, list[Candidate]] = {prompt_id: [] for prompt_id in order}
    for number, row in read_rows(path):
        try:
            prompt_id = int(_field(row, "prompt_id", str))
            text = SURROGATE.sub("\ufffd", _field(row, "text", str))
            candidate = Candidate(
                prompt_id=prompt_id,
                text=text,
                sha256=sha256_text(text),
                adapter_id=run.adapter_id,
                run_id=run.id,
                **{name: _field(row, name, kind, None) for name, kind in OPTIONAL.items()},
            )
        except ValueError as error:
            raise ContractError(f"{path}, line {number}: {error}") from None
        if prompt_id not in found:
            raise ContractError(f"{path}, line {number}: a reply to no prompt of this run.")
        if too_long(text):
            left_out["too long"] += 1
            continue
        session.add(candidate)
        found[prompt_id].append(candidate)
    session.flush()
    return [(session.get_one(Prompt, number), each) for number, each in found.items()]


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


def _pair(
    workspace: Workspace,
    round_id: int,
    prompt: Prompt,
    candidates: list[Candidate],
    left_out: Counter[str],
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
        round_id=round_id,
        position=0,
        distance=chosen[2],
    )
