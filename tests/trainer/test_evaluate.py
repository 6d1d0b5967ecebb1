"""evaluation.jsonl, from whole runs on a tiny Gemma 3."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.trainer.conftest import (
    PROMPTS,
    TRAIN,
    evaluated,
    load,
    manifest_of,
    preferences,
    probe_row,
    refused,
    rows_of,
)
from trainer import contract
from trainer.__main__ import perform
from trainer.contract import write_rows

pytestmark = pytest.mark.train


def test_a_round_measures_base_adapter_and_the_adapter_in_use(adapters: tuple[Path, Path]) -> None:
    folder = adapters[1].parent
    rows = rows_of(folder)
    counted = Counter((row["kind"], row["policy"]) for row in rows)
    three = ("base", "adapter", "compare")
    assert counted == {
        ("held_out", "adapter"): 6, ("held_out", "compare"): 6,
        **{("probe", name): 7 for name in three}, **{("reply", name): 5 for name in three},
    }  # fmt: skip
    evaluation = manifest_of(folder)["evaluation"]
    assert evaluation["policies"] == list(three)
    assert (evaluation["held_out"], evaluation["probes"], evaluation["replies"]) == (12, 21, 15)
    assert evaluation["probes_sha256"] == contract.sha256_file(folder / contract.PROBES)
    assert evaluation["drift"] == {
        "prompts": 5, "sha256": contract.sha256_file(folder / contract.DRIFT)
    }  # fmt: skip
    assert evaluation["shared_prompts"] is True
    progress = [e for e in contract.read_events(folder)[0] if e.get("phase") == "evaluate"][1:]
    # 3 policies of 6 preferences and 7 probes; 15 replies, 10 of them with a KL.
    assert progress[-1]["done"] == progress[-1]["total"] == 3 * 6 + 3 * 7 + 25
    assert all(a["done"] < b["done"] for a, b in pairwise(progress))


def test_held_out_rows_carry_what_the_summary_is_made_of(adapters: tuple[Path, Path]) -> None:
    folder = adapters[1].parent
    held_out = [row for row in rows_of(folder) if row["kind"] == "held_out"]
    mine = [row for row in held_out if row["policy"] == "adapter"]
    assert [(row["id"], row["family"]) for row in mine] == [
        ("h0", "F01"), ("h1", "F01"), *[(None, None)] * 4
    ]  # fmt: skip
    for row in held_out:
        chosen = row["chosen_logp"] - row["chosen_logp_base"]
        rejected = row["rejected_logp"] - row["rejected_logp_base"]
        assert row["margin"] == pytest.approx(0.1 * (chosen - rejected))
        assert row["chosen_tokens"] > 0 and row["chosen_logp"] < 0
    summary = manifest_of(folder)["held_out"]
    assert summary["n"] == 6
    assert summary["rewards/margins"] == pytest.approx(sum(row["margin"] for row in mine) / 6)
    others = [row["margin"] for row in held_out if row["policy"] == "compare"]
    assert [row["margin"] for row in mine] != pytest.approx(others)


def test_probe_rows_are_what_plain_libraries_give(adapters: tuple[Path, Path], gemma: Path) -> None:
    import torch

    rows = [row for row in rows_of(adapters[1].parent) if row["kind"] == "probe"]
    for policy, adapter in (("base", None), ("adapter", adapters[1]), ("compare", adapters[0])):
        model, tokenizer = load(gemma, adapter)
        for number, row in enumerate(row for row in rows if row["policy"] == policy):
            probe = probe_row(number)
            assert (row["id"], row["family"]) == (probe["id"], probe["family"])
            assert (row["probe"], row["conflict"]) == ("single", None)
            assert set(row["logps"]) == set(row["tokens"]) == (
                {"boundary_aware", "over_corrected" if number % 2 else "collusive"}
            )  # fmt: skip
            for name, logp in row["logps"].items():
                turns = [*probe["prompt"], {"role": "assistant", "content": probe[name]}]
                ids = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
                start = len(
                    tokenizer.apply_chat_template(
                        probe["prompt"], add_generation_prompt=True, return_dict=True
                    )["input_ids"]
                )
                assert row["tokens"][name] == len(ids) - start
                with torch.no_grad():
                    found = model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
                wanted = sum(float(found[n, token]) for n, token in enumerate(ids[start:]))
                assert logp == pytest.approx(wanted, abs=1e-3)


def test_kl_is_that_of_a_hand_made_sum(adapters: tuple[Path, Path], gemma: Path) -> None:
    import torch

    from trainer.model import COMPARED, TRAINED
    from trainer.policies import Policies
    from trainer.scoring import Completion, Scorer, kl_to_base

    model, _ = load(gemma, adapters[1])
    policies = Policies(model, adapters[0])
    replies = [Completion(list(range(6, 9 + 5 * n)), 3) for n in range(1, 6)]
    scorer = Scorer(model, pytest.fail, 2)
    found = {
        name: kl_to_base(policies, name, replies, scorer) for name in ("adapter", "compare", "base")
    }
    assert found["base"] == pytest.approx([0.0] * 5, abs=1e-7)
    assert list(model.active_adapters) == [TRAINED]
    for name, peft_name in (("adapter", TRAINED), ("compare", COMPARED)):
        model.set_adapter(peft_name)
        for reply, kl in zip(replies, found[name], strict=True):
            ids, at = torch.tensor([reply.ids]), slice(reply.start - 1, -1)
            with torch.no_grad():
                p = model(ids).logits[0, at].double().log_softmax(-1)
                with model.disable_adapter():
                    q = model(ids).logits[0, at].double().log_softmax(-1)
            wanted = sum(
                math.exp(a) * (a - b)
                for row, other in zip(p.tolist(), q.tolist(), strict=True)
                for a, b in zip(row, other, strict=True)
            ) / len(p)
            assert kl == pytest.approx(wanted, rel=1e-3) and kl > 0
    assert policies.close() is model and set(model.peft_config) == {TRAINED}


def test_replies_are_drawn_from_one_seed_and_drift_is_measured(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path
) -> None:
    replies = [row for row in rows_of(adapters[1].parent) if row["kind"] == "reply"]
    of = {
        name: {row["prompt_id"]: row for row in replies if row["policy"] == name}
        for name in ("base", "adapter", "compare")
    }
    assert set(of["base"]) == {f"d{i}" for i in range(5)}
    assert all(row["kl"] is None for row in of["base"].values())
    assert all(row["kl"] > 0 for name in ("adapter", "compare") for row in of[name].values())
    assert all(row["tokens"] <= 10 for row in replies)
    assert {row["finish_reason"] for row in replies} <= {"stop", "length"}
    # An adapter that changes nothing answers as the base does: the draws are the same.
    idle = shutil.copytree(adapters[1], tmp_path / "idle")
    from safetensors.torch import load_file, save_file

    weights = load_file(idle / "adapter_model.safetensors")
    save_file({n: w * 0 for n, w in weights.items()}, idle / "adapter_model.safetensors")
    sha256 = contract.sha256_file(idle / "adapter_model.safetensors")
    folder = evaluated(
        tmp_path / "run", gemma, action="evaluate", adapter="../idle", adapter_sha256=sha256,
        quantization="none",
    )  # fmt: skip
    assert perform(folder) == 0
    again = [row for row in rows_of(folder) if row["kind"] == "reply"]
    texts = {(row["policy"], row["prompt_id"]): row["text"] for row in again}
    for row in again:
        assert row["text"] == texts["base", row["prompt_id"]]
        assert row["kl"] is None or abs(row["kl"]) < 1e-6
    assert not (folder / contract.CANDIDATES).exists()


def test_a_round_goes_on_with_its_own_adapter(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path
) -> None:
    """Its candidates are those that a later run with the published adapter writes."""
    second = adapters[1].parent
    folder = evaluated(
        tmp_path / "run", gemma, action="generate", adapter=str(adapters[1]), quantization="none"
    )
    assert perform(folder) == 0
    ours, later = rows_of(second, contract.CANDIDATES), rows_of(folder, contract.CANDIDATES)
    assert len(ours) == 6 and ours == later
    base = evaluated(tmp_path / "base", gemma, action="generate", quantization="none")
    assert perform(base) == 0
    assert [r["text"] for r in rows_of(base, contract.CANDIDATES)] != [r["text"] for r in ours]


@pytest.mark.parametrize("compared", [False, True])
def test_the_base_is_evaluated_alone_or_with_the_adapter_in_use(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path, compared: bool
) -> None:
    compare = {"compare": str(adapters[0])} if compared else {}
    folder = evaluated(tmp_path / "run", gemma, action="evaluate", measure="m.jsonl", **compare)
    write_rows(folder / "m.jsonl", PROMPTS[:1])
    if not compared:
        (folder / contract.PAIRS).unlink()
    assert perform(folder) == 0
    kinds = Counter((row["kind"], row["policy"]) for row in rows_of(folder))
    wanted = {("probe", "base"): 7, ("reply", "base"): 5}
    if compared:
        more = {("held_out", "compare"): 6, ("probe", "compare"): 7, ("reply", "compare"): 5}
        wanted = {**wanted, **more}
    assert kinds == wanted
    manifest = manifest_of(folder)
    assert manifest["held_out"]["n"] == 0 and "no adapter" in manifest["held_out"]["note"]
    # What is measured afterwards is the base again, not the adapter it was compared with.
    assert rows_of(folder, contract.SAMPLES)[0]["adapter_sha256"] is None


def test_without_probes_and_prompts_only_preferences_are_measured(
    adapters: tuple[Path, Path],
) -> None:
    folder = adapters[0].parent
    assert rows_of(folder) == []
    evaluation = manifest_of(folder)["evaluation"]
    assert evaluation["probes_sha256"] is None and evaluation["drift"] is None
    assert evaluation["policies"] == ["base", "adapter"] and evaluation["probes"] == 0


def test_probes_and_replies_are_measured_before_anybody_has_judged(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path
) -> None:
    sides = {"adapter": str(adapters[1]), "compare": str(adapters[0])}
    folder = evaluated(tmp_path / "run", gemma, action="evaluate", **sides)
    (folder / contract.PAIRS).unlink()
    assert perform(folder) == 0
    counted = Counter((row["kind"], row["policy"]) for row in rows_of(folder))
    three = ("base", "adapter", "compare")
    assert counted == {(kind, name): n for kind, n in (("probe", 7), ("reply", 5))
                       for name in three}  # fmt: skip
    note = manifest_of(folder)["held_out"]["note"]
    assert note.startswith("no held-out accuracy: 0 held-out preferences")


def of_another_base(adapter: Path, folder: Path) -> Path:
    """Copy an adapter into a folder as one whose card names another base."""
    shutil.copytree(adapter, folder)
    card = json.loads((folder / contract.ADAPTER_CARD).read_text())
    card |= {"base_model": "their/model", "base_sha256": "0" * 64}
    (folder / contract.ADAPTER_CARD).write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize("action", ["evaluate", "train"])
def test_an_adapter_of_another_base_is_not_compared_with(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path, action: str
) -> None:
    of_another_base(adapters[0], tmp_path / "other")
    first = "../other" if action == "train" else str(adapters[1])
    folder = evaluated(
        tmp_path / "run", gemma, action=action, adapter=first, compare="../other",
        train={**TRAIN, "strategy": "chained" if action == "train" else "anchored"},
    )  # fmt: skip
    assert perform(folder) == 0
    assert {row["policy"] for row in rows_of(folder)} == {"base", "adapter"}
    said = [e["message"] for e in contract.read_events(folder)[0] if e["event"] == "warning"]
    left_out = [message for message in said if "trained on their/model" in message]
    assert len(left_out) == (2 if action == "train" else 1)
    assert all(f"left out of this {action}: the adapter other" in each for each in left_out)


def test_what_cannot_be_evaluated_is_refused_in_one_line(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_another_base(adapters[0], tmp_path / "other")
    folder = evaluated(tmp_path / "b", gemma, action="evaluate", adapter="../other")
    assert "trained on their/model" in refused(folder, capsys)
    folder = evaluated(
        tmp_path / "c", gemma, action="evaluate", compare=str(adapters[0]), compare_sha256="0" * 64
    )
    assert "is not what was trained" in refused(folder, capsys)
    folder = evaluated(tmp_path / "d", gemma, action="round")
    (folder / contract.PROBES).unlink()
    assert "probes.jsonl: No such file" in refused(folder, capsys)
    folder = evaluated(tmp_path / "e", gemma, action="train")
    rows = preferences()
    rows[3]["prompt"] = probe_row(2)["prompt"]
    write_rows(folder / contract.PAIRS, rows)
    assert "the prompt of the probe p2 is among the preferences" in refused(folder, capsys)
    folder = evaluated(tmp_path / "f", gemma, action="train", drift="none.jsonl")
    assert "none.jsonl: No such file" in refused(folder, capsys)


def test_a_compared_adapter_that_is_more_than_lora_is_refused(
    adapters: tuple[Path, Path], gemma: Path, tmp_path: Path
) -> None:
    """An adapter can carry a whole layer in place of the base's own."""
    from peft import LoraConfig, get_peft_model

    from trainer.model import LORA_TARGETS, Refused
    from trainer.policies import Policies

    base, _ = load(gemma, None)
    config = LoraConfig(r=2, target_modules=LORA_TARGETS, modules_to_save=["norm"])
    get_peft_model(base, config).save_pretrained(str(tmp_path))
    model, _ = load(gemma, adapters[1])
    with pytest.raises(Refused, match="do not fit the model"):
        Policies(model, tmp_path)


def test_an_adapter_of_damaged_numbers_gives_no_figures(
    adapters: tuple[Path, Path], tmp_path: Path, gemma: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(adapters[1], tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    save_file({n: w * math.nan for n, w in weights.items()}, broken / "adapter_model.safetensors")
    sha256 = contract.sha256_file(broken / "adapter_model.safetensors")
    folder = evaluated(
        tmp_path / "run", gemma, action="evaluate", adapter="../broken", adapter_sha256=sha256,
        drift=None,
    )  # fmt: skip
    assert perform(folder) == 65
    assert "the policy adapter gives figures that are no numbers" in capsys.readouterr().err
    assert not (folder / contract.EVALUATION).exists()
