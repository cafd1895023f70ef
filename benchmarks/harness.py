"""What all benchmarks share: command line, description of the machine, rows, table and JSON file.

A benchmark is a function ``main(options) -> list[Row]`` that the file ``NAME.py`` hands to ``run("NAME", main, ...)``: this call declares it, and
`benchmarks` finds it. ``python benchmarks/harness.py`` prints the files that ``make bench`` runs. Keys of the JSON file::

    {"benchmark": NAME, "machine": {...}, "options": {...}, "rows": [{"claim", "value", "error", "unit", "target", "direction",
     "holds", "peers", "seconds", "notes"}, ...]}
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy
import torch


@dataclass
class Row:
    """One claim: the value measured, the target, and the values of peers in the same run."""

    claim: str
    value: float
    error: float | None = None
    unit: str = ""
    target: float | None = None
    direction: str = "<="
    peers: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0
    notes: dict = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether the value meets the target; None for rows without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.direction == "<=" else self.value >= self.target


def benchmarks(folder: Path = Path(__file__).parent) -> list[Path]:
    """Return the files that declare a benchmark: those that call ``run`` with their own name, wherever the call stands."""

    def declares(path: Path) -> bool:
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call) and node.args)
        return any(ast.unparse(call.func) == "run" and ast.unparse(call.args[0]) == repr(path.stem) for call in calls)

    return [path for path in sorted(folder.glob("*.py")) if declares(path)]


def dataset(*names: str) -> Path | None:
    """Path of a data set in ``$POPFLOW_DATA``, by default the ``shared/data`` beside the repository; None where it is absent."""
    path = Path(os.environ.get("POPFLOW_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data").joinpath(*names)
    return path if path.exists() else None


def machine() -> dict:
    """Describe the machine: processor, cores, threads, versions, and the day."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def run(name: str, main: Callable[[argparse.Namespace], list[Row]], seeds: int = 3, parts: Sequence[str] = ()) -> None:
    """Parse ``--quick --seeds --json`` (and ``--only``, ``--keep`` where there are parts), run, print the table, write the JSON file.

    With ``--keep`` rows of other parts stay in the JSON file; their rows name their part as ``notes["part"]``. Exits with 1 when a full run misses a target.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a few seconds: shows that it runs, proves nothing")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--json", type=Path, default=None)
    if parts:
        parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="run these parts alone")
        parser.add_argument("--keep", action="store_true", help="leave rows of other parts in the JSON file")
    options = parser.parse_args()
    before, start = machine(), time.perf_counter()
    rows = main(options)
    print_table(rows)
    print(
        f"{name}: {sum(r.holds is True for r in rows)} held, {sum(r.holds is False for r in rows)} missed, {time.perf_counter() - start:.0f} s"
    )
    if options.json:
        written = [asdict(r) | {"holds": r.holds} for r in rows]
        settings = {"quick": options.quick, "seeds": options.seeds} | ({"only": options.only} if parts else {})
        if parts and options.keep and options.json.exists():
            written, settings["only"] = merged(json.loads(options.json.read_text()), written, settings, parts)
        document = {"benchmark": name, "machine": before, "options": settings, "rows": written}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(int(not options.quick and any(row.holds is False for row in rows)))


def merged(before: dict, rows: list[dict], settings: dict, parts: Sequence[str]) -> tuple[list[dict], list[str]]:
    """Return the rows of a run with those of other parts of an earlier one, in the order of the parts, and the parts that there are."""
    if any(before["options"][name] != settings[name] for name in ("quick", "seeds")):
        raise SystemExit(f"--keep: the file holds rows of {before['options']}, wanted the same quick and seeds. Fix: another file.")
    rows = [*(row for row in before["rows"] if row["notes"]["part"] not in settings["only"]), *rows]
    there = {row["notes"]["part"] for row in rows}
    return sorted(rows, key=lambda row: parts.index(row["notes"]["part"])), [part for part in parts if part in there]


def print_table(rows: list[Row]) -> None:
    """Print the rows as a Markdown table."""
    print("| claim | value | target | holds | peers |\n|---|---|---|---|---|")
    for row in rows:
        error = "" if row.error is None else f" ± {row.error:.2g}"
        target = "" if row.target is None else f"{row.direction} {row.target:g}"
        holds = {True: "yes", False: "NO", None: ""}[row.holds]
        peers = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.peers.items())
        print(f"| {row.claim} | {row.value:.4g}{error} {row.unit} | {target} | {holds} | {peers} |")


if __name__ == "__main__":
    print(*(os.path.relpath(path) for path in benchmarks() if path.stem != "gpu"))  # that one is `make bench-gpu`
