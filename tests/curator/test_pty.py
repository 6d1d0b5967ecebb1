"""`curator annotate` in a real pseudo-terminal."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from curator import db, duels, rounds
from curator.models import Adapter, AdapterStatus, Candidate, Draft, Judgment, Pair, Purpose
from curator.tui.leaving import LAST_SECONDS
from curator.workspace import Workspace
from tests.conftest import AddPairs
from trainer.contract import read_rows

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
        deadline = time.monotonic() + seconds
        text = self.read()
        while not condition(text):
            assert time.monotonic() < deadline, text
            text = self.read()
        return text

    def press(self, keys: str) -> None:
        """Type."""
        self.child.send(keys)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal and wait for the end, whatever it is."""
        self.child.kill(number)
        self.child.expect(pexpect.EOF)
        self.child.close()

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does, and wait for the program's end."""
        self.child.ptyproc.fileobj.close()
        self.child.wait()

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


def verdicts(workspace: Workspace) -> list[str]:
    with db.reading(workspace.engine) as session:
        return [str(row.verdict) for row in session.exec(select(Judgment).order_by("id"))]


def open_app(workspace: Workspace, name: str = "anna", count: int | None = None) -> Terminal:
    terminal = Terminal(CURATOR, "annotate", "-a", name, cwd=workspace.path)
    wanted = "Round 1, message" if count is None else f"· {count} of "
    terminal.until(lambda text: wanted in text and "Round 1, message" in text)
    return terminal


KEYS = {"a": "left", "B": "right", "t": "tie", "x": "both_bad", "s": "skip"}


@pytest.mark.timeout(900)
def test_thirty_kills_lose_no_acknowledged_judgment(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 300)
    draw = random.Random(11)
    kept: list[str] = []
    for _ in range(30):
        terminal = open_app(workspace, count=len(kept))
        acknowledged = list(kept)
        for _ in range(draw.randint(1, 3)):
            key = draw.choice(list(KEYS))
            terminal.press(key)
            count = len(acknowledged) + 1
            terminal.until(lambda text, n=count: f"· {n} of 300" in text and "saved" in text)  # type: ignore[misc]
            acknowledged.append(KEYS[key])
        last = draw.choice(list(KEYS))
        terminal.press(last)
        time.sleep(draw.uniform(0, 0.3))
        terminal.kill()
        kept = verdicts(workspace)
        # What was said to be saved is there, in order; the last key may have made it or not.
        assert kept in (acknowledged, [*acknowledged, KEYS[last]])
    with db.reading(workspace.engine) as session:
        assert session.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


RESTORED = (b"\x1b[?1049l", b"\x1b[?1000l", b"\x1b[?1003l", b"\x1b[?2004l", b"\x1b[?25h")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGINT", "closed terminal"])
def test_a_lost_terminal_loses_nothing(workspace: Workspace, add_pairs: AddPairs, how: str) -> None:
    """Not a judgment, not what was being written, and not the terminal's own state."""
    add_pairs(workspace, 3)
    terminal = open_app(workspace)
    terminal.press("B")
    terminal.until(lambda text: "1 of 3" in text)
    terminal.press("e")
    terminal.until(lambda text: "in place of A" in text)
    terminal.press(" And")
    terminal.until(lambda text: " And" in text)
    if how == "closed terminal":
        terminal.hang_up()
    else:
        number = getattr(signal, how)
        terminal.child.kill(number)
        assert terminal.end() == 128 + number
        for sequence in RESTORED:
            on = sequence.replace(b"l", b"h") if sequence.endswith(b"l") else b"\x1b[?25l"
            assert terminal.bytes.rindex(sequence) > terminal.bytes.rindex(on), sequence
    assert verdicts(workspace) == ["right"]
    with db.reading(workspace.engine) as session:
        assert session.exec(select(Draft)).one().text.endswith(" And")
    again = open_app(workspace, count=1)
    again.press("q")
    assert again.end() == 0


def test_a_signal_leaves_time_for_a_busy_database() -> None:
    """Waited for twice at the end: for the last draft, and to give the pair back."""
    assert LAST_SECONDS * 1000 >= 3 * db.BUSY_MS


BROKEN = """
from curator.cli import main
from curator.tui.judge_screen import JudgeScreen

def broken(self, *_):
    words = self.pair.messages[-1]["content"]
    raise RuntimeError(words)

JudgeScreen.count = broken
main()
"""


def test_a_crash_shows_no_client_text(workspace: Workspace, add_pairs: AddPairs) -> None:
    """Neither the error's own words nor the local variables are left in the scrollback."""
    add_pairs(workspace, 2, messages=[{"role": "user", "content": "my secret"}])
    command = ("-c", BROKEN, "annotate", "-a", "anna")
    terminal = Terminal(sys.executable, *command, cwd=workspace.path)
    terminal.until(lambda text: "my secret (1.0)" in text)
    terminal.press("a")
    assert terminal.end() == 1
    _, left, after = terminal.bytes.rpartition(b"\x1b[?1049l")
    assert left and b"secret" not in after
    assert b"curator stopped: RuntimeError in <string>, line 7" in after
    assert verdicts(workspace) == ["left"]


DEMO = """
import sys
from curator import runs
from curator.cli import main

runs.COMMAND = (sys.executable, "-P", {fake!r}, "ok")
main()
"""


def test_the_demo_welcomes_and_leads_to_its_first_pair(tmp_path: Path) -> None:
    script = DEMO.format(fake=str(Path(__file__).parent.parent / "fake_trainer.py"))
    terminal = Terminal(sys.executable, "-c", script, "demo", "demo", cwd=tmp_path)
    terminal.until(lambda text: "Welcome to curator" in text and "After 12 picks" in text)
    terminal.press("\r")
    terminal.until(lambda text: "risk cue:" in text and "Welcome" not in text)
    terminal.press("a")
    terminal.until(lambda text: "1 of " in text and "saved" in text)
    terminal.press("q")
    assert terminal.end() == 0
    assert b"The demo's workspace stays in" in terminal.bytes


def test_suspended_and_brought_back(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    terminal = Terminal("/bin/bash", "--norc", "-i", cwd=workspace.path)
    terminal.press(f"{CURATOR} annotate -a anna\r")
    terminal.until(lambda text: "0 of 3" in text)
    terminal.press("a")
    terminal.until(lambda text: "1 of 3" in text)
    terminal.press("\x1a")
    terminal.until(lambda text: "Stopped" in text)
    terminal.press("fg\r")
    terminal.until(lambda text: "1 of 3" in text and "message 1." in text)
    terminal.press("b")
    terminal.until(lambda text: "2 of 3" in text)
    terminal.press("q")
    terminal.until(lambda text: "2 judged" in text and "kept in study" in text)
    terminal.kill()
    assert verdicts(workspace) == ["left", "right"]


def test_two_apps_share_one_queue(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 12)
    both = [open_app(workspace, name) for name in ("anna", "ben")]

    def shown(terminal: Terminal) -> str:
        match = re.search(r"Round 1, message (\d+)\.", "\n".join(terminal.screen.display))
        return match.group(1) if match else ""

    for turn in range(10):
        one = both[turn % 2]
        before = shown(one)
        assert before != shown(both[1 - turn % 2])
        one.press("a")
        one.until(lambda text, old=before: f"message {old}." not in text)  # type: ignore[misc]
        assert "locked" not in "\n".join(one.screen.display)
    for terminal in both:
        terminal.press("q")
        assert terminal.end() == 0
    with db.reading(workspace.engine) as session:
        pairs = [row.pair_id for row in session.exec(select(Judgment))]
    assert len(pairs) == len(set(pairs)) == 10


def test_a_whole_sitting(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 8)
    terminal = open_app(workspace)

    def press(keys: str, said: str) -> None:
        terminal.press(keys)
        terminal.until(lambda text: said in text)

    press("g", "at most 3 reasons a side")
    press("n", "A because names feeling")
    press("\t", "the other reply")
    press("e", "B because endorses")
    press("\r", "A · because names feeling")
    press("A", "1 of 8")
    press("n", "A note on this pair")
    press("close\r", "note: close")
    press("t", "2 of 8")
    press("e", "in place of A")
    press(" Really.", "Really.")
    press("\x13", "now judge the two as they are")
    press("b", "3 of 8")
    press("u", "taken back; it was: B better, with a rewrite")
    press("B", "3 of 8")
    press("h", "3 judgments")
    press("\r", "it is: B clearly better")
    press(".", "message 3.")
    press("s", "4 of 8")
    press("?", "take the last judgment back")
    press("\x1b", "message 4.")
    terminal.press("q")
    assert terminal.end() == 0
    assert verdicts(workspace) == ["left", "tie", "right", "retracted", "right", "skip"]
    assert b"4 judged in" in terminal.bytes and b"1 taken back, 1 rewritten" in terminal.bytes


PASTE = "\x1b[200~{}\x1b[201~"
PASTED = "xyz \x1b[31m tt \x1b[0m \x1bB \x1b\x1b x\r\x03 a \x1b[200~ end"


def test_a_paste_never_judges(workspace: Workspace, add_pairs: AddPairs) -> None:
    """Whatever it holds, and in however many parts it is read."""
    add_pairs(workspace, 3)
    terminal = open_app(workspace)
    terminal.press(PASTE.format(PASTED * 400))
    whole = PASTE.format(PASTED)
    for at in (4, 9, 14, len(whole) - 3):
        terminal.press(whole[:at])
        terminal.read(0.3)
        terminal.press(whole[at:])
    terminal.press("n")
    terminal.until(lambda text: "A note on this pair" in text and "0 of 3" in text)
    terminal.press(whole)
    terminal.until(lambda text: "xyz [31m tt [0m B  x  a [200~ end" in text)
    terminal.press("\r")
    terminal.until(lambda text: "note: xyz" in text and "message 0." in text)
    assert verdicts(workspace) == []
    terminal.press("B")
    terminal.until(lambda text: "1 of 3" in text)
    terminal.press("q")
    assert terminal.end() == 0
    assert verdicts(workspace) == ["right"]


def test_a_duel_through_the_real_screen(
    workspace: Workspace, add_pairs: AddPairs, fake_trainer: Callable[[str], None]
) -> None:
    """Blind to the end: nothing on the screen or in the export says which side is whose."""
    add_pairs(workspace, 6)
    with db.writing(workspace.engine) as session:
        adapter = Adapter(name="adapter-0099", folder="adapters/adapter-0099", base_model="m",
                          base_sha256="b" * 64, sha256="a" * 64, pairs_sha256="c" * 64,
                          status=AdapterStatus.RETIRED)  # fmt: skip
        session.add(adapter)
    fake_trainer("ok")
    started = duels.start_duel(workspace, "adapter-0099", "base", 6)
    while not rounds.settle(workspace):
        time.sleep(0.05)
    path = started.folder / "candidates.jsonl"
    # The stand-in's replies name their side, so that a trace can be told; nothing else may.
    texts = {row["text"]: row["side"] for _, row in read_rows(path)}
    terminal = Terminal(CURATOR, "annotate", "-a", "anna", cwd=workspace.path)
    terminal.until(lambda text: "0 of 12" in text)
    for number in range(12):
        terminal.press("aB"[number % 2])
        terminal.until(lambda text, n=number: f"{n + 1} of 12" in text and "saved" in text)  # type: ignore[misc]
    terminal.press("h")
    terminal.until(lambda text: "12 judgments" in text)
    terminal.press("\x1b")
    terminal.until(lambda text: "12 judgments" not in text)
    terminal.press("q")
    assert terminal.end() == 0
    painted = terminal.bytes.decode("utf-8", "replace").casefold()
    for trace in ("adapter-0099", "duel", "a" * 64, started.folder.name):
        assert trace not in painted
    done = subprocess.run(
        [CURATOR, "export"], cwd=workspace.path, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 6
    assert not any(text in done.stdout for text in texts) and "adapter" not in done.stdout
    (result,) = duels.results(workspace)["duels"]
    assert result["annotator"] == "human" and result["n"] == 6
    with db.reading(workspace.engine) as session:
        judged = session.exec(
            select(Judgment.verdict, Pair.left_id, Pair.right_id)
            .join(Pair, Judgment.pair_id == Pair.id)
            .where(Pair.purpose == Purpose.DUEL)
        ).all()
        by = {c.id: c.adapter_id for c in session.exec(select(Candidate))}
    wins = sum(
        by[left if str(said) == "left" else right] is not None for said, left, right in judged
    )
    assert result["wins"] == wins
