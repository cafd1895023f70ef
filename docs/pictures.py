"""Draw the pictures of the documentation: ``python docs/pictures.py [FOLDER]``.

``assets/equation.svg`` shows the three terms of the equation. ``assets/gallery`` has the key figure of each method's quick demo; with a FOLDER the demos are
read from there, where ``popflow demo --all`` left them, instead of run anew.
"""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import torch
from PIL import Image

from popflow.core import Ito, Population, Process, Rates, Streams, Trace, chain, euler, resample_if, simulate
from popflow.registry import BUILT_IN
from popflow.runs.canvas import COLOURS, blank, style
from popflow.runs.report import read_report

ASSETS = Path(__file__).parent / "assets"
LARGEST = 60_000  # bytes of a picture


def moved(t: float, pop: Population) -> Rates:
    """Drift towards the nearer of -1 and 1."""
    return Rates(drift=2.0 * (pop.x.sign() - pop.x))


def spread(t: float, pop: Population) -> Rates:
    """Brownian motion."""
    return Rates(drift=torch.zeros_like(pop.x), diffusion=0.6)


def grown(t: float, pop: Population) -> Rates:
    """Growth that is largest at 0.7, with little noise."""
    return Rates(drift=torch.zeros_like(pop.x), diffusion=0.3, growth=Ito(-6 * (pop.x[..., 0] - 0.7).square()))


def equation() -> None:
    """Three populations that start alike, each under one term: paths over time, opaque where the weight is."""
    terms: dict[str, Process] = {"drift  v  moves": moved, "diffusion  σ  spreads": spread, "growth  g  weighs and breeds": grown}
    times = torch.linspace(0, 1, 27)
    with style():
        figure = blank(9.0, 2.6)
        for k, (title, process) in enumerate(terms.items()):
            axes = figure.add_axes((0.045 + k * 0.325, 0.19, 0.29, 0.68))
            trace = Trace(x=lambda state: state.pop.x[:, 0], w=lambda state: state.pop.weights())
            start = Population.of(0.45 * Streams(3).normal("start", torch.empty(20, 1)))
            step = chain(resample_if(0.3), euler(process)) if process is grown else euler(process)
            simulate(step, start, times, rng=Streams(4), record=[trace])
            opacity = (trace["w"] / trace["w"].amax(1, keepdim=True)).mul(4).round().clamp_min(0.6) / 4
            for shade in opacity.unique().tolist():
                axes.plot(*_paths(times, trace["x"], opacity == shade), color=COLOURS[k], alpha=0.8 * shade, linewidth=0.9)
            axes.set(title=title, xlabel="time", xlim=(0, 1), ylim=(-1.9, 1.9), yticks=[-1, 0, 1])
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    (ASSETS / "equation.svg").write_text(_light(content.getvalue().decode()))


def _paths(times: torch.Tensor, x: torch.Tensor, chosen: torch.Tensor) -> tuple[list[float], list[float]]:
    """The steps that begin where ``chosen``, as one line with gaps; a sample that was chosen anew leaves a gap too."""
    across, up = [], []
    for column, mask in zip(x.T.tolist(), chosen.T.tolist(), strict=True):
        for i, (a, b) in enumerate(pairwise(column)):
            if mask[i] and abs(b - a) < 0.35:
                joined = bool(up) and up[-1] == a
                across += [float(times[i + 1])] if joined else [math.nan, float(times[i]), float(times[i + 1])]
                up += [b] if joined else [math.nan, a, b]
    return across, up


def gallery(folder: Path) -> None:
    """The key figure of each demo."""
    target = ASSETS / "gallery"
    target.mkdir(parents=True, exist_ok=True)
    for method in BUILT_IN:
        with urlopen(read_report(folder / method.name)["report"]["figure"]["image"]) as data:  # a data URI that the run wrote
            kind, content = data.headers.get_content_subtype(), data.read()
        if kind == "png":
            _small(Image.open(io.BytesIO(content)), target / f"{method.name}.png")
        else:
            (target / f"{method.name}.svg").write_text(_light(content.decode()))


def _small(image: Image.Image, file: Path) -> None:
    """Save a picture of at most 560 points a side, with as many colours as fit into the limit."""
    image.thumbnail((560, 560))
    for colours in (96, 48, 24, 12):
        image.convert("RGB").quantize(colours).save(file, optimize=True)
        if file.stat().st_size < LARGEST:
            return


def _light(drawing: str) -> str:
    """Round the coordinates of an SVG to tenths of a point, and thin clouds of more than 200 equal markers."""
    rounded = re.sub(
        r"(scale\([^)]*\))|-?\d+\.\d{3,}", lambda found: found[1] or f"{float(found[0]):.1f}", re.sub(r" *\n *", "\n", drawing)
    )
    lines, seen = rounded.splitlines(keepends=True), Counter()
    looks = [found[0] if (found := re.search(r'style="fill: [^"]*"', line)) and "<use" in line else "" for line in lines]
    every = {look: 1 + (count - 1) // 200 for look, count in Counter(looks).items() if look}
    kept = []
    for line, look in zip(lines, looks, strict=True):
        seen[look] += 1
        if not look or seen[look] % every[look] == 0 or seen[look] == looks.count(look):  # the last one is that of the legend
            kept.append(line)
    return "".join(kept)


def main() -> None:
    """Draw all pictures."""
    equation()
    if len(sys.argv) > 1:
        gallery(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "popflow.cli.app", "demo", "--all", "--out", folder], check=True)
        gallery(Path(folder))


if __name__ == "__main__":
    main()
