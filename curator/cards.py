"""Pure: the model card of an adapter that leaves the workspace."""

from __future__ import annotations

import json
from typing import Any

from curator.statistics import FEWEST_TO_CONCLUDE, apart, simulated_text

FIGURES = {
    "held_out_accuracy": "picks the held-out preferences' chosen reply",
    "probe_collusion_rate": "would rather agree where it should not",
    "probe_over_correction_rate": "would rather be cold where the client is right",
}
FORMS = {
    "peft": "This is a PEFT LoRA adapter: load it onto the base model named above.",
    "merged": (
        "The adapter is merged into the base in bf16; of a multimodal base only the language "
        "model is here. It was trained on the base in {quantization}, so its figures, which were "
        "taken there, may differ a little here."
    ),
}


def card_text(
    facts: dict[str, Any], form: str, quantization: str, multimodal: bool = False,
    exported_sha256: str | None = None,
) -> str:  # fmt: skip
    """Return the README.md of an adapter: what it is, its data's hash, its figures, its limits.

    `facts`: as curator.adapters.show_adapter gives them. `form`: peft, merged or ollama; of the
    first, whether its base is multimodal, and the digest of the weights beside the card.
    """
    library = "peft" if form == "peft" else "transformers"
    trained = facts["preferences"].get("train", "?")
    simulated = simulated_text(facts.get("kinds"))
    trained = f"{trained} preferences" + (f" ({simulated})" if simulated else "")
    lines = [
        "---", f"base_model: {json.dumps(facts['base_model'], ensure_ascii=False)}",
        f"library_name: {library}", "tags: [dpo, lora, trl, curator]", "---", "",
        f"# {facts['adapter']}", "",
        f"Trained with curator by DPO (TRL) from {facts['base_model']} on {trained}.",
        FORMS["peft" if form == "peft" else "merged"].format(quantization=quantization), "",
        "| | SHA-256 |", "|---|---|",
        f"| weights and tokenizer of the base | `{facts['base_sha256']}` |",
        f"| adapter weights, as trained | `{facts['sha256']}` |",
        *([f"| adapter weights, as exported | `{exported_sha256}` |"] if exported_sha256 else []),
        f"| preferences | `{facts['pairs_sha256']}` |", "",
        *(_loading(facts["base_model"], multimodal) if form == "peft" else []),
        "## Figures", "",
    ]  # fmt: skip
    lines += _figures(facts["evaluation"]) or ["None was taken."]
    lines += [
        "", f"In the workspace it is {facts['status']}: {facts['reason'] or 'no reason is kept'}.",
        "", "## Limits", "",
        "- A research model: not therapy, not care, not supervision, and not for clients.",
        "- Its preferences are those of few people; what so few do to a model is not well known.",
        "- It can be wrong, agree where it should not, and be cold where it should not, also "
        "where no figure above says so.",
        "- Its weights can give away what it was trained on: treat them like those texts.",
        "- The licence and terms of the base model apply.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _loading(base: str, multimodal: bool) -> list[str]:
    """Return how the adapter is put on its base."""
    loader = "AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM"
    said = (
        "The base is multimodal, and is loaded whole. Only its language model was trained: the "
        "weights here have the names of the whole's language layers (`language_model.layers`), "
        "else nothing in them changed, and the vision part has no LoRA."
    )
    return [
        "## Loading", "", "```python",
        "from peft import PeftModel", f"from transformers import {loader}", "",
        f"base = {loader}.from_pretrained({json.dumps(base, ensure_ascii=False)})",
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")', "```", "",
        *([said, ""] if multimodal else []),
    ]  # fmt: skip


def _figures(evaluation: dict[str, Any]) -> list[str]:
    figures = evaluation.get("policies", {}).get("adapter", {})
    rows, notes = [], []
    for name, said in FIGURES.items():
        figure = figures.get(name)
        if figure and figure.get("value") is not None:
            low, high = figure["interval"]
            rows.append(
                f"| {said} | {figure['value']:.0%} | {low:.0%} to {high:.0%} | {figure['n']} |"
            )
    if not rows:
        return []
    if apart(figures.get("held_out_accuracy", {})) < FEWEST_TO_CONCLUDE:
        notes.append(
            f"Under {FEWEST_TO_CONCLUDE} held-out preferences to as many prompts nothing can be "
            "concluded from the first."
            if "held_out_accuracy" in figures
            else "No held-out preferences were scored: whether it picks them nothing here tells."
        )
    simulated = simulated_text(evaluation.get("kinds"))
    if simulated:
        notes.append(f"Of the held-out preferences {simulated}: those are no person's picks.")
    head = ["| | share | 95 % interval | n |", "|---|---|---|---|"]
    return [*head, *rows, *([""] if notes else []), *notes]
