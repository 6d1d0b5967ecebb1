"""What the commands of evaluation print: figures, rules, duels, adapters, the learning curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from curator.evaluation import CURVE_FROM, CURVE_STEP, KEPT_OUT, TOO_FEW
from curator.safe_text import one_line
from curator.statistics import FEWEST_TO_CONCLUDE, apart, simulated_text
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
# A family's figures, short enough to stand beside two differences on 80 columns.
FAMILY = {
    "probe_collusion_rate": "collusion",
    "probe_over_correction_rate": "over-correction",
    "held_out_accuracy": "accuracy",
    "held_out_margin": "margin",
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


def change_text(name: str, figure: Mapping[str, Any] | None) -> str:
    """Return a difference with its interval, if there is one: of two shares in points."""
    if not figure:
        return "–"
    by, digits = (100, 0) if name in SHARES else (1, 2)
    value, *between = (
        f"{each * by:+.{digits}f}" for each in (figure["value"], *(figure["interval"] or ()))
    )
    return f"{value} ({' to '.join(between)})" if between else value


def evaluation_text(facts: Mapping[str, Any], in_use: str = "in use") -> str:
    """Return the figures of an evaluation, every policy beside the others.

    `in_use`: what stands behind the adapter that was in use when it ran.
    """
    policies, names = facts.get("policies", {}), facts.get("names", {})
    names = {**names, "compare": f"{names.get('compare', 'compare')} ({in_use})"}
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
    lines += _family_difference_lines(facts.get("differences", {}), names)
    simulated = simulated_text(facts.get("kinds"))
    lines += ["", f"held-out preferences: {simulated}."] if simulated else []
    return "\n".join(lines + _few_said([policies[name] for name in there if name != "base"]))


def _few_said(policies: list[Mapping[str, Any]]) -> list[str]:
    """Return what is said of few held-out preferences, in all or of a family.

    `policies`: the figures of all but the base, which has no accuracy of its own.
    """
    found = [policy.get("held_out_accuracy", {}) for policy in policies]
    said = few_lines(min(found, key=apart)) if found else []
    families = [family for policy in policies for family in policy["families"].values()]
    held = [family["held_out_accuracy"] for family in families if "held_out_accuracy" in family]
    if not said and any(apart(figure) < FEWEST_TO_CONCLUDE for figure in held):
        few = f"Of a family with under {FEWEST_TO_CONCLUDE} held-out preferences"
        return ["", f"{few} nothing can be concluded; look at its interval."]
    return said


def few_lines(accuracy: Mapping[str, Any]) -> list[str]:
    """Return a line, after an empty one, where a held-out accuracy rests on too few, or on none."""
    n = accuracy.get("n", 0)
    if apart(accuracy) >= FEWEST_TO_CONCLUDE:
        return []
    if not n:
        return ["", "0 held-out preferences: nothing can be concluded of accuracy or margin."]
    of_few = f" to {apart(accuracy)} prompts" if n >= FEWEST_TO_CONCLUDE else ""
    return [
        "",
        f"{n} held-out preferences{of_few}: under {FEWEST_TO_CONCLUDE} nothing can be concluded "
        "from the accuracy; look at its interval.",
    ]


def _head(policy: str, names: Mapping[str, str]) -> str:
    return one_line(str(names.get(policy, policy)), 60)


def _difference_lines(facts: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Return a table of differences for each other policy: shares in points, means as they are."""
    lines: list[str] = []
    for other, found in facts.get("differences", {}).items():
        rows: list[tuple[str, ...]] = [
            (says, change_text(name, found[name]), str(found[name]["n"]))
            for name, says in (SHARES | MEANS).items()
            if name in found
        ]
        if "length_ratio" in found:
            ratio, n = mean_text(found["length_ratio"]).rsplit(", n = ", 1)
            rows.append((MEANS["length"], f"times {ratio}", n))
        if rows:
            head = ("on the same rows, shares in points", f"against {_head(other, names)}", "n")
            lines += ["", table(head, rows)]
    return lines


def _family_difference_lines(differences: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Return a table of each family's differences, a column for each other policy."""
    found = {other: differences[other].get("families", {}) for other in differences}
    rows = []
    for family in sorted({family for each in found.values() for family in each}):
        for name, says in FAMILY.items():
            figures = [found[other].get(family, {}).get(name) for other in found]
            if any(figures):
                cells = (change_text(name, figure) for figure in figures)
                n = "/".join(dict.fromkeys(str(figure["n"]) for figure in figures if figure))
                rows.append((one_line(family, 24), says, *cells, n))
    heads = (f"against {_head(other, names)}" for other in found)
    return ["", table(("family", "figure", *heads, "n"), rows)] if rows else []


def _family_lines(
    policies: Mapping[str, Any], there: list[str], heads: tuple[str, ...]
) -> list[str]:
    families = sorted({f for policy in there for f in policies[policy]["families"]})
    rows = []
    for family in families:
        for name, says in FAMILY.items():
            cells = [policies[policy]["families"].get(family, {}).get(name) for policy in there]
            if any(cells):
                shows = share_text if name in SHARES else mean_text
                rows.append((one_line(family, 24), says, *map(shows, cells)))
    return ["", table(("family", "figure", *heads), rows)] if rows else []


# --- adapters -----------------------------------------------------------------------------------


def adapters_text(found: list[dict[str, Any]]) -> str:
    """Return every adapter in a row: collusion never without over-correction."""
    if not found:
        return "no adapters yet. Next: curator round"
    rows: list[tuple[str, ...]] = []
    for each in found:
        figures = each["evaluation"].get("policies", {}).get("adapter", {})
        accuracy = share_text(figures.get("held_out_accuracy"))
        rows.append(
            (
                each["adapter"], each["status"],
                _with(str(each["preferences"].get("train", "–")), each.get("kinds")),
                _with(accuracy, each["evaluation"].get("kinds")),
                *(share_text(figures.get(name)) for name in list(SHARES)[1:3]),
                one_line(each["reason"] or "", 60),
            )
        )  # fmt: skip
    text = table(("adapter", "status", "trained on", *list(SHARES.values())[:3], "why"), rows)
    few = [
        figure["n"] for each in found
        if (figure := each["evaluation"].get("policies", {}).get("adapter", {})
            .get("held_out_accuracy"))
        and apart(figure) < FEWEST_TO_CONCLUDE
    ]  # fmt: skip
    return text + (f"\n\n{TOO_FEW}" if few else "")


def _with(text: str, kinds: Mapping[str, int] | None) -> str:
    """Return a text about preferences, and how many of them no person chose."""
    simulated = simulated_text(kinds)
    return f"{text}, {simulated}" if simulated else text


def adapter_text(facts: Mapping[str, Any]) -> str:
    """Return all there is to know of one adapter."""
    lines = [f"{facts['adapter']} is {facts['status']}: {one_line(facts['reason'] or '–', 600)}"]
    for name in ("folder", "base_model", "sha256", "pairs_sha256", "created_at", "decided_at"):
        lines.append(f"{name:<12} {one_line(str(facts[name] or '–'), 120)}")
    trained = str(facts["preferences"].get("train", "–"))
    lines.append(f"{'trained on':<12} {_with(trained, facts.get('kinds'))}")
    rules = facts["gates"].get("rules", [])
    if rules:
        rows: list[tuple[str, ...]] = [
            (r["verdict"], r["rule"], one_line(r["says"], 300)) for r in rules
        ]
        lines += ["", "rules, over the figures of its training's end:"]
        lines += ["", table(("verdict", "rule", "figures"), rows)]
    if facts["evaluation"]:
        lines += ["", "figures, as last measured:"]
        lines += ["", evaluation_text(facts["evaluation"], "in use then")]
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
    shared = f" over {each['looks']} duels of these two" if each["looks"] > 1 else ""
    if each["p_value"] <= each["alpha"]:
        if each["waiting"]:  # a test that is looked at until it pleases passes too often
            return text + f" Not settled while pairs wait to be judged: {each['waiting']}."
        return text + f" Settled at 5 %{shared}."
    text += f" Not settled: it takes p of {each['alpha']:.2g}, 5 %{shared}." if shared else ""
    if needed is None:
        return text + " So even a split no reasonable number of pairs would settle."
    if needed <= each["n"]:
        return text + " If the share stays so, a few more pairs would settle it."
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
    """Return what more judging brought so far, or why that cannot be said."""
    if len(curve["trained_on"]) == 1 and curve["rounds"] >= CURVE_FROM:
        return (
            f"what {CURVE_STEP} more preferences bring: nothing to tell it by, all "
            f"{curve['rounds']} rounds were trained on {curve['trained_on'][0]}; none were added "
            "between them."
        )
    if not curve["gains"]:
        return (
            f"what {CURVE_STEP} more preferences bring: too early to say "
            f"({curve['rounds']} of {CURVE_FROM} rounds measured)."
        )
    parts = [
        f"{SHARES[name]} {gain['value'] * 100:+.1f} points ({gain['interval'][0] * 100:+.1f} to "
        f"{gain['interval'][1] * 100:+.1f}, {gain['n']} rounds)"
        for name, gain in curve["gains"].items()
    ]
    text = f"what {curve['step']} more preferences brought: "
    unclear = all(g["interval"][0] <= 0 <= g["interval"][1] for g in curve["gains"].values())
    end = " No gain can be told from none." if unclear else ""
    few = curve["gains"].get("held_out_accuracy", {}).get("fewest", FEWEST_TO_CONCLUDE)
    if few < FEWEST_TO_CONCLUDE:
        end += f" {TOO_FEW}"
    if curve["simulated"]:
        end += " A simulated clinician chose some of the preferences."
    return text + "; ".join(parts) + "." + end
