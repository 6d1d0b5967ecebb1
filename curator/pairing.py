"""Pure: which two candidates make a pair, and which of them is on the left."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w+")

# Two replies nearer than this say the same. DPO on them moves probability to the opposite
# meaning (likelihood displacement, arXiv 2410.08847).
NEAR_IDENTICAL = 0.1


def shingles(text: str) -> frozenset[str]:
    """Return the words and neighbouring word pairs of a text, in lower case."""
    words = WORD.findall(text.casefold())
    return frozenset(words) | {f"{a} {b}" for a, b in itertools.pairwise(words)}


def text_distance(first: str, second: str) -> float:
    """Return the Jaccard distance of two texts' shingles: 0 the same words, 1 none shared."""
    a, b = shingles(first), shingles(second)
    if not a and not b:
        return 0.0
    return 1 - len(a & b) / len(a | b)


def length_gap(first: str, second: str) -> float:
    """Return |ln| of the ratio of two texts' word counts: 0 equally long."""
    return abs(math.log((len(first.split()) + 1) / (len(second.split()) + 1)))


def choose_two(texts: Sequence[str]) -> tuple[int, int, float] | None:
    """Return the indexes of the two texts far apart in words and close in length, and how far.

    Lengths matter because annotators pick the longer reply about 70 % of the time. None when no
    two differ enough, or fewer than two are not empty.
    """
    best: tuple[float, int, int, float] | None = None
    for i, j in itertools.combinations(range(len(texts)), 2):
        if not texts[i].strip() or not texts[j].strip():
            continue
        distance = text_distance(texts[i], texts[j])
        if distance < NEAR_IDENTICAL:
            continue
        score = distance - length_gap(texts[i], texts[j])
        if best is None or score > best[0]:
            best = (score, i, j, distance)
    return best and best[1:]


def side_seed(seed: int, *parts: str) -> int:
    """Return the seed of a pair's left/right draw, from the workspace's and what is paired."""
    digest = hashlib.sha256("\0".join((str(seed), *parts)).encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:6], "big")


def draw_sides(first: int, second: int, seed: int) -> tuple[int, int]:
    """Return the two as (left, right): a fair draw that `seed` settles."""
    return (first, second) if random.Random(seed).random() < 0.5 else (second, first)


def held_out_draw(
    seed: int,
    groups: Sequence[tuple[str, str]],
    share: float,
    before: Sequence[tuple[str, str, bool]] = (),
) -> list[bool]:
    """Return, for each new (family, key), whether it is held out.

    `share` of all is held out, and of each family about as much, counting the (family, key, held
    out) that were there `before`. Which ones is a draw by `seed` and the key alone; equal keys
    (the prompts of one client) land on the same side.
    """
    side_of: dict[str, bool] = {}
    seen: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for family, key, is_held in before:
        side_of[key] = is_held
        seen[family] += 1
        held[family] += is_held
    for i in sorted(range(len(groups)), key=lambda i: side_seed(seed, *groups[i])):
        family, key = groups[i]
        seen[family] += 1
        if key not in side_of:
            due = held.total() + 1 <= share * seen.total()
            side_of[key] = due and held[family] < max(1, share * seen[family])
        held[family] += side_of[key]
    return [side_of[key] for _, key in groups]
