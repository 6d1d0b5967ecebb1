"""What a finished run wrote, taken into the database: the adapter, the candidates, the pairs.

Everything read here was written by a model or lay in a folder: checked, capped, stored raw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from curator import gates, pairing, queue, store
from curator.evaluation import figures
from curator.evaluation_rows import read_evaluation
from curator.importing.prompts import SURROGATE
from curator.models import Adapter, AdapterStatus, Candidate, Pair, Prompt, Purpose, Round, Run
from curator.safe_text import too_long
from curator.workspace import Workspace
from trainer.contract import (
    CANDIDATES,
    PROBES,
    PROMPTS,
    ContractError,
    read_request,
    read_rows,
    sha256_file,
    sha256_text,
)

OPTIONAL: dict[str, type] = {
    "model": str, "model_sha256": str, "steer": str, "system_prompt": str, "sampling": dict,
    "seed": int, "template_sha256": str, "tokens": int, "finish_reason": str,
}  # fmt: skip
Found = list[tuple[Prompt, list[Candidate]]]


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
    if "evaluation" in manifest:
        measured = _measured(session, run, folder, manifest)
        run.metrics = {**run.metrics, "evaluation": measured}
    adapter = None
    if "adapter" in manifest:
        adapter = _add_adapter(session, workspace, run, folder, manifest)
        run.adapter_id = adapter.id
    elif run.action == "evaluate" and run.adapter_id is not None:
        evaluated = session.get_one(Adapter, run.adapter_id)
        names = ("evaluation", "held_out")
        newer: dict[str, Any] = {k: run.metrics[k] for k in names if k in run.metrics}
        evaluated.metrics = {**(evaluated.metrics or {}), **newer}
    if "candidates" not in manifest:
        return
    if run.action == "duel":
        run.metrics = {**run.metrics, "pairs": add_duel(session, workspace, run, folder)}
        return
    left_out: Counter[str] = Counter()
    found = _candidates(session, run, folder, left_out, lambda row: run.adapter_id)
    for prompt, _ in found:
        prompt.asked += 1
    pairs: dict[str, Any] = {"strategy": read_request(folder).generate.strategy}
    if adapter is None or adapter.status is AdapterStatus.CURRENT:
        made = _open_round(session, workspace, run, found, left_out, pairs["strategy"])
    else:
        made, pairs["held_back"] = 0, True
    run.metrics = {**run.metrics, "pairs": {**pairs, "made": made, "left_out": dict(left_out)}}


def _measured(session: Session, run: Run, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a run's figures, who was measured, and with which probes.

    Figures of two runs can be set side by side only where the probes are the same.
    """
    request = read_request(folder)
    names = {"base": store.BASE}
    if "adapter" in manifest:
        names["adapter"] = Path(manifest["adapter"]["path"]).name
    for policy, named in (("adapter", request.adapter), ("compare", request.compare)):
        found = store.adapter_in(session, named) if named else None
        if found is not None:
            names[policy] = found.name
    probes = folder / PROBES
    sha256 = sha256_file(probes) if probes.is_file() else None
    return {**figures(read_evaluation(folder)), "names": names, "probes_sha256": sha256}


# --- the adapter ----------------------------------------------------------------------------------


def _add_adapter(
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> Adapter:
    """Add a new adapter as proposed, and let the gates decide, unless a person wants to."""
    name = Path(manifest["adapter"]["path"]).name
    judged = gates.judge((run.metrics or {}).get("evaluation", {}), workspace.config.gates)
    adapter = Adapter(
        name=name,
        folder=f"adapters/{name}",
        base_model=manifest["model"]["name"],
        base_sha256=manifest["model"]["sha256"],
        sha256=manifest["adapter"]["sha256"],
        pairs_sha256=manifest["preferences"]["sha256"],
        metrics={
            **(run.metrics or {}),
            "gates": {"verdict": judged.verdict, "rules": [rule.row() for rule in judged.rules]},
        },
        status_reason=f"waits for you: {judged.reason}",
    )
    session.add(adapter)
    session.flush()
    if workspace.config.gates.accept == "rule" and judged.verdict == "pass":
        store.make_current(session, adapter, f"by rule: {judged.reason}")
    elif workspace.config.gates.accept == "rule" and judged.verdict == "fail":
        store.decide(session, adapter, AdapterStatus.REFUSED, f"by rule: {judged.reason}")
    run.metrics = {
        **(run.metrics or {}),
        "adapter": {
            "name": name, "status": str(adapter.status), "reason": adapter.status_reason,
            "gates": judged.verdict,
        },
    }  # fmt: skip
    return adapter


def open_held_back(session: Session, workspace: Workspace, adapter: Adapter) -> int:
    """Make the pairs of an adapter's candidates that were held back until it was accepted.

    Return how many. The order of the queue is the seed's, as it would have been.
    """
    query = select(Run).where(Run.adapter_id == adapter.id).order_by(col(Run.id))
    made = 0
    for run in session.exec(query).all():
        pairs = (run.metrics or {}).get("pairs", {})
        if not pairs.get("held_back"):
            continue
        replies: dict[int, list[Candidate]] = {}
        written = select(Candidate).where(Candidate.run_id == run.id).order_by(col(Candidate.id))
        for candidate in session.exec(written).all():
            replies.setdefault(candidate.prompt_id, []).append(candidate)
        found = [(session.get_one(Prompt, number), each) for number, each in replies.items()]
        found.sort(key=lambda f: pairing.side_seed(workspace.config.seed, f[0].sha256))
        left_out = Counter(pairs["left_out"])
        opened = _open_round(session, workspace, run, found, left_out, pairs["strategy"])
        rest = {name: value for name, value in pairs.items() if name != "held_back"}
        rest |= {"made": opened, "left_out": dict(left_out)}
        run.metrics = {**(run.metrics or {}), "pairs": rest}
        made += opened
    return made


# --- candidates and pairs -------------------------------------------------------------------------


def _open_round(
    session: Session,
    workspace: Workspace,
    run: Run,
    found: Found,
    left_out: Counter[str],
    strategy: str,
) -> int:
    """Add a pair for each prompt, to a new round or the one they belong to; return how many."""
    newest = store.newest_round(session)
    if newest is None or newest.adapter_id != run.adapter_id:
        number = newest.number + 1 if newest else 1
        newest = Round(number=number, adapter_id=run.adapter_id, strategy=strategy, left_out={})
        session.add(newest)
        session.flush()
    assert newest.id is not None
    run.round_id = newest.id
    position, made = queue.last_position(session, newest.id), 0
    for prompt, candidates in found:
        pair = _pair(workspace, newest.id, prompt, candidates, left_out)
        if pair is not None:
            position += queue.POSITION_STEP
            pair.position = position
            session.add(pair)
            made += 1
    newest.pairs += made
    newest.left_out = dict(Counter(newest.left_out or {}) + left_out)
    return made


def _candidates(
    session: Session,
    run: Run,
    folder: Path,
    left_out: Counter[str],
    writer: Callable[[dict[str, Any]], int | None],
) -> Found:
    """Return the run's prompts with their candidates, in the order of the request.

    `writer` tells which adapter wrote a row. A reply over the size that is kept is left out and
    counted.
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
                adapter_id=writer(row),
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


# --- duels ---------------------------------------------------------------------------------------


def add_duel(session: Session, workspace: Workspace, run: Run, folder: Path) -> dict[str, Any]:
    """Add a duel's candidates and its pairs, mixed into the newest round's queue.

    Return how many were made, and why other prompts have none. Raises ContractError when a reply
    is not by whom it should be.
    """
    newest = store.newest_round(session)
    if newest is None or newest.id is None:
        raise ContractError("a duel's pairs need a round to be mixed into, and there is none.")
    request = read_request(folder)
    sides = {
        side: store.adapter_in(session, named) if named else None
        for side, named in (("adapter", request.adapter), ("compare", request.compare))
    }

    def writer(row: dict[str, Any]) -> int | None:
        if row.get("side") not in sides:
            raise ValueError("side is no adapter, compare.")
        by = sides[row["side"]]
        if row.get("adapter_sha256") != (by.sha256 if by else None):
            raise ValueError("adapter_sha256 is not that of the side's adapter.")
        return by.id if by else None

    left_out: Counter[str] = Counter()
    duels: list[Pair] = []
    for prompt, candidates in _candidates(session, run, folder, left_out, writer):
        if len(candidates) != 2 or candidates[0].adapter_id == candidates[1].adapter_id:
            left_out["not answered"] += 1
            continue
        pair = _pair(workspace, newest.id, prompt, candidates, left_out, Purpose.DUEL)
        duels += [pair] if pair is not None else []
    queue.mix_in(session, newest.id, duels, pairing.side_seed(workspace.config.seed, run.uuid))
    newest.pairs += len(duels)
    run.round_id = newest.id
    return {"made": len(duels), "left_out": dict(left_out)}
