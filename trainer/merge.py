"""An adapter merged into its base, as a plain model; for Ollama with a Modelfile beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoints import publish_folder
from trainer.contract import ContractError, Request, write_whole
from trainer.model import (
    Device,
    attach_adapter,
    check_weights,
    has_system_role,
    load_base,
    load_tokenizer,
    model_sha256,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARD = """---
base_model: {base}
library_name: transformers
---

# {base}, with an adapter merged in

SHA-256 of the base {base_sha256}, of the adapter's weights {adapter_sha256}. No figures came with
the request. A research model: not therapy, not care, not supervision.
"""
MODELFILE = "Modelfile"


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
        tokenizer.save_pretrained(temporary)
        names = {"base": request.model, "base_sha256": shas[0], "adapter_sha256": shas[1]}
        card = request.card or CARD.format(**names)
        write_whole(temporary / "README.md", card)
        if request.form == "ollama":
            text = modelfile(tokenizer, merged.generation_config)
            write_whole(temporary / MODELFILE, text)
        size = sum(path.stat().st_size for path in temporary.iterdir())
        sha256 = model_sha256(temporary)
        publish_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return {"path": str(request.output), "sha256": sha256, "bytes": size, "form": request.form}


# --- Ollama ------------------------------------------------------------------------------------


def modelfile(tokenizer: PreTrainedTokenizerBase, sampling: Any) -> str:
    """Return an Ollama Modelfile for the folder it lies in: template, stops, sampling.

    By Ollama's documentation of Modelfiles; not tried with an Ollama.
    """
    lines = ["# ollama create NAME -f Modelfile", "FROM ."]
    template = go_template(tokenizer)
    if template is None:
        lines.append("# The chat template could not be put in Ollama's terms; it may know its own.")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(sampling, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append(f"PARAMETER {name} {value}")
    ends = sampling.eos_token_id
    for token in dict.fromkeys(ends if isinstance(ends, list) else [ends]):
        if token is not None:
            stop = json.dumps(tokenizer.convert_ids_to_tokens(token), ensure_ascii=False)
            lines.append(f"PARAMETER stop {stop}")
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template as Ollama's .System, .Prompt and .Response; None: it does not fit.

    Read off conversations rendered with marks for their texts, so it holds what the model was
    trained with. The first token is left out: Ollama puts it itself.
    """
    system, first, reply, second = (f"\u27e8{name}\u27e9" for name in "SARB")

    def render(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
        return text.removeprefix(tokenizer.bos_token or "")

    before, _, after = render(("user", first)).partition(first)
    text = render(("user", first), ("assistant", reply), ("user", second))
    between = text.partition(reply)[2].partition(second)[0]
    if text != f"{before}{first}{after}{reply}{between}{second}{after}":
        return None  # turns are not all written alike
    if not between.endswith(before):
        return None
    end = between.removesuffix(before)
    prompt = f"{before}{{{{ .Prompt }}}}"
    if has_system_role(tokenizer):
        told = render(("system", system), ("user", first))
        opening, _, rest = told.partition(system)
        middle, _, closing = rest.partition(first)
        if told != f"{opening}{system}{middle}{first}{after}" or closing != after:
            return None
        steered = f"{opening}{{{{ .System }}}}{middle}{{{{ .Prompt }}}}"
        prompt = f"{{{{ if .System }}}}{steered}{{{{ else }}}}{prompt}{{{{ end }}}}"
    whole = f"{prompt}{after}{{{{ .Response }}}}{end}"
    return None if '"""' in whole else whole
