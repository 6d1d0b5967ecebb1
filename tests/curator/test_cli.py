"""The commands as a person runs them: output, errors in one line, exit status."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from curator.cli import status
from curator.errors import BadData
from curator.judgments import Said
from curator.models import AnnotatorKind, Verdict, new_uuid
from curator.safe_text import HIDDEN
from curator.seat import take_seat
from curator.workspace import DATABASE, Workspace
from tests.conftest import AddPairs, write_prompts

Done = subprocess.CompletedProcess[str]


def curator(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Done:
    return subprocess.run(
        [sys.executable, "-P", "-m", "curator", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment}, timeout=60,
    )  # fmt: skip


def refused(done: Done, status: int, *parts: str) -> None:
    """Check that a command failed with one clear line on standard error and nothing else."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


COMMANDS = ("init", "import prompts", "generate", "annotate", "export", "train", "round", "loop",
            "status", "demo", "evaluate", "duel", "adapter list", "adapter show", "adapter accept",
            "adapter refuse", "adapter rollback", "models", "models pull", "plan",
            "rehearse")  # fmt: skip
NO_WORKSPACE = ("init", "demo", "models", "models pull", "plan", "rehearse")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_starts_with_an_example(command: str) -> None:
    done = curator(*command.split(), "--help", NO_COLOR="1", COLUMNS="100")
    assert done.returncode == 0
    body = done.stdout.split("Usage:")[1]
    assert f"Example: curator {command}" in body.splitlines()[2]
    assert curator(*command.split(), "-h", NO_COLOR="1", COLUMNS="100").stdout == done.stdout


def test_a_full_disk_is_no_bug() -> None:
    said = (
        "import errno; from curator import cli\n"
        "def app(): raise OSError(errno.ENOSPC, 'full')\n"
        "cli.app = app; cli.main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", said], capture_output=True, text=True)
    refused(done, 73, "curator: no space is left to write to.")


def test_init_makes_a_workspace_without_prompts(tmp_path: Path) -> None:
    done = curator("init", "study", "--model", "some/model", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    study = tmp_path / "study"
    assert sorted(p.name for p in study.iterdir()) == [
        "adapters", "curator.db", "curator.toml", "exports", "runs",
    ]  # fmt: skip
    assert 'name = "some/model"' in (study / "curator.toml").read_text()
    facts = json.loads(curator("status", "--json", cwd=study).stdout)
    assert facts["prompts"] == {"train": 0, "held_out": 0} and facts["model"] == "some/model"
    refused(curator("init", "study", cwd=tmp_path), 78, "is a workspace already")
    refused(curator("demo", "study", cwd=tmp_path), 78, "curator annotate --workspace study")
    if sys.platform != "win32":
        assert stat.S_IMODE(study.stat().st_mode) == 0o700


def test_a_path_that_is_no_model(tmp_path: Path) -> None:
    done = curator("init", "study", "--model", "./nothing", cwd=tmp_path)
    refused(done, 78, "./nothing is no model")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in NO_WORKSPACE])
def test_without_a_workspace_one_line_names_init(tmp_path: Path, command: str) -> None:
    extra = [str(write_prompts(tmp_path / "p.jsonl", 1))] if "import" in command else []
    extra += ["adapter-0001"] if command.split()[-1] in ("show", "accept", "refuse") else []
    refused(curator(*command.split(), *extra, cwd=tmp_path), 78, "curator init")


def test_the_nearest_workspace_or_the_one_named(workspace: Workspace, tmp_path: Path) -> None:
    inside = workspace.path / "exports"
    here = json.loads(curator("status", "--json", cwd=inside).stdout)
    named = json.loads(
        curator("status", "--json", "--workspace", workspace.path, cwd=tmp_path).stdout
    )
    from_environment = json.loads(
        curator("status", "--json", cwd=tmp_path, CURATOR_WORKSPACE=str(workspace.path)).stdout
    )
    assert here == named == from_environment
    refused(curator("status", "--workspace", tmp_path, cwd=inside), 78, "no curator workspace")


def test_import_speaks_and_refuses(workspace: Workspace, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", 10)
    done = curator("import", "prompts", path, cwd=workspace.path)
    assert done.returncode == 0 and done.stdout == ""
    assert "10 prompts added (2 of them held out" in done.stderr
    assert "10 skipped" in curator("import", "prompts", path, cwd=workspace.path).stderr
    path.write_text('{"prompt": "\x9b2J"}\n{"x": 1}\n')
    done = curator("import", "prompts", path, cwd=workspace.path)
    refused(done, 65, str(path), "line 2", "A right line:")
    missing = tmp_path / "\x1b]0;x\x07missing"
    done = curator("import", "prompts", missing, cwd=workspace.path)
    refused(done, 65, "No such file", "␛]0;x")
    assert "\x1b" not in done.stderr


def test_export_to_a_file_and_to_standard_output(
    workspace: Workspace, add_pairs: AddPairs, tmp_path: Path
) -> None:
    add_pairs(workspace, 6, held_out=1)
    human = take_seat(workspace, "anna", "s1")
    pair = human.next()
    for said in (Said(Verdict.LEFT, 2), Said(Verdict.RIGHT, 1), Said(Verdict.TIE),
                 Said(Verdict.BOTH_BAD), Said(Verdict.SKIP)):  # fmt: skip
        assert pair is not None
        pair = human.judge(pair.pair_id, said, new_uuid())
    robot = take_seat(workspace, "robot", "s2", AnnotatorKind.SIMULATED)
    pair = robot.next()
    assert pair is not None
    robot.judge(pair.pair_id, Said(Verdict.LEFT, 2), new_uuid())

    done = curator("export", cwd=workspace.path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["split"] for row in rows] == ["held_out", "train"]
    assert {row["annotator_kind"] for row in rows} == {"human"}
    assert list(rows[0])[:3] == ["prompt", "chosen", "rejected"]
    for part in ("2 preferences", "1 tie", "1 both bad", "1 skip", "1 simulated annotator"):
        assert part in done.stderr
    output = tmp_path / "pairs.jsonl"
    assert curator("export", "--output", output, cwd=workspace.path).stdout == ""
    assert output.read_text(encoding="utf-8") == done.stdout
    both = curator("export", "--include-simulated", cwd=workspace.path).stdout.splitlines()
    assert [json.loads(line)["annotator_kind"] for line in both] == ["human", "human", "simulated"]
    refused(curator("export", "-o", tmp_path / "no" / "x", cwd=workspace.path), 73, "Nothing was")
    assert curator("export", "--format", "xyz", cwd=workspace.path).returncode == 2


def test_too_few_preferences_are_refused(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 3)
    for command in ("train", "round"):
        done = curator(command, cwd=workspace.path)
        refused(done, 69, "0 preferences so far; a round needs at least 8")


def test_judging_needs_a_terminal(workspace: Workspace) -> None:
    refused(curator("annotate", cwd=workspace.path), 1, "needs a terminal")


def test_settings_are_checked_by_name(workspace: Workspace) -> None:
    path = workspace.path / "curator.toml"
    for text, said in (
        ("[train]\nlearnin_rate = 1", "train.learnin_rate is not known"),
        ("[train]\nbeta = 'x'", 'train.beta is "x"; it must be float'),
        ("[train]\nbeta = -1", "beta must be above 0"),
        ("[round]\nstrategy = 'best'", "strategy"),
        ("seed = ", "Invalid value"),
    ):
        path.write_text(text)
        refused(curator("status", cwd=workspace.path), 78, "curator.toml", said)


def test_status_checks_every_judgment(workspace: Workspace, add_pairs: AddPairs) -> None:
    add_pairs(workspace, 2)
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    assert pair is not None
    seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    workspace.engine.dispose()
    done = curator("status", "--check", cwd=workspace.path)
    assert done.returncode == 0 and "1 A" in done.stdout and "every judgment" in done.stderr
    whole = (workspace.path / DATABASE).read_bytes()
    for change in (
        "UPDATE judgment SET verdict = 'right'",
        "UPDATE judgment SET verdict = 'right', salt = NULL",
        "UPDATE candidate SET text = 'another' WHERE id = 1",
        "UPDATE prompt SET messages = '[]' WHERE id = 2",
        "UPDATE pair SET purpose = 'practice'",
        "UPDATE annotator SET kind = 'simulated'",
        "DELETE FROM judgment",
    ):
        (workspace.path / DATABASE).write_bytes(whole)
        with closing(sqlite3.connect(workspace.path / DATABASE)) as connection:
            connection.execute(change)
            connection.commit()
        with pytest.raises(BadData, match="1 changed since they were judged"):
            check(workspace.path)
    (workspace.path / DATABASE).write_bytes(whole)
    with closing(sqlite3.connect(workspace.path / DATABASE)) as connection:
        # Erased for a reason that is on record: the digest stands, the chain still verifies.
        connection.execute("UPDATE judgment SET salt = NULL, note = NULL")
        connection.execute(
            "INSERT INTO erasure VALUES (1, 'u', 'judgment', 1, 'asked', NULL, '2026')"
        )
        connection.commit()
    check(workspace.path)


def check(path: Path) -> None:
    status(workspace=path, check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="names a Windows path cannot hold")
@pytest.mark.parametrize("name", ["q?x=1", "p%41#c", "a b", "ü"])
def test_a_workspace_may_have_any_name(tmp_path: Path, name: str) -> None:
    assert curator("init", name, cwd=tmp_path).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert curator("status", cwd=tmp_path / name).returncode == 0


@pytest.mark.parametrize(
    ("model", "status"), [("~nosuchuser/x", 78), ("a\x7fb", 78), ("x" * 300, 78), ("./x", 78)]
)
def test_init_with_an_odd_model_leaves_nothing_or_a_workspace(
    tmp_path: Path, model: str, status: int
) -> None:
    done = curator("init", "study", "--model", model, cwd=tmp_path)
    assert done.returncode == status and "a bug" not in done.stderr
    assert (tmp_path / "study").exists() is (status == 0)
    if status == 0:
        assert curator("status", cwd=tmp_path / "study").returncode == 0


def test_init_in_a_folder_with_other_files_leaves_them_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    tmp_path.chmod(0o755)
    assert curator("init", cwd=tmp_path).returncode == 0
    if sys.platform != "win32":
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_at_init_leaves_nothing_behind(tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = subprocess.run(
        [sys.executable, "-B", "-m", "curator", "init", "study"],
        capture_output=True, text=True, cwd=tmp_path, preexec_fn=limit,
    )  # fmt: skip
    refused(done, 73, "study")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def judged(workspace: Workspace, add_pairs: AddPairs) -> Workspace:
    """A workspace with one preference whose texts hold what a terminal could obey."""
    add_pairs(workspace, 1, good="Ünï \x9b2J \u202e\U000e0041 {i}")
    seat = take_seat(workspace, "anna", "s")
    pair = seat.next()
    assert pair is not None
    seat.judge(pair.pair_id, Said(Verdict.LEFT, 1), new_uuid())
    return workspace


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_an_export_is_the_same_in_every_locale_and_inert(judged: Workspace, encoding: str) -> None:
    done = curator("export", cwd=judged.path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and not HIDDEN.search(done.stdout)
    row = json.loads(done.stdout)
    texts = {row["chosen"][0]["content"], row["rejected"][0]["content"]}
    assert "Ünï \x9b2J \u202e\U000e0041 0" in texts and "Ünï" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and links")
def test_an_export_writes_into_what_is_no_file_and_through_links(
    judged: Workspace, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reader:
        assert curator("export", "-o", tmp_path / "fifo", cwd=judged.path).returncode == 0
        assert reader.stdout is not None and json.loads(reader.stdout.read())
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert curator("export", "-o", tmp_path / "link", cwd=judged.path).returncode == 0
    assert json.loads((tmp_path / "real").read_text()) and (tmp_path / "link").is_symlink()
    for target in (tmp_path, Path("."), Path("/")):
        refused(curator("export", "-o", target, cwd=judged.path), 73, "is a folder")


def test_a_damaged_database_is_one_line(workspace: Workspace) -> None:
    workspace.engine.dispose()
    (workspace.path / DATABASE).write_bytes(b"")
    refused(curator("status", cwd=workspace.path), 65, "is empty: it is damaged")


def test_a_bug_shows_no_client_text(workspace: Workspace, tmp_path: Path) -> None:
    script = (
        "import curator.workflow as w\n"
        "def broken(place):\n"
        "    client = 'my secret'; raise KeyError(client)\n"
        "w.status = broken\n"
        "import sys; sys.argv = ['curator', 'status', '--workspace', sys.argv[1]]\n"
        "from curator.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(workspace.path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "a bug: KeyError" in done.stderr
    assert "my secret" not in done.stderr + done.stdout
