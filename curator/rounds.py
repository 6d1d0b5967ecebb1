"""The verbs of a round: start a run, settle what has ended, stop one.

Part of the workflow layer; both front ends call these. Only here do a run's results enter the
database, in one transaction, once, whoever notices first that the run has ended.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from curator import db, ingest, pairing, runs, store
from curator.errors import Busy, CuratorError, NotReady
from curator.exporting.trl import trl_row
from curator.models import AnnotatorKind, Prompt, Run, RunState, now
from curator.preferences import HUMANS, preferences
from curator.workspace import Workspace
from trainer.contract import (
    FEWEST_PREFERENCES,
    MEASURE,
    PAIRS,
    PROMPTS,
    REQUEST,
    Action,
    Request,
    sha256_file,
    write_request,
    write_rows,
)

# How long after its start a trainer may be seen neither by lock nor by event.
START_SECONDS = 10


@dataclass(frozen=True)
class Started:
    """A run that was just started."""

    run: Run
    folder: Path
    preferences: int
    left_out: Counter[str]
    prompts: int


def start_run(
    workspace: Workspace,
    action: Action,
    *,
    prompts: int | None = None,
    kinds: Iterable[AnnotatorKind] = HUMANS,
    measure: Sequence[Mapping[str, Any]] = (),
) -> Started:
    """Start a trainer on a fresh run's folder and return at once.

    `prompts`: how many to write candidates for (default: the settings'). `measure`: rows of
    {"id", "prompt"} to sample replies for. Raises NotReady when something needed is missing and
    Busy when a run is under way.
    """
    settle(workspace)
    if importlib.util.find_spec("torch") is None:
        raise NotReady("this installation cannot train: add the `train` extra (README, Install).")
    request, rows, prompt_rows, left_out = _prepare(workspace, action, prompts, tuple(kinds))
    run, folder = _new_run(workspace, request)
    request = replace(request, run=run.folder, measure=MEASURE if measure else None)
    try:
        _write_folder(folder, request, rows, prompt_rows, measure)
        pid = runs.start(folder)
    except (OSError, CuratorError) as error:
        _close(workspace, run, RunState.FAILED, str(error))
        raise CuratorError(f"the run could not be started: {error}") from error
    with db.writing(workspace.engine) as session:
        run = session.get_one(Run, run.id)
        run.pid, run.request_sha256 = pid, sha256_file(folder / REQUEST)
    return Started(run, folder, len(rows), left_out, len(prompt_rows))


def _prepare(
    workspace: Workspace, action: Action, count: int | None, kinds: tuple[AnnotatorKind, ...]
) -> tuple[Request, list[dict[str, Any]], list[dict[str, Any]], Counter[str]]:
    """Return the request and its rows, read from the database."""
    config = workspace.config
    trains, writes = action in ("train", "round"), action in ("generate", "round")
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    prompts: list[Prompt] = []
    with db.reading(workspace.engine) as session:
        adapter = store.current_adapter(session)
        if trains:
            found, left_out = preferences(session, kinds)
            rows = [trl_row(preference) for preference in found]
        if writes:
            prompts = store.prompts_for_round(
                session,
                count or config.round.prompts,
                lambda prompt: pairing.side_seed(config.seed, prompt.sha256),
            )
        number = len(list((workspace.runs).glob("*"))) + 1
    if trains and len(rows) < FEWEST_PREFERENCES:
        raise NotReady(
            f"{len(rows)} preferences so far; a round needs at least {FEWEST_PREFERENCES}. "
            + _why_few(left_out)
        )
    if writes and not prompts:
        raise NotReady("there are no prompts yet. Add some with: curator import prompts FILE")
    steered = action == "generate" and adapter is None
    strategy = config.round.first_strategy if steered else config.round.strategy
    request = Request(
        action=action,
        model=workspace.model_path,
        seed=config.seed * 10_007 + number,
        quantization=config.model.quantization,
        adapter=f"../../{adapter.folder}" if adapter and action == "generate" else None,
        train=config.train,
        generate=replace(config.generate, strategy=strategy),
    )
    prompt_rows = [{"id": str(prompt.id), "prompt": prompt.messages} for prompt in prompts]
    return request, rows, prompt_rows, left_out


def _why_few(left_out: Counter[str]) -> str:
    if not left_out:
        return "Judge more pairs with: curator annotate"
    what = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in sorted(left_out.items()))
    return f"Not counted: {what}. Judge more pairs with: curator annotate"


def _new_run(workspace: Workspace, request: Request) -> tuple[Run, Path]:
    """Claim the one place there is for a run under way, and make its folder."""
    with db.writing(workspace.engine) as session:
        under_way = store.running(session)
        if under_way is not None:
            raise Busy(
                f"a {under_way.action} is under way (runs/{under_way.folder}). "
                "Wait for it; curator status shows how far it is."
            )
        current = store.current_adapter(session)
        newest = store.newest_round(session)
        run = Run(
            folder="",
            action=request.action,
            request_sha256="",
            round_id=newest.id if newest else None,
            adapter_id=current.id if current and request.adapter else None,
        )
        session.add(run)
        session.flush()
        run.folder = f"{run.id:04d}-{request.action}"
    folder = workspace.runs / run.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return run, folder


def _write_folder(
    folder: Path,
    request: Request,
    rows: list[dict[str, Any]],
    prompt_rows: list[dict[str, Any]],
    measure: Sequence[Mapping[str, Any]],
) -> None:
    if rows:
        write_rows(folder / PAIRS, rows)
    if prompt_rows:
        write_rows(folder / PROMPTS, prompt_rows)
    if measure:
        write_rows(folder / MEASURE, measure)
    if request.action in ("train", "round"):
        number = folder.name.split("-")[0]
        request = replace(request, output_adapter=f"../../adapters/adapter-{number}")
    write_request(folder, request)


def settle(workspace: Workspace) -> list[Run]:
    """Bring runs that have ended into the database; return those settled by this call."""
    with db.reading(workspace.engine) as session:
        run = store.running(session)
    if run is None:
        return []
    folder = workspace.runs / run.folder
    if runs.alive(folder) or _just_started(run, folder):
        return []
    end = runs.ended(folder)
    if end.manifest is None:
        return [_close(workspace, run, RunState(end.state), end.message)]
    try:
        with db.writing(workspace.engine) as session:
            mine = session.get_one(Run, run.id)
            if mine.state is not RunState.RUNNING:
                return []
            ingest.take_in(session, workspace, mine, folder, end.manifest)
            mine.state, mine.ended_at = RunState.FINISHED, now()
        return [mine]
    except (ValueError, KeyError, OSError) as error:  # a manifest or rows that are not ours
        return [_close(workspace, run, RunState.FAILED, f"its results cannot be read: {error}")]


def _just_started(run: Run, folder: Path) -> bool:
    age = time.time() - datetime.fromisoformat(run.created_at).timestamp()
    return age < START_SECONDS and not runs.started(folder)


def _close(workspace: Workspace, run: Run, state: RunState, error: str) -> Run:
    with db.writing(workspace.engine) as session:
        mine = session.get_one(Run, run.id)
        if mine.state is RunState.RUNNING:
            mine.state, mine.error, mine.ended_at = state, error, now()
    return mine


def stop_run(workspace: Workspace) -> Run | None:
    """Stop the run under way, if one is; return it, settled. The adapter in use stays."""
    with db.reading(workspace.engine) as session:
        run = store.running(session)
    if run is None:
        return None
    runs.stop(workspace.runs / run.folder, run.pid)
    settled = settle(workspace)
    return settled[0] if settled else run


def run_under_way(workspace: Workspace) -> tuple[Run, Path] | None:
    """Return the run under way and its folder, for adopting and following it."""
    with db.reading(workspace.engine) as session:
        run = store.running(session)
    return (run, workspace.runs / run.folder) if run else None
