"""Several duels in one ranking: by hand, against known strengths, and where there is none."""

from __future__ import annotations

import random

import pytest

from curator import duels
from curator.duels import Tally, rank


def test_two_of_three_policies_by_hand() -> None:
    # a beats the base 30 : 10, b beats it 10 : 10, a and b meet 15 : 5. All fit log 3 and 0.
    tallies = {
        ("a", "base"): Tally(wins=30, losses=10, ties=7),
        ("b", "base"): Tally(wins=10, losses=10),
        ("b", "a"): Tally(wins=5, losses=15),
    }
    ranking = rank(tallies)
    assert ranking is not None and list(ranking["strengths"]) == ["a", "b"]
    a, b = ranking["strengths"]["a"], ranking["strengths"]["b"]
    assert (a["value"], b["value"]) == (pytest.approx(1.0986, abs=1e-4), pytest.approx(0, abs=1e-6))
    assert a["interval"][0] < 1.0986 < a["interval"][1] and (a["n"], b["n"]) == (60, 40)
    # The Fisher information by hand: n p (1 - p) a meeting, inverted.
    meets = 40 * 0.75 * 0.25, 20 * 0.5 * 0.5, 20 * 0.75 * 0.25
    determinant = (meets[0] + meets[2]) * (meets[1] + meets[2]) - meets[2] ** 2
    error = ((meets[1] + meets[2]) / determinant) ** 0.5
    assert a["interval"][1] - a["value"] == pytest.approx(1.96 * error, rel=1e-3)


def test_a_ranking_says_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    two = {("a", "base"): Tally(wins=3, losses=2)}
    assert rank(two) is None
    always = {**two, ("b", "base"): Tally(wins=4, losses=0)}
    found = rank(always)
    assert found is not None and "no ranking yet" in found["note"]
    import sys

    monkeypatch.setitem(sys.modules, "statsmodels.genmod.families", None)
    found = rank({**two, ("b", "base"): Tally(wins=4, losses=1)})
    assert found is not None and "needs the `report` extra" in found["note"]


def test_policies_that_never_met_are_ranked_apart() -> None:
    """Of two models' bases each is its own; no duel leads from the one's adapters to the other."""
    won = Tally(wins=3, losses=2)
    one = {("a", "base"): won, ("b", "base"): won, ("b", "a"): won}
    other = {("c", "base 12345678"): won, ("d", "c"): won}
    found = duels.groups({**one, **other, ("e", "base"): Tally(ties=4)})
    assert found == [one, other]
    ranked = [rank(each) for each in found]
    assert [each["reference"] for each in ranked if each] == ["base", "base 12345678"]
    assert ranked[1] is not None and set(ranked[1]["strengths"]) == {"c", "d"}


def test_the_ranking_recovers_strengths() -> None:
    draw, truth = random.Random(3), {"a": 1.0, "b": 0.4, "base": 0.0}
    hits = 0
    for _ in range(200):
        tallies = {}
        for first, second in (("a", "base"), ("b", "base"), ("b", "a")):
            share = 1 / (1 + 2.718281828 ** (truth[second] - truth[first]))
            wins = sum(draw.random() < share for _ in range(40))
            tallies[first, second] = Tally(wins=wins, losses=40 - wins)
        ranking = rank(tallies)
        assert ranking is not None
        low, high = ranking["strengths"]["a"]["interval"]
        hits += low <= 1.0 <= high
    assert 180 <= hits <= 199
