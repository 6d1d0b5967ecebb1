"""The verb of an adapter that leaves the workspace: as PEFT, merged, or for Ollama.

Part of the workflow layer.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from curator.adapters import show_adapter
from curator.cards import card_text
from curator.errors import BadData, CannotWrite, NotReady
from curator.rounds import Started, start_run
from curator.workspace import Workspace
from trainer.contract import (
    ADAPTER_CARD,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    sha256_file,
    write_whole,
)

Form = Literal["peft", "merged", "ollama"]


def target_of(workspace: Workspace, name: str, form: Form, output: Path | None) -> Path:
    """Return the folder an export makes. Raises BadData when something is there."""
    target = (output or workspace.path / "exports" / f"{name}-{form}").absolute()
    if target.exists():
        raise BadData(f"{target} is there already. Name another with --output.")
    return target


# A multimodal base's language layers: by themselves, and within the whole; PEFT's names of their
# weights, and what its pattern of the layers it is put on begins with.
LAYERS = "base_model.model.model.layers.", "base_model.model.model.language_model.layers."
TARGETS = r".*\.layers\.", r".*\.language_model\.layers\."
EXPORTED = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_CARD)


def export_peft(workspace: Workspace, name: str, output: Path | None) -> Path:
    """Copy an adapter with its model card, whole or not at all; return the folder.

    That of a multimodal base is for the checkpoint as it is, vision part and all, where the
    language model's layers have other names than by themselves, as which they were trained.

    Raises BadData for an unknown name or a target that is there, NotReady when the adapter's
    folder is gone, CannotWrite.
    """
    facts = show_adapter(workspace, name)
    source = workspace.path / facts["folder"]
    if not source.is_dir():
        raise NotReady(f"{source} is gone. Restore it from a backup, or train anew.")
    target = target_of(workspace, name, "peft", output)
    temporary = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for each in EXPORTED:
            if (source / each).is_symlink():
                raise BadData(f"{source / each} is a link. Restore the adapter from a backup.")
            shutil.copyfile(source / each, temporary / each)
        if sha256_file(temporary / ADAPTER_WEIGHTS) != facts["sha256"]:
            raise BadData(
                f"{source / ADAPTER_WEIGHTS} is not what was trained. Restore it from a backup."
            )
        multimodal = bool(_json(source / ADAPTER_CARD).get("multimodal"))
        config = _json(source / ADAPTER_CONFIG) | {"base_model_name_or_path": facts["base_model"]}
        if multimodal:
            _rename_weights(temporary / ADAPTER_WEIGHTS)
            # Anchored: the vision part has layers of these names too.
            config["target_modules"] = str(config.get("target_modules")).replace(*TARGETS, 1)
        write_whole(temporary / ADAPTER_CONFIG, json.dumps(config, indent=2))
        card = card_text(
            facts, "peft", workspace.config.model.quantization, multimodal,
            sha256_file(temporary / ADAPTER_WEIGHTS),
        )  # fmt: skip
        write_whole(temporary / "README.md", card)
        os.replace(temporary, target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CannotWrite(f"{target}: {error}. Nothing was written.") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises BadData."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path}: not JSON ({error}). Restore the adapter from a backup.") from None
    if not isinstance(value, dict):
        raise BadData(f"{path}: not a JSON object. Restore the adapter from a backup.")
    return value


def _rename_weights(path: Path) -> None:
    """Give a safetensors file's weights the names of the whole checkpoint's language layers.

    The file is eight bytes of a length (little-endian), so much JSON, and the data, which stays.
    """
    alone, within = LAYERS
    temporary = path.with_name(path.name + ".part")
    with path.open("rb") as file, temporary.open("xb") as renamed:
        head: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        names = (within + n.removeprefix(alone) if n.startswith(alone) else n for n in head)
        text = json.dumps(dict(zip(names, head.values(), strict=True))).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
        renamed.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(file, renamed)
    os.replace(temporary, path)


def start_merge(
    workspace: Workspace, name: str, form: Literal["merged", "ollama"], output: Path | None
) -> tuple[Started, Path]:
    """Start a run that merges an adapter into its base; return it and the folder it makes.

    Raises what start_run raises, and BadData for an unknown name or a target that is there.
    """
    facts = show_adapter(workspace, name)
    target = target_of(workspace, name, form, output)
    card = card_text(facts, form, workspace.config.model.quantization)
    asked = {"output": str(target), "form": form, "card": card}
    return start_run(workspace, "merge", adapter=name, merge=asked), target
