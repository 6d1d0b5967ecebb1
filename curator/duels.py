"""The verbs of duels: two adapters, or one and the base, compared blind in the judge's screen.

Part of the workflow layer. Judgments of duels are never preferences. A prompt to which both wrote
nearly the same gives no pair: nobody could choose, and it is counted, not judged.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from curator import db, rounds, store
from curator.errors import BadData, NotReady
from curator.judgments import standing
from curator.models import (
    Adapter,
    Annotator,
    Candidate,
    Judgment,
    Pair,
    Prompt,
    Purpose,
    Split,
    Verdict,
)
from curator.rounds import Started
from curator.statistics import ALPHA, decisive_pairs_needed, sign_test
from curator.store import BASE
from curator.workspace import Workspace
from trainer.intervals import wilson_interval

FEWEST_TO_RANK = 3


def start_duel(workspace: Workspace, first: str, second: str, count: int) -> Started:
    """Start the run that writes a duel's replies; its pairs join the newest round's queue.

    `first`, `second`: adapters by name, or `base`. No prompt is asked of which a pair of these two
    is there already: it would count as a second one and be none. Raises BadData for an unknown
    name or one policy against itself, NotReady when there is no round yet or no such prompt.
    """
    if first == second:
        raise BadData(f"a duel of {first} against itself says nothing. Name two, or base.")
    rounds.settle(workspace)
    with db.reading(workspace.engine) as session:
        left_over = store.prompts_for_duel(session, 1, lambda prompt: 0, (first, second))
        if store.newest_round(session) is None:
            raise NotReady(
                "a duel's pairs are mixed into a round's, and there is none. "
                "Write the first pairs with: curator generate"
            )
        if not left_over:
            raise NotReady(
                f"{first} and {second} have been compared on every prompt there is. "
                "Add more with: curator import prompts FILE"
            )
    return rounds.start_run(workspace, "duel", prompts=count, adapter=first, compare=second)


@dataclass
class Tally:
    """What one kind of annotator said of one duel; a pair counts once, and so does a prompt."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0
    held_out: int = 0
    """Decisive pairs on prompts that are held out: no adapter was trained on them."""
    waiting: int = 0
    repeated: int = 0
    """Judged pairs on a prompt that an earlier one asked, not counted."""
    looks: int = 1
    """How many duels of these two there were: after each the result was there to be looked at."""


Tallies = dict[tuple[str, str], Tally]
"""By the two policies' names, in the order of `_in_order`."""


@dataclass(frozen=True)
class Compared:
    """What a duel's pair compares: its left and right side by name, and on which prompt."""

    sides: tuple[str, str]
    prompt_id: int
    held_out: bool
    run_id: int | None


def results(workspace: Workspace) -> dict[str, Any]:
    """Return the duels and the ranking, each by kind of annotator, ready for JSON."""
    with db.reading(workspace.engine) as session:
        tallies = _tallies(session)
    by_kind: dict[str, Tallies] = defaultdict(dict)
    for (kind, first, second), tally in tallies.items():
        by_kind[kind][first, second] = tally
    return {
        "duels": [
            _result(kind, *names, tally)
            for kind, found in sorted(by_kind.items())
            for names, tally in sorted(found.items())
        ],
        "rankings": [
            {"annotator": kind, **ranking}
            for kind, found in sorted(by_kind.items())
            for met in groups(found)
            if (ranking := rank(met)) is not None
        ],
    }


def _tallies(session: Session) -> dict[tuple[str, str, str], Tally]:
    """Return {(annotator kind, first, second): tally}; "nobody" for pairs not judged yet.

    Of several judgments of one pair by one kind of annotator the latest counts, and of several
    pairs of one duel on one prompt the one judged first. For a kind that has begun a pair waits
    until one of them has seen it, be it to skip it.
    """
    pairs = _pairs(session)
    judged: dict[tuple[str, int], Verdict] = {}
    seen: dict[str, set[int]] = defaultdict(set)
    for kind, pair_id, verdict in session.exec(
        select(Annotator.kind, Judgment.pair_id, Judgment.verdict)
        .join(Pair, col(Judgment.pair_id) == Pair.id)
        .join(Annotator, col(Judgment.annotator_id) == Annotator.id)
        .where(Pair.purpose == Purpose.DUEL, standing())
        .order_by(col(Judgment.id))
    ):
        seen[str(kind)].add(pair_id)
        if verdict is not Verdict.SKIP:
            judged[str(kind), pair_id] = Verdict(verdict)
    tallies: dict[tuple[str, str, str], Tally] = defaultdict(Tally)
    counted: set[tuple[str, str, str, int]] = set()
    for (kind, pair_id), verdict in judged.items():
        names_of = (kind, *_in_order(*pairs[pair_id].sides))
        prompt = (*names_of, pairs[pair_id].prompt_id)
        if prompt in counted:
            tallies[names_of].repeated += 1
        else:
            counted.add(prompt)
            _count(tallies[names_of], names_of[1], pairs[pair_id], verdict)
    for unjudged in pairs.keys() - {number for _, number in judged}:
        tallies["nobody", *_in_order(*pairs[unjudged].sides)].waiting += 1
    for kind, theirs in seen.items():
        for unseen in pairs.keys() - theirs:
            names_of = (kind, *_in_order(*pairs[unseen].sides))
            # A pair on a prompt that is counted already would be counted no second time.
            if names_of in tallies and (*names_of, pairs[unseen].prompt_id) not in counted:
                tallies[names_of].waiting += 1
    runs: dict[tuple[str, str], set[int | None]] = defaultdict(set)
    for pair in pairs.values():
        runs[_in_order(*pair.sides)].add(pair.run_id)
    for (_, *sides), tally in tallies.items():
        tally.looks = len(runs[sides[0], sides[1]])
    return dict(tallies)


def _pairs(session: Session) -> dict[int, Compared]:
    """Return the pairs of all duels, by id.

    The base is the model of the newest one with the base in it; an earlier model is another.
    """
    left, right = aliased(Candidate), aliased(Candidate)
    names: dict[int | None, str] = dict(session.exec(select(Adapter.id, Adapter.name)).all())
    found = session.exec(
        select(Pair, left, right, Prompt.split)
        .join(Prompt, col(Pair.prompt_id) == Prompt.id)
        .join(left, col(Pair.left_id) == left.id)
        .join(right, col(Pair.right_id) == right.id)
        .where(Pair.purpose == Purpose.DUEL)
        .order_by(col(Pair.id))
    ).all()
    bases = [c.model_sha256 for _, *both, _ in found for c in both if c.adapter_id is None]

    def name(candidate: Candidate) -> str:
        if candidate.adapter_id is not None:
            return names[candidate.adapter_id]
        sha256 = candidate.model_sha256
        return BASE if sha256 == bases[-1] else f"{BASE} {(sha256 or 'unknown')[:8]}"

    return {
        pair.id or 0: Compared(
            (name(one), name(other)), pair.prompt_id, split == Split.HELD_OUT, one.run_id
        )
        for pair, one, other, split in found
    }


def _is_base(name: str) -> bool:
    return name.split(" ")[0] == BASE


def _in_order(one: str, other: str) -> tuple[str, str]:
    """Return two policies in one order for good: the base last, the newest adapter first."""
    first, second = sorted((one, other), key=lambda name: (not _is_base(name), name), reverse=True)
    return first, second


def _count(tally: Tally, first: str, pair: Compared, verdict: Verdict) -> None:
    if verdict is Verdict.TIE:
        tally.ties += 1
    elif verdict is Verdict.BOTH_BAD:
        tally.both_bad += 1
    elif pair.sides[0 if verdict is Verdict.LEFT else 1] == first:
        tally.wins += 1
    else:
        tally.losses += 1
    tally.held_out += pair.held_out and verdict in (Verdict.LEFT, Verdict.RIGHT)


def _result(kind: str, first: str, second: str, tally: Tally) -> dict[str, Any]:
    n = tally.wins + tally.losses
    facts: dict[str, Any] = {
        "annotator": kind, "first": first, "second": second, "wins": tally.wins,
        "losses": tally.losses, "ties": tally.ties, "both_bad": tally.both_bad,
        "waiting": tally.waiting, "repeated": tally.repeated, "n": n, "held_out": tally.held_out,
    }  # fmt: skip
    if n:
        share = tally.wins / n
        # A test that is looked at again and again until it pleases passes too often, so it takes
        # 5 % over the number of looks (after four of 50 pairs an even duel then passes in 5.4 % of
        # cases, and in 9.6 % without). What waits belongs to this look; more pairs are the next.
        next_look = tally.looks + (not tally.waiting)
        facts |= {
            "win_rate": share,
            "interval": list(wilson_interval(tally.wins, n)),
            "p_value": sign_test(tally.wins, tally.losses),
            "looks": tally.looks,
            "alpha": ALPHA / tally.looks,
            "settled_by": decisive_pairs_needed(share, ALPHA / next_look),
        }
    return facts


# --- several of them ------------------------------------------------------------------------------


def groups(tallies: Tallies) -> list[Tallies]:
    """Return the decided duels, apart where no duel leads from one policy to another."""
    policies: list[set[str]] = []
    decisive = {names: tally for names, tally in tallies.items() if tally.wins + tally.losses}
    for names in decisive:
        touched = [group for group in policies if group & set(names)]
        policies = [group for group in policies if group not in touched]
        policies.append(set(names).union(*touched))
    return [{names: t for names, t in decisive.items() if names[0] in met} for met in policies]


def rank(tallies: Tallies) -> dict[str, Any] | None:
    """Return a Bradley-Terry ranking of three policies or more, the base (or the last) at 0.

    Of duels that `groups` left together. {"reference", "strengths": {policy: {"value", "interval",
    "n"}}} in log odds of winning against the reference, by statsmodels' logistic regression; ties
    are left out. "note" in place of the strengths where it cannot be told: the library is missing,
    or the wins do not connect the policies in both directions, and no finite estimate exists (Ford
    1957).
    """
    decisive = {names: t for names, t in tallies.items() if t.wins + t.losses}
    policies = sorted(
        {name for names in decisive for name in names}, key=lambda name: (_is_base(name), name)
    )
    if len(policies) < FEWEST_TO_RANK:
        return None
    reference, others = policies[-1], policies[:-1]
    facts: dict[str, Any] = {"reference": reference}
    if not _connected(policies, decisive):
        return facts | {
            "note": "no ranking yet: somebody has won, or lost, every duel with some of the rest."
        }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pandas says of its own future
            from statsmodels.genmod.families import Binomial
            from statsmodels.genmod.generalized_linear_model import GLM
    except ImportError:
        return facts | {
            "note": "a ranking needs the `report` extra: pip install curator-dpo[report]"
        }
    design = [
        [float(name == first) - float(name == second) for name in others]
        for first, second in decisive
    ]
    outcomes = [[tally.wins, tally.losses] for tally in decisive.values()]
    with warnings.catch_warnings():
        # It takes shares that fit exactly for separation; that there is none was checked above.
        warnings.filterwarnings("ignore", "Perfect separation or prediction detected")
        # As many duels as policies to place leave no degree of freedom for the scale of a first
        # guess; a binomial's is 1.
        warnings.filterwarnings("ignore", "(divide by zero|invalid value) encountered")
        fit = GLM(outcomes, design, family=Binomial()).fit()
    strengths = _strengths(others, fit, decisive)
    order = sorted(strengths, key=lambda name: -strengths[name]["value"])
    return facts | {"strengths": {name: strengths[name] for name in order}}


def _strengths(others: list[str], fit: Any, decisive: Tallies) -> dict[str, dict[str, Any]]:
    """Return each policy's log odds over the reference, with interval and decisive pairs."""
    intervals = fit.conf_int()
    battles: Counter[str] = Counter()
    for (first, second), tally in decisive.items():
        battles.update({first: tally.wins + tally.losses, second: tally.wins + tally.losses})
    return {
        name: {
            "value": float(fit.params[i]),
            "interval": [float(intervals[i][0]), float(intervals[i][1])],
            "n": battles[name],
        }
        for i, name in enumerate(others)
    }


def _connected(policies: list[str], decisive: Tallies) -> bool:
    """Tell whether from every policy a chain of wins leads to every other."""
    beats: dict[str, set[str]] = {name: set() for name in policies}
    for (first, second), tally in decisive.items():
        if tally.wins:
            beats[first].add(second)
        if tally.losses:
            beats[second].add(first)

    def reach(start: str) -> set[str]:
        found, open_ = {start}, [start]
        while open_:
            for name in beats[open_.pop()] - found:
                found.add(name)
                open_.append(name)
        return found

    return all(len(reach(name)) == len(policies) for name in policies)
