"""A merged model put in Ollama's terms: a Modelfile with its chat template, stops and sampling.

By Ollama's documentation of Modelfiles and its `template/template.go`; not tried with an Ollama.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.model import has_system_role, own_sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE = "Modelfile"
NO_TEMPLATE = "# The chat template could not be put in Ollama's terms; it may know its own."
DATED = "# The chat template puts today's date in: below it is 26 July 2024, as in training."
# Stand for the texts of a conversation: of its system message, its users, its assistants.
SYSTEM, USERS, REPLIES = "\u27e8S\u27e9", ("\u27e8A\u27e9", "\u27e8B\u27e9"), ("\u27e8R\u27e9",)


def modelfile(tokenizer: PreTrainedTokenizerBase, sampling: Any) -> str:
    """Return an Ollama Modelfile for the folder it lies in: template, stops, sampling.

    `sampling` is the model's generation_config. A template that cannot be put in Ollama's terms
    is left out, and a comment says so.
    """
    lines = ["# ollama create NAME -f Modelfile", "FROM ."]
    template = go_template(tokenizer)
    if template is None:
        lines.append(NO_TEMPLATE)
    else:
        if "strftime_now" in str(tokenizer.chat_template):
            lines.append(DATED)
        lines.append(f'TEMPLATE """{template}"""')
    own = own_sampling(sampling)
    known = {n: getattr(sampling, n, None) for n in ("temperature", "top_p", "top_k")}
    # Without it Ollama takes 1.1 (its documentation of Modelfiles); nothing here was drawn so.
    known["repeat_penalty"] = own.get("repetition_penalty", 1.0)
    known["min_p"] = own.get("min_p")
    for name, value in known.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append(f"PARAMETER {name} {value}")
    ends = sampling.eos_token_id
    for token in dict.fromkeys(ends if isinstance(ends, list) else [ends]):
        if token is not None:
            stop = json.dumps(tokenizer.convert_ids_to_tokens(token), ensure_ascii=False)
            lines.append(f"PARAMETER stop {stop}")
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template as a Go template of Ollama's; None: it does not fit.

    Read off conversations rendered with marks for their texts, and compared with longer ones, so
    it holds what the model was trained with. The first token is left out: Ollama puts it itself.
    """
    from jinja2 import TemplateError

    try:
        parts = _take_apart(tokenizer)
        fits = all(
            parts.fill(system, texts) == _render(tokenizer, system, texts)
            for system in (None, SYSTEM)[: 2 if parts.system else 1]
            for texts in (["a"], ["a", "b", "c"], ["a", "b", "c", "d", "e"])
        )
    except TemplateError:  # two turns after a system message, say
        return None
    # What ends the Modelfile's text or begins an action of Go's would have to be written otherwise.
    held = (parts.start, *(parts.system or ()), parts.after, parts.lead, parts.between)
    if not fits or any(odd in text for text in held for odd in ('"""', "{{")):
        return None
    return parts.by_pairs() or parts.by_messages()


@dataclass(frozen=True)
class Parts:
    """What a chat template writes around the texts of a conversation that a user begins."""

    start: str
    """Before the first user's text, where there is no system message."""
    system: tuple[str, str] | None
    """Before a system message, and between it and the first user's text; None: no such role."""
    after: str
    """After a user's text, up to where the model goes on."""
    lead: str
    """Between that and a reply of an earlier turn: a blank, in some templates."""
    between: str
    """Between a reply and the next user's text."""

    def fill(self, system: str | None, texts: list[str]) -> str:
        """Return a conversation: users' and assistants' texts in turn, the last a user's."""
        start = self.start
        if system is not None and self.system is not None:
            start = f"{self.system[0]}{system}{self.system[1]}"
        around = ((self.after + self.lead, self.between)[n % 2] for n in range(len(texts)))
        whole = start + "".join(text + part for text, part in zip(texts, around, strict=True))
        return whole.removesuffix(self.lead)

    def by_pairs(self) -> str | None:
        """Return it with .Prompt and .Response, which Ollama fills in for every pair of turns.

        None where the first turn is written otherwise than later ones, or a reply led in.
        """
        if not self.between.endswith(self.start) or self.lead:
            return None
        prompt = f"{self.start}{{{{ .Prompt }}}}"
        if self.system:
            steered = f"{self.system[0]}{{{{ .System }}}}{self.system[1]}{{{{ .Prompt }}}}"
            prompt = f"{{{{ if .System }}}}{steered}{{{{ else }}}}{prompt}{{{{ end }}}}"
        return f"{prompt}{self.after}{{{{ .Response }}}}{self.between.removesuffix(self.start)}"

    def by_messages(self) -> str:
        """Return it as a loop over .Messages, after what is written once: a fixed header, say.

        What begins a user's turn, first or later, is put inside the loop where that can be told.
        """
        begins = _common_end(self.start, self.between)
        if self.system and not self.system[1].endswith(begins):
            begins = ""
        once = self.start.removesuffix(begins)
        if self.system:
            steered = f"{self.system[0]}{{{{ .System }}}}{self.system[1].removesuffix(begins)}"
            once = f"{{{{ if .System }}}}{steered}{{{{ else }}}}{once}{{{{ end }}}}"
        return (
            f'{once}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}'
            f"{begins}{{{{ .Content }}}}{self.after}"
            f'{{{{ else if eq .Role "assistant" }}}}'
            f"{self.lead}{{{{ .Content }}}}{self.between.removesuffix(begins)}"
            "{{ end }}{{ end }}"
        )


def _take_apart(tokenizer: PreTrainedTokenizerBase) -> Parts:
    """Return what the template writes, by two short conversations; it may not hold for others."""
    (first, second), (reply,) = USERS, REPLIES
    start, _, after = _render(tokenizer, None, [first]).partition(first)
    rest = _render(tokenizer, None, [first, reply, second]).partition(first)[2]
    answer, _, rest = rest.partition(reply)
    system = None
    if has_system_role(tokenizer):
        opening, _, told = _render(tokenizer, SYSTEM, [first]).partition(SYSTEM)
        system = opening, told.partition(first)[0]
    lead = answer.removeprefix(after)
    return Parts(start, system, after, lead, between=rest.partition(second)[0])


def _render(tokenizer: PreTrainedTokenizerBase, system: str | None, texts: list[str]) -> str:
    """Return a conversation as the chat template writes it, without the first token."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(tokenizer.bos_token or "")


def _common_end(one: str, other: str) -> str:
    length = min(len(one), len(other))
    while length and not one.endswith(other[-length:]):
        length -= 1
    return other[-length:] if length else ""
