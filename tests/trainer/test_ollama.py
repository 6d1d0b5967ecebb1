"""Chat templates of the families we name, put in Ollama's terms and filled in as Ollama does."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import tiny
from trainer import model, ollama
from trainer.chat_template import with_one_date

pytestmark = pytest.mark.train

# As Llama 3.2's is: with the day it is rendered on.
LLAMA = tiny.LLAMA_TEMPLATE.replace(
    '2023\\n\\n" }}', '2023\\n" }}\n{{- "Today Date: " + strftime_now("%d %b %Y") + "\\n\\n" }}'
)
MISTRAL = tiny.MISTRAL_TEMPLATE
# Older ones of Mistral's: a blank before a reply, no system role.
BLANK = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('Only users.') }}
{%- endif %}{% endfor %}"""
# The system message goes into the last turn, wherever that is.
LAST = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + (system if system and loop.last else '') + message['content'] + '[/INST]' }}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"llama": with_one_date(LLAMA), "mistral": MISTRAL, "blank": BLANK}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    tiny.save_tokenizer(tmp_path)
    return model.load_tokenizer(tmp_path, "tiny")


def filled(template: str, messages: list[dict[str, str]]) -> str:
    """Fill in a Go template with .Messages, of the few actions that we write, as Ollama would."""
    actions = {
        "if .System": "{% if system %}", ".System": "{{ system }}", "else": "{% else %}",
        "range .Messages": "{% for m in messages %}", ".Content": "{{ m.content }}",
        'if eq .Role "user"': "{% if m.role == 'user' %}",
        'else if eq .Role "assistant"': "{% elif m.role == 'assistant' %}",
    }  # fmt: skip
    opened: list[str] = []

    def jinja(action: re.Match[str]) -> str:
        name = action[1]
        if name == "end":
            return f"{{% end{opened.pop()} %}}"
        if name.startswith(("if", "range")):
            opened.append("if" if name.startswith("if") else "for")
        return actions[name]

    from jinja2 import Environment

    source = re.sub(r"\{\{ (.*?) \}\}", jinja, template)
    assert not opened
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    made = Environment(keep_trailing_newline=True).from_string(source)
    return made.render(messages=messages, system=system)


def conversation(system: str | None, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for n in range(turns):
        messages += [
            {"role": "user", "content": f"Question {n}."},
            {"role": "assistant", "content": f"Answer {n}."},
        ]
    return messages[:-1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_filled_in_it_is_what_the_model_was_trained_with(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    template = ollama.go_template(tokenizer)
    assert template is not None
    for system in (None, "Be kind.") if name != "blank" else (None,):
        for turns in (1, 2, 4):
            messages = conversation(system, turns)
            wanted = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            assert tokenizer.bos_token + filled(template, messages) == wanted


def test_a_header_is_written_once_and_a_date_is_told_of(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATES["llama"]
    template = ollama.go_template(tokenizer)
    assert template is not None and template.count("{{ range .Messages }}") == 1
    before, _, inside = template.partition("{{ range .Messages }}")
    assert "Today Date: 26 Jul 2024" in before and "Today" not in inside
    assert "Cutting Knowledge Date" in before and "Cutting" not in inside
    sampling = SimpleNamespace(eos_token_id=[1, 5], temperature=0.6)
    text = ollama.modelfile(tokenizer, sampling)
    assert f'{ollama.DATED}\nTEMPLATE """{template}"""\nPARAMETER temperature 0.6\n' in text
    assert "26 July 2024" in ollama.DATED and "\nPARAMETER repeat_penalty 1.0\n" in text
    tokenizer.chat_template = MISTRAL
    assert ollama.DATED not in ollama.modelfile(tokenizer, sampling)


def test_what_a_model_does_to_its_sampling_is_in_it(tokenizer: Any) -> None:
    from transformers import GenerationConfig

    sampling = GenerationConfig(
        eos_token_id=5, repetition_penalty=1.05, min_p=0.1, typical_p=0.9, top_k=20
    )
    parameters = re.findall("PARAMETER (.*)", ollama.modelfile(tokenizer, sampling))
    assert parameters[:3] == ["top_k 20", "repeat_penalty 1.05", "min_p 0.1"]
    assert len(parameters) == 4  # of typical_p Ollama knows nothing
    sampling = GenerationConfig(eos_token_id=5, repetition_penalty=1.0, min_p=0.0)
    text = ollama.modelfile(tokenizer, sampling)
    assert "PARAMETER repeat_penalty 1.0\n" in text and "min_p" not in text


@pytest.mark.parametrize(
    "template",
    ["{{ messages | length }}:{{ messages[-1]['content'] }}",
     LAST,
     MISTRAL.replace("You are a model.", "You write {{ .Go }}."),
     MISTRAL.replace("[INST]", '[INST]"""'),
     MISTRAL.replace("loop.index0 % 2", "(loop.index0 + loop.length // 3) % 2")],
    ids=["counts", "system in the last turn", "a Go action", "quotes", "two turns raise"],
)  # fmt: skip
def test_a_template_that_does_not_fit_is_left_out_and_told_of(
    tokenizer: Any, template: str
) -> None:
    tokenizer.chat_template = template
    assert ollama.go_template(tokenizer) is None
    text = ollama.modelfile(tokenizer, SimpleNamespace(eos_token_id=5))
    assert ollama.NO_TEMPLATE in text and "TEMPLATE " not in text
    assert 'PARAMETER stop "<end_of_turn>"' in text
