"""What is loaded, what is refused, and that a text-only load is no random one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.conftest import Run, preference_rows, run_folder
from trainer import contract, dpo, measure, model
from trainer.contract import Request, TrainSettings
from trainer.model import Refused
from trainer.model_folder import FORMER_TARGETS

pytestmark = pytest.mark.train

REQUEST = Request(action="generate", model="tiny", quantization="none")


def test_a_multimodal_gemma_3_is_loaded_without_its_eyes(tmp_path: Path) -> None:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = tiny.save_tokenizer(tmp_path)
    config = Gemma3Config(
        text_config=tiny.text_config(len(tokenizer)).to_dict(),
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )  # fmt: skip
    torch.manual_seed(5)
    whole = Gemma3ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    ids = torch.tensor([[2, 40, 41, 42]])
    with torch.no_grad():
        wanted = whole(input_ids=ids).logits
    device = model.choose_device()
    text = model.load_base(REQUEST, tmp_path, device)
    assert type(text).__name__ == "Gemma3ForCausalLM"
    assert not any("vision" in name or "projector" in name for name, _ in text.named_modules())
    with torch.no_grad():
        assert torch.allclose(text(input_ids=ids).logits, wanted, atol=1e-5)
    quantised = model.load_base(Request(action="generate", model="tiny"), tmp_path, device)
    with torch.no_grad():
        close = torch.nn.functional.cosine_similarity(
            quantised(input_ids=ids).logits.flatten(), wanted.flatten(), dim=0
        )
    assert close > 0.9


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_without_bf16_computes_in_fp32_and_not_in_fp16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    import torch

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_bf16  # a T4 says yes to emulated bf16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (3 << 30, 4 << 30))
    device, machine = model.choose_device(), measure.machine_here()
    assert (device.kind, machine.device, machine.free) == ("cuda", "cuda", 3 << 30)
    assert device.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
    assert machine.width == device.dtype.itemsize  # what is planned is what is computed in
    if not has_bf16:
        assert device.reason == "Tesla T4 has no bf16; fp16 overflows with Gemma 3"
    monkeypatch.undo()
    # As training is told, on a machine that has no card to check it against.
    cpu = replace(device, kind="cpu")
    arguments = dpo._arguments(TrainSettings(), 0, cpu, tmp_path, False, False)
    assert (arguments.bf16, arguments.fp16) == (has_bf16, False)


def change_weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def copy(tmp_path: Path, gemma: Path) -> Path:
    return Path(shutil.copytree(gemma, tmp_path / "copy"))


def test_a_missing_or_unknown_weight_is_refused(copy: Path) -> None:
    device = model.choose_device()
    change_weights(copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(Refused, match=r"misses weights \(1, among them model\.layers\.1\.mlp\.up"):
        model.load_base(REQUEST, copy, device)

    def put_another(weights: Any) -> None:
        up = weights["model.layers.0.mlp.up_proj.weight"]
        weights["model.layers.1.mlp.up_proj.weight"] = up.clone()
        weights["model.layers.9.x"] = up.clone()

    change_weights(copy, put_another)
    with pytest.raises(Refused, match=r"has unknown weights \(1, among them model\.layers\.9\.x"):
        model.load_base(REQUEST, copy, device)


def test_what_is_no_model_is_refused_before_any_weights(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(Refused, match=r"has no config\.json"):
        model.find_model(str(tmp_path))
    with pytest.raises(Refused, match=r"nothing is downloaded by itself"):
        model.find_model("someone/some-model")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"Pickled weights"):
        model.find_model(str(copy))


def test_a_model_is_known_by_its_content(copy: Path, gemma: Path) -> None:
    assert model.model_sha256(copy) == model.model_sha256(gemma)
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "weights.safetensors"}}))
    assert model.model_sha256(copy) == model.model_sha256(gemma)
    change_weights_file = copy / "weights.safetensors"
    change_weights_file.write_bytes(change_weights_file.read_bytes() + b"x")
    assert model.model_sha256(copy) != model.model_sha256(gemma)


def test_a_chat_template_counts_wherever_it_is(copy: Path) -> None:
    before = model.model_sha256(copy)
    place = copy / "tokenizer_config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps({**settings, "chat_template": "{{ 1 }}"}))
    assert model.model_sha256(copy) == before  # its own file is what is used
    (copy / "chat_template.jinja").unlink()
    digests = [model.model_sha256(copy)]
    for template in ("{{ 2 }}", None):
        place.write_text(json.dumps({**settings, "chat_template": template}))
        digests.append(model.model_sha256(copy))
    assert len({before, *digests}) == 4


# As Llama 3.2's asks for its date, and as others do; a template may begin with white space.
DATED = """{{ bos_token }}{% if strftime_now is defined %}
    {%- set date = strftime_now("%d %b %Y") %}{% else %}{% set date = "none" %}{% endif %}
{{ date }}, {{ strftime_now('%A, %B %m/%Y %y %H:%M') }}{% for m in messages %}
{{ m['content'] }}{{ strftime_now("%Y-%m-%d") }}
{% endfor %}"""


@pytest.mark.parametrize("start", ["", "\n", "  ", "  {% if true %} {% endif %}\n", "{#- a -#}\n"])
def test_a_date_in_a_template_is_the_same_each_day(
    copy: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    from datetime import datetime

    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    def on(*day: int) -> Any:
        clock = type("clock", (datetime,), {"now": classmethod(lambda cls: datetime(*day))})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)

    (copy / "chat_template.jinja").write_text(start + DATED)
    ours, theirs = model.load_tokenizer(copy, "tiny"), AutoTokenizer.from_pretrained(copy)
    messages = preference_rows(1)[0]["prompt"]
    on(2026, 5, 17, 8, 30)
    ids = ours.apply_chat_template(messages)["input_ids"]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert "17 May 2026, Sunday, May 05/2026 26 08:30" in text
    on(2024, 7, 26, 12, 0)
    assert ours.apply_chat_template(messages)["input_ids"] == ids
    # It is what the template as published writes on that day, down to the white space.
    assert theirs.apply_chat_template(messages)["input_ids"] == ids
    assert "26 Jul 2024, Friday, July 07/2024 24 12:00" in ours.decode(ids)


def test_a_template_without_a_date_stays_as_it_is(gemma: Path) -> None:
    tokenizer = model.load_tokenizer(gemma, "tiny")
    assert tokenizer.chat_template == (gemma / "chat_template.jinja").read_text(encoding="utf-8")


def adapter_folder(folder: Path, **card: Any) -> Path:
    folder.mkdir()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    card = {"sha256": contract.sha256_file(weights), **card}
    (folder / contract.ADAPTER_CARD).write_text(json.dumps(card))
    return folder


def test_an_adapter_of_another_base_is_refused_with_both_names(
    tmp_path: Path, gemma: Path, trainer: Run
) -> None:
    folder = run_folder(tmp_path / "run", action="generate", model=str(gemma), adapter="other")
    contract.write_rows(
        folder / contract.PROMPTS, [{"id": 1, "prompt": preference_rows(1)[0]["prompt"]}]
    )
    adapter_folder(folder / "other", base_model="their/model", base_sha256="0" * 64)
    done = trainer(folder)
    assert done.returncode == 65
    line = done.stderr.strip().splitlines()[-1]
    assert "their/model" in line and str(gemma) in line
    events = contract.read_events(folder)[0]
    assert events[-1]["event"] == "failed"
    assert not any(event.get("phase") == "load" for event in events)


def test_a_base_is_told_by_its_digest_and_never_by_a_name(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter", base_model="a/moved/model", base_sha256="a")
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "another/place"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model.check_adapter(folder, "a/model", "a")
    # Somebody else's says no more than the name, even where it is the right one.
    (folder / contract.ADAPTER_CARD).unlink()
    config["base_model_name_or_path"] = "a/model"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="its base model cannot be told"):
        model.check_adapter(folder, "a/model", "a")


@pytest.mark.parametrize(
    ("config", "said"),
    [({"peft_type": "IA3"}, "only LORA"),
     ({"peft_type": "LORA", "surprise": 1}, "unknown fields (surprise)"),
     ({"peft_type": "LORA", "auto_mapping": {"parent_library": "os"}},
      "unknown fields (auto_mapping)"),
     (None, "is no adapter")],
)  # fmt: skip
def test_an_odd_adapter_is_refused(tmp_path: Path, config: Any, said: str) -> None:
    folder = adapter_folder(tmp_path / "adapter", base_sha256="a")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused) as caught:
        model.check_adapter(folder, "tiny", "a")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("init_lora_weights", "pissa"), ("r", 10**9), ("lora_alpha", 10**6), ("use_dora", True),
     ("target_modules", "(a+)+$"), ("layer_replication", [[0, 2]])],
)  # fmt: skip
def test_an_adapter_that_is_no_plain_lora_is_refused(
    tmp_path: Path, name: str, value: object
) -> None:
    config = {"peft_type": "LORA", "r": 8, "target_modules": model.LORA_TARGETS, name: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(model.Refused, match=name):
        model.check_adapter(tmp_path, "m", "0" * 64)


def test_an_adapter_of_before_the_fused_layers_is_still_one(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter", base_sha256="a")
    config = {"peft_type": "LORA", "r": 8, "target_modules": FORMER_TARGETS}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert model.check_adapter(folder, "tiny", "a")


def test_changed_adapter_weights_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter", base_sha256="a")
    digest = model.check_adapter(folder, "tiny", "a")
    assert model.check_adapter(folder, "tiny", "a", digest) == digest
    with pytest.raises(Refused, match="is not what was trained"):
        model.check_adapter(folder, "tiny", "a", "0" * 64)
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(Refused, match="is not what was trained"):
        model.check_adapter(folder, "tiny", "a")


def test_adapter_weights_of_other_layers_are_refused(tmp_path: Path, gemma: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = model.load_base(REQUEST, gemma, model.choose_device())
    config = LoraConfig(r=2, target_modules=model.LORA_TARGETS, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(tmp_path))
    fresh = model.load_base(REQUEST, gemma, model.choose_device())
    assert model.attach_adapter(fresh, tmp_path)

    def rename(weights: Any) -> None:
        for name in list(weights):
            weights[name.replace("layers.1.", "layers.77.")] = weights.pop(name)

    weights = tmp_path / "adapter_model.safetensors"
    weights.rename(tmp_path / "model.safetensors")
    change_weights(tmp_path, rename)
    (tmp_path / "model.safetensors").rename(weights)
    fresh = model.load_base(REQUEST, gemma, model.choose_device())
    with pytest.warns(UserWarning), pytest.raises(Refused, match="do not fit the model"):
        model.attach_adapter(fresh, tmp_path)


def test_a_template_without_a_system_role_gets_it_in_the_first_turn(copy: Path) -> None:
    tokenizer = model.load_tokenizer(copy, "tiny")
    assert model.has_system_role(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    assert not model.has_system_role(tokenizer)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    merged = model.fit_messages(messages, "Be warm.", system_role=False)
    assert merged == [{"role": "user", "content": "Be warm.\n\nBe brief.\n\nHello."}]
    kept = model.fit_messages(messages, "Be warm.", system_role=True)
    assert kept[0] == {"role": "system", "content": "Be warm.\n\nBe brief."}
    assert model.fit_messages(messages[1:], None, False) == messages[1:]


def test_a_model_without_a_chat_template_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(Refused, match="has no chat template"):
        model.load_tokenizer(copy, "tiny")


def test_a_pass_without_gradients_leaves_4_bit_weights_trainable(gemma: Path) -> None:
    import torch
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn import Linear4bit

    request = Request(action="train", model=str(gemma))
    base = model.load_base(request, gemma, model.choose_device()).eval()
    layers = [m for m in base.modules() if isinstance(m, Linear4bit)]
    ids = torch.arange(8)[None]

    def packed() -> int:
        with torch.no_grad():
            base(input_ids=ids)
        states = [layer.weight.quant_state for layer in layers]
        return sum(getattr(state, "packing_format_for_cpu", False) for state in states)

    with model.trainable(base):
        assert layers and packed() == 0
    # Elsewhere bitsandbytes packs them, where the processor has an instruction for it.
    assert packed() == (len(layers) if has_avx512bf16() else 0)
