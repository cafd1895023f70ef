"""Figures of curves, points, histograms, images and particles for reports: tensors in, data URIs out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from popflow.runs.canvas import COLOURS, DASHES, INK, MARKERS, SOFT, axes_of, blank, data_uri, points_of, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_COLUMNS, _ZOOM = 16, 6  # images in a row; screen pixels per image pixel, unless the row would be wider than a page


def image_grid(groups: Mapping[str, Tensor], *, limits: tuple[float, float] | None = None) -> str:
    """Images in labelled blocks, one below another, 16 in a row, as a PNG.

    Args:
        groups: Label -> images ``[n, C, H, W]`` with one (grey) or three (RGB) channels, or ``[n, H, W]``.
        limits: The values shown as black and white; None takes the extremes over all blocks.

    Raises:
        ValueError: when there are no images, or they have another shape.

    Example:
        >>> image_grid({"noise": torch.rand(8, 1, 4, 4)})[:22]
        'data:image/png;base64,'
    """
    blocks = {label: _rgb(label, images) for label, images in groups.items()}
    if not blocks:
        raise ValueError("groups is empty, wanted at least one labelled block of images.")
    finite = torch.cat([block[block.isfinite()] for block in blocks.values()])
    low, high = limits or ((finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0))
    span = (high - low) or 1.0
    rows = [math.ceil(len(block) / _COLUMNS) for block in blocks.values()]
    tall, wide = next(iter(blocks.values())).shape[1:3]
    across = max(min(_COLUMNS, len(block)) for block in blocks.values())
    cell = min(_ZOOM * wide, 1400 / across) / 200  # inches
    width, label_height, gap = max(across * cell * 1.1, 2.5), 0.26, 0.1
    height = sum(count * cell * 1.1 * tall / wide + label_height for count in rows) + gap * (len(rows) - 1)
    with style():
        figure = blank(width, height)
        top = height
        for (label, block), count in zip(blocks.items(), rows, strict=True):
            figure.text(0.0, (top - 0.06) / height, label, ha="left", va="top", fontsize=8.5)
            tall_in = count * cell * 1.1 * tall / wide
            top -= label_height + tall_in
            shown = min(_COLUMNS, len(block))
            axes = figure.add_axes((0.0, top / height, shown * cell * 1.1 / width, tall_in / height))
            axes.set_axis_off()
            axes.imshow(_tile(((block - low) / span).nan_to_num(0.5).clamp(0, 1), shown), interpolation="nearest", aspect="auto")
            top -= gap
        return data_uri(figure, "png")


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
    """Labelled curves over a common axis, as an SVG.

    Args:
        x: Abscissae ``[m]``.
        series: Label -> ordinates ``[m]``; non-finite values leave gaps.
        x_label: Label of the abscissa, with unit.
        y_label: Label of the ordinate, with unit.
        bands: Label of a series -> lower and upper edge ``[m]`` of a shaded band.
        reference: Label -> height of a thin horizontal line, such as the truth or a bound.
        log_x: Logarithmic abscissa.
        log_y: Logarithmic ordinate.
        downwards: Let the abscissa decrease from left to right, as sigma does during sampling.
    """
    with style():
        figure, axes = axes_of(x_label, y_label)
        along = _flat(x)
        for (label, values), colour, dash in zip(series.items(), cycle(COLOURS), cycle(DASHES)):
            axes.plot(along, _flat(values), color=colour, linestyle=dash, label=label)
            if bands and label in bands:
                axes.fill_between(along, _flat(bands[label][0]), _flat(bands[label][1]), color=colour, alpha=0.16, linewidth=0)
        for (label, height), dash in zip((reference or {}).items(), cycle((DASHES[2], DASHES[1]))):
            axes.axhline(height, color=INK, linewidth=1.0, linestyle=dash, label=label)
        if _drawable(along, series, log_x, log_y):  # matplotlib rejects logarithmic axes without a point
            for axis, scale in [(axes.xaxis, axes.set_xscale)] * log_x + [(axes.yaxis, axes.set_yscale)] * log_y:
                scale("log")
                _plain_ticks(axis)
        if downwards:
            axes.invert_xaxis()
        _legend(axes, len(series) + len(reference or {}))
        return data_uri(figure, "svg")


def scatter(series: Mapping[str, Tensor], *, x_label: str, y_label: str) -> str:
    """Labelled clouds of points ``[n, 2]`` on equal axes, as an SVG.

    Raises:
        ValueError: when points are not ``[n, 2]``.
    """
    with style():
        figure, axes = axes_of(x_label, y_label, width=4.8, height=4.2)
        for (label, points), colour, marker in zip(series.items(), cycle(COLOURS), cycle(MARKERS)):
            xy = points_of(label, points)
            axes.scatter(xy[:, 0].numpy(), xy[:, 1].numpy(), s=12.0, c=colour, marker=marker, alpha=0.55, linewidths=0, label=label)
        axes.set_aspect("equal", adjustable="datalim")
        _legend(axes, len(series))
        return data_uri(figure, "svg")


def histogram(
    series: Mapping[str, Tensor],
    *,
    x_label: str,
    bins: int = 40,
    weights: Mapping[str, Tensor] | None = None,
    density: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> str:
    """Labelled, normalised histograms of values ``[n]`` with curves of known densities, as an SVG.

    Args:
        series: Label -> values ``[n]``.
        x_label: Label of the abscissa, with unit.
        bins: Number of bins of equal width, common to all series.
        weights: Label of a series -> weights ``[n]``; series without an entry are unweighted.
        density: Label -> abscissae and values ``[m]`` of a density.

    Raises:
        ValueError: when no value is finite.
    """
    flat = {label: values.detach().cpu().double().flatten() for label, values in series.items()}
    finite = torch.cat([values[values.isfinite()] for values in flat.values()]) if flat else torch.empty(0)
    if not len(finite):
        raise ValueError(f"series {list(series)} holds no finite value, wanted at least one.")
    low, high = finite.min().item(), finite.max().item()
    edges = torch.linspace(low, high if high > low else low + 1.0, bins + 1, dtype=torch.float64).numpy()
    with style():
        figure, axes = axes_of(x_label, "density")
        for (label, values), colour, dash in zip(flat.items(), cycle(COLOURS), cycle(DASHES)):
            keep = values.isfinite()
            weight = weights[label].detach().cpu().double().flatten()[keep].numpy() if weights and label in weights else None
            shape: dict[str, Any] = {"bins": edges, "weights": weight, "density": True, "color": colour}
            axes.hist(values[keep].numpy(), histtype="stepfilled", alpha=0.18, **shape)
            axes.hist(values[keep].numpy(), histtype="step", linestyle=dash, linewidth=1.3, label=label, **shape)
        for (label, (x, y)), dash in zip((density or {}).items(), cycle(("-", *DASHES[1:]))):
            axes.plot(_flat(x), _flat(y), color=INK, linestyle=dash, linewidth=1.3, label=label)
        _legend(axes, len(series) + len(density or {}))
        return data_uri(figure, "svg")


def clusters(groups: Mapping[str, Tensor], *, reach: float) -> str:
    """Configurations of particles in labelled rows, each viewed along its shortest axis, as an SVG.

    Args:
        groups: Label -> configurations ``[n, particles, d]`` in two or three dimensions.
        reach: Lines join particles closer than this.

    Raises:
        ValueError: when there are no configurations, or they have another shape.

    Example:
        >>> clusters({"pairs": torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])}, reach=1.5)[:26]
        'data:image/svg+xml;base64,'
    """
    for label, x in groups.items():
        if x.ndim != 3 or not len(x) or x.shape[2] not in (2, 3):
            raise ValueError(f"group {label!r} has shape {tuple(x.shape)}, wanted [n, particles, 2 or 3] with n at least 1.")
    if not groups:
        raise ValueError("groups is empty, wanted at least one labelled row of configurations.")
    across = max(len(x) for x in groups.values())
    with style():
        figure = blank(1.1 * across + 0.3, 1.35 * len(groups))
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
                        axes.plot(*one[pair, :2].T.numpy(), color=SOFT, linewidth=0.6, zorder=1)
                    axes.scatter(*one[:, :2].T.numpy(), s=22.0, c=colour, edgecolors="white", linewidths=0.5, zorder=2)
        return data_uri(figure, "svg")


def _seen(x: Tensor) -> Tensor:
    """Centre the configurations and turn them so that the last axis is the shortest; planar ones are not turned."""
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
        raise ValueError(
            f"images {label!r} have shape {tuple(images.shape)}, wanted [n, 1 or 3, H, W] or [n, H, W] with at least one image."
        )
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def _tile(block: Tensor, columns: int) -> Any:
    """Tile images ``[n, H, W, 3]`` into one, each pixel repeated until a gap of a tenth of an image fits between them."""
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


def _flat(values: Tensor | Sequence[float]) -> Any:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.tensor([float(value) for value in values], dtype=torch.float64)
    return tensor.double().flatten().numpy()


def _drawable(along: Any, series: Mapping[str, Tensor | Sequence[float]], log_x: bool, log_y: bool) -> bool:
    """Say whether any point of the series can be shown on these axes."""

    def shown(values: Any, log: bool) -> Any:
        return (abs(values) < math.inf) & (values > (0 if log else -math.inf))

    return any((shown(along, log_x) & shown(_flat(values), log_y)).any() for values in series.values())


def _plain_ticks(axis: Axis) -> None:
    """Write powers of ten as plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, entries: int) -> None:
    if entries > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(entries, 3), fontsize=8, borderaxespad=0.3, columnspacing=1.6)
