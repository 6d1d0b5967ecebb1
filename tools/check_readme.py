"""Check README.md: every source file has a line in the map, every command is documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Where one line may stand for a whole folder.
FOLDERS = ("tests/", "docs/", "data/demo_model/texts/", "data/demo_model/model/", ".ci/")


def tracked() -> list[str]:
    """Return the files of the repository, new ones too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return sorted(path for path in listed.splitlines() if (ROOT / path).exists())


def commands() -> list[str]:
    """Return every command of the program, as typed."""
    import typer.main

    from curator.cli import app

    names = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        names += [f"{name} {sub}" for sub in inner] if inner else [name]
    return names


def problems() -> list[str]:
    """Return what is missing or stale, a line each."""
    found = []
    section = README.split("## File map")[-1]
    mapped = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    for path in tracked():
        if path.startswith(FOLDERS) or path.endswith("__init__.py"):
            continue
        if path not in mapped:
            found.append(f"README.md, file map: no line for {path}")
    for path in sorted(mapped):
        if not (ROOT / path).exists():
            found.append(f"README.md, file map: {path} is gone")
    for name in commands():
        if f"curator {name}" not in README:
            found.append(f"README.md: the command `curator {name}` is not documented")
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", README):
        if not (ROOT / link).exists():
            found.append(f"README.md: the link to {link} leads nowhere")
    return found


if __name__ == "__main__":
    lines = problems()
    print("\n".join(lines) if lines else "README.md: map and commands are complete.")
    sys.exit(1 if lines else 0)
