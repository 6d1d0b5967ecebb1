"""Rows, events, the manifest and digests: how the files of a run's folder are written and read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.contract.names import EVENTS, MANIFEST, ContractError, Message

# --- rows, a JSON object a line ----------------------------------------------------------------


def write_whole(path: Path, text: str) -> Path:
    """Write a file so that a reader sees all of it or none; flushed to the disk.

    A write that fails leaves nothing behind.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows a line each, whole or not at all; return how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_whole(path, "".join(line + "\n" for line in lines))
    return len(lines)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row). Blank lines are passed over.

    Raises ContractError naming path and line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ContractError(f"{path}: {error.strerror or error}.") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise ContractError(f"{path}, line {number}: not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise ContractError(f"{path}, line {number}: not a JSON object.")
            yield number, row


def check_messages(value: Any, roles: tuple[str, ...], where: str) -> list[Message]:
    """Return `value` as chat messages whose last role is in `roles`. Raises ContractError."""
    if not isinstance(value, list) or not value:
        raise ContractError(f"{where} must be a list of messages.")
    for message in value:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise ContractError(f'{where}: a message is {{"role": "user", "content": "text"}}.')
    if value[-1]["role"] not in roles:
        raise ContractError(f"{where} must end with {' or '.join(roles)}.")
    return [{"role": m["role"], "content": m["content"]} for m in value]


# --- events and the manifest --------------------------------------------------------------------


def append_event(folder: Path, event: str, **values: Any) -> dict[str, Any]:
    """Append one event to events.jsonl and return it as written.

    One write of one line, so a reader never sees half an event joined to another.
    """
    row = {"event": event, "time": time.time(), **{n: _number(v) for n, v in values.items()}}
    line = json.dumps(row, ensure_ascii=False) + "\n"
    with (folder / EVENTS).open("ab") as file:
        file.write(line.encode("utf-8"))
    return row


def _number(value: Any) -> Any:
    """Return null for what is not a number: NaN and infinity are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the whole events after byte `offset`, and the offset to go on from."""
    try:
        with (folder / EVENTS).open("rb") as file:
            file.seek(offset)
            block = file.read()
    except FileNotFoundError:
        return [], offset
    end = block.rfind(b"\n") + 1
    events = []
    for line in block[:end].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events, offset + end


def write_manifest(folder: Path, manifest: Mapping[str, Any], name: str = MANIFEST) -> None:
    """Write manifest.json: the last act of a run, after every result is on the disk."""
    write_whole(folder / name, json.dumps(manifest, indent=1, ensure_ascii=False))


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """Return the manifest, or None when the run (or, for TRAINED, its first half) has not ended."""
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ContractError(f"{folder / name}: not JSON ({error}).") from None
    if not isinstance(manifest, dict):
        raise ContractError(f"{folder / name}: not a JSON object.")
    return manifest


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_rows(rows: Iterable[Any]) -> str:
    """Return the SHA-256 of rows in canonical JSON (sorted keys, no spaces), in hexadecimal."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON that is the same for equal values: sorted keys, no spaces, no escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
