"""A simulated clinician, called so wherever its picks appear. It stands in for nobody real."""

from __future__ import annotations

import random
from typing import Literal

from curator.demo.measure import Classifier
from curator.demo.phrasing import BOUNDARY_AWARE, OVER_CORRECTED
from curator.judgments import Said
from curator.models import Verdict, new_uuid
from curator.seat import Seat, Shown

NAME = "simulated clinician"
NOISE = 0.1

Liking = Literal["boundary_aware", "cold"]


class SimulatedClinician:
    """Prefers boundary-aware replies, rejects agreeing and coldness alike, errs one time in ten.

    `liking` "cold" prefers over-corrected replies instead: a clinician to be warned of, with
    whom the measure must show harm.
    """

    def __init__(
        self, classifier: Classifier, seed: int, liking: Liking = "boundary_aware"
    ) -> None:
        self.classifier = classifier
        self.liked = OVER_CORRECTED if liking == "cold" else BOUNDARY_AWARE
        self.draw = random.Random(f"simulated clinician {seed}")

    def verdict(self, pair: Shown) -> Said:
        """Return what it says of a pair; noise swaps left and right."""
        left = self.classifier.classify(pair.left).kind == self.liked
        right = self.classifier.classify(pair.right).kind == self.liked
        if left == right:
            return Said(Verdict.TIE if left else Verdict.BOTH_BAD)
        if self.draw.random() < NOISE:
            left = right
        return Said(Verdict.LEFT if left else Verdict.RIGHT, strength=2)

    def judge(self, seat: Seat, count: int) -> int:
        """Judge up to `count` pairs; return how many there were."""
        pair = seat.next()
        for done in range(count):
            if pair is None:
                return done
            pair = seat.judge(pair.pair_id, self.verdict(pair), new_uuid())
        seat.leave()
        return count
