"""`curator annotate` in a real pseudo-terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from curator import db
from curator.models import Judgment
from curator.workspace import Workspace
from tests.conftest import AddPairs

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal as POSIX has it", allow_module_level=True)

import pexpect
import pyte

pytestmark = pytest.mark.pty


class Terminal:
    """A program in a pseudo-terminal, and what it painted there."""

    def __init__(self, *command: str, size: tuple[int, int] = (36, 120), cwd: Path) -> None:
        rows, columns = size
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.bytes = b""
        self.child: Any = pexpect.spawn(
            command[0], list(command[1:]), dimensions=size, cwd=str(cwd), timeout=30,
            env={"TERM": "xterm-256color", "PATH": "/usr/bin:/bin", "HOME": str(cwd),
                 "LANG": "C.UTF-8"},
        )  # fmt: skip

    def read(self, seconds: float = 0.1) -> str:
        """Read what there is within a time; return the screen as text."""
        try:
            block = self.child.read_nonblocking(65536, seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            block = b""
        self.bytes += block
        self.stream.feed(block)
        return "\n".join(self.screen.display)

    def until(self, condition: Callable[[str], bool], seconds: float = 30) -> str:
        """Read until the screen fulfils a condition."""
        import time

        deadline = time.monotonic() + seconds
        text = self.read()
        while not condition(text):
            assert time.monotonic() < deadline, text
            text = self.read()
        return text

    def press(self, keys: str) -> None:
        """Type."""
        self.child.send(keys)

    def end(self) -> int:
        """Wait for the program's end; return its exit status."""
        self.child.expect(pexpect.EOF)
        self.bytes += self.child.before or b""
        self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -1)


CURATOR = str(Path(sys.executable).parent / "curator")


def test_a_short_sitting(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 4, good="Fine {i} \x1b]52;c;ZXZpbA==\x07 \x9b2J here.")
    terminal = Terminal(CURATOR, "annotate", "--annotator", "anna", cwd=workspace.path)
    terminal.until(lambda text: "0 of 4" in text and "Round 1, message 0." in text)
    for number, key in enumerate("aBx", 1):
        terminal.press(key)
        terminal.until(lambda text, n=number: f"{n} of 4" in text and "saved" in text)  # type: ignore[misc]
    terminal.press("u")
    terminal.until(lambda text: "2 of 4" in text and "was: both bad" in text)
    terminal.press("q")
    assert terminal.end() == 0
    with db.reading(workspace.engine) as session:
        said = [str(row.verdict) for row in session.exec(select(Judgment).order_by("id"))]
    assert said == ["left", "right", "both_bad", "retracted"]
    # Textual copies nothing to the clipboard by itself, and C1 controls never come from it.
    assert b"]52;" not in terminal.bytes.replace("␛]52;".encode(), b"")
    assert not re.search(rb"\xc2[\x80-\x9f]", terminal.bytes)


def test_ctrl_c_leaves_and_keeps_everything(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)
    terminal = Terminal(CURATOR, "annotate", "-a", "anna", cwd=workspace.path, size=(24, 80))
    terminal.until(lambda text: "0 of 2" in text)
    terminal.press("t")
    terminal.until(lambda text: "1 of 2" in text)
    terminal.press("\x03")
    assert terminal.end() == 0
    with db.reading(workspace.engine) as session:
        assert len(session.exec(select(Judgment)).all()) == 1
