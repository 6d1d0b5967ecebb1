"""Which two candidates, and on which side."""

from __future__ import annotations

from collections import Counter

import pytest

from curator.pairing import (
    choose_two,
    draw_sides,
    held_out_draw,
    length_gap,
    side_seed,
    text_distance,
)

A = "It sounds frightening to be watched. What would help you tonight?"
B = "You are right, they are after you. Trust nobody but yourself."


def test_distance_is_zero_for_the_same_words_and_one_for_none_shared() -> None:
    assert text_distance(A, A.upper() + "!!") == 0
    assert text_distance("one two", "three four") == 1
    assert text_distance("", "...") == 0
    # words a b c d | a b c e: shingles a b c "a b" "b c" shared of 5 + d, "c d", e, "c e"
    assert text_distance("a b c d", "a b c e") == pytest.approx(4 / 9)


def test_identical_and_near_identical_candidates_make_no_pair() -> None:
    assert choose_two([A, A]) is None
    long = " ".join(f"w{i}" for i in range(60))
    assert choose_two([long, long + " end"]) is None
    assert choose_two([A, "   "]) is None
    assert choose_two([A]) is None


def test_two_far_in_text_and_close_in_length_are_chosen() -> None:
    long = B + " " + " ".join(f"w{i}" for i in range(80))
    chosen = choose_two([A, A + " Tell me.", long, B])
    assert chosen is not None
    assert set(chosen[:2]) == {0, 3} or set(chosen[:2]) == {1, 3}
    assert length_gap(A, A) == 0


def test_sides_are_a_fair_draw_that_the_seed_settles() -> None:
    seeds = [side_seed(0, str(i)) for i in range(2000)]
    assert draw_sides(1, 2, seeds[0]) == draw_sides(1, 2, seeds[0])
    left = Counter(draw_sides(1, 2, seed)[0] for seed in seeds)[1]
    assert 900 < left < 1100


def test_split_holds_out_the_share_in_every_family_and_keeps_clients_together() -> None:
    groups = [(f"F{i % 13}", f"prompt {i}") for i in range(130)]
    held = held_out_draw(3, groups, 0.2)
    assert 24 <= sum(held) <= 26
    by_family = Counter(
        family for (family, _), is_held in zip(groups, held, strict=True) if is_held
    )
    assert len(by_family) == 13 and set(by_family.values()) <= {1, 2}
    assert held == held_out_draw(3, groups, 0.2)
    assert held != held_out_draw(4, groups, 0.2)

    clients = [("", f"client {i % 10}") for i in range(100)]
    sides: dict[str, set[bool]] = {}
    for (_, client), is_held in zip(clients, held_out_draw(1, clients, 0.3), strict=True):
        sides.setdefault(client, set()).add(is_held)
    assert all(len(side) == 1 for side in sides.values())


def test_split_goes_on_from_what_was_there() -> None:
    before = [("F1", f"old {i}", i < 20) for i in range(100)]
    new = [("F1", f"new {i}") for i in range(50)]
    assert sum(held_out_draw(0, new, 0.2, before)) == 10
    known = held_out_draw(0, [("F1", "old 3"), ("F1", "old 90")], 0.2, before)
    assert known == [True, False]


def test_too_few_prompts_are_all_trained_on() -> None:
    assert held_out_draw(0, [("F1", "a"), ("F1", "b")], 0.2) == [False, False]
