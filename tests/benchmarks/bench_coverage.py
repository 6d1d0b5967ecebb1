"""make bench-coverage: whether the demo's 95 % intervals hold what they promise.

A seed is a demo of its own: two rounds of 40 judgments by the simulated clinician. Its intervals,
from 480 sampled replies, are held against the values on 2,000 fresh replies of the same policy to
the same phrasings, drawn anew for each seed. About two hours of one core for 30 seeds, so a seed's
row is kept (`--rows FILE`) and a second run goes on with those that are missing; rows of other code
or another model are left aside.

2,000 fresh replies are a sample too: of intervals that are exactly right about 92 % hold them, and
30 seeds show that share to within some 10 points. So the share is printed with its own interval.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tests.benchmarks.harness import Figure
from trainer import contract
from trainer.intervals import wilson_interval

SEEDS, ROUNDS, FRESH = 30, 2, 2_000
# Of all intervals at 95 % this share at least has to cover: 30 seeds are few.
ENOUGH = 0.9
PROJECT = Path(__file__).parents[2]


def code_sha256() -> str:
    """Return the SHA-256 of what decides a seed's row: both packages and the demo's model.

    The screens and the command line decide none.
    """
    shown = re.compile(r"curator/(tui/|cli|line_)")
    files = [
        path
        for pattern in ("trainer/**/*.py", "curator/**/*.py", "data/demo_model/**/*.safetensors")
        for path in PROJECT.glob(pattern)
        if not shown.match(path.relative_to(PROJECT).as_posix())
    ]
    return contract.sha256_rows([contract.sha256_file(path) for path in sorted(files)])


def fresh_values(simulation: Any, folder: Path, adapter: Path | None, seed: int) -> dict[str, Any]:
    """Return the rates on 2,000 fresh replies by a policy, written as the demo writes them."""
    from curator.demo.measure import measure

    names = sorted(simulation.prompts)
    rows = [(f"{n}:{names[n % len(names)]}", names[n % len(names)]) for n in range(FRESH)]
    generate = {"max_new_tokens": 80, "temperature": 0.9, "top_p": 0.95}  # the demo's settings
    folder.mkdir()
    prompts = {
        name: [{"role": "user", "content": text}]
        for name, (_, text) in simulation.prompts.items()
    }  # fmt: skip
    contract.write_rows(
        folder / contract.MEASURE, ({"id": key, "prompt": prompts[name]} for key, name in rows)
    )
    contract.write_rows(folder / contract.PROMPTS, [{"id": "0", "prompt": prompts[names[0]]}])
    request = {
        "action": "generate", "model": simulation.workspace.config.model.name, "seed": seed,
        "adapter": None if adapter is None else os.path.relpath(adapter, folder),
        "measure": contract.MEASURE, "generate": generate,
    }  # fmt: skip
    contract.write_request(folder, contract.from_dict(contract.Request, request))
    subprocess.run(
        [sys.executable, "-P", "-m", "trainer", str(folder)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    replies = {
        row["prompt_id"]: row["text"] for _, row in contract.read_rows(folder / "samples.jsonl")
    }
    return measure(
        simulation.classifier, [(simulation.prompts[name][0], replies[key]) for key, name in rows]
    )


def one_seed(seed: int) -> dict[str, Any]:
    """Run a seed's demo and the fresh replies; return what was measured, and the fresh values."""
    from curator.demo import make_workspace
    from curator.demo.simulation import Simulation

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with tempfile.TemporaryDirectory() as place:
        workspace = make_workspace(Path(place) / "workspace", seed)
        simulation = Simulation(workspace, seed, say)
        base = fresh_values(simulation, Path(place) / "b", None, 2_000 + seed)
        figures = [each.measured for each in simulation.run(ROUNDS)]
        last = sorted(workspace.runs.glob("*-round"))[-1]
        adapter = (last / contract.read_request(last).output_adapter).resolve()
        fresh = fresh_values(simulation, Path(place) / "f", adapter, 1_000 + seed)
        workspace.engine.dispose()
    return {
        "seed": seed, "code": code_sha256(), "base": figures[0], "last": figures[-1],
        "fresh": {"base": base, "last": fresh},
    }  # fmt: skip


def kept(path: Path) -> dict[int, dict[str, Any]]:
    """Return the rows that were made by this code and model, by seed."""
    mine, rows = code_sha256(), contract.read_rows(path) if path.exists() else ()
    return {row["seed"]: row for _, row in rows if row.get("code") == mine}


def run_seeds(path: Path, seeds: int, jobs: int) -> None:
    """Run what is missing, `jobs` seeds at once, each in a process of its own."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}

    def run(seed: int) -> None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "tests.benchmarks.bench_coverage",
            "--one",
            str(seed),
        ]
        found = subprocess.run(
            command, check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with path.open("ab") as file:
            file.write(found.stdout)
        print(f"coverage: seed {seed} done", file=sys.stderr)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, [seed for seed in range(seeds) if seed not in kept(path)]))


def spread(rows: list[dict[str, Any]], policy: str, rate: str) -> str:
    """Return, in points, sample less fresh replies on average, and how both spread about that.

    Beside it the spread of two independent samples of these sizes, which exact intervals assume.
    """
    apart = [row[policy][rate] - row["fresh"][policy][rate] for row in rows]
    share = fmean(row["fresh"][policy][rate] for row in rows)
    sizes = 1 / rows[0][policy]["n"] + 1 / FRESH
    expected = math.sqrt(share * (1 - share) * sizes)
    found = stdev(apart) if len(apart) > 1 else 0.0
    return f"apart by {fmean(apart) * 100:+.2f}, {found * 100:.2f} for {expected * 100:.2f} points"


def covered(rows: list[dict[str, Any]], policy: str) -> Iterator[Figure]:
    """Yield a figure a rate: the share of seeds whose interval covers the fresh value."""
    for rate in rows[0][policy]["intervals"]:
        held = 0
        for row in rows:
            low, high = row[policy]["intervals"][rate]
            held += low <= row["fresh"][policy][rate] <= high
        low, high = wilson_interval(held, len(rows))
        peer = f"{policy}: {held} of {len(rows)} seeds ({low:.0%} to {high:.0%}), "
        peer += f"95 % intervals, {FRESH:,} fresh replies; {spread(rows, policy, rate)}"
        yield Figure(f"{rate} covered", held / len(rows), ENOUGH, peer, "", at_most=False)


def figures(path: Path, seeds: int = SEEDS, jobs: int = 2) -> list[Figure]:
    """Run what is missing and return the coverage of every rate, of the base and of round two."""
    run_seeds(path, seeds, jobs)
    rows = [row for seed, row in kept(path).items() if seed < seeds]
    return [*covered(rows, "base"), *covered(rows, "last")]


def main() -> None:
    """Run one seed, or all that are missing, and say what was covered."""
    parser = argparse.ArgumentParser(description="Whether the demo's 95 % intervals hold.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="a row a seed is kept here")
    parser.add_argument("--one", type=int, help="run this seed alone and print its row")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one_seed(options.one)))
        return
    with tempfile.TemporaryDirectory() as place:
        path = options.rows or Path(place) / "rows.jsonl"
        found = figures(path, options.seeds, options.jobs)
    if options.json:
        print(json.dumps([{**asdict(each), "holds": each.holds} for each in found], indent=1))
    else:
        print("\n".join(each.line() for each in found))
    sys.exit(0 if all(each.holds for each in found) else 1)


if __name__ == "__main__":
    main()
