"""The trainer where nothing of curator's side can be imported: an export, a folder, an adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from textual.pilot import Pilot

from curator.tui.app import CuratorApp
from curator.workspace import Workspace
from tests.conftest import AddPairs
from tests.curator.test_app import play
from tests.trainer.conftest import run_folder
from trainer import contract

pytestmark = pytest.mark.train

# Python runs a sitecustomize.py that it finds on its path before anything else.
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("curator", "textual", "typer", "sqlmodel"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
"""


def test_an_export_trains_where_curator_is_not_installed(
    tmp_path: Path, gemma: Path, workspace: Workspace, add_pairs: AddPairs
) -> None:
    add_pairs(workspace, 12)

    async def judge(pilot: Pilot[None], _: CuratorApp) -> None:
        await pilot.press(*"aBbAabaBbaAb")

    play(workspace, judge)
    output = tmp_path / "pairs.jsonl"
    subprocess.run(
        [sys.executable, "-P", "-m", "curator", "export", "--output", str(output),
         "--workspace", str(workspace.path)], check=True, capture_output=True,
    )  # fmt: skip
    rows = [row for _, row in contract.read_rows(output)]
    assert len(rows) == 12

    folder = run_folder(
        tmp_path / "run", rows, action="train", model=str(gemma), train={"max_steps": 2}
    )
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "sitecustomize.py").write_text(ALONE)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "alone")}
    refused = subprocess.run(
        [sys.executable, "-P", "-c", "import curator"], env=env, capture_output=True, text=True
    )
    assert "curator is not there" in refused.stderr
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer", str(folder)],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contract.read_manifest(folder) is not None
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
