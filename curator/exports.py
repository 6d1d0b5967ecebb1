"""The verb of an adapter that leaves the workspace: as PEFT, merged, or for Ollama.

Part of the workflow layer.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

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


EXPORTED = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_CARD)


def export_peft(workspace: Workspace, name: str, output: Path | None) -> Path:
    """Copy an adapter with its model card, whole or not at all; return the folder.

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
        card = card_text(facts, "peft", workspace.config.model.quantization)
        write_whole(temporary / "README.md", card)
        os.replace(temporary, target)
    except BadData:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except (OSError, shutil.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CannotWrite(f"{target}: {error}. Nothing was written.") from None
    return target


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
