"""What tests of several files begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from curator import rounds, workflow
from curator.workspace import Workspace
from tests.conftest import write_prompts
from tests.curator.test_runs import Fake, judge_all, wait


@pytest.fixture
def judged(workspace: Workspace, tmp_path: Path, fake_trainer: Fake) -> Workspace:
    """A workspace whose first pairs, by the base, are judged."""
    fake_trainer("ok")
    workflow.import_prompts(workspace, write_prompts(tmp_path / "p.jsonl", 20))
    wait(workspace, rounds.start_run(workspace, "generate").folder)
    judge_all(workspace)
    return workspace
