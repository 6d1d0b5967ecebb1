"""A chat template is a program from outside: tried once, in a process with a time and a size limit.

`python -m trainer.chat_template` reads a template on standard input, renders two short
conversations and prints what came of it. It imports jinja2 alone, so it starts in no time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import Any

SECONDS = 10
MEMORY = 1 << 30  # bytes a rendering may take, where the system can limit it
MOST = 100_000  # characters: what is rendered below is under a hundred long
MARK = "the mark of a system message"
USER = [{"role": "user", "content": "Hello."}]
TALK = [*USER, {"role": "assistant", "content": "Hello."}, *USER]

# Llama 3.2's template and others print today's date (`strftime_now`, a function of transformers).
# A prompt would have other tokens each day: what is trained on would change in a training that goes
# on after midnight, and no reference of the day before would be found. So a macro of that name is
# put before such a template, with one date for ever: the one Llama 3.2's falls back to, a Friday.
FIXED = {
    "%-d": "26", "%e": "26", "%F": "2024-07-26", "%j": "208", "%d": "26", "%b": "Jul", "%B": "July",
    "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri", "%H": "12", "%M": "00",
    "%S": "00", "%I": "12", "%p": "PM",
}  # fmt: skip
_REPLACED = "".join(f" | replace('{name}', '{value}')" for name, value in FIXED.items())
# The line's end is taken away with the tag (`trim_blocks`): the template begins on a line, as ever.
ONE_DATE = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"


class Endless(Exception):
    """The template did not come to an end, or to a reasonable one."""


def with_one_date(source: str) -> str:
    """Return a template such that it prints the same date each day; others as they are."""
    return ONE_DATE + source if "strftime_now" in source else source


def as_published(source: str) -> str:
    """Return what `with_one_date` was given."""
    return source.removeprefix(ONE_DATE)


def try_template(source: str, variables: dict[str, Any]) -> str | None:
    """Render a template within limits; return None, or the line jinja2 refuses it with.

    `variables` are the special tokens it may name. Raises Endless when it takes longer than
    SECONDS, more than MEMORY, or writes more than MOST characters.
    """
    task = json.dumps({"template": source, "variables": variables})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "trainer.chat_template"],
            input=task, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS,
            env=_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Endless(f"it runs for more than {SECONDS} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:  # killed, by its own limit or the system's
        raise Endless("it takes more memory than a conversation can need") from None
    if answer.get("endless"):
        raise Endless(str(answer["endless"]))
    error = answer.get("error")
    return None if error is None else str(error)


def _environment() -> dict[str, str]:
    import os
    from pathlib import Path

    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


# --- in the process of its own -------------------------------------------------------------------


def _limit() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows; a lower limit set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def _compile(source: str) -> Any:
    """Compile a template as transformers does: its sandbox, its extensions, its functions."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        options.pop("indent", None)
        return json.dumps(value, ensure_ascii=False, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = time.strftime
    return environment.from_string(source)


def _render(template: Any, messages: list[dict[str, str]], variables: dict[str, Any]) -> str:
    parts, length = [], 0
    given = {"messages": messages, "tools": None, "documents": None, **variables}
    for part in template.generate(add_generation_prompt=True, **given):
        parts.append(part)
        length += len(part)
        if length > MOST:
            raise Endless(f"it makes more than {MOST:,} characters of two short messages")
    return "".join(parts)


def main() -> None:
    """Render the template on standard input; print what came of it as JSON."""
    task = json.loads(sys.stdin.buffer.read())
    _limit()
    answer: dict[str, Any] = {}
    try:
        template = _compile(task["template"])
        _render(template, USER, task["variables"])
        _render(template, TALK, task["variables"])
        with contextlib.suppress(Exception):  # no system role is no fault
            _render(template, [{"role": "system", "content": MARK}, *USER], task["variables"])
    except Endless as error:
        answer = {"endless": str(error)}
    except (MemoryError, RecursionError):
        answer = {"endless": "it takes more memory than a conversation can need"}
    except Exception as error:  # whatever a template from outside does wrong
        answer = {"error": f"{type(error).__name__}: {error}"[:200]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
