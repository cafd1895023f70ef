"""How long the command line keeps its user waiting: help of the program and of each verb, and each method's quick demo.

Each call is a process of its own, started afresh; a row is the median of as many calls as there are seeds. Modules that Python has not compiled
yet would be counted as waiting, so one call that is not counted goes first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, run

from popflow.registry import BUILT_IN, TASKS

HELP, DEMO = 0.4, 20.0  # seconds
COMMAND = "import sys; from popflow.cli.app import main; sys.exit(main())"


def seconds(*arguments: str) -> float:
    """Return the wall time of ``popflow arguments``; raises `RuntimeError` when it fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise RuntimeError(f"popflow {' '.join(arguments)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def main(options: argparse.Namespace) -> list[Row]:
    """Measure the waiting time of help and of quick demos."""
    helps = [("--help",), *((verb, "--help") for verb in TASKS)]
    methods = [method.name for method in BUILT_IN]
    seconds("--help")
    rows = []
    for arguments in helps:
        waits = [seconds(*arguments) for _ in range(options.seeds)]
        rows.append(Row(f"popflow {' '.join(arguments)}", statistics.median(waits), unit="s", target=HELP, seconds=sum(waits)))
    with tempfile.TemporaryDirectory() as folder:
        for name in methods[:1] if options.quick else methods:
            waits = [seconds("demo", name, "--quick", "--out", str(Path(folder, f"{name}{k}"))) for k in range(options.seeds)]
            rows.append(Row(f"popflow demo {name} --quick", statistics.median(waits), unit="s", target=DEMO, seconds=sum(waits)))
    return rows


if __name__ == "__main__":
    run("waiting", main)
