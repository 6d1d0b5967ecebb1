"""An adapter that leaves the workspace: whole, with a card that says what is known of it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from curator import adapters, cards, db, exports, store
from curator.errors import BadData, CannotWrite, NotReady
from curator.workspace import Workspace
from tests.curator.test_adapters import curator, work
from trainer.contract import (
    ADAPTER_CARD,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    read_request,
    sha256_file,
)


@pytest.fixture
def trained(judged: Workspace) -> Workspace:
    """A workspace with an adapter in use, whose weights are the fake trainer's."""
    work(judged, "round")
    return judged


def test_peft_is_the_adapter_with_a_model_card(trained: Workspace) -> None:
    done = curator(trained, "adapter", "export", "adapter-0002", "--to", "peft")
    assert done.returncode == 0 and not done.stdout, done.stderr
    target = trained.path / "exports" / "adapter-0002-peft"
    assert str(target) in done.stderr
    assert sorted(p.name for p in target.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "curator_adapter.json",
    ]  # fmt: skip
    assert not list(target.parent.glob("*.part"))
    card = (target / "README.md").read_text(encoding="utf-8")
    facts = adapters.show_adapter(trained, "adapter-0002")
    for sha256 in (facts["base_sha256"], facts["sha256"], facts["pairs_sha256"]):
        assert sha256 in card
    config = json.loads((target / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == facts["base_model"]
    assert "AutoModelForCausalLM.from_pretrained(" in card and "multimodal" not in card
    assert "on 8 preferences" in card and "library_name: peft" in card
    assert "| would rather agree where it should not | 0% | 0% to 4% | 120 |" in card
    assert "not therapy" in card and "can give away what it was trained on" in card
    assert not any(word in card.lower() for word in ("is safe", "validated", "de-identified"))
    again = curator(trained, "adapter", "export", "adapter-0002", "--to", "peft")
    assert again.returncode == 65 and "is there already" in again.stderr


@pytest.mark.parametrize("changed", ["weights", "link"])
def test_an_adapter_that_is_not_what_was_trained_stays_here(
    trained: Workspace, tmp_path: Path, changed: str
) -> None:
    folder = trained.path / adapters.show_adapter(trained, "adapter-0002")["folder"]
    if changed == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"others")
    else:
        (folder / "adapter_config.json").unlink()
        (tmp_path / "private").write_text("a client's words")
        (folder / "adapter_config.json").symlink_to(tmp_path / "private")
    done = curator(trained, "adapter", "export", "adapter-0002", "--to", "peft")
    assert done.returncode == 65 and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list((trained.path / "exports").iterdir())


def test_of_a_multimodal_base_the_layers_are_renamed_and_nothing_else(trained: Workspace) -> None:
    folder = trained.path / adapters.show_adapter(trained, "adapter-0002")["folder"]
    name = "base_model.model.model.{}layers.0.mlp.up_proj.lora_A.weight"
    where = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    head = json.dumps({"__metadata__": {"format": "pt"}, name.format(""): where}).encode()
    data = bytes(range(8))
    (folder / ADAPTER_WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + data)
    (folder / ADAPTER_CARD).write_text('{"multimodal": true}')
    targets = {
        "target_modules": r".*\.layers\.\d+\.mlp.up_proj",
        "base_model_name_or_path": "/here",
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", **targets}))
    with db.writing(trained.engine) as session:
        adapter = store.adapter_named(session, "adapter-0002")
        assert adapter is not None
        adapter.sha256 = sha256_file(folder / ADAPTER_WEIGHTS)
    target = exports.export_peft(trained, "adapter-0002", None)
    there = (target / ADAPTER_WEIGHTS).read_bytes()
    length = int.from_bytes(there[:8], "little")
    assert length % 8 == 0 and there[8 + length :] == data
    assert json.loads(there[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"}, name.format("language_model."): where,
    }  # fmt: skip
    config = json.loads((target / ADAPTER_CONFIG).read_text())
    assert config == {
        "peft_type": "LORA", "base_model_name_or_path": trained.config.model.name,
        "target_modules": r".*\.language_model\.layers\.\d+\.mlp.up_proj",
    }  # fmt: skip
    card = (target / "README.md").read_text(encoding="utf-8")
    assert adapter.sha256 in card and sha256_file(target / ADAPTER_WEIGHTS) in card
    assert "AutoModelForImageTextToText.from_pretrained(" in card and "vision part" in card
    assert len(list(target.iterdir())) == 4


@pytest.mark.parametrize("file", [ADAPTER_CARD, ADAPTER_CONFIG])
def test_an_adapter_whose_files_are_broken_stays_here(trained: Workspace, file: str) -> None:
    folder = trained.path / adapters.show_adapter(trained, "adapter-0002")["folder"]
    for text in ("{", "[]"):
        (folder / file).write_text(text)
        with pytest.raises(BadData, match=f"{file}: not "):
            exports.export_peft(trained, "adapter-0002", None)
    assert not list((trained.path / "exports").iterdir())


def test_what_cannot_be_exported_writes_nothing(trained: Workspace, tmp_path: Path) -> None:
    wrong = curator(trained, "adapter", "export", "adapter-0002", "--to", "gguf")
    assert wrong.returncode == 2 and "known: peft, merged, ollama" in wrong.stderr
    with pytest.raises(BadData, match="there is no adapter x"):
        exports.export_peft(trained, "x", None)
    with pytest.raises(BadData, match="the base is no adapter"):
        exports.start_merge(trained, "base", "merged", None)
    with pytest.raises(BadData, match="is there already"):
        exports.start_merge(trained, "adapter-0002", "merged", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=r"Nothing was written\."):
        exports.export_peft(trained, "adapter-0002", tmp_path / "file" / "below")
    folder = trained.path / adapters.show_adapter(trained, "adapter-0002")["folder"]
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(NotReady, match="is gone"):
        exports.export_peft(trained, "adapter-0002", None)
    assert not list((trained.path / "exports").iterdir())


def test_merging_asks_the_trainer(trained: Workspace, tmp_path: Path) -> None:
    started, target = exports.start_merge(trained, "adapter-0002", "ollama", tmp_path / "out")
    request = read_request(started.folder)
    assert (request.action, request.form, request.output) == ("merge", "ollama", str(target))
    assert request.adapter == "../../adapters/adapter-0002" and request.adapter_sha256
    assert "merged into the base in bf16" in str(request.card)


def test_a_card_without_figures_says_so() -> None:
    facts = {
        "adapter": "a", "base_model": 'b"\n', "preferences": {}, "base_sha256": "1", "sha256": "2",
        "pairs_sha256": "3", "evaluation": {}, "status": "current", "reason": None,
    }  # fmt: skip
    text = cards.card_text(facts, "merged", "nf4")
    assert "None was taken." in text and "in nf4" in text and "nothing can be" not in text
    assert text.splitlines()[1] == 'base_model: "b\\"\\n"'


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permission bits")
def test_an_export_is_its_users_alone(trained: Workspace) -> None:
    curator(trained, "adapter", "export", "adapter-0002", "--to", "peft")
    card = trained.path / "exports" / "adapter-0002-peft" / "README.md"
    assert stat.S_IMODE(card.stat().st_mode) == 0o600
