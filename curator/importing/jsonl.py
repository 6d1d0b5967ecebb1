"""Reading JSON lines that anybody may have written, and saying where they are wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curator.errors import BadData

# A line holds one text of at most 200 KB, or a conversation of such texts; 50 MB lines are a
# mistake, and reading one would only cost memory.
MOST_BYTES_A_LINE = 4_000_000
KINDS = {
    str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words."""
    return KINDS.get(type(value), type(value).__name__)


def read_jsonl(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line that is not blank.

    Raises BadData naming path, line and reason, and showing `example`, a right line. Lines end
    at line feeds alone: U+2028 and its like may stand inside a text.
    """

    def wrong(reason: str, line: int | None = None) -> BadData:
        where = f"{path}, line {line}" if line else str(path)
        return BadData(f"{where}: {reason}. A right line: {example}")

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise wrong("not a regular file")
        file = path.open("rb")
    except OSError as error:
        raise wrong(error.strerror or str(error)) from None
    found = False
    with file:
        for number in _numbers():
            line = file.readline(MOST_BYTES_A_LINE + 1)
            if not line:
                break
            if len(line) > MOST_BYTES_A_LINE:
                raise wrong(f"longer than {MOST_BYTES_A_LINE:,} bytes", number)
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise wrong("UTF-16 text; save the file as UTF-8")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise wrong("not UTF-8 text; save the file as UTF-8", number) from None
            if not text:
                continue
            found = True
            yield number, _parse(text, number, wrong)
    if not found:
        raise wrong("the file is empty")


def _numbers() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def _parse(text: str, number: int, wrong: Any) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        if number == 1 and text == "[":
            raise wrong("a JSON list; JSON lines have one object a line", number) from None
        raise wrong(f"not JSON ({error.msg} at column {error.colno})", number) from None
    except (ValueError, RecursionError) as error:
        raise wrong(f"not JSON ({error})", number) from None
    if not isinstance(value, dict):
        raise wrong(f"{kind_of(value)}, not an object", number)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twin!r} stands twice")
    return values
