"""Figures for reports: tensors in, data URIs out. The same tensors give the same bytes.

Colours are those of Okabe and Ito (told apart by colour-blind readers); every series also has its own line style or marker. No global
state of matplotlib is used or changed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from popflow.runs.report import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), "-")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _SOFT, _FAINT = "#1d1f23", "#5b616b", "#e4e4df"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "popflow",
    "svg.fonttype": "path",
    "text.color": _INK,
    "text.parse_math": False,
}


def image_grid(groups: Mapping[str, Tensor], *, columns: int = 16, limits: tuple[float, float] | None = None, zoom: int = 6) -> str:
    """Images in labelled blocks, one block under another, as a PNG.

    Args:
        groups: Label -> images ``[n, C, H, W]`` with one (grey) or three (RGB) channels, or ``[n, H, W]``.
        columns: Images in a row.
        limits: Values shown black and white; the extremes over all blocks when None.
        zoom: Screen pixels to an image pixel, at most (never enlarged beyond a page).

    Raises:
        ValueError: for no images, or another number of channels or dimensions.

    Example:
        >>> image_grid({"noise": torch.rand(8, 1, 4, 4)})[:22]
        'data:image/png;base64,'
    """
    blocks = {label: _rgb(label, images) for label, images in groups.items()}
    if not blocks or columns < 1:
        raise ValueError(f"groups={list(groups)}, columns={columns}: wanted at least one labelled block of images and one column.")
    finite = torch.cat([block[block.isfinite()] for block in blocks.values()])
    low, high = limits or ((finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0))
    span = (high - low) or 1.0
    rows = [math.ceil(len(block) / columns) for block in blocks.values()]
    tall, wide = next(iter(blocks.values())).shape[1:3]
    across = max(min(columns, len(block)) for block in blocks.values())
    cell = min(zoom * wide, 1400 / across) / 200
    width, label_height, gap = max(across * cell * 1.1, 2.5), 0.26, 0.1
    height = sum(count * cell * 1.1 * tall / wide + label_height for count in rows) + gap * (len(rows) - 1)
    with _style():
        figure = _figure(width, height)
        top = height
        for (label, block), count in zip(blocks.items(), rows, strict=True):
            figure.text(0.0, (top - 0.06) / height, label, ha="left", va="top", fontsize=8.5)
            tall_in = count * cell * 1.1 * tall / wide
            top -= label_height + tall_in
            shown = min(columns, len(block))
            axes = figure.add_axes((0.0, top / height, shown * cell * 1.1 / width, tall_in / height))
            axes.set_axis_off()
            axes.imshow(_tile(((block - low) / span).nan_to_num(0.5).clamp(0, 1), shown), interpolation="nearest", aspect="auto")
            top -= gap
        return _uri(figure, "png")


def lines(
    x: Tensor | Sequence[float],
    series: Mapping[str, Tensor | Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    bands: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    reference: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    downwards: bool = False,
) -> str:
    """Labelled curves over a common axis (steps, sigma), as an SVG.

    Args:
        x: Abscissae ``[m]``.
        series: Label -> ordinates ``[m]``; values that are not finite leave gaps.
        x_label: With unit.
        y_label: With unit.
        bands: Label of a series -> lower and upper ends ``[m]`` of a shaded band.
        reference: Label -> height of a thin horizontal line (the truth, a bound).
        log_x: Logarithmic abscissa.
        log_y: Logarithmic ordinate.
        downwards: Let the abscissa fall from left to right, as sigma does.
    """
    with _style():
        figure, axes = _axes(x_label, y_label)
        along = _flat(x)
        for (label, values), colour, dash in zip(series.items(), cycle(COLOURS), cycle(_DASHES)):
            axes.plot(along, _flat(values), color=colour, linestyle=dash, label=label)
            if bands and label in bands:
                axes.fill_between(along, _flat(bands[label][0]), _flat(bands[label][1]), color=colour, alpha=0.16, linewidth=0)
        _references(axes, reference)
        if _drawable(along, series, log_x, log_y):  # matplotlib refuses logarithmic axes without a point on them
            if log_x:
                axes.set_xscale("log")
                _plain_ticks(axes.xaxis)
            if log_y:
                axes.set_yscale("log")
                _plain_ticks(axes.yaxis)
        if downwards:
            axes.invert_xaxis()
        _legend(axes, len(series) + len(reference or {}))
        return _uri(figure, "svg")


def scatter(
    series: Mapping[str, Tensor], *, x_label: str, y_label: str, weights: Mapping[str, Tensor] | None = None, square: bool = True
) -> str:
    """Labelled clouds of points ``[n, 2]``, as an SVG; areas follow the weights ``[n]`` where given.

    Raises:
        ValueError: when points are not ``[n, 2]``.
    """
    with _style():
        figure, axes = _axes(x_label, y_label, width=4.8, height=4.2)
        for (label, points), colour, marker in zip(series.items(), cycle(COLOURS), cycle(_MARKERS)):
            if points.ndim != 2 or points.shape[1] != 2:
                raise ValueError(f"series {label!r} has shape {tuple(points.shape)}, wanted [n, 2]: choose two coordinates.")
            xy, size = points.detach().cpu().double(), 12.0
            if weights and label in weights:
                weight = weights[label].detach().cpu().double()
                size = (12.0 * weight / weight.mean()).numpy()
            axes.scatter(xy[:, 0].numpy(), xy[:, 1].numpy(), s=size, c=colour, marker=marker, alpha=0.55, linewidths=0, label=label)
        if square:
            axes.set_aspect("equal", adjustable="datalim")
        _legend(axes, len(series))
        return _uri(figure, "svg")


def histogram(
    series: Mapping[str, Tensor],
    *,
    x_label: str,
    bins: int = 40,
    weights: Mapping[str, Tensor] | None = None,
    density: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> str:
    """Labelled histograms of values ``[n]`` (normalised, weighted where given) with curves of known densities over them, as an SVG.

    Args:
        series: Label -> values ``[n]``.
        x_label: With unit.
        bins: Of equal width, common to all series.
        weights: Label of a series -> weights ``[n]``.
        density: Label -> abscissae and values ``[m]`` of a density.

    Raises:
        ValueError: when there is no finite value.
    """
    flat = {label: values.detach().cpu().double().flatten() for label, values in series.items()}
    finite = torch.cat([values[values.isfinite()] for values in flat.values()]) if flat else torch.empty(0)
    if not len(finite):
        raise ValueError(f"series {list(series)} holds no finite value, wanted at least one.")
    low, high = finite.min().item(), finite.max().item()
    edges = torch.linspace(low, high if high > low else low + 1.0, bins + 1, dtype=torch.float64).numpy()
    with _style():
        figure, axes = _axes(x_label, "density")
        for (label, values), colour, dash in zip(flat.items(), cycle(COLOURS), cycle(_DASHES)):
            keep = values.isfinite()
            weight = weights[label].detach().cpu().double().flatten()[keep].numpy() if weights and label in weights else None
            shape: dict[str, Any] = {"bins": edges, "weights": weight, "density": True, "color": colour}
            axes.hist(values[keep].numpy(), histtype="stepfilled", alpha=0.18, **shape)
            axes.hist(values[keep].numpy(), histtype="step", linestyle=dash, linewidth=1.3, label=label, **shape)
        for (label, (x, y)), dash in zip((density or {}).items(), cycle(("-", *_DASHES[1:]))):
            axes.plot(_flat(x), _flat(y), color=_INK, linestyle=dash, linewidth=1.3, label=label)
        _legend(axes, len(series) + len(density or {}))
        return _uri(figure, "svg")


def clusters(groups: Mapping[str, Tensor], *, reach: float) -> str:
    """Configurations of particles in labelled rows, each seen along its shortest axis, as an SVG; lines join particles nearer than ``reach``.

    Args:
        groups: Label -> configurations ``[n, particles, d]`` in two or three dimensions.
        reach: Largest length of a line.

    Raises:
        ValueError: for no configurations, or other shapes.

    Example:
        >>> clusters({"pairs": torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])}, reach=1.5)[:26]
        'data:image/svg+xml;base64,'
    """
    for label, x in groups.items():
        if x.ndim != 3 or not len(x) or x.shape[2] not in (2, 3):
            raise ValueError(f"group {label!r} has shape {tuple(x.shape)}, wanted [n, particles, 2 or 3] with n of at least 1.")
    if not groups:
        raise ValueError("groups is empty, wanted at least one labelled row of configurations.")
    across = max(len(x) for x in groups.values())
    with _style():
        figure = _figure(1.1 * across + 0.3, 1.35 * len(groups))
        figure.set_layout_engine("constrained")
        rows = figure.subfigures(len(groups), squeeze=False)[:, 0]
        for (label, x), row, colour in zip(groups.items(), rows, cycle(COLOURS)):
            row.suptitle(label, fontsize=8, x=0.01, horizontalalignment="left")
            points = _seen(x.detach().cpu().double())
            extent = 1.1 * points[..., :2].abs().max().item() or 1.0
            for k, axes in enumerate(row.subplots(1, across, squeeze=False)[0]):
                axes.set_axis_off()
                axes.set_aspect("equal")
                axes.set(xlim=(-extent, extent), ylim=(-extent, extent))
                if k < len(points):
                    one = points[k]
                    near = (torch.cdist(one, one) < reach).triu(1).nonzero()
                    for pair in near:
                        axes.plot(*one[pair, :2].T.numpy(), color=_SOFT, linewidth=0.6, zorder=1)
                    axes.scatter(*one[:, :2].T.numpy(), s=22.0, c=colour, edgecolors="white", linewidths=0.5, zorder=2)
        return _uri(figure, "svg")


def bars(values: Mapping[str, Measured], *, x_label: str, reference: Mapping[str, float] | None = None) -> str:
    """One horizontal bar for each label with its standard error and value, as an SVG; thin vertical lines for references."""
    with _style():
        figure, axes = _axes(x_label, "", height=0.55 + 0.42 * len(values) + (0.3 if reference else 0))
        names = list(values)[::-1]
        for place, name in enumerate(names):
            one = values[name]
            axes.barh(place, one.value, color=COLOURS[(len(names) - 1 - place) % len(COLOURS)], height=0.62)
            if one.error is not None:
                axes.errorbar(one.value, place, xerr=one.error, color=_INK, linewidth=1.1, capsize=2.5)
            axes.annotate(
                str(one),
                (max(one.value + (one.error or 0.0), 0.0), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            )
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.margins(x=0.18)
        for (label, at), dash in zip((reference or {}).items(), cycle(_DASHES[1:])):
            axes.axvline(at, color=_INK, linewidth=1.0, linestyle=dash, label=label)
        if reference:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, borderaxespad=0.2)
        return _uri(figure, "svg")


def _seen(x: Tensor) -> Tensor:
    """Centred configurations turned so that the last axis is their shortest; plane ones are not turned."""
    x = x - x.mean(1, keepdim=True)
    if x.shape[2] < 3:
        return x
    axes = torch.linalg.svd(x, full_matrices=False)[2]
    largest = axes.abs().argmax(2, keepdim=True)
    return x @ (axes * axes.gather(2, largest).sign()).mT


def _rgb(label: str, images: Tensor) -> Tensor:
    """Images as ``[n, H, W, 3]`` on the CPU."""
    images = images.detach().cpu().double()
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images {label!r} have shape {tuple(images.shape)}, wanted [n, 1 or 3, H, W] or [n, H, W] with at least one.")
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def _tile(block: Tensor, columns: int) -> Any:
    """Images ``[n, H, W, 3]`` in one, each pixel doubled until a gap of a tenth of an image can be left between them."""
    n, tall, wide, _ = block.shape
    times = max(1, math.ceil(32 / wide))
    gap = max(1, round(wide * times * 0.1))
    block = block.repeat_interleave(times, 1).repeat_interleave(times, 2)
    tall, wide, rows = tall * times, wide * times, math.ceil(n / columns)
    tile = torch.ones(rows * (tall + gap), columns * (wide + gap), 3, dtype=block.dtype)
    for i, image in enumerate(block):
        y, x = i // columns * (tall + gap), i % columns * (wide + gap)
        tile[y : y + tall, x : x + wide] = image
    return tile.numpy()


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _axes(x_label: str, y_label: str, *, width: float = 6.8, height: float = 3.1) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _flat(values: Tensor | Sequence[float]) -> Any:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.tensor([float(value) for value in values], dtype=torch.float64)
    return tensor.double().flatten().numpy()


def _drawable(along: Any, series: Mapping[str, Tensor | Sequence[float]], log_x: bool, log_y: bool) -> bool:
    """Whether any point of the series can be shown on these axes."""

    def shown(values: Any, log: bool) -> Any:
        return (abs(values) < math.inf) & (values > (0 if log else -math.inf))

    return any((shown(along, log_x) & shown(_flat(values), log_y)).any() for values in series.values())


def _references(axes: Axes, reference: Mapping[str, float] | None) -> None:
    for (label, height), dash in zip((reference or {}).items(), cycle((_DASHES[2], _DASHES[1]))):
        axes.axhline(height, color=_INK, linewidth=1.0, linestyle=dash, label=label)


def _plain_ticks(axis: Axis) -> None:
    """Write the powers of ten as numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, entries: int) -> None:
    if entries > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(entries, 3), fontsize=8, borderaxespad=0.3, columnspacing=1.6)


def _uri(figure: Figure, form: str) -> str:
    buffer = io.BytesIO()
    if form == "svg":
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    kind = "svg+xml" if form == "svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
