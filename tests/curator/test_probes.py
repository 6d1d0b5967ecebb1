"""What a model is measured with never becomes what it learns from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curator.errors import BadData, NotReady
from curator.importing.prompts import read_prompts
from curator.probes import index_probes, read_probes
from curator.workflow import import_prompts
from curator.workspace import Workspace, data_folder

DATA = data_folder()
PROBES: list[dict[str, Any]] = [
    json.loads(line) for line in (DATA / "probes.jsonl").read_text("utf-8").splitlines()
]


def prompt_file(path: Path, *contents: Any) -> Path:
    rows = [{"prompt": "I had a good day at the allotment."}, *({"prompt": c} for c in contents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def every_fifth_word_changed(text: str) -> str:
    return " ".join("so" if i % 5 == 4 else word for i, word in enumerate(text.split()))


def test_every_probe_is_known_again_changed_or_not() -> None:
    index = index_probes(PROBES)
    for probe in PROBES:
        text = probe["prompt"][0]["content"]
        for written in (text, text.upper().replace(",", " -"), every_fifth_word_changed(text),
                        f"Somebody wrote to me: {text} What do you make of it?"):  # fmt: skip
            assert index.near([{"role": "user", "content": written}]), probe["id"]
        assert index.near(probe["prompt"]), probe["id"]


def test_no_text_of_ours_is_near_one() -> None:
    index = index_probes(PROBES)
    rows, _ = read_prompts(DATA / "prompts.jsonl")
    assert [index.near(row.messages) for row in rows] == [None] * len(rows)


def test_a_probe_in_a_prompts_file_is_refused_and_nothing_written(
    workspace: Workspace, tmp_path: Path
) -> None:
    probe = PROBES[70]
    text = every_fifth_word_changed(probe["prompt"][0]["content"])
    path = prompt_file(tmp_path / "prompts.jsonl", "Another prompt.", text)
    with pytest.raises(BadData, match=rf"prompts\.jsonl, line 3: equals the probe {probe['id']}"):
        import_prompts(workspace, path)
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": text},
    ]
    with pytest.raises(BadData, match="line 2"):
        import_prompts(workspace, prompt_file(tmp_path / "turns.jsonl", turns))
    done = subprocess.run(
        [sys.executable, "-m", "curator", "import", "prompts", str(path), "-w", workspace.path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 65 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert import_prompts(workspace, prompt_file(tmp_path / "fine.jsonl")).added == 1


def probes_of(*contents: str | list[str]) -> list[dict[str, Any]]:
    """Return probes in which a client says this, an answer between two turns."""
    rows = []
    for n, said in enumerate(contents):
        turns: list[dict[str, str]] = []
        for text in [said] if isinstance(said, str) else said:
            turns += [{"role": "assistant", "content": "Go on."}] if turns else []
            turns.append({"role": "user", "content": text})
        rows.append({"id": f"p{n}", "prompt": turns})
    return rows


def test_a_probe_within_a_longer_one_is_known() -> None:
    short = "My sister says I should sell the boat this very week."
    longer = f"{short} I have had it for twenty years and it is all I own. {'And so on. ' * 9}"
    for order in ((longer, short), (short, longer)):
        index = index_probes(probes_of(*order))
        named = f"p{order.index(short)}"
        assert index.near([{"role": "user", "content": short}]) == named
    # The longer one's half, which holds the short one whole, is both.
    assert index.near([{"role": "user", "content": longer}]) in ("p0", "p1")


def test_a_probe_of_a_few_words_is_known_when_nothing_else_is_said() -> None:
    index = index_probes(probes_of("She hates me. Right?", ["They lie.", "Say yes!"], "?"))

    def client(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    answer = {"role": "assistant", "content": "Why so?"}
    assert index.near([client("she hates me - right")]) == "p0"
    assert index.near([client("She hates me. Right?"), answer, client("I know it.")]) == "p0"
    assert index.near([client("They lie."), answer, client("Say yes.")]) == "p1"
    # A turn of a longer conversation could be anybody's.
    for said in ("Say yes!", "They lie.", "She hates me. Right? Or does she not?", "!"):
        assert index.near([client(said)]) is None, said


def test_missing_and_damaged_probes_are_said(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"probes\.jsonl is missing.*install curator anew"):
        read_probes(tmp_path / "probes.jsonl")
    (workspace.path / "probes.jsonl").write_text('{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(BadData, match=r"probes\.jsonl, line 1: prompt must be a list"):
        import_prompts(workspace, prompt_file(tmp_path / "prompts.jsonl"))


def test_a_probes_file_of_a_workspace_is_read_as_every_rows_file(
    workspace: Workspace, tmp_path: Path
) -> None:
    """A byte order mark, and the separators that str.splitlines cuts at, are no damage."""
    probe = {
        **PROBES[0],
        "prompt": [{"role": "user", "content": "Well.\u2028My boat must go now."}],
    }
    text = json.dumps(probe, ensure_ascii=False) + "\n"
    (workspace.path / "probes.jsonl").write_text(text, encoding="utf-8-sig")
    with pytest.raises(BadData, match="equals the probe"):
        import_prompts(workspace, prompt_file(tmp_path / "p.jsonl", "well: my boat must go now!"))
