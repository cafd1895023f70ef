"""What all figures share: style, axes, and the data URI at the end. The same tensors give the same bytes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; every series also has its own line style or marker.
Matplotlib's global state is neither used nor changed.
"""

from __future__ import annotations

import base64
import io
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, SOFT, FAINT = "#1d1f23", "#5b616b", "#e4e4df"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "popflow",
    "svg.fonttype": "path",
    "text.color": INK,
    "text.parse_math": False,
}


def style() -> AbstractContextManager[None]:
    """Apply the style of all figures within a ``with`` block."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def blank(width: float, height: float) -> Figure:
    """Return an empty figure; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def axes_of(x_label: str, y_label: str, *, width: float = 6.8, height: float = 3.1) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes."""
    figure = blank(width, height)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def data_uri(figure: Figure, form: str) -> str:
    """Return the figure as a base64 data URI; ``form`` is ``"svg"`` or ``"png"``."""
    buffer = io.BytesIO()
    if form == "svg":
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    kind = "svg+xml" if form == "svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def points_of(name: str, points: Tensor) -> Tensor:
    """Return points ``[n, 2]`` on the CPU in float64.

    Raises:
        ValueError: for another shape.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} has shape {tuple(points.shape)}, wanted [n, 2]: choose two coordinates.")
    return points.detach().cpu().double()
