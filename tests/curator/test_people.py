"""Who judges where nobody is named, and what is said of going on."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from curator import people as people_module
from curator.cli_options import annotator_name, go_on_text
from curator.errors import Busy
from curator.models import AnnotatorKind, Verdict, new_uuid
from curator.people import known_as, people
from curator.seat import take_seat
from curator.tui.app import CuratorApp
from curator.words import Said
from curator.workspace import DATABASE, Workspace
from tests.conftest import AddPairs
from tests.curator.test_app import painted, play, rows, until
from tests.curator.test_first_minutes import annotators


def sit(
    place: Workspace, name: str, judges: bool = True, kind: AnnotatorKind = AnnotatorKind.HUMAN
) -> None:
    seat = take_seat(place, name, new_uuid(), kind)
    pair = seat.next()
    if judges:
        assert pair is not None
        seat.judge(pair.pair_id, Said(Verdict.TIE), new_uuid(), advance=False)
    seat.leave()


def here(place: Workspace) -> list[str]:
    return people(place.path / DATABASE)


def test_whoever_judged_last_comes_first_and_no_simulated_one(
    workspace: Workspace, add_pairs: AddPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs(workspace, 9)
    monkeypatch.setattr("getpass.getuser", lambda: "login")
    assert here(workspace) == [] and annotator_name(None, workspace) == ("login", "")
    sit(workspace, "simulated", kind=AnnotatorKind.SIMULATED)
    assert annotator_name(None, workspace) == ("login", "")
    sit(workspace, "Anna", judges=False)
    as_last = "you judge as Anna, as last time; for another: --annotator NAME."
    assert annotator_name(" ", workspace) == ("Anna", as_last)
    sit(workspace, "ben")
    sit(workspace, "cleo", judges=False)
    assert here(workspace) == ["ben", "cleo", "Anna"]
    sit(workspace, "Anna")
    sit(workspace, "simulated", kind=AnnotatorKind.SIMULATED)
    assert annotator_name(None, workspace) == ("Anna", as_last)
    # Who is known by the name this computer knows is nobody else.
    monkeypatch.setattr("getpass.getuser", lambda: "BEN")
    assert annotator_name(None, workspace) == ("ben", "")


def test_a_name_in_another_case_is_the_known_one_and_said(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 4)
    for name in ("Anna", "Jürgen Groß", "ben"):
        sit(workspace, name)
    assert annotator_name(" anna ", workspace) == (
        "Anna", "anna is taken to be Anna, who is known here.",
    )  # fmt: skip
    assert annotator_name("ben", workspace) == ("ben", "")
    assert annotator_name("dora", workspace) == ("dora", "")
    assert known_as("JU\u0308RGEN GROSS\u200b", here(workspace)) == "Jürgen Groß"
    assert known_as("anna", ["Anna", "anna"]) == "anna"


@pytest.mark.parametrize("content", [b"", b"nonsense" * 99, None])
def test_nobody_is_known_in_what_is_no_database(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file #1?.db"
    if content is not None:
        path.write_bytes(content)
    assert people(path) == []


def test_a_database_in_use_is_nobodys_guess(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people_module, "WAIT_SECONDS", 0.01)
    with closing(sqlite3.connect(workspace.path / DATABASE, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Busy, match="in use by another program"):
            annotator_name(None, workspace)


def plain(workspace: Workspace, *arguments: str, cwd: Path | None = None) -> str:
    """Judge a pair in lines and leave; return what is said to the person."""
    command = [sys.executable, "-P", "-m", "curator", "annotate", "--plain", *arguments]
    done = subprocess.run(
        command, input="t\nq\n", capture_output=True, text=True, encoding="utf-8",
        cwd=cwd or workspace.path, env={**os.environ, "LOGNAME": "login"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_same_person_goes_on_without_being_named(
    workspace: Workspace, add_pairs: AddPairs, tmp_path: Path
) -> None:
    add_pairs(workspace, 9)
    assert plain(workspace, "-a", "Anna") == "Go on with: curator annotate --plain\n"
    as_last = "you judge as Anna, as last time; for another: --annotator NAME.\n"
    assert plain(workspace) == f"{as_last}Go on with: curator annotate --plain\n"
    said = plain(workspace, "-a", "ANNA", "-w", str(workspace.path), cwd=tmp_path)
    assert said.startswith("ANNA is taken to be Anna, who is known here.\n")
    assert f" --plain --workspace {workspace.path}\n" in said
    assert annotators(workspace) == ["Anna"] and len(rows(workspace)) == 3


def test_going_on_names_what_has_to_be_named(
    workspace: Workspace, add_pairs: AddPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pairs(workspace, 3)
    sit(workspace, "Anna")
    sit(workspace, "Dr Ben", judges=False)
    monkeypatch.chdir(workspace.path / "runs")
    assert go_on_text(workspace, "Anna", "loop") == "Go on with: curator loop"
    text = go_on_text(workspace, "Dr Ben", "annotate")
    assert "--annotator" in text and "Dr Ben" in text and "--workspace" not in text
    monkeypatch.chdir(tmp_path)
    assert "--workspace" in go_on_text(workspace, "Anna", "annotate")
    monkeypatch.setenv("CURATOR_WORKSPACE", str(workspace.path))
    assert "--workspace" not in go_on_text(workspace, "Anna", "annotate")


def test_a_newcomer_who_is_known_in_another_case_has_the_known_seat(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 4)
    sit(workspace, "Dr Ben")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        app.screen.query_one("#name", Input).value = "dr ben"
        await pilot.press("escape")
        await until(pilot, lambda: "dr ben is taken to be Dr Ben" in painted(app))
        await pilot.press("enter", "a")
        assert "saved: A better" in painted(app) and app.annotator_name == "Dr Ben"

    play(workspace, script, first_minutes=True, notifications=True)
    assert annotators(workspace) == ["Dr Ben"]
    assert [row.annotator_id for row in rows(workspace)] == [1, 1]


def test_a_newcomer_writes_her_own_name_as_she_likes(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 2)

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        app.screen.query_one("#name", Input).value = "Anna"
        await pilot.press("escape", "enter", "a")
        app.change_name("ANNA")  # having judged, she keeps it
        assert app.annotator_name == "Anna"

    play(workspace, script, first_minutes=True)
    assert annotators(workspace) == ["Anna"]


def test_a_greeting_stands_at_the_foot_until_the_first_judgment(
    workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 3)
    sit(workspace, "anna")

    async def script(pilot: Pilot[None], app: CuratorApp) -> None:
        assert "you judge as anna" in painted(app)
        await pilot.press("a")
        assert "you judge as anna" not in painted(app)

    play(workspace, script, greeting="you judge as anna, as last time.")
