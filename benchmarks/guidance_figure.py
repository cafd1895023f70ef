"""Draw the curves that `guidance.py` measured, an SVG of each part: ``python benchmarks/guidance_figure.py guidance.json docs/methods``."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from pathlib import Path

import torch

from popflow.runs.figures import lines


def curves(notes: dict) -> bytes:
    """MMD squared against calls of the pair for each image, with standard errors, and the level of as many exact draws."""
    calls = sorted({int(c) for row in notes["curves"].values() for c in row})
    series, bands = {}, {}
    for name, row in notes["curves"].items():
        mean, error = (torch.tensor([1e3 * row[str(c)][key] if str(c) in row else math.nan for c in calls]) for key in ("mmd2", "error"))
        series[name], bands[name] = mean, (mean - error, mean + error)
    uri = lines(
        calls,
        series,
        x_label="calls of the pair of models for each image",
        y_label="MMD² to exact draws / 1e-3",
        bands=bands,
        reference={"exact draws": 1e3 * notes["exact draws"]["mmd2"]},
        log_x=True,
    )
    return base64.b64decode(uri.partition(",")[2])


def main(source: str, folder: str) -> None:
    """Write one file for each part that has a curve."""
    for row in json.loads(Path(source).read_text())["rows"]:
        if "curves" in row["notes"]:
            part = row["claim"].partition(":")[0]
            file = Path(folder) / f"guidance-{re.sub(r'[^a-z0-9.]+', '-', part)}.svg"
            file.write_bytes(curves(row["notes"]))
            print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
