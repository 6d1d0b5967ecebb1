"""What the commands about models print."""

from __future__ import annotations

from typing import Any

from curator.safe_text import one_line
from curator.terminal import table

PARTS = {
    "weights": "the layers, quantised, and the norms",
    "embedding": "the embedding (and head), not quantised, on the card",
    "adapter": "LoRA weights and their gradients",
    "optimiser": "Adam's two moments",
    "logits tile": "the head's working tile",
    "checkpoints": "what each layer keeps for the way back",
    "workspace": "one layer computed again, a matrix unpacked",
    "reserve": "kept free: a sixteenth, and 256 MB",
    "total": "at the peak of a step",
    "free": "",
}


def models_text(manifest: dict[str, Any]) -> str:
    """Return every preset with its size, licence and what this machine would do with it."""
    rows: list[tuple[str, ...]] = []
    machine = manifest["machine"]
    for each in manifest["models"]:
        rows.append(
            (
                each["model"],
                f"{each['parameters'] / 1e9:.2f} B",
                gb(each["download"]),
                "here" if each["here"] else "gated" if each["gated"] else "to pull",
                verdict(each),
            )
        )
    lines = [
        table(("model", "parameters", "download", "", "a training step on this machine"), rows),
        "",
        f"Memory: {gb(machine['free'])} ({one_line(machine['words'], 100)}). "
        "Every figure is an estimate.",
        "",
    ]
    licences: dict[str, list[str]] = {}
    for each in manifest["models"]:
        licences.setdefault(each["licence"], []).append(each["model"].rpartition("/")[2])
    lines += [f"{', '.join(names)}: {licence}." for licence, names in licences.items()]
    return "\n".join(lines)


def verdict(row: dict[str, Any]) -> str:
    """Return what becomes of a model, and why, in a few words."""
    if not row["fits"]:
        return f"does not fit: needs {gb(row['bytes'])}"
    where = " on the CPU" if row["device"] == "cpu" else ""
    return f"{gb(row['bytes'])}{where}, {row['tier']} ({row['reason']})"


def plan_text(plan: dict[str, Any]) -> str:
    """Return a plan: every part, the total against what is free, the tier and why."""
    size = plan["bytes"]
    notes = {**PARTS, "free": one_line(plan["machine"], 80)}
    rows: list[tuple[str, ...]] = [
        (name, f"{size[name] / 1e6:,.0f} MB", "estimated" if name != "free" else "", notes[name])
        for name in (*PARTS,)
    ]
    lines = [
        f"{one_line(plan['model'], 80)}: {plan['parameters'] / 1e9:.2f} B parameters, "
        f"{plan['quantization']}, {plan['length']} tokens a reply with its prompt",
        "",
        table(("part", "bytes", "basis", ""), rows),
        "",
    ]
    for each in plan["tiers"]:
        fits = "fits" if each["bytes"] <= size["free"] else "does not fit"
        lines.append(f"{each['tier']}: {gb(each['bytes'])}, {fits}")
    if plan["fits"]:
        lines.append(f"Chosen: {plan['tier']}, because {plan['reason']}.")
    return "\n".join(lines)


def rehearsal_text(found: dict[str, Any]) -> str:
    """Return what a rehearsal measured, each figure beside its estimate."""
    size, error, speed = found["bytes"], found["error"], found["tokens_a_second"]
    rows: list[tuple[str, ...]] = [
        (what, gb(size[name]), gb(size[f"{name}_planned"]), f"{error[name]:+.1%}")
        for what, name in (("model", "footprint"), ("peak of training", "peak"))
    ]
    device = found["device"]
    kind = "CUDA's allocator" if device["kind"] == "cuda" else "resident memory above the start"
    lines = [
        f"{found['model']}, {found['layers']} layers, {found['length']} tokens, "
        f"{device['kind']} in {device['dtype']}, {found['steps']} steps, {found['tier']}",
        "",
        table(("", "measured", "estimated", "error"), rows),
        "",
        f"Peak: {kind}. {found['seconds_a_step']} s a step, {speed['training']} tokens/s "
        f"training, {speed['writing']} tokens/s writing one reply.",
        "The weights are random: memory and speed are the model's, what it learns is not.",
    ]
    limit = found["vram"]
    if limit is not None and not limit["kept"]:
        lines.append(
            f"--vram {limit['asked'] / (1 << 30):.3g}GB was not kept to: there is no GPU here, and "
            "on a CPU the figure is the resident memory that was taken, whatever its size."
        )
    return "\n".join(lines)


def gb(size: int) -> str:
    """Return bytes as decimal gigabytes."""
    return f"{size / 1e9:.2f} GB"
