"""An adapter merged into its base, as a plain model; for Ollama with a Modelfile beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trainer.chat_template import as_published
from trainer.checkpoints import publish_folder
from trainer.contract import ContractError, Request, write_whole
from trainer.model import (
    Device,
    attach_adapter,
    check_weights,
    load_base,
    load_tokenizer,
    model_sha256,
)
from trainer.ollama import MODELFILE, modelfile

CARD = """---
base_model: {base}
library_name: transformers
---

# {base}, with an adapter merged in

SHA-256 of the base {base_sha256}, of the adapter's weights {adapter_sha256}. No figures came with
the request. A research model: not therapy, not care, not supervision.
"""


def check_output(request: Request, folder: Path, base: Path) -> Path:
    """Return where the model goes. Raises ContractError when it cannot go there."""
    if request.adapter is None or request.output is None:
        raise ContractError("merge needs adapter and output in request.json.")
    target = (folder / request.output).resolve()
    if target.exists():
        raise ContractError(f"{target} is there already; a model is never written over.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ContractError(f"{target.parent}: {error.strerror}.") from None
    needed = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ContractError(
            f"{target.parent} has {free / 1e9:.1f} GB free, and the model takes about "
            f"{needed / 1e9:.1f} GB. Name another place."
        )
    return target


def merge(
    request: Request, folder: Path, base: Path, shas: tuple[str, str], target: Path
) -> dict[str, Any]:
    """Merge in bf16 on the CPU and publish the model at `target`, whole or not at all.

    Never into 4-bit weights: what was trained would be rounded away (peft#2321). `shas`: of the
    base and of the adapter's weights. Returns the model's SHA-256 and its size in bytes. Raises
    Refused when what was saved is not what its configuration says; nothing is published then.
    """
    import torch

    device = Device("cpu", torch.bfloat16, "merged in the precision it is kept in")
    plain = Request(action="merge", model=request.model, quantization="none")
    tokenizer = load_tokenizer(base, request.model)  # before the weights: it may be refused
    adapted = attach_adapter(load_base(plain, base, device), folder / str(request.adapter))
    merged = adapted.merge_and_unload(safe_merge=True)  # safe: refuses what is no number
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        merged.save_pretrained(temporary)
        # Under other names its weights would be passed over, and random ones put in their place.
        check_weights(temporary, "the merged model")
        if request.form == "ollama":
            text = modelfile(tokenizer, merged.generation_config)
            write_whole(temporary / MODELFILE, text)
        # The publisher's own, which may print today's date.
        tokenizer.chat_template = as_published(str(tokenizer.chat_template))
        tokenizer.save_pretrained(temporary)
        names = {"base": request.model, "base_sha256": shas[0], "adapter_sha256": shas[1]}
        card = request.card or CARD.format(**names)
        write_whole(temporary / "README.md", card)
        size = sum(path.stat().st_size for path in temporary.iterdir())
        sha256 = model_sha256(temporary)
        publish_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return {"path": str(request.output), "sha256": sha256, "bytes": size, "form": request.form}
