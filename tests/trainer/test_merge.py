"""An adapter merged into its base: same answers, a plain model, a Modelfile of its template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import (
    TRAIN,
    load,
    manifest_of,
    preference_rows,
    refused,
    run_folder,
)
from trainer import merge, model, ollama
from trainer.__main__ import perform
from trainer.contract import Request

pytestmark = pytest.mark.train

PLAIN = Request(action="generate", model="tiny", quantization="none")


def merge_folder(tmp_path: Path, gemma: Path, adapter: Path, **request: object) -> Path:
    return run_folder(
        tmp_path / "run", None, action="merge", model=str(gemma), adapter=str(adapter),
        **{"output": "merged", **request},
    )  # fmt: skip


def trained_adapter(folder: Path, base: Path) -> Path:
    """Train an adapter of a tiny model for two steps."""
    run = run_folder(
        folder, preference_rows(12, split="train"), action="train", model=str(base),
        train={**TRAIN, "max_steps": 2}, quantization="none",
    )  # fmt: skip
    assert perform(run) == 0
    return run / "adapter"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_merged_model_answers_as_base_and_adapter_do(tmp_path: Path, family: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "model"
    plain = tiny.save_family(base, family)
    adapter = trained_adapter(tmp_path / "trained", base)
    folder = merge_folder(tmp_path, base, adapter)
    assert perform(folder) == 0
    target = folder / "merged"
    told = manifest_of(folder)["merged"]
    assert told["path"] == "merged" and told["form"] == "merged" and told["bytes"] > 0
    assert not list(folder.glob("*.part"))
    merged, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert not any("lora" in name for name, _ in merged.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "I feel watched."}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True,
    )["input_ids"]  # fmt: skip
    language = model.load_base(PLAIN, base, model.choose_device())
    adapted = PeftModel.from_pretrained(language, str(adapter)).eval()
    with torch.no_grad():
        wanted, got = adapted(ids).logits, merged.float()(ids).logits
        unlike = (wanted - plain(input_ids=ids).logits).abs().max()
    # Both in fp32: what is left is the rounding of the weights to bf16, well under the adapter.
    assert (wanted - got).abs().max() < 0.05 * unlike + 0.02
    assert unlike > 0.1
    assert "not therapy" in (target / "README.md").read_text()


def test_a_model_that_would_not_be_loaded_again_is_not_published(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from transformers.core_model_loading import WeightRenaming

    load = model.load_base

    def as_part_of_another(*arguments: Any) -> Any:
        loaded = load(*arguments)
        loaded._weight_conversions = [WeightRenaming(r"^language_model\.model\.", "model.")]
        return loaded

    monkeypatch.setattr(merge, "load_base", as_part_of_another)
    folder = merge_folder(tmp_path, gemma, adapters[0])
    assert perform(folder) == 65
    assert "the merged model misses weights" in capsys.readouterr().err
    assert not (folder / "merged").exists() and not list(folder.glob("*.part"))


def test_what_cannot_be_merged_is_refused(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = merge_folder(tmp_path, gemma, adapters[0], output=None)
    assert perform(folder) == 65 and "merge needs adapter and output" in capsys.readouterr().err
    shutil.rmtree(folder)
    folder = merge_folder(tmp_path, gemma, adapters[0])
    (folder / "merged").mkdir()
    assert perform(folder) == 65 and "is never written over" in capsys.readouterr().err
    shutil.rmtree(folder)
    changed = tmp_path / "changed"
    shutil.copytree(adapters[0], changed)
    with (changed / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    folder = merge_folder(tmp_path, gemma, changed)
    assert "is not what was trained" in refused(folder, capsys)
    assert not (folder / "merged").exists()


def test_a_merged_model_has_its_publishers_template(tmp_path: Path, gemma: Path) -> None:
    base = Path(shutil.copytree(gemma, tmp_path / "base"))
    template = (base / "chat_template.jinja").read_text(encoding="utf-8")
    dated = template.replace("{{- bos_token -}}", "{{- bos_token + strftime_now('%d %b') -}}")
    assert dated != template
    (base / "chat_template.jinja").write_text(dated, encoding="utf-8")
    adapter = trained_adapter(tmp_path / "trained", base)
    folder = merge_folder(tmp_path, base, adapter, form="ollama")
    assert perform(folder) == 0
    kept = (folder / "merged" / "chat_template.jinja").read_text(encoding="utf-8")
    assert kept == dated
    text = (folder / "merged" / "Modelfile").read_text(encoding="utf-8")
    assert f'{ollama.DATED}\nTEMPLATE """' in text and "26 Jul" in text


def test_ollama_gets_the_models_own_template(
    tmp_path: Path, gemma: Path, adapters: tuple[Path, Path]
) -> None:
    folder = merge_folder(tmp_path, gemma, adapters[0], form="ollama", card="# A card")
    assert perform(folder) == 0
    text = (folder / "merged" / "Modelfile").read_text()
    assert "\nFROM .\n" in text and (folder / "merged" / "README.md").read_text() == "# A card"
    assert 'PARAMETER stop "<end_of_turn>"' in text
    template = text.split('"""')[1]
    assert template == (
        "{{ if .System }}<start_of_turn>user\n{{ .System }}\n\n{{ .Prompt }}{{ else }}"
        "<start_of_turn>user\n{{ .Prompt }}{{ end }}<end_of_turn>\n<start_of_turn>model\n"
        "{{ .Response }}<end_of_turn>\n"
    )
    # Filled in, it is what transformers renders.
    _, tokenizer = load(gemma, None)
    turns = [("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    body = template.split("{{ else }}")[1].replace("{{ end }}", "")
    filled = "".join(
        body.replace("{{ .Prompt }}", one).replace("{{ .Response }}", two)
        for one, two in (("A", "B"), ("C", "D"))
    )
    messages = [{"role": role, "content": text} for role, text in turns]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    assert tokenizer.bos_token + filled == rendered
