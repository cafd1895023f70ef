"""Draw the pictures of the documentation: ``python docs/pictures.py [FOLDER]``.

``assets/equation.png`` shows the three terms of the equation. ``assets/gallery`` has the key figure of each method's quick demo; with a FOLDER the demos are
read from there, where ``popflow demo --all`` left them, instead of run anew.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

import torch
from PIL import Image

from popflow.core import Ito, Population, Process, Rates, Streams, Trace, chain, euler, resample_if, simulate
from popflow.registry import BUILT_IN
from popflow.runs.canvas import COLOURS, blank, style
from popflow.runs.report import read_report

ASSETS = Path(__file__).parent / "assets"


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
    times = torch.linspace(0, 1, 61)
    with style():
        figure = blank(9.0, 2.6)
        for k, (title, process) in enumerate(terms.items()):
            axes = figure.add_axes((0.045 + k * 0.325, 0.15, 0.29, 0.72))
            trace = Trace(x=lambda state: state.pop.x[:, 0], w=lambda state: state.pop.weights())
            start = Population.of(0.45 * Streams(3).normal("start", torch.empty(48, 1)))
            step = chain(resample_if(0.3), euler(process)) if process is grown else euler(process)
            simulate(step, start, times, rng=Streams(4), record=[trace])
            x, opacity = trace["x"], (trace["w"] / trace["w"].amax(1, keepdim=True)).clamp(0.12, 1)
            for i in range(len(times) - 1):
                jump = (x[i + 1] - x[i]).abs() > 0.35  # one that was chosen anew
                for a, b, alpha in zip(x[i][~jump].tolist(), x[i + 1][~jump].tolist(), opacity[i][~jump].tolist(), strict=True):
                    axes.plot(times[i : i + 2].tolist(), [a, b], color=COLOURS[k], alpha=0.8 * alpha, linewidth=0.9)
            axes.set(title=title, xlabel="time", xlim=(0, 1), ylim=(-1.9, 1.9), yticks=[-1, 0, 1])
        content = io.BytesIO()
        figure.savefig(content, dpi=160, format="png")
    _small(Image.open(content), ASSETS / "equation.png", 1440)


def gallery(folder: Path) -> None:
    """The key figure of each demo."""
    target = ASSETS / "gallery"
    target.mkdir(parents=True, exist_ok=True)
    for method in BUILT_IN:
        with urlopen(read_report(folder / method.name)["report"]["figure"]["image"]) as data:  # a data URI that the run wrote
            kind, content = data.headers.get_content_subtype(), data.read()
        if kind == "png":
            _small(Image.open(io.BytesIO(content)), target / f"{method.name}.png", 720)
        else:
            (target / f"{method.name}.svg").write_bytes(content)


def _small(image: Image.Image, file: Path, widest: int) -> None:
    image.thumbnail((widest, widest))
    image.convert("RGB").quantize(96).save(file, optimize=True)


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
