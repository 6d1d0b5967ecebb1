"""The verbs of a round: start a run, settle what has ended, stop one.

Part of the workflow layer; both front ends call these. Only here do a run's results enter the
database, in one transaction, once, whoever notices first that the run has ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlmodel import select

from curator import db, ingest, pairing, runs, store
from curator.errors import Busy, CannotWrite, CuratorError, NotReady
from curator.exporting.trl import trl_row
from curator.models import AnnotatorKind, Prompt, Run, RunState, now
from curator.preferences import HUMANS, preferences
from curator.safe_text import one_line
from curator.workspace import Workspace
from trainer.contract import (
    FEWEST_PREFERENCES,
    MEASURE,
    PAIRS,
    PROMPTS,
    REQUEST,
    Action,
    Request,
    append_event,
    read_events,
    sha256_file,
    write_request,
    write_rows,
)


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
        raise NotReady(
            "this installation cannot train: the `train` extra is missing (README.md, Installing)."
        )
    request, rows, prompt_rows, left_out = _prepare(workspace, action, prompts, tuple(kinds))
    run = _new_run(workspace, request)
    try:
        folder = _write_folder(workspace, run, request, rows, prompt_rows, measure)
        with db.writing(workspace.engine) as session:
            run = session.get_one(Run, run.id)
            run.folder, run.request_sha256 = folder.name, sha256_file(folder / REQUEST)
        pid = runs.start(folder)
    except (OSError, CuratorError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        _close(workspace, run, RunState.FAILED, str(said))
        raise CuratorError(f"the run could not be started: {said}") from error
    with db.writing(workspace.engine) as session:
        run = session.get_one(Run, run.id)
        run.pid = pid
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
        number = session.exec(select(func.max(Run.id))).one() or 0
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
        seed=pairing.side_seed(config.seed, "run", str(number + 1)) % 2**32,
        quantization=config.model.quantization,
        adapter=f"../../{adapter.folder}" if adapter and action == "generate" else None,
        adapter_sha256=adapter.sha256 if adapter and action == "generate" else None,
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


def _new_run(workspace: Workspace, request: Request) -> Run:
    """Claim the one place there is for a run under way."""
    with db.writing(workspace.engine) as session:
        under_way = store.running(session)
        if under_way is not None:
            raise Busy(
                f"a {under_way.action} is under way (runs/{under_way.folder}). "
                "Wait for it: curator annotate shows how far it is."
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
    return run


def _free(folder: Path) -> Path:
    """Return the folder, or the first numbered one beside it that is not there.

    After a database was restored from a backup, folders of runs it does not know lie about.
    """
    names = (f"{folder.name}-{n}" if n > 1 else folder.name for n in itertools.count(1))
    return next(path for path in map(folder.with_name, names) if not path.exists())


def _write_folder(
    workspace: Workspace,
    run: Run,
    request: Request,
    rows: list[dict[str, Any]],
    prompt_rows: list[dict[str, Any]],
    measure: Sequence[Mapping[str, Any]],
) -> Path:
    folder = _free(workspace.runs / run.folder)
    folder.mkdir(parents=True, mode=0o700)
    if rows:
        write_rows(folder / PAIRS, rows)
    if prompt_rows:
        write_rows(folder / PROMPTS, prompt_rows)
    if measure:
        write_rows(folder / MEASURE, measure)
    output = "adapter"
    if request.action in ("train", "round"):
        adapter = _free(workspace.path / "adapters" / f"adapter-{run.id:04d}")
        output = f"../../adapters/{adapter.name}"
    write_request(
        folder,
        replace(
            request,
            run=folder.name,
            measure=MEASURE if measure else None,
            output_adapter=output,
        ),
    )
    return folder


def settle(workspace: Workspace) -> list[Run]:
    """Bring runs that have ended into the database; return those settled by this call.

    Results that cannot be read close the run as failed. Raises Busy or CannotWrite when the
    database cannot be written: the run stays open, and the next call tries again.
    """
    with db.reading(workspace.engine) as session:
        run = store.running(session)
    if run is None:
        return []
    folder = workspace.runs / run.folder
    if runs.alive(folder) or _being_prepared(run, folder):
        return []
    try:
        end = runs.ended(folder)
        if end.manifest is None:
            return [_close(workspace, run, RunState(end.state), end.message, end.status)]
        with db.writing(workspace.engine) as session:
            mine = session.get_one(Run, run.id)
            if mine.state is not RunState.RUNNING:
                return []
            ingest.take_in(session, workspace, mine, folder, end.manifest)
            mine.state, mine.ended_at = RunState.FINISHED, now()
        return [mine]
    except (Busy, CannotWrite):
        raise
    except Exception as error:  # the edge: whatever a folder holds, it is one failed run
        said = one_line(f"its results cannot be read: {error}", 300)
        return [_close(workspace, run, RunState.FAILED, said)]


def _being_prepared(run: Run, folder: Path) -> bool:
    """Tell whether whoever claimed the run is still writing its folder."""
    age = time.time() - datetime.fromisoformat(run.created_at).timestamp()
    return abs(age) < runs.START_SECONDS and not (folder / REQUEST).exists()


def _close(workspace: Workspace, run: Run, state: RunState, error: str, status: int = 1) -> Run:
    with db.writing(workspace.engine) as session:
        mine = session.get_one(Run, run.id)
        if mine.state is RunState.RUNNING:
            mine.state, mine.error, mine.ended_at = state, error, now()
            mine.metrics = {"exit_status": status}
    folder = workspace.runs / run.folder
    if folder.is_dir() and not read_events(folder)[0]:
        # A trainer that comes to life after it was given up finds this and leaves.
        with contextlib.suppress(OSError):
            append_event(folder, str(state), message=error, status=status)
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
