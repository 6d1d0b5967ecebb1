"""What the commands of evaluation print: figures, rules, duels, adapters, the learning curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from curator.evaluation import CURVE_FROM, CURVE_STEP, FEWEST_TO_CONCLUDE, KEPT_OUT, TOO_FEW
from curator.safe_text import one_line
from curator.terminal import table

SHARES = {
    "held_out_accuracy": "held-out accuracy",
    "probe_collusion_rate": "collusion on the probes",
    "probe_over_correction_rate": "over-correction on the controls",
    "both_sides_rate": "agreed with both sides",
    "refusal_rate": "refusals",
    "cut_rate": "cut at the limit",
}
MEANS = {
    "held_out_margin": "held-out margin",
    "length": "words a reply",
    "distinct_2": "distinct-2",
    "kl": "KL to the base, nats a token",
    "chosen_logp": "log-prob of the chosen, a token",
    "chosen_logp_change": "the same, against the base",
}
POLICIES = ("base", "compare", "adapter")


def share_text(figure: Mapping[str, Any] | None) -> str:
    """Return a share with its interval and n."""
    if not figure:
        return "–"
    low, high = figure["interval"]
    return f"{figure['value']:.0%} ({low:.0%} to {high:.0%}), n = {figure['n']}"


def mean_text(figure: Mapping[str, Any] | None) -> str:
    """Return a mean with its interval, if there is one, and n."""
    if not figure:
        return "–"
    between = ""
    if figure["interval"]:
        between = " ({:.2f} to {:.2f})".format(*figure["interval"])
    return f"{figure['value']:.2f}{between}, n = {figure['n']}"


def points_text(figure: Mapping[str, Any]) -> str:
    """Return a difference of two shares in points, with its interval and n."""
    low, high = figure["interval"]
    value = figure["value"]
    return f"{value * 100:+.0f} ({low * 100:+.0f} to {high * 100:+.0f}), n = {figure['n']}"


def evaluation_text(facts: Mapping[str, Any]) -> str:
    """Return the figures of an evaluation, every policy beside the others."""
    policies, names = facts.get("policies", {}), facts.get("names", {})
    there = [policy for policy in POLICIES if policy in policies]
    if not there:
        return "no figures."
    heads = tuple(_head(policy, names) for policy in there)
    rows = []
    for texts, shows in ((SHARES, share_text), (MEANS, mean_text)):
        for name, says in texts.items():
            if any(name in policies[policy] for policy in there):
                rows.append((says, *(shows(policies[policy].get(name)) for policy in there)))
    for name, kept in (("probe_collusion_rate", 0), ("probe_over_correction_rate", 1)):
        if any(name in policies[policy]["kept_out"] for policy in there):
            cells = (share_text(policies[policy]["kept_out"].get(name)) for policy in there)
            rows.append((f"{SHARES[name]}, {KEPT_OUT[kept]} alone", *cells))
    lines = [table(("figure", *heads), rows)]
    lines += _difference_lines(facts, names)
    lines += _family_lines(policies, there, heads)
    accuracy = policies.get("adapter", {}).get("held_out_accuracy", {})
    n = accuracy.get("n", 0)
    if "adapter" in policies and _apart(accuracy) < FEWEST_TO_CONCLUDE:
        of_few = f" to {_apart(accuracy)} prompts" if n >= FEWEST_TO_CONCLUDE else ""
        lines += [
            "",
            f"{n} held-out preferences{of_few}: under {FEWEST_TO_CONCLUDE} nothing can be "
            "concluded from the accuracy; look at its interval.",
        ]
    return "\n".join(lines)


def _apart(figure: Mapping[str, Any]) -> int:
    """Return how many of a share's rows stand by themselves."""
    return int(figure.get("clusters", figure.get("n", 0)))


def _head(policy: str, names: Mapping[str, str]) -> str:
    name = one_line(str(names.get(policy, policy)), 40)
    return f"{name} (in use)" if policy == "compare" else name


def _difference_lines(facts: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for other, found in facts.get("differences", {}).items():
        parts = [
            f"{says} {points_text(found[name])}" for name, says in SHARES.items() if name in found
        ]
        if "length_ratio" in found:
            parts.append(f"length × {mean_text(found['length_ratio'])}")
        if parts:
            who = _head(other, names)
            lines += ["", f"against {who}, points, on the same rows:"]
            lines += [f"  {part}" for part in parts]
    return lines


def _family_lines(
    policies: Mapping[str, Any], there: list[str], heads: tuple[str, ...]
) -> list[str]:
    families = sorted({f for policy in there for f in policies[policy]["families"]})
    rows = []
    for family in families:
        for name, says in SHARES.items():
            cells = [policies[policy]["families"].get(family, {}).get(name) for policy in there]
            if any(cells):
                rows.append((one_line(family, 24), says, *map(share_text, cells)))
    return ["", table(("family", "figure", *heads), rows)] if rows else []


# --- adapters -----------------------------------------------------------------------------------


def adapters_text(found: list[dict[str, Any]]) -> str:
    """Return every adapter in a row: collusion never without over-correction."""
    if not found:
        return "no adapters yet. Next: curator round"
    rows: list[tuple[str, ...]] = []
    for each in found:
        figures = each["evaluation"].get("policies", {}).get("adapter", {})
        rows.append(
            (
                each["adapter"], each["status"], str(each["preferences"].get("train", "–")),
                *(share_text(figures.get(name)) for name in list(SHARES)[:3]),
                one_line(each["reason"] or "", 60),
            )
        )  # fmt: skip
    text = table(("adapter", "status", "trained on", *list(SHARES.values())[:3], "why"), rows)
    few = [
        figure["n"] for each in found
        if (figure := each["evaluation"].get("policies", {}).get("adapter", {})
            .get("held_out_accuracy"))
        and _apart(figure) < FEWEST_TO_CONCLUDE
    ]  # fmt: skip
    return text + (f"\n\n{TOO_FEW}" if few else "")


def adapter_text(facts: Mapping[str, Any]) -> str:
    """Return all there is to know of one adapter."""
    lines = [f"{facts['adapter']} is {facts['status']}: {one_line(facts['reason'] or '–', 600)}"]
    for name in ("folder", "base_model", "sha256", "pairs_sha256", "created_at", "decided_at"):
        lines.append(f"{name:<12} {one_line(str(facts[name] or '–'), 120)}")
    rules = facts["gates"].get("rules", [])
    if rules:
        rows: list[tuple[str, ...]] = [
            (r["verdict"], r["rule"], one_line(r["says"], 300)) for r in rules
        ]
        lines += ["", table(("verdict", "rule", "figures"), rows)]
    if facts["evaluation"]:
        lines += ["", evaluation_text(facts["evaluation"])]
    return "\n".join(lines)


# --- duels --------------------------------------------------------------------------------------


def duels_text(found: Mapping[str, Any]) -> str:
    """Return the results of the duels, people and simulated clinicians apart."""
    if not found["duels"]:
        return "no duels yet. Example: curator duel adapter-0004 base --n 50"
    lines = [_duel_text(each) for each in found["duels"]]
    for ranking in found["rankings"]:
        lines += ["", *_ranking_lines(ranking)]
    return "\n".join(lines)


def _duel_text(each: Mapping[str, Any]) -> str:
    sides = f"{each['first']} against {each['second']}"
    if each["annotator"] == "nobody":
        return f"{sides}: {each['waiting']} pairs wait to be judged."
    apart = f"{each['ties']} ties and {each['both_bad']} both bad apart"
    if not each["n"]:
        return f"{sides} ({each['annotator']}): no decisive pair yet; {apart}."
    low, high = each["interval"]
    text = (
        f"{sides} ({each['annotator']}): won {each['win_rate']:.0%} ({low:.0%} to {high:.0%}) of "
        f"n = {each['n']} decisive pairs, {each['held_out']} of them on held-out prompts; "
        f"{apart}; sign test p = {each['p_value']:.2g}."
    )
    needed = each["settled_by"]
    if each["p_value"] < 0.05:
        if each["waiting"]:  # a test that is looked at until it pleases passes too often
            return text + f" Not settled while pairs wait to be judged: {each['waiting']}."
        return text + " Settled at 5 %."
    if needed is None:
        return text + " So even a split no reasonable number of pairs would settle."
    if needed <= each["n"]:
        return text + " A few more pairs would settle it, if the share stays so."
    return text + f" If the share stays so, {needed} decisive pairs would settle it (80 % power)."


def _ranking_lines(ranking: Mapping[str, Any]) -> list[str]:
    head = f"Bradley-Terry ({ranking['annotator']}), ties left out"
    if "note" in ranking:
        return [f"{head}: {ranking['note']}"]
    rows: list[tuple[str, ...]] = [
        (
            name, "{:+.2f}".format(each["value"]),
            "{:+.2f} to {:+.2f}".format(*each["interval"]),
            f"{1 / (1 + math.exp(-each['value'])):.0%}", str(each["n"]),
        )
        for name, each in ranking["strengths"].items()
    ]  # fmt: skip
    reference = ranking["reference"]
    return [head, table(("", f"log odds over {reference}", "95 %", "would win", "n"), rows)]


# --- when to stop -------------------------------------------------------------------------------


def curve_text(curve: Mapping[str, Any]) -> str:
    """Return what more judging brought so far, or that it is too early to say."""
    if not curve["gains"]:
        return (
            f"what {CURVE_STEP} more preferences bring: too early to say "
            f"({curve['rounds']} of {CURVE_FROM} rounds measured)."
        )
    parts = [
        f"{SHARES[name]} {gain['value'] * 100:+.1f} points ({gain['interval'][0] * 100:+.1f} to "
        f"{gain['interval'][1] * 100:+.1f})"
        for name, gain in curve["gains"].items()
    ]
    text = f"what {curve['step']} more preferences brought, over {curve['rounds']} rounds: "
    unclear = all(g["interval"][0] <= 0 <= g["interval"][1] for g in curve["gains"].values())
    end = " No gain can be told from none." if unclear else ""
    return text + "; ".join(parts) + "." + end
