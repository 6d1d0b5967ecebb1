"""Model folders from outside that must be refused, in one line, before weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import PROMPTS, preference_rows, refused, run_folder
from trainer import chat_template, contract, model
from trainer.__main__ import perform
from trainer.model import Refused
from trainer.model_folder import weight_files

pytestmark = pytest.mark.train


@pytest.fixture
def copy(tmp_path: Path, gemma: Path) -> Path:
    return Path(shutil.copytree(gemma, tmp_path / "copy"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def quantised(folder: Path) -> None:
    change(folder / "config.json", quantization_config={"quant_method": "fp8"})


def own_code(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"})


def own_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Tok", None]})


def half(folder: Path) -> None:
    whole = folder / "model.safetensors"
    whole.rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def half_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def outside(folder: Path) -> None:
    names = {"a": "../../other.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def adapter_inside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def other_file(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    change(folder / "config.json", transformers_weights="other.safetensors")


def distributed(folder: Path) -> None:
    name = "shard-00000-model-00001-of-00001.safetensors"
    shutil.copy(folder / "model.safetensors", folder / name)


def other_shape(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=256)


def many_layers(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=10**9, layer_types=None)


def no_language(folder: Path) -> None:
    change(folder / "config.json", model_type="siglip_vision_model")


def unheard_of(folder: Path) -> None:
    change(folder / "config.json", model_type="surprise")


def no_layers_for_lora(folder: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 64, "n_head": 2, "vocab_size": 384}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(quantised, "is quantised already (fp8)"),
     (own_code, "brings code of its own (auto_map in config.json)"),
     (own_tokenizer, "brings code of its own (auto_map in tokenizer_config.json)"),
     (half, "half a checkpoint: 1 of 2 files of weights are missing, among them model-00002"),
     (half_without_index, "half a checkpoint: 2 of 3 files"),
     (cut_off, "half a checkpoint: model.safetensors cannot be read"),
     (outside, "names files outside the model's folder"),
     (pickled, "Pickled weights"),
     (without_index, "half a checkpoint: it has neither model.safetensors nor"),
     (adapter_inside, "has an adapter in the model's own folder"),
     (other_file, "config.json names a file of weights"),
     (distributed, "has weights of a distributed checkpoint"),
     (other_shape, "has odd weights (6, among them model.layers.0.mlp.down_proj.weight)"),
     (many_layers, "asks for 1000000000 layers"),
     (no_language, "is no language model"),
     (unheard_of, "model_type 'surprise'"),
     (no_layers_for_lora, "none of the layers an adapter is put on")],
)  # fmt: skip
def test_it_is_refused_before_weights_are_loaded(
    tmp_path: Path, copy: Path, spoil: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copy)
    folder = run_folder(tmp_path / "run", preference_rows(8), action="train", model=str(copy))
    assert said in refused(folder, capsys)


def test_weights_of_another_format_beside_them_are_left_alone(copy: Path) -> None:
    before = model.model_sha256(copy)
    (copy / "consolidated.safetensors").write_bytes(b"Mistral's own format")
    model.check_weights(model.find_model(str(copy)), "tiny")
    assert model.model_sha256(copy) == before


def test_what_is_hashed_and_checked_is_what_is_loaded(copy: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    norm = "model.norm.weight"
    save_file({**weights, norm: weights[norm] + 1}, copy / "other.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "other.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    before = model.model_sha256(copy)
    request = contract.Request(action="generate", model="tiny", quantization="none")
    for kept in ("model.safetensors", "other.safetensors"):
        (hashed,) = weight_files(model.find_model(str(copy)))
        assert hashed.name == kept
        loaded = model.load_base(request, copy, model.choose_device())
        assert torch.equal(loaded.state_dict()[norm], load_file(hashed)[norm])
        (copy / "model.safetensors").unlink(missing_ok=True)
    assert model.model_sha256(copy) != before


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
             "{% endfor %}{% endfor %}{% endfor %}",
    "writes": "{% for a in range(99999) %}{{ messages[0]['content'] }}{% endfor %}",
    "grows": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}"
             "{% endfor %}",
    "power": "{{ ('a' * 10 ** 12) | length }}",
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_without_an_end_is_refused_before_weights(
    tmp_path: Path, copy: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 2)
    (copy / "chat_template.jinja").write_text(ENDLESS[kind], encoding="utf-8")
    with pytest.raises(Refused, match="its chat template is not used: it"):
        model.load_tokenizer(copy, "tiny")


@pytest.mark.parametrize("action", ["train", "generate"])
def test_a_run_with_a_template_without_an_end_is_one_line_and_loads_nothing(
    tmp_path: Path, copy: Path, action: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(chat_template, "SECONDS", 2)
    monkeypatch.setattr(model, "load_base", lambda *_: pytest.fail("weights were loaded"))
    (copy / "chat_template.jinja").write_text(ENDLESS["loops"], encoding="utf-8")
    folder = run_folder(tmp_path / "run", preference_rows(8), action=action, model=str(copy))
    contract.write_rows(folder / contract.PROMPTS, PROMPTS)
    assert perform(folder) == 65
    events = contract.read_events(folder)[0]
    assert events[-1]["event"] == "failed" and not any(e["event"] == "loaded" for e in events)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [f"trainer: {events[-1]['message']}"]
    assert f"{copy}: its chat template is not used: it runs for more than 2 seconds." in lines[0]


def test_a_template_that_refuses_its_user_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    with pytest.raises(Refused, match=r"does not render a user's message \(TemplateError: no\)"):
        model.load_tokenizer(copy, "tiny")


def test_a_template_that_drops_the_system_message_has_no_system_role(copy: Path) -> None:
    template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert not model.has_system_role(model.load_tokenizer(copy, "tiny"))


def test_what_transformers_lets_a_template_use_is_let(copy: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index0 > 9 %}{% break %}{% endif %}"
        "{{ m | tojson(indent=2) }}{% generation %}x{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%d %b %Y') }}"
    )
    (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer: Any = model.load_tokenizer(copy, "tiny")
    assert chat_template.as_published(tokenizer.chat_template) == template


def test_sampling_is_the_models_where_nothing_else_is_said() -> None:
    from transformers import GenerationConfig

    own = GenerationConfig(temperature=0.15, top_k=20)
    settings = model.with_sampling(contract.GenerateSettings(), own)
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.15, 0.95, 20)
    said = model.with_sampling(contract.GenerateSettings(temperature=0.7, top_k=0), own)
    assert (said.temperature, said.top_k) == (0.7, 0)
    plain = model.with_sampling(contract.GenerateSettings(), GenerationConfig())
    assert (plain.temperature, plain.top_p, plain.top_k) == (0.9, 0.95, 64)
    with pytest.raises(Refused, match=r"generation_config\.json"):
        model.with_sampling(contract.GenerateSettings(), GenerationConfig(temperature=-1.0))
