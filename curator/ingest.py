"""What a run wrote, so far or in all, taken into the database: adapter, candidates, pairs.

Everything read here was written by a model or lay in a folder: checked, capped, stored raw.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from curator import gates, pairing, queue, store
from curator.evaluation import figures
from curator.evaluation_rows import read_evaluation
from curator.models import (
    Adapter,
    AdapterStatus,
    AnnotatorKind,
    Candidate,
    Pair,
    Prompt,
    Purpose,
    Round,
    Run,
)
from curator.replies import Found, Rows, make_pair, read_candidates, whole_rows
from curator.workspace import Workspace
from trainer.contract import (
    CANDIDATES,
    PAIRS,
    PROBES,
    PROMPTS,
    TRAINED,
    ContractError,
    read_manifest,
    read_request,
    read_rows,
    sha256_file,
)

# What of a manifest is kept with its run.
KEPT = ("train", "held_out", "preferences", "candidates", "samples", "seconds", "merged")
# Steered replies a prompt, with the strategy `contrast`.
STEERED = ("boundaried", "another")


def take_in(
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> None:
    """Add a finished run's results. Raises ContractError (a ValueError) on malformed ones."""
    adapter = _take_in_adapter(session, workspace, run, folder, manifest)
    run.metrics = {**(run.metrics or {}), **{n: manifest[n] for n in KEPT if n in manifest}}
    if "candidates" not in manifest:
        return
    if run.action == "duel":
        run.metrics = {**run.metrics, "pairs": add_duel(session, workspace, run, folder)}
        return
    used = _is_used(session, run, adapter)
    _take_in_candidates(session, workspace, run, folder, list(read_rows(folder / CANDIDATES)), used)


def take_in_so_far(session: Session, workspace: Workspace, run: Run, folder: Path) -> int:
    """Add the pairs whose candidates a run under way has written; return how many are new.

    Of a round only once its adapter is trained, measured and in use. Whatever becomes of the run,
    what was taken in stays: each candidate was whole when it was read. Raises ContractError on
    malformed rows.
    """
    if run.action not in ("generate", "round") or not (folder / CANDIDATES).exists():
        return 0
    if run.action == "round":
        trained = read_manifest(folder, TRAINED)
        if trained is None:
            return 0
        adapter = _take_in_adapter(session, workspace, run, folder, trained)
        if adapter is None or adapter.status is not AdapterStatus.CURRENT:
            return 0
    elif not _is_used(session, run, None):
        return 0
    settings = read_request(folder).generate
    replies = len(STEERED) if settings.strategy == "contrast" else settings.samples
    rows = whole_rows(folder / CANDIDATES)
    written = Counter(row.get("prompt_id") for _, row in rows)
    complete = [(n, row) for n, row in rows if written[row.get("prompt_id")] == replies]
    return _take_in_candidates(session, workspace, run, folder, complete, True, so_far=True)


def _is_used(session: Session, run: Run, made: Adapter | None) -> bool:
    """Whether what a run wrote is for judging: by the base, or by the adapter in use by now.

    The adapter that a generation began with may have been refused or rolled back meanwhile.
    """
    writer = made
    if writer is None and run.action == "generate" and run.adapter_id is not None:
        writer = session.get_one(Adapter, run.adapter_id)
    return writer is None or writer.status is AdapterStatus.CURRENT


def _take_in_adapter(
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> Adapter | None:
    """Add a run's figures and its new adapter, unless they are there already; return it."""
    if run.request_sha256 and manifest.get("request_sha256") != run.request_sha256:
        raise ContractError(f"{folder.name}/manifest.json answers another request.")
    if "adapter" in (run.metrics or {}):
        return session.get_one(Adapter, run.adapter_id)
    run.metrics = {
        **(run.metrics or {}), **{name: manifest[name] for name in KEPT if name in manifest}
    }  # fmt: skip
    if "evaluation" in manifest:
        measured = _measured(session, folder, manifest)
        run.metrics = {**run.metrics, "evaluation": measured}
    if "adapter" in manifest:
        rows = (row for row in _preference_rows(folder) if row.get("split") == "train")
        run.metrics = {**run.metrics, "kinds": dict(Counter(map(_kind, rows)))}
        adapter = _add_adapter(session, workspace, run, folder, manifest)
        run.adapter_id = adapter.id
        return adapter
    if run.action == "evaluate" and run.adapter_id is not None:
        evaluated = session.get_one(Adapter, run.adapter_id)
        names = ("evaluation", "held_out")
        newer: dict[str, Any] = {k: run.metrics[k] for k in names if k in run.metrics}
        evaluated.metrics = {**(evaluated.metrics or {}), **newer}
    return None


def _take_in_candidates(
    session: Session,
    workspace: Workspace,
    run: Run,
    folder: Path,
    rows: Rows,
    used: bool,
    so_far: bool = False,
) -> int:
    """Add candidates of prompts that have none of this run yet, and their pairs; return how many.

    Not `used`: the adapter is not, so the candidates are kept and no pairs are made. Pairs come
    in the order of the request, or, `so_far`, as their candidates are done.
    """
    already = session.exec(select(Candidate.prompt_id).where(Candidate.run_id == run.id))
    left_out: Counter[str] = Counter()
    writer = lambda row: run.adapter_id  # noqa: E731
    found = read_candidates(session, run, folder, rows, left_out, writer, set(already), so_far)
    if so_far and not found:
        return 0
    for prompt, _ in found:
        prompt.asked += 1
    before = (run.metrics or {}).get("pairs", {})
    pairs = {**before, "strategy": read_request(folder).generate.strategy}
    made = 0
    if used:
        made = _open_round(session, workspace, run, found, left_out, pairs["strategy"])
    elif found:
        # What no round has counted yet; prompts taken in earlier are in theirs.
        held = [prompt.id for prompt, _ in found]
        pairs["held_back"] = {"prompts": held, "left_out": dict(left_out)}
    pairs["made"] = before.get("made", 0) + made
    pairs["left_out"] = dict(Counter(before.get("left_out", {})) + left_out)
    run.metrics = {**(run.metrics or {}), "pairs": pairs}
    return made


def _measured(session: Session, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a run's figures, who was measured, with which probes, and whose picks were held out.

    Figures of two runs can be set side by side only where the probes are the same, and held-out
    accuracies where simulated picks were among them in both or in neither. `kinds`: how many of the
    held-out preferences that were scored each kind of annotator chose.
    """
    request = read_request(folder)
    names = {"base": store.BASE}
    if "adapter" in manifest:
        names["adapter"] = Path(manifest["adapter"]["path"]).name
    for policy, named in (("adapter", request.adapter), ("compare", request.compare)):
        found = store.adapter_in(session, named) if named else None
        if found is not None:
            names.setdefault(policy, found.name)  # a chained round's request names its parent
    probes = folder / PROBES
    sha256 = sha256_file(probes) if probes.is_file() else None
    rows = read_evaluation(folder)
    scored = {row["id"] for each in rows.values() for row in each.held_out.values()}
    held_out = (row for row in _preference_rows(folder) if row.get("id") in scored)
    told = figures(rows, store.families_to_train_on(session))
    # The trainer leaves out an adapter of another base.
    names = {policy: name for policy, name in names.items() if policy in told["policies"]}
    return {
        **told, "names": names, "probes_sha256": sha256,
        "kinds": dict(Counter(map(_kind, held_out))),
    }  # fmt: skip


def _preference_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / PAIRS
    return [row for _, row in read_rows(path)] if path.is_file() else []


def _kind(preference: dict[str, Any]) -> str:
    kind = preference.get("annotator_kind")
    return str(kind) if kind in list(AnnotatorKind) else "unknown"


# --- the adapter ----------------------------------------------------------------------------------


def _add_adapter(
    session: Session, workspace: Workspace, run: Run, folder: Path, manifest: dict[str, Any]
) -> Adapter:
    """Add a new adapter as proposed, and let the gates decide, unless a person wants to.

    By rule none is put into use in place of an adapter that it was not compared with.
    """
    name, base_sha256 = Path(manifest["adapter"]["path"]).name, manifest["model"]["sha256"]
    request, in_use = read_request(folder), store.current_adapter(session)
    parent, compared = (
        store.adapter_in(session, named) if named else None
        for named in (request.adapter, request.compare)
    )
    judged = gates.judge((run.metrics or {}).get("evaluation", {}), workspace.config.gates)
    adapter = Adapter(
        name=name,
        # One of another base was left out of the training, though the request names it.
        parent_id=parent.id if parent and parent.base_sha256 == base_sha256 else None,
        folder=f"adapters/{name}",
        base_model=manifest["model"]["name"],
        base_sha256=base_sha256,
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
        if in_use is None or in_use is compared:
            store.make_current(session, adapter, f"by rule: {judged.reason}")
        else:
            was = compared.name if compared else store.BASE
            adapter.status_reason = (
                f"waits for you: {was} was in use when its training began; it was not compared "
                f"with {in_use.name}, which is in use now"
            )
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
        held = pairs.get("held_back")
        if held is None:
            continue
        replies: dict[int, list[Candidate]] = {}
        written = select(Candidate).where(Candidate.run_id == run.id).order_by(col(Candidate.id))
        for candidate in session.exec(written).all():
            replies.setdefault(candidate.prompt_id, []).append(candidate)
        # The others were taken in while the run went on, before the adapter was refused.
        found = [(session.get_one(Prompt, n), replies.get(n, [])) for n in held["prompts"]]
        found.sort(key=lambda f: pairing.side_seed(workspace.config.seed, f[0].sha256))
        left_out: Counter[str] = Counter(held["left_out"])
        opened = _open_round(session, workspace, run, found, left_out, pairs["strategy"])
        rest = {name: value for name, value in pairs.items() if name != "held_back"}
        newly = left_out - Counter(held["left_out"])
        total = Counter(pairs["left_out"]) + newly
        rest |= {"made": pairs["made"] + opened, "left_out": dict(total)}
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
        pair = make_pair(workspace, newest.id, prompt, candidates, left_out)
        if pair is not None:
            position += queue.POSITION_STEP
            pair.position = position
            session.add(pair)
            made += 1
    newest.pairs += made
    newest.left_out = dict(Counter(newest.left_out or {}) + left_out)
    return made


# --- duels ---------------------------------------------------------------------------------------


def add_duel(session: Session, workspace: Workspace, run: Run, folder: Path) -> dict[str, Any]:
    """Add a duel's candidates and its pairs, mixed into the newest round's queue.

    Return how many were made, why other prompts have none, and which were asked. Raises
    ContractError when a reply is not by whom it should be.
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

    rows = list(read_rows(folder / CANDIDATES))
    left_out: Counter[str] = Counter()
    duels: list[Pair] = []
    for prompt, candidates in read_candidates(session, run, folder, rows, left_out, writer, set()):
        if len(candidates) != 2 or candidates[0].adapter_id == candidates[1].adapter_id:
            left_out["not answered"] += 1
            continue
        pair = make_pair(workspace, newest.id, prompt, candidates, left_out, Purpose.DUEL)
        duels += [pair] if pair is not None else []
    queue.mix_in(session, newest.id, duels, pairing.side_seed(workspace.config.seed, run.uuid))
    newest.pairs += len(duels)
    run.round_id = newest.id
    path = folder / PROMPTS
    asked = [str(row.get("id")) for _, row in read_rows(path)] if path.is_file() else []
    by = [each.id if each else None for each in sides.values()]
    return {"made": len(duels), "left_out": dict(left_out), "asked": asked, "asked_of": by}
