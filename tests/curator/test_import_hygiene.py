"""What an import brings along, seen from a fresh interpreter; and the two layers' rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate", "numpy")
LATER = ("textual", "alembic", "sqlmodel", "sqlalchemy", "pydantic")


def loaded(statement: str) -> set[str]:
    """Return the top-level modules that a statement leaves imported."""
    script = f"{statement}\nimport sys\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_command_line_imports_nothing_it_may_not_need() -> None:
    assert loaded("import curator.cli") & {*HEAVY, *LATER} == set()


@pytest.mark.parametrize("module", ["curator.workflow", "curator.rounds", "curator.tui.app",
                                    "curator.demo", "curator.terminal"])  # fmt: skip
def test_the_light_side_never_imports_a_heavy_package(module: str) -> None:
    modules = loaded(f"import {module}")
    assert modules & {*HEAVY, "alembic"} == set()


@pytest.mark.parametrize("module", ["curator.workflow", "curator.rounds", "curator.demo.measure"])
def test_nothing_below_the_front_ends_imports_a_screen(module: str) -> None:
    assert loaded(f"import {module}") & {"textual", "typer"} == set()


def test_the_contract_is_standard_library_alone() -> None:
    modules = loaded("import trainer.contract, trainer.intervals")
    assert {m for m in modules if m not in sys.stdlib_module_names} <= {
        "trainer", "__main__", "sitecustomize", "usercustomize", "_virtualenv",
        *(m for m in modules if m.startswith(("__editable__", "_"))),
    }  # fmt: skip


def test_import_contracts_hold() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout
