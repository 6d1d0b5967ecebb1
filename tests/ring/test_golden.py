"""From a key press in the real app to the token ids TRL trains on: the pick made is the pick used.

Four annotation tools are known to lose or swap it on the way. Both sides are tried: what is
painted in box A when `a` is pressed is what must come out as chosen.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import TextArea

from curator import workflow
from curator.tui.app import CuratorApp
from curator.tui.widgets import Reply
from curator.workspace import Workspace, create_workspace
from tests.conftest import AddPairs

pytestmark = pytest.mark.train


def painted_text(reply: Reply) -> str:
    """Return what a reply's box shows on the screen, spaces folded."""
    strips = reply.screen._compositor.render_strips()
    region = reply.content_region
    rows = ["".join(s.text for s in strip) for strip in strips]
    inside = rows[region.y : region.y + region.height]
    return " ".join(" ".join(row[region.x : region.x + region.width] for row in inside).split())


def press_and_read(workspace: Workspace, keys: list[str]) -> list[tuple[str, str]]:
    """Press keys in the app; return (text painted in A, text painted in B) before each."""
    seen = []

    async def run() -> None:
        app = CuratorApp(workspace, "anna")
        async with app.run_test(size=(120, 36)) as pilot:
            for key in keys:
                await pilot.pause()
                boxes = [app.screen.query_one(f"#{side}", Reply) for side in ("left", "right")]
                seen.append((painted_text(boxes[0]), painted_text(boxes[1])))
                await pilot.press(key)

    asyncio.run(run())
    return seen


def test_the_pick_made_is_the_pick_trained_on(
    workspace: Workspace, add_pairs: AddPairs, gemma: Path, tmp_path: Path
) -> None:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "I feel watched."},
        {"role": "assistant", "content": "Tell me more."},
        {"role": "user", "content": "Nobody believes me."},
    ]
    add_pairs(workspace, 4, messages=messages, number=1)
    add_pairs(workspace, 4, number=2)
    keys = ["a", "b", "A", "B", "b", "x", "a", "t"]
    seen = press_and_read(workspace, keys)
    assert len({left.startswith("It sounds") for left, _ in seen}) == 2  # sides were drawn

    wanted = [
        (left, right) if key.lower() == "a" else (right, left)
        for key, (left, right) in zip(keys, seen, strict=True)
        if key.lower() in "ab"
    ]
    output = tmp_path / "pairs.jsonl"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "curator", "export", "--output", str(output),
         "--workspace", str(workspace.path)], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows] == wanted

    tokenizer = AutoTokenizer.from_pretrained(gemma)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(gemma),
        args=DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none"),
        train_dataset=load_dataset(
            "json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache")
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for row, (chosen, rejected), prepared in zip(rows, wanted, trainer.train_dataset, strict=True):
        # Token by token, as Gemma's turns are written, put together without TRL or a template.
        for name, text in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            reply = tokenizer(text + "<end_of_turn>\n", add_special_tokens=False)["input_ids"]
            assert prepared[name] == reply
        turns = [m for m in row["prompt"] if m["role"] != "system"]
        first = "Be brief.\n\n" if len(turns) < len(row["prompt"]) else ""
        text = "<bos>"
        for number, turn in enumerate(turns):
            role = "user" if turn["role"] == "user" else "model"
            content = (first if number == 0 else "") + turn["content"]
            text += f"<start_of_turn>{role}\n{content}<end_of_turn>\n"
        text += "<start_of_turn>model\n"
        assert prepared["prompt_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_undo_and_judging_again_change_what_is_exported(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)
    seen = press_and_read(workspace, ["a", "u", "B", "t", "u"])
    rows = [json.loads(line) for line in workflow.export_preferences(workspace).lines]
    assert [(r["chosen"][0]["content"], r["strength"]) for r in rows] == [(seen[0][1], 2)]


def test_every_way_of_judging_is_exported_as_it_was_painted(
    tmp_path: Path, add_pairs: AddPairs
) -> None:
    place = create_workspace(
        tmp_path / "study", settings="[judge]\nrepeat_share = 1.0\ncalibration = 0\n"
    )
    add_pairs(place, 30)
    wanted: list[tuple[str, str, int | None]] = []  # chosen, rejected, strength
    repeats = 0

    async def run() -> None:
        nonlocal repeats
        app = CuratorApp(place, "anna")
        async with app.run_test(size=(120, 36)) as pilot:

            def boxes() -> tuple[str, str]:
                pair = [app.screen.query_one(f"#{side}", Reply) for side in ("left", "right")]
                return painted_text(pair[0]), painted_text(pair[1])

            a, b = await settled(pilot, boxes)
            await pilot.press("B")
            wanted.append((b, a, 2))  # strength
            shown = {(a, b), await settled(pilot, boxes)}
            await pilot.press("x")  # both bad: kept, never a pair
            a, b = await settled(pilot, boxes)
            await pilot.press("a", "u")  # taken back ...
            assert await settled(pilot, boxes) == (a, b)
            await pilot.press("b")  # ... and judged otherwise
            wanted.append((b, a, 1))
            shown |= {(a, b), await settled(pilot, boxes)}
            a, b = boxes()
            await pilot.press("E")
            app.screen.query_one(TextArea).text = "What would you want them to know?"
            await pilot.pause()
            await pilot.press("ctrl+s", "A")  # a rewrite, over both
            wanted.extend(("What would you want them to know?", side, None) for side in (a, b))
            a, b = await settled(pilot, boxes)
            await pilot.press("a", "h", "enter")  # judged again, out of the history
            assert await settled(pilot, boxes) == (a, b)
            await pilot.press("B")
            wanted.append((b, a, 2))
            shown.add((a, b))
            for _ in range(24):
                a, b = await settled(pilot, boxes)
                await pilot.press("a")
                if (b, a) in shown:  # a repeat, with sides swapped: measured, never trained on
                    repeats += 1
                else:
                    wanted.append((a, b, 1))
                    shown.add((a, b))

    asyncio.run(run())
    rows = [json.loads(line) for line in workflow.export_preferences(place).lines]
    exported = [
        (r["chosen"][0]["content"], r["rejected"][0]["content"], r["strength"]) for r in rows
    ]
    assert sorted(exported, key=str) == sorted(wanted, key=str)
    assert repeats >= 1


async def settled(pilot: Pilot[None], boxes: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """Return the two painted replies once the screen has come to rest."""
    await pilot.pause()
    return boxes()
