"""What goes in, what is refused, and that a refused file leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from curator import db
from curator.errors import BadData
from curator.importing.prompts import read_prompts
from curator.models import Prompt
from curator.workflow import import_prompts
from curator.workspace import Workspace

USER = {"role": "user", "content": "Hello."}
REPLY = {"role": "assistant", "content": "Hi."}


def line(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


GOOD = line(prompt="I cannot sleep.")
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "byte order mark only": (b"\xef\xbb\xbf", "the file is empty"),
    "not JSON": (GOOD + b"hello\n", "line 2: not JSON"),
    "truncated": (GOOD + b'{"prompt": "I ca', "line 2: not JSON"),
    "a list of objects": (b"[\n" + GOOD + b"]\n", "line 1: a JSON list"),
    "a number": (b"3\n", "line 1: a number, not an object"),
    "no prompt": (GOOD + line(text="x"), 'line 2: no "prompt" in it (it has text)'),
    "prompt is null": (line(prompt=None), '"prompt" is null'),
    "prompt is a number": (line(prompt=3), '"prompt" is a number'),
    "prompt is true": (line(prompt=True), '"prompt" is true or false'),
    "blank prompt": (line(prompt="  "), '"prompt" is blank'),
    "empty list": (line(prompt=[]), '"prompt" is an empty list'),
    "ends with the reply": (line(prompt=[USER, REPLY]), "does not end with the client"),
    "only a system message": (
        line(prompt=[{"role": "system", "content": "x"}]), "does not end with the client",
    ),
    "two client turns": (line(prompt=[USER, USER]), "do not alternate"),
    "starts with the reply": (line(prompt=[REPLY, USER]), "do not alternate"),
    "unknown role": (line(prompt=[{"role": "human", "content": "x"}]), "the role 'human'"),
    "no content": (line(prompt=[{"role": "user"}]), "message 1 is not"),
    "content is a list": (line(prompt=[{"role": "user", "content": ["x"]}]), "is a list"),
    "family is a list": (line(prompt="x", family=["F01"]), '"family" is a list'),
    "family is a sentence": (
        line(prompt="x", family="f" * 201), '"family" has 201 characters, and at most 200',
    ),
    "one id, two texts": (line(id=1, prompt="a") + line(id="1", prompt="b"), 'the id "1"'),
    "UTF-16": ("x".encode("utf-16"), "UTF-16"),
    "Latin-1": (b'{"prompt": "caf\xe9"}\n', "line 1: not UTF-8"),
    "twice the same name": (b'{"prompt": "a", "prompt": "b"}\n', "stands twice"),
    "NaN": (b'{"prompt": "a", "x": NaN}\n', "NaN is no JSON"),
    "nested too deep": (b'{"prompt": ' + b"[" * 100_000, "line 1: not JSON"),
    "a number of 5,000 digits": (b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}\n", "not JSON"),
    "too long": (line(prompt="x" * 200_001), "at most 200,000 are kept"),
    "too many lines": (line(prompt="\n" * 5_001 + "x"), "at most 5,000 are kept"),
    "a line of 5 MB": (line(prompt="x" * 5_000_000), "longer than"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_whole(
    workspace: Workspace, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadData) as caught:
        import_prompts(workspace, path)
    message = str(caught.value)
    assert str(path) in message and reason in message
    if "the id" not in reason:
        assert "A right line: {" in message
    assert "\n" not in message and caught.value.exit_code == 65
    assert prompts_of(workspace) == []


def test_what_is_no_file_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(BadData, match=r"No such file|not a regular file"):
            import_prompts(workspace, path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(BadData, match="not a regular file"):
            import_prompts(workspace, tmp_path / "fifo")


def prompts_of(workspace: Workspace) -> list[Prompt]:
    with db.reading(workspace.engine) as session:
        return list(session.exec(select(Prompt)).all())


def test_texts_and_conversations_come_in_raw(workspace: Workspace, tmp_path: Path) -> None:
    hostile = "I feel [/sad]\x1b]52;c;eA==\x07 \u202etoday"
    turns = [{"role": "system", "content": "Be brief."}, USER, REPLY, {**USER, "content": hostile}]
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + line(prompt=hostile, id=7, family="F01", risk_cue="none")
        + b"\r\n" + line(messages=turns, client="c1") + line(prompt="a\u2028b\u0085c")
    )  # fmt: skip
    assert import_prompts(workspace, path).added == 3
    first, second, third = prompts_of(workspace)
    assert first.messages == [{"role": "user", "content": hostile}]
    assert (first.external_id, first.family, first.source) == ("7", "F01", "p.jsonl")
    assert second.messages == turns and second.client == "c1"
    assert third.messages[0]["content"] == "a\u2028b\u0085c"


def test_a_grown_file_adds_only_what_is_new(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(line(id="a", prompt="one") + line(id="b", prompt="two"))
    assert import_prompts(workspace, path).added == 2
    path.write_bytes(path.read_bytes() + line(id="c", prompt="three") + line(prompt="one"))
    result = import_prompts(workspace, path)
    assert (result.added, result.duplicates) == (1, 3)
    path.write_bytes(line(id="a", prompt="other"))
    with pytest.raises(BadData, match="a prompt imported before"):
        import_prompts(workspace, path)
    assert len(prompts_of(workspace)) == 3


def test_a_field_of_another_name(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(line(text="one") + line(text="two"))
    assert import_prompts(workspace, path, "text").added == 2
    path.write_bytes(line(prompt="x"))
    with pytest.raises(BadData, match=r'no "text" in it .* A right line: \{"text": '):
        import_prompts(workspace, path, "text")


def test_fields_that_are_not_read_are_told(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(line(prompt="one", riskcue="self-harm") + line(prompt="two", riskcue="", x=1))
    assert import_prompts(workspace, path).mended == {
        'lines have "riskcue", which is not read': 2, 'lines have "x", which is not read': 1,
    }  # fmt: skip
    path.write_bytes(line(prompt="three", **{f"field {n:02}\x1b[2J": n for n in range(30)}))
    told = import_prompts(workspace, path).mended
    assert len(told) == 21 and told["times a field of yet another name, which is not read"] == 10
    assert not any("\x1b" in said for said in told)


def test_lone_surrogates_are_replaced_and_counted(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a\\ud800b"}\n')
    assert import_prompts(workspace, path).mended == {"broken characters replaced": 1}
    assert prompts_of(workspace)[0].messages[0]["content"] == "a\ufffdb"


def test_split_is_by_prompt_and_stays(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"".join(line(prompt=f"text {i}", family="F01") for i in range(50)))
    assert import_prompts(workspace, path).held_out == 10
    before = {p.sha256: p.split for p in prompts_of(workspace)}
    path.write_bytes(b"".join(line(prompt=f"text {i}", family="F01") for i in range(100)))
    assert import_prompts(workspace, path).held_out == 10
    after = {p.sha256: p.split for p in prompts_of(workspace)}
    assert all(after[sha] == split for sha, split in before.items())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(content=st.binary(max_size=200) | st.text(st.characters()).map(lambda t: line(prompt=t)))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    try:
        rows, _ = read_prompts(path)
    except BadData as error:
        assert str(error).count("\n") == 0
    else:
        for row in rows:
            json.dumps(row.messages, ensure_ascii=False).encode("utf-8")
