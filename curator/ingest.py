"""What a finished run wrote, taken into the database: the adapter, the candidates, the pairs.

Everything read here was written by a model or lay in a folder: checked, capped, stored raw.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from sqlmodel import Session

from curator import pairing, store
from curator.importing.prompts import SURROGATE
from curator.models import Adapter, Candidate, Pair, Prompt, Round, Run
from curator.safe_text import too_long
from curator.workspace import Workspace
from trainer.contract import ContractError, read_request, read_rows

ACCEPTED = "the newest round's adapter is used at once"


def take_in(
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> None:
    """Add a finished run's results. Raises ContractError (a ValueError) on malformed ones."""
    run.metrics = {
        name: manifest[name]
        for name in ("train", "held_out", "preferences", "candidates", "samples", "seconds")
        if name in manifest
    }
    if "adapter" in manifest:
        adapter = _add_adapter(session, run, folder, manifest)
        run.adapter_id = adapter.id
    if "candidates" in manifest:
        _add_round(session, workspace, run, folder, manifest)


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
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> None:
    """Add the candidates and a pair for each prompt, to a new round or the one they belong to."""
    strategy = read_request(folder).generate.strategy
    newest = store.newest_round(session)
    if newest is None or newest.adapter_id != run.adapter_id:
        number = newest.number + 1 if newest else 1
        newest = Round(number=number, adapter_id=run.adapter_id, strategy=strategy, left_out={})
        session.add(newest)
        session.flush()
    assert newest.id is not None
    run.round_id = newest.id
    left_out = Counter(newest.left_out or {})
    position = store.last_position(session, newest.id)
    for prompt_id, candidates in _candidates(session, run, folder).items():
        pair = _pair(session, workspace, newest.id, prompt_id, candidates, left_out)
        if pair is not None:
            position += store.POSITION_STEP
            pair.position = position
            session.add(pair)
            newest.pairs += 1
    newest.left_out = dict(left_out)


def _candidates(session: Session, run: Run, folder: Path) -> dict[int, list[Candidate]]:
    """Return the run's candidates by prompt, in the order of the request's prompts."""
    path = folder / "candidates.jsonl"
    order = [int(row["id"]) for _, row in read_rows(folder / "prompts.jsonl")]
    found: dict[int, list[Candidate]] = {prompt_id: [] for prompt_id in order}
    for number, row in read_rows(path):
        text = row.get("text")
        if not isinstance(text, str) or not str(row.get("prompt_id")).isdigit():
            raise ContractError(f"{path}, line {number}: no candidate.")
        text = SURROGATE.sub("\ufffd", text)
        if too_long(text):
            text = text[:1000] + " […]"
        prompt_id = int(row["prompt_id"])
        if prompt_id not in found:
            raise ContractError(f"{path}, line {number}: a reply to no prompt of this run.")
        candidate = Candidate(
            prompt_id=prompt_id,
            text=text,
            sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
            model=row.get("model"),
            model_sha256=row.get("model_sha256"),
            adapter_id=run.adapter_id,
            run_id=run.id,
            steer=row.get("steer"),
            system_prompt=row.get("system_prompt"),
            sampling=row.get("sampling"),
            seed=row.get("seed"),
            template_sha256=row.get("template_sha256"),
            tokens=row.get("tokens"),
            finish_reason=row.get("finish_reason"),
        )
        session.add(candidate)
        found[prompt_id].append(candidate)
    session.flush()
    return found


def _pair(
    session: Session,
    workspace: Workspace,
    round_id: int,
    prompt_id: int,
    candidates: list[Candidate],
    left_out: Counter[str],
) -> Pair | None:
    """Return the pair of a prompt's candidates, or count why there is none."""
    chosen = pairing.choose_two([candidate.text for candidate in candidates])
    if chosen is None:
        written = [c for c in candidates if c.text.strip()]
        left_out["near-identical" if len(written) > 1 else "empty"] += 1
        return None
    first, second = candidates[chosen[0]], candidates[chosen[1]]
    prompt = session.get_one(Prompt, prompt_id)
    seed = pairing.side_seed(
        workspace.config.seed, prompt.sha256, str(round_id), *sorted((first.sha256, second.sha256))
    )
    assert first.id is not None and second.id is not None
    # Drawn from what they say, not from the order they were written in: that order is the steer's.
    low, high = sorted((first, second), key=lambda c: (c.sha256, c.id))
    left, right = pairing.draw_sides(low.id or 0, high.id or 0, seed)
    return Pair(
        prompt_id=prompt_id,
        left_id=left,
        right_id=right,
        side_seed=seed,
        round_id=round_id,
        position=0,
        distance=chosen[2],
    )
