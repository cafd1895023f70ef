"""Every benchmark ends within a minute with --quick and writes the rows that the documentation is made of; absent peers are said to be."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "\n    run(" in path.read_text(encoding="utf-8"))
ROW = {"claim", "value", "error", "unit", "target", "direction", "holds", "peers", "seconds", "notes"}


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_quick_run_writes_the_documented_rows(script: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--quick", "--seeds", "1", "--json", str(tmp_path / "out.json")]
    before = _processor_seconds()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document.keys() == {"benchmark", "machine", "options", "rows"}
    assert document["benchmark"] == script.stem
    assert document["options"]["quick"] is True
    assert {"processor", "cores", "torch_threads", "torch", "python"} <= document["machine"].keys()
    assert document["rows"], "no claim was measured"
    for row in document["rows"]:
        assert row.keys() == ROW
        assert isinstance(row["claim"], str)
        assert row["claim"]
        assert isinstance(row["value"], int | float)
        assert row["target"] is None or isinstance(row["target"], int | float)
        assert row["direction"] in {"<=", ">="}
        # a peer gives a number (alone, or with its error), or a text that says why there is none
        for peer, value in row["peers"].items():
            assert isinstance(value, int | float) or "absent" in value or value == "failed" or re.match(r"-?[0-9.]+( |$)", value), (
                f"{peer}: {value!r}"
            )
    assert f"| {document['rows'][0]['claim']} |" in done.stdout
    spent = _processor_seconds() - before
    assert spent < 60, f"--quick took {spent:.0f} s of one processor, wanted under a minute"


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
