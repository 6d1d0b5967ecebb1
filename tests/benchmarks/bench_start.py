"""make bench-start: how fast the command line answers."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.harness import Figure, main, paired, seconds

# The least a typer program with twenty commands can be.
BARE = '''
import typer
app = typer.Typer()
def command(number):
    def run(name: str = "x", count: int = 1):
        """Do a thing."""
    app.command(f"command{number}")(run)
for number in range(20):
    command(number)
app()
'''


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        curator = str(Path(sys.executable).parent / "curator")
        ratio, ours, peers = paired(
            lambda: seconds([curator, "--help"]),
            lambda: seconds([sys.executable, str(bare), "--help"]),
            runs=15,
        )
    peer = f"a bare typer app with 20 commands ({ours:.3f} s against {peers:.3f} s)"
    return [Figure("curator --help", ratio, 1.5, peer)]


if __name__ == "__main__":
    main(measure, "How fast the command line answers.")
