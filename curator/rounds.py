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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, select

from curator import db, ingest, pairing, runs, store, training
from curator.errors import Busy, CannotWrite, CuratorError, NotReady
from curator.exporting.trl import trl_row
from curator.models import Adapter, AnnotatorKind, Prompt, Run, RunState, now
from curator.preferences import HUMANS, preferences
from curator.probes import read_probes
from curator.safe_text import one_line
from curator.store import BASE
from curator.workspace import REFERENCE_CACHE, Workspace
from trainer.contract import (
    DRIFT,
    MEASURE,
    PAIRS,
    PROBES,
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

# Replies are sampled to so many held-out prompts for every policy: their length and KL are told
# to about a tenth, and a 4B model on a CPU is done with them in minutes.
MOST_DRIFT = 40
DUEL = 50


@dataclass(frozen=True)
class Started:
    """A run that was just started."""

    run: Run
    folder: Path
    preferences: int
    left_out: Counter[str]
    prompts: int


@dataclass(frozen=True)
class Inputs:
    """What a run is given: its request, and the rows of each file in its folder."""

    request: Request
    files: dict[str, Sequence[Mapping[str, Any]]]
    left_out: Counter[str]


def start_run(
    workspace: Workspace,
    action: Action,
    *,
    prompts: int | None = None,
    kinds: Iterable[AnnotatorKind] = HUMANS,
    measure: Sequence[Mapping[str, Any]] = (),
    adapter: str | None = None,
    compare: str | None = None,
    merge: Mapping[str, Any] | None = None,
) -> Started:
    """Start a trainer on a fresh run's folder and return at once.

    `prompts`: how many to write candidates for (default: the settings'). `measure`: rows of
    {"id", "prompt"} to sample replies for. `adapter`: whom to evaluate (default: the adapter in
    use), or a duel's first side; `compare`: its second. `merge`: output, form and card.
    Raises NotReady when something needed is
    missing, BadData for probes in the training data, and Busy when a run is under way.
    """
    settle(workspace)
    if importlib.util.find_spec("torch") is None:
        raise NotReady(
            "this installation cannot train: the `train` extra is missing (README.md, Installing)."
        )
    with db.reading(workspace.engine) as session:
        inputs = _prepare(session, workspace, action, prompts, tuple(kinds), adapter, compare)
        begun = None
        if action in ("train", "round"):
            begun = training.to_go_on_from(session, workspace, inputs.request, inputs.files[PAIRS])
    if begun is not None:
        inputs = replace(inputs, request=begun[1])
    if merge is not None:
        inputs = replace(inputs, request=replace(inputs.request, **merge))
    if measure:
        inputs.files[MEASURE] = measure
    run = _new_run(workspace, inputs.request)
    folder, run = _launch(workspace, run, inputs, begun[0] if begun else None)
    counts = [len(inputs.files.get(name, ())) for name in (PAIRS, PROMPTS)]
    return Started(run, folder, counts[0], inputs.left_out, counts[1])


def _launch(
    workspace: Workspace, run: Run, inputs: Inputs, checkpoints: Path | None
) -> tuple[Path, Run]:
    """Write a run's folder and start a trainer on it; a run that cannot start is closed."""
    try:
        folder = _write_folder(workspace, run, inputs)
        if checkpoints is not None:
            training.take_over(checkpoints, folder)
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
    return folder, run


def _prepare(
    session: Session,
    workspace: Workspace,
    action: Action,
    count: int | None,
    kinds: tuple[AnnotatorKind, ...],
    adapter: str | None,
    compare: str | None,
) -> Inputs:
    """Return the request and its rows, read from the database."""
    config = workspace.config
    current = store.current_adapter(session)
    trains, evaluates = action in ("train", "round"), action in ("train", "round", "evaluate")
    number = (session.exec(select(func.max(Run.id))).one() or 0) + 1
    files: dict[str, Sequence[Mapping[str, Any]]] = {}
    left_out: Counter[str] = Counter()
    if evaluates:
        files, left_out = _measured_with(session, workspace, kinds)
    if trains:
        training.check_enough(files[PAIRS], left_out)
    chained = trains and config.train.strategy == "chained"
    sides = _sides(session, action, current, adapter, compare, chained)
    if evaluates:
        measured = [sides[name] for name in ("adapter", "compare") if name in sides]
        training.check_apart(session, workspace, files[PAIRS], measured)
    if action in ("generate", "round"):
        most = count or config.round.prompts
        files[PROMPTS] = _asked(store.prompts_for_round(session, most, _order(workspace)))
    elif action == "duel":
        both, order = (adapter or BASE, compare or BASE), _order(workspace, str(number))
        files[PROMPTS] = _asked(store.prompts_for_duel(session, count or DUEL, order, both))
    steered = action == "generate" and current is None
    strategy = config.round.first_strategy if steered else config.round.strategy
    request = Request(
        action=action,
        model=workspace.model_path,
        seed=pairing.side_seed(config.seed, "run", str(number)) % 2**32,
        quantization=config.model.quantization,
        probes=PROBES if files.get(PROBES) else None,
        drift=DRIFT if files.get(DRIFT) else None,
        train=training.measured(session, config.train, kinds) if trains else config.train,
        generate=replace(config.generate, strategy=strategy),
        adapter=sides.get("adapter"),
        adapter_sha256=sides.get("adapter_sha256"),
        compare=sides.get("compare"),
        compare_sha256=sides.get("compare_sha256"),
    )
    return Inputs(request, files, left_out)


def _measured_with(
    session: Session, workspace: Workspace, kinds: tuple[AnnotatorKind, ...]
) -> tuple[dict[str, Sequence[Mapping[str, Any]]], Counter[str]]:
    """Return the preferences, probes and held-out prompts, by file, and what gave no preference."""
    found, left_out = preferences(session, kinds)
    found = training.strong_enough(found, workspace.config.round.strength, left_out)
    drift = store.held_out_prompts(session, MOST_DRIFT, _order(workspace))
    files: dict[str, Sequence[Mapping[str, Any]]] = {
        PAIRS: [trl_row(preference) for preference in found],
        PROBES: read_probes(workspace.probes),
        DRIFT: _prompt_rows(drift),
    }
    return files, left_out


def _order(workspace: Workspace, *parts: str) -> Callable[[Prompt], int]:
    """Return the key of a seeded draw of prompts."""
    return lambda prompt: pairing.side_seed(workspace.config.seed, prompt.sha256, *parts)


def _asked(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Return the rows of what is to be answered. Raises NotReady when there is nothing."""
    if not prompts:
        raise NotReady("there are no prompts yet. Add some with: curator import prompts FILE")
    return _prompt_rows(prompts)


def _prompt_rows(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    return [{"id": str(prompt.id), "prompt": prompt.messages} for prompt in prompts]


def _sides(
    session: Session,
    action: Action,
    current: Adapter | None,
    adapter: str | None,
    compare: str | None,
    chained: bool = False,
) -> dict[str, str]:
    """Return which adapters a request names, by field.

    A new adapter is compared with the one in use, and goes on with it when `chained`; one that is
    evaluated is compared with it unless it is the same.
    """
    first = second = None
    match action:
        case "generate":
            first = current
        case "train" | "round":
            first, second = current if chained else None, current
        case "merge":
            first = store.adapter_named(session, adapter or BASE)
        case "evaluate":
            first = store.adapter_named(session, adapter) if adapter else current
            second = current if current and (first is None or first.id != current.id) else None
        case "duel":
            first = store.adapter_named(session, adapter or BASE)
            second = store.adapter_named(session, compare or BASE)
    named: dict[str, str] = {}
    for name, side in (("adapter", first), ("compare", second)):
        if side is not None:
            named |= {name: f"../../{side.folder}", f"{name}_sha256": side.sha256}
    return named


def _new_run(workspace: Workspace, request: Request) -> Run:
    """Claim the one place there is for a run under way."""
    with db.writing(workspace.engine) as session:
        under_way = store.running(session)
        if under_way is not None:
            raise Busy(
                f"a {under_way.action} is under way (runs/{under_way.folder}). "
                "Wait for it: curator annotate shows how far it is."
            )
        newest = store.newest_round(session)
        named = request.adapter if request.action in ("generate", "evaluate") else None
        adapter = store.adapter_in(session, named) if named else None
        run = Run(
            folder="",
            action=request.action,
            request_sha256="",
            round_id=newest.id if newest else None,
            adapter_id=adapter.id if adapter else None,
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


def _write_folder(workspace: Workspace, run: Run, inputs: Inputs) -> Path:
    folder = _free(workspace.runs / run.folder)
    folder.mkdir(parents=True, mode=0o700)
    for name, rows in inputs.files.items():
        if rows:
            write_rows(folder / name, rows)
    output, reference_cache = "adapter", None
    if inputs.request.action in ("train", "round"):
        adapter = _free(workspace.path / "adapters" / f"adapter-{run.id:04d}")
        output = f"../../adapters/{adapter.name}"
        reference_cache = f"../../{REFERENCE_CACHE}"
    write_request(
        folder,
        replace(
            inputs.request,
            run=folder.name,
            measure=MEASURE if inputs.files.get(MEASURE) else None,
            output_adapter=output,
            reference_cache=reference_cache,
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
            # What was whole when it ended is kept: an adapter in use, pairs to judge.
            take_in_so_far(workspace)
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


def take_in_so_far(workspace: Workspace) -> int:
    """Take in what the run under way has written so far; return how many pairs are new.

    Rows that cannot be read are left to `settle`, which closes the run. Raises Busy or
    CannotWrite when the database cannot be written.
    """
    under_way = run_under_way(workspace)
    if under_way is None:
        return 0
    with db.writing(workspace.engine) as session:
        run = session.get_one(Run, under_way[0].id)
        if run.state is not RunState.RUNNING:
            return 0
        try:
            with session.begin_nested():
                return ingest.take_in_so_far(session, workspace, run, under_way[1])
        except (ValueError, KeyError, TypeError, OSError):
            return 0


def _being_prepared(run: Run, folder: Path) -> bool:
    """Tell whether whoever claimed the run is still writing its folder."""
    age = time.time() - datetime.fromisoformat(run.created_at).timestamp()
    return abs(age) < runs.START_SECONDS and not (folder / REQUEST).exists()


def _close(workspace: Workspace, run: Run, state: RunState, error: str, status: int = 1) -> Run:
    with db.writing(workspace.engine) as session:
        mine = session.get_one(Run, run.id)
        if mine.state is RunState.RUNNING:
            mine.state, mine.error, mine.ended_at = state, error, now()
            mine.metrics = {**(mine.metrics or {}), "exit_status": status}
    folder = workspace.runs / run.folder
    if folder.is_dir() and not read_events(folder)[0]:
        # A trainer that comes to life after it was given up finds this and leaves.
        with contextlib.suppress(OSError):
            append_event(folder, str(state), message=error, status=status)
    return mine


def run_under_way(workspace: Workspace) -> tuple[Run, Path] | None:
    """Return the run under way and its folder, for adopting and following it."""
    with db.reading(workspace.engine) as session:
        run = store.running(session)
    return (run, workspace.runs / run.folder) if run else None
