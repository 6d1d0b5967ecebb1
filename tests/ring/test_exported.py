"""A really trained adapter, taken elsewhere: by plain PEFT it is the model that was trained.

By the card of an export, and by the README's lines for the trainer's own folder.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from curator import db, exports
from curator.models import Adapter
from curator.workspace import Workspace
from tests import tiny
from tests.trainer.conftest import TRAIN, manifest_of, preference_rows, run_folder
from trainer import model
from trainer.__main__ import perform
from trainer.contract import ADAPTER_CARD, ADAPTER_CONFIG, ADAPTER_WEIGHTS, Request, sha256_file

pytestmark = pytest.mark.train

README = Path(__file__).parent.parent.parent / "README.md"
IDS = [[2, 40, 41, 42]]


def code_in(text: str) -> str:
    """Return the first block of Python that loads an adapter."""
    found = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "PeftModel" in b)
    return str(found)


def loaded_by(code: str, place: Path) -> Any:
    """Run lines that load a model as `model`; return it in fp32, as it was trained here."""
    place.write_text(code, encoding="utf-8")
    return runpy.run_path(str(place))["model"].float().eval()


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "gemma3_text"])
def test_an_adapter_elsewhere_is_the_model_that_was_trained(
    tmp_path: Path, workspace: Workspace, family: str
) -> None:
    import torch
    from safetensors.torch import load_file

    base, multimodal = tmp_path / "model", family != "gemma3_text"
    tiny.save_family(base, family)
    run = run_folder(
        tmp_path / "run", preference_rows(12, split="train"), action="train", model=str(base),
        train={**TRAIN, "max_steps": 2}, quantization="none",
    )  # fmt: skip
    assert perform(run) == 0
    folder = run / "adapter"
    assert json.loads((folder / ADAPTER_CARD).read_text())["multimodal"] is multimodal
    plain = model.load_base(
        Request("generate", str(base), quantization="none"), base, model.choose_device()
    )
    ids = torch.tensor(IDS)
    with torch.no_grad():
        without = plain.eval()(ids).logits
        wanted = model.attach_adapter(plain, folder).eval()(ids).logits
    assert (wanted - without).abs().max() > 0.01

    by_readme = code_in(README.read_text(encoding="utf-8"))
    by_readme = by_readme.replace("/path/to/gemma-3-4b-it", base.as_posix())
    by_readme = by_readme.split("from datasets")[0].replace("run/adapter", folder.as_posix())
    with torch.no_grad():
        raw = loaded_by(by_readme, tmp_path / "readme.py")(ids).logits
    assert torch.allclose(raw, wanted, atol=1e-5)

    target = export(workspace, folder, manifest_of(run)["adapter"]["sha256"], base.as_posix())
    card = (target / "README.md").read_text(encoding="utf-8")
    by_card = code_in(card).replace("THIS_FOLDER", target.as_posix())
    adapted = loaded_by(by_card, tmp_path / "card.py")
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, wanted, atol=1e-5)
    on = [name for name, _ in adapted.named_modules() if name.endswith("lora_A.default")]
    assert len(on) == 2 * 7 and not any("vision" in name for name in on)
    config = json.loads((target / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == base.as_posix()
    assert sha256_file(target / ADAPTER_WEIGHTS) in card
    assert (sha256_file(target / ADAPTER_WEIGHTS) != sha256_file(folder / ADAPTER_WEIGHTS)) is (
        multimodal
    )
    before, after = (load_file(each / ADAPTER_WEIGHTS) for each in (folder, target))
    for name, value in before.items():
        if multimodal:
            name = name.replace(".layers.", ".language_model.layers.")
        assert torch.equal(after.pop(name), value)
    assert not after


def export(workspace: Workspace, trained: Path, sha256: str, base: str) -> Path:
    """Export an adapter that a workspace has as one of a base by this name."""
    shutil.copytree(trained, workspace.path / "adapters" / "adapter-0001")
    with db.writing(workspace.engine) as session:
        session.add(Adapter(
            name="adapter-0001", folder="adapters/adapter-0001", base_model=base,
            base_sha256="b" * 64, sha256=sha256, pairs_sha256="e" * 64, metrics={},
        ))  # fmt: skip
    return exports.export_peft(workspace, "adapter-0001", None)


def test_gemma_by_its_other_loader(tmp_path: Path, workspace: Workspace) -> None:
    """AutoModelForCausalLM knows the whole of Gemma 3 too, and gives the same class."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny.save_family(tmp_path / "model", "gemma3")
    run = run_folder(
        tmp_path / "run", preference_rows(12, split="train"), action="train",
        model=str(tmp_path / "model"), train={**TRAIN, "max_steps": 2}, quantization="none",
    )  # fmt: skip
    assert perform(run) == 0
    sha256 = manifest_of(run)["adapter"]["sha256"]
    target = export(workspace, run / "adapter", sha256, "google/gemma-3-4b-it")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(whole).__name__ == "Gemma3ForConditionalGeneration"
    adapted = PeftModel.from_pretrained(whole, str(target))
    moved = [n for n, p in adapted.named_parameters() if "lora_B" in n and p.any()]
    assert len(moved) == 2 * 7 and all("language_model" in name for name in moved)
