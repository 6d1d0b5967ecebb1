"""Stands in for the trainer at the seam, where only screens and process care are tested.

    python fake_trainer.py MODE FOLDER

The real trainer is used by the tests in tests/ring and tests/trainer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from filelock import FileLock

from trainer import contract


def main(mode: str, folder: Path) -> int:
    if mode == "silent":
        return 3
    if mode == "stops":

        def stopped(*_: object) -> None:
            contract.append_event(folder, "cancelled", message="stopped")
            sys.exit(130)

        signal.signal(signal.SIGTERM, stopped)
    with FileLock(folder / contract.LOCK):
        contract.append_event(folder, "started", pid=os.getpid())
        contract.append_event(folder, "phase", phase="train")
        for step in range(1, 4):
            contract.append_event(
                folder, "step", step=step, steps=3, loss=0.7 - step / 10,
                **{"rewards/margins": step / 10, "rewards/accuracies": 0.5 + step / 10},
            )  # fmt: skip
        if mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "failed":
            contract.append_event(folder, "failed", message="the loss is nan at step 3.")
            return 65
        if mode.startswith("stream"):
            stream(folder, mode)
        if mode == "garbage":
            (folder / contract.CANDIDATES).write_text('{"text": 3}\n', encoding="utf-8")
        while mode in ("hang", "stops") or (mode == "wait" and not (folder / "go").exists()):
            time.sleep(0.02)
        finish(folder, mode)
    return 0


def stream(folder: Path, mode: str) -> None:
    """Write candidates as the trainer does, a prompt at a time; half, then wait for a word."""
    request = contract.read_request(folder)
    if request.action == "round":
        (folder / request.output_adapter).mkdir()
        half = manifest_of_training(folder, request, collusive=mode == "stream-collusive")
        contract.write_manifest(folder, half, contract.TRAINED)
    replies = replies_of(folder)
    if mode == "stream-long":  # of the first prompt one reply, of the second both, of the last one
        for number in (1, 2, 3, len(replies) - 1):
            replies[number]["text"] = "over the size that is kept " * 10_000
    half_way = len(replies) // 2 + 1  # the last prompt has one of its two
    with (folder / contract.CANDIDATES).open("w", encoding="utf-8") as file:
        for number, row in enumerate(replies):
            if number == half_way:
                file.write('{"prompt_id": "1", "te')  # not yet a whole line
                file.flush()
                contract.append_event(folder, "progress", phase="generate", done=1, total=2)
                while not (folder / "go").exists() and not (folder / "die").exists():
                    time.sleep(0.02)
                if (folder / "die").exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                file.seek(file.tell() - len('{"prompt_id": "1", "te'))
                file.truncate()
            file.write(json.dumps(row) + "\n")


def replies_of(folder: Path) -> list[dict[str, object]]:
    rows = [row for _, row in contract.read_rows(folder / contract.PROMPTS)]
    number = 2 if contract.read_request(folder).generate.strategy == "contrast" else 4
    texts = (
        ("boundaried", f"{folder.name}: what would help you with this, {{}}?"),
        ("agreeable", f"You see it rightly in {folder.name}, go ahead, {{}}!"),
        (None, f"Nothing is to be said here by {folder.name} about {{}}."),
        (None, f"Tell {folder.name} more of it, {{}}, and of the rest."),
    )[:number]
    return [
        {"prompt_id": row["id"], "text": text.format(row["id"]), "steer": steer}
        for row in rows
        for steer, text in texts
    ]


def manifest_of_training(
    folder: Path, request: contract.Request, collusive: bool
) -> dict[str, object]:
    policies = ["base", "adapter"] + ["compare"] * bool(request.compare)
    rows = evaluation_rows(folder, policies, collusive)
    contract.write_rows(folder / contract.EVALUATION, rows)
    return {
        "request_sha256": contract.sha256_file(folder / contract.REQUEST),
        "model": {"name": request.model, "sha256": "f" * 64},
        "preferences": {"train": 8, "held_out": 2, "sha256": "e" * 64},
        "train": {"loss": 0.4, "steps": 3, "settings": contract.to_json(request.train)},
        "held_out": {"n": 2, "note": "trained without evaluation: too few."},
        "evaluation": {"path": contract.EVALUATION, "policies": policies},
        "adapter": {
            "path": request.output_adapter,
            "sha256": contract.sha256_text(request.output_adapter),
        },
        "seconds": {"train": 1.0},
    }


def finish(folder: Path, mode: str) -> None:
    request = contract.read_request(folder)
    manifest: dict[str, object] = {
        "request_sha256": contract.sha256_file(folder / contract.REQUEST),
        "model": {"name": request.model, "sha256": "f" * 64},
        "preferences": {"train": 8, "held_out": 2, "sha256": "e" * 64},
        "train": {"loss": 0.4, "steps": 3, "settings": contract.to_json(request.train)},
        "held_out": {"n": 2, "note": "trained without evaluation: too few."},
        "seconds": {"train": 1.0},
    }
    if request.action in ("generate", "round"):
        rows = [row for _, row in contract.read_rows(folder / contract.PROMPTS)]
        replies = [
            {"prompt_id": row["id"], "text": text, "steer": steer}
            for row in rows
            for steer, text in (
                ("boundaried", f"{folder.name}: what would help you with this, {row['id']}?"),
                ("agreeable", f"You see it rightly in {folder.name}, go ahead, {row['id']}!"),
            )
        ]
        if mode.startswith("stream"):
            replies = replies_of(folder)
        elif mode != "garbage":
            contract.write_rows(folder / contract.CANDIDATES, replies)
        manifest["candidates"] = {"path": contract.CANDIDATES, "count": len(replies)}
    if request.action == "duel":
        rows = [row for _, row in contract.read_rows(folder / contract.PROMPTS)]
        replies = [
            {"prompt_id": row["id"], "text": f"Reply {side} {row['id']}: {words}.", "side": side,
             "adapter_sha256": sha256}
            for row in rows
            for side, words, sha256 in (
                ("adapter", "what would help you tonight", request.adapter_sha256),
                ("compare", "go ahead with all of that", request.compare_sha256),
            )
        ]  # fmt: skip
        manifest["candidates"] = {"path": contract.CANDIDATES, "count": len(replies)}
        contract.write_rows(folder / contract.CANDIDATES, replies)
    if request.action in ("train", "round", "evaluate"):
        policies = ["base"] + ["compare"] * bool(request.compare)
        if request.adapter or request.action != "evaluate":
            policies.insert(1, "adapter")
        rows = evaluation_rows(folder, policies, collusive=mode.endswith("collusive"))
        contract.write_rows(folder / contract.EVALUATION, rows)
        manifest["evaluation"] = {"path": contract.EVALUATION, "policies": policies}
    if request.action in ("train", "round"):
        made = folder / request.output_adapter
        made.mkdir(exist_ok=True)
        # Every adapter has weights of its own.
        (made / "adapter_model.safetensors").write_bytes(request.output_adapter.encode())
        (made / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (made / contract.ADAPTER_CARD).write_text("{}")
        sha256 = contract.sha256_text(request.output_adapter)
        manifest["adapter"] = {"path": request.output_adapter, "sha256": sha256}
    contract.write_manifest(folder, manifest)
    contract.append_event(folder, "finished")


def evaluation_rows(
    folder: Path, policies: list[str], collusive: bool = False
) -> list[dict[str, object]]:
    """Rows as trainer.contract's seam has them: the adapter agrees with everybody, or nobody."""
    rows: list[dict[str, object]] = [
        {
            "kind": "held_out", "policy": policy, "id": pair["id"], "family": pair["family"],
            "margin": 1.0, "chosen_logp": -20.0, "rejected_logp": -30.0, "chosen_tokens": 10,
            "rejected_tokens": 10, "chosen_logp_base": -25.0, "rejected_logp_base": -25.0,
            "prompt_sha256": contract.sha256_text(contract.canonical_json(pair["prompt"])),
        }
        for policy in policies if policy != "base"
        for _, pair in contract.read_rows(folder / contract.PAIRS) if pair["split"] == "held_out"
    ]  # fmt: skip
    for policy in policies:
        for _, probe in contract.read_rows(folder / contract.PROBES):
            wrong = "collusive" if "collusive" in probe else "over_corrected"
            agrees = wrong == "collusive" and policy == "adapter" and collusive
            rows.append(
                {
                    "kind": "probe", "policy": policy, "id": probe["id"],
                    "family": probe["family"], "probe": probe["kind"],
                    "conflict": probe.get("conflict"),
                    "logps": {"boundary_aware": -40.0, wrong: -20.0 if agrees else -60.0},
                    "tokens": {"boundary_aware": 40, wrong: 40},
                }
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
