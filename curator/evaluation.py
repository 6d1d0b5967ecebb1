"""What a run's evaluation says: every figure with n and a 95 % interval, and differences. Pure.

Rows that belong together count as what they are worth together: held-out preferences to one prompt,
and probes of one cluster (those that begin with the same client's turn, are the two sides of one
conflict or, in the demo, put the same situation: curator/clusters.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from curator.evaluation_rows import POLICIES, Rows
from curator.statistics import (
    FEWEST_TO_CONCLUDE,
    SIMULATED,
    apart,
    newcombe,
    ratio_interval,
    weighted_slope,
    z_value,
)
from trainer.intervals import effective_size, mean_interval, wilson_interval

# Of the texts that come with curator, theirs are in the probes alone (data/README.md): what holds
# there was not learnt by heart. Imported prompts may have them too: see `figures`.
KEPT_OUT = ("F12", "C02")
TOO_FEW = f"Held-out accuracy: from n under {FEWEST_TO_CONCLUDE} nothing can be concluded."
PROBE_RATES = {
    "collusive": "probe_collusion_rate",
    "over_corrected": "probe_over_correction_rate",
}
Figure = dict[str, Any]
"""{"value", "n", "interval": [low, high] or None}; a share also has its "clusters" and what a
row of them is "worth", if fewer."""


# --- figures ------------------------------------------------------------------------------------


def share(values: Sequence[bool], clusters: Sequence[str] | None = None) -> Figure | None:
    """Return a share with n and Wilson's interval, of the effective size where rows cluster."""
    n = len(values)
    if n == 0:
        return None
    worth = effective_size([float(v) for v in values], clusters) if clusters is not None else n
    value = sum(values) / n
    figure = {"value": value, "n": n, "interval": list(wilson_interval(value * worth, worth))}
    if clusters is not None and len(set(clusters)) < n:
        figure["clusters"] = len(set(clusters))
        figure["worth"] = worth / n  # for an interval of another level (gates)
    return figure


def mean(values: Sequence[float], clusters: Sequence[str] | None = None) -> Figure | None:
    """Return a mean with n and its t interval, as `share` does; no interval under 4 clusters."""
    n = len(values)
    if n == 0:
        return None
    groups = n if clusters is None else len(set(clusters))
    interval = list(mean_interval(values, clusters)) if groups >= 4 else None
    return {"value": sum(values) / n, "n": n, "interval": interval}


def _errs(rows: Rows, wrong: str) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in rows.probes.items() if row["wrong"] == wrong}


def _both_sides(rows: Rows) -> dict[str, bool]:
    """Return, for each conflict told from both sides, whether both were agreed with."""
    told: dict[str, list[bool]] = defaultdict(list)
    for row in rows.probes.values():
        if row["conflict"]:
            told[row["conflict"]].append(row["errs"])
    return {conflict: all(errs) for conflict, errs in told.items() if len(errs) == 2}


def _probe_share(rows: dict[str, dict[str, Any]]) -> Figure | None:
    return share([row["errs"] for row in rows.values()], [r["cluster"] for r in rows.values()])


def _of(rows: dict[Any, dict[str, Any]], family: str) -> dict[Any, dict[str, Any]]:
    return {key: row for key, row in rows.items() if row["family"] == family}


def _families_of(rows: dict[Any, dict[str, Any]]) -> list[str]:
    return sorted({row["family"] for row in rows.values()} - {""})


def _policy_figures(rows: Rows, kept_out_families: Sequence[str]) -> dict[str, Any]:
    """Return one policy's figures, overall and by family; what was not measured is left out."""
    held, replies = list(rows.held_out.values()), list(rows.replies.values())
    collusive, corrected = _errs(rows, "collusive"), _errs(rows, "over_corrected")
    ids = [key[0] for key in rows.held_out]
    result = {
        "held_out_accuracy": share([row["margin"] > 0 for row in held], ids),
        "held_out_margin": mean([row["margin"] for row in held], ids),
        "probe_collusion_rate": _probe_share(collusive),
        "probe_over_correction_rate": _probe_share(corrected),
        "both_sides_rate": share(list(_both_sides(rows).values())),
        "length": mean([row["length"] for row in replies]),
        "distinct_2": mean([r["distinct_2"] for r in replies if r["distinct_2"] is not None]),
        "refusal_rate": share([row["refusal"] for row in replies]),
        "cut_rate": share([row["cut"] for row in replies]),
        "kl": mean([row["kl"] for row in replies if row["kl"] is not None]),
        "chosen_logp": mean([row["chosen_logp"] for row in held], ids),
        "chosen_logp_change": mean([row["chosen_logp_change"] for row in held], ids),
    }
    kept_out = {
        PROBE_RATES[name]: rate
        for name, found in (("collusive", collusive), ("over_corrected", corrected))
        if (
            rate := _probe_share(
                {k: r for k, r in found.items() if r["family"] in kept_out_families}
            )
        )
    }
    return {
        **{name: figure for name, figure in result.items() if figure is not None},
        "kept_out": kept_out,
        "families": _family_figures(rows),
    }


def _family_figures(rows: Rows) -> dict[str, dict[str, Figure]]:
    found: dict[str, dict[str, Figure]] = defaultdict(dict)
    for wrong, name in PROBE_RATES.items():
        probes = _errs(rows, wrong)
        for family in sorted({row["family"] for row in probes.values()}):
            rate = _probe_share(_of(probes, family))
            if rate:
                found[family][name] = rate
    for family in _families_of(rows.held_out):
        held = _of(rows.held_out, family)
        margins, prompts = [row["margin"] for row in held.values()], [key[0] for key in held]
        accuracy, margin = share([m > 0 for m in margins], prompts), mean(margins, prompts)
        if accuracy and margin:
            found[family] |= {"held_out_accuracy": accuracy, "held_out_margin": margin}
    return dict(found)


# --- differences ----------------------------------------------------------------------------------


def _paired(
    first: dict[Any, Any], second: dict[Any, Any], value: Callable[[Any], Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return both policies' values over the rows both have, and the rows' keys."""
    keys = [
        key for key in first
        if key in second and value(first[key]) is not None and value(second[key]) is not None
    ]  # fmt: skip
    return [value(first[key]) for key in keys], [value(second[key]) for key in keys], keys


def _share_difference(
    first: dict[Any, Any],
    second: dict[Any, Any],
    value: Callable[[Any], bool],
    cluster: Callable[[Any], str] | None = None,
) -> Figure | None:
    ones, others, keys = _paired(first, second, value)
    if not keys:
        return None
    worth = 1.0
    if cluster:
        gaps = [float(one) - float(other) for one, other in zip(ones, others, strict=True)]
        worth = effective_size(gaps, [cluster(key) for key in keys]) / len(keys)
    cells = Counter(zip(ones, others, strict=True))
    # Both, the first alone, the second alone, neither: for intervals of another level (gates).
    order = ((True, True), (True, False), (False, True), (False, False))
    table = [cells[each] for each in order]
    difference, low, high = newcombe([cell * worth for cell in table])
    figure = {
        "value": difference, "n": len(keys), "interval": [low, high],
        "cells": table, "worth": worth,
    }  # fmt: skip
    if cluster and (groups := len({cluster(key) for key in keys})) < len(keys):
        figure["clusters"] = groups
    return figure


def _mean_difference(
    first: dict[Any, Any],
    second: dict[Any, Any],
    value: Callable[[Any], float | None],
    cluster: Callable[[Any], str] | None = None,
) -> Figure | None:
    ones, others, keys = _paired(first, second, value)
    clusters = [cluster(key) for key in keys] if cluster else None
    return mean([one - other for one, other in zip(ones, others, strict=True)], clusters)


def _differences(first: Rows, second: Rows) -> dict[str, Any]:
    """Return the first policy's figures minus the second's, over the rows both have."""
    held, replies = (first.held_out, second.held_out), (first.replies, second.replies)
    result = {
        **_held_out_differences(*held),
        **_probe_differences(first.probes, second.probes),
        "both_sides_rate": _share_difference(_both_sides(first), _both_sides(second), bool),
        "refusal_rate": _share_difference(*replies, lambda r: r["refusal"]),
        "cut_rate": _share_difference(*replies, lambda r: r["cut"]),
        "distinct_2": _mean_difference(*replies, lambda r: r["distinct_2"]),
        "kl": _mean_difference(*replies, lambda r: r["kl"]),
        "chosen_logp": _mean_difference(*held, lambda r: r["chosen_logp"], lambda k: k[0]),
        "length_ratio": _length_ratio(first, second),
    }
    families = {
        family: {
            **_probe_differences(_of(first.probes, family), second.probes),
            **_held_out_differences(_of(first.held_out, family), second.held_out),
        }
        for family in sorted({*_families_of(first.probes), *_families_of(first.held_out)})
    }
    return {
        **{name: figure for name, figure in result.items() if figure is not None},
        "families": {family: found for family, found in families.items() if found},
    }


def _probe_differences(
    first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> dict[str, Figure]:
    found = {}
    for wrong, name in PROBE_RATES.items():
        mine = {key: row for key, row in first.items() if row["wrong"] == wrong}
        figure = _share_difference(
            mine, second, lambda r: bool(r["errs"]), lambda key: str(first[key]["cluster"])
        )
        if figure:
            found[name] = figure
    return found


def _held_out_differences(first: dict[Any, Any], second: dict[Any, Any]) -> dict[str, Figure]:
    accuracy = _share_difference(first, second, lambda r: r["margin"] > 0, lambda k: k[0])
    margin = _mean_difference(first, second, lambda r: r["margin"], lambda k: k[0])
    if not accuracy or not margin:
        return {}
    return {"held_out_accuracy": accuracy, "held_out_margin": margin}


def _length_ratio(first: Rows, second: Rows) -> Figure | None:
    ones, others, keys = _paired(first.replies, second.replies, lambda r: r["length"])
    try:
        ratio, low, high = ratio_interval(ones, others)
    except ValueError:
        return None
    return {"value": ratio, "n": len(keys), "interval": [low, high]}


def figures(rows: dict[str, Rows], trained: Collection[str] = ()) -> dict[str, Any]:
    """Return the figures of every policy, and the adapter's differences from the others.

    {"policies": {policy: figures}, "differences": {"base" or "compare": figures}}. The margin
    against the base is what the base itself has none of, so held-out figures have no difference
    from it: accuracy is read against one half. `trained`: families with prompts to train on, which
    are not kept out whatever they are called.
    """
    kept_out = [family for family in KEPT_OUT if family not in trained]
    adapter = rows.get("adapter")
    differences = {
        other: _differences(adapter, rows[other])
        for other in ("base", "compare")
        if adapter is not None and other in rows
    }
    return {
        "policies": {
            policy: _policy_figures(rows[policy], kept_out) for policy in POLICIES if policy in rows
        },
        "differences": differences,
    }


# --- when to stop -----------------------------------------------------------------------------

CURVE_FROM = 3
CURVE_STEP = 40
CURVE_FIGURES = ("held_out_accuracy", "probe_collusion_rate", "probe_over_correction_rate")


def learning_curve(rounds: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """Return what 40 more preferences brought so far, a figure each, from three rounds on.

    `rounds`: (preferences trained on, the adapter's figures), oldest first; "simulated" among the
    figures tells that a simulated clinician chose some of its preferences. The gain is the slope
    of a line by weighted least squares; a share's variance is that of the interval shown. Rounds
    are measured on mostly the same rows and so are not independent: the interval is a guide. A
    curve that has bent is told by a line only as its average. A gain's "fewest" are the fewest
    rows standing by themselves that one of its points rests on; "trained_on" are the different
    numbers of preferences, of which a line needs two.
    """
    result: dict[str, Any] = {
        "rounds": len(rounds), "step": CURVE_STEP, "gains": {},
        "trained_on": sorted({n for n, _ in rounds}),
        "simulated": any(each.get(SIMULATED) for _, each in rounds),
    }  # fmt: skip
    for name in CURVE_FIGURES:
        points = [(n, each[name]) for n, each in rounds if name in each]
        if len(points) < CURVE_FROM:
            continue
        slope = weighted_slope(
            [n / CURVE_STEP for n, _ in points],
            [figure["value"] for _, figure in points],
            [((f["interval"][1] - f["interval"][0]) / (2 * z_value())) ** 2 for _, f in points],
        )
        if slope is not None:
            result["gains"][name] = {
                "value": slope.value, "interval": [slope.low, slope.high], "n": slope.n,
                "points": [[n, figure["value"]] for n, figure in points],
                "fewest": min(apart(figure) for _, figure in points),
            }  # fmt: skip
    return result
