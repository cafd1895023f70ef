"""Figures of points in two coordinates: a map of values, trajectories, and an animation that needs no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from popflow.runs.canvas import COLOURS, INK, axes_of, data_uri, points_of, style

_MOST = 6000
_GREY = "#c9c9c4"


def value_map(points: Tensor, values: Tensor, *, x_label: str, y_label: str, value_label: str, symmetric: bool = False) -> str:
    """Points ``[n, 2]`` coloured by values ``[n]``, as a PNG (an SVG of thousands of points is slow to display).

    Args:
        points: At most 6000 of them, evenly spaced in order, are drawn.
        values: The colour scale covers the 1st to the 99th percentile.
        x_label: Label of the first coordinate, with unit.
        y_label: Label of the second coordinate, with unit.
        value_label: Label of the colour scale, with unit.
        symmetric: Use a diverging colour scale centred on zero.

    Raises:
        ValueError: when points are not ``[n, 2]`` or values not ``[n]``.
    """
    xy = points_of("points", points)
    if values.shape != points.shape[:1]:
        raise ValueError(f"values has shape {tuple(values.shape)}, wanted {[len(points)]}: give one value per point.")
    value = values.detach().cpu().double()
    low, high = (float(value.quantile(q)) for q in (0.01, 0.99))
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    keep = _spread(len(xy))
    with style():
        figure, axes = axes_of(x_label, y_label, width=6.0, height=4.4)
        shown: Any = {"c": value[keep].numpy(), "cmap": "RdBu_r" if symmetric else "viridis", "vmin": low, "vmax": high}
        drawn = axes.scatter(xy[keep, 0].numpy(), xy[keep, 1].numpy(), s=7, linewidths=0, **shown)
        figure.colorbar(drawn, ax=axes, label=value_label, shrink=0.85)
        return data_uri(figure, "png")


def trajectories(background: Tensor, paths: Tensor, *, x_label: str, y_label: str, times: Sequence[float]) -> str:
    """Paths ``[T, n, 2]`` over background points ``[m, 2]``, coloured by time, as a PNG; a dot marks each end.

    Raises:
        ValueError: when the shapes do not fit.
    """
    cloud = points_of("background", background)
    if paths.ndim != 3 or paths.shape[2] != 2 or paths.shape[0] != len(times) or len(times) < 2:
        raise ValueError(f"paths has shape {tuple(paths.shape)} with {len(times)} times, wanted [times, n, 2] and at least two times.")
    lines = paths.detach().cpu().double()
    from matplotlib.collections import LineCollection

    with style():
        figure, axes = axes_of(x_label, y_label, width=6.0, height=4.4)
        keep = _spread(len(cloud))
        axes.scatter(cloud[keep, 0].numpy(), cloud[keep, 1].numpy(), s=6, c=_GREY, linewidths=0)
        pieces = torch.stack([lines[:-1], lines[1:]], 2).flatten(0, 1).numpy()
        middle = (torch.tensor(times[:-1]) + torch.tensor(times[1:])) / 2
        drawn = LineCollection(list(pieces), cmap="viridis", linewidths=0.9, alpha=0.8)
        drawn.set_array(middle.double().repeat_interleave(lines.shape[1]).numpy())
        axes.add_collection(drawn)
        axes.scatter(lines[-1, :, 0].numpy(), lines[-1, :, 1].numpy(), s=9, c=INK, linewidths=0, zorder=3)
        axes.autoscale_view()
        figure.colorbar(drawn, ax=axes, label="time", shrink=0.85)
        return data_uri(figure, "png")


def moving(
    frames: Tensor,
    weights: Tensor,
    truth: Sequence[tuple[str, Tensor]],
    *,
    x_label: str,
    y_label: str,
    times: Sequence[float],
    seconds: float,
) -> str:
    """Points moving over the observed snapshots, as an animated PNG, which plays without a script.

    Args:
        frames: Positions ``[T, n, 2]`` at each time.
        weights: ``[T, n]``; marker areas are proportional to them.
        truth: Labelled snapshots ``[m, 2]``, drawn behind the moving points.
        x_label: Label of the first coordinate, with unit.
        y_label: Label of the second coordinate, with unit.
        times: Times of the frames, shown above each.
        seconds: Duration of one loop.

    Raises:
        ValueError: when the shapes do not fit.
    """
    from PIL import Image

    if frames.ndim != 3 or frames.shape[2] != 2 or weights.shape != frames.shape[:2] or len(times) != len(frames):
        raise ValueError(
            f"frames has shape {tuple(frames.shape)}, weights {tuple(weights.shape)}, and there are {len(times)} times, wanted [times, n, 2], "
            "[times, n] and one time per frame."
        )
    clouds = [(label, points_of(label, points)) for label, points in truth]
    xy, w = frames.detach().cpu().double(), weights.detach().cpu().double()
    everything = torch.cat([*(points for _, points in clouds), xy.flatten(0, 1)])
    low, high = everything.quantile(0.002, 0), everything.quantile(0.998, 0)
    margin = 0.06 * (high - low)
    images = []
    with style():
        for place, weight, t in zip(xy, w, times, strict=True):
            figure, axes = axes_of(x_label, y_label, width=5.2, height=4.2)
            for (label, points), colour in zip(clouds, cycle(COLOURS)):
                keep = _spread(len(points), 600)
                axes.scatter(points[keep, 0].numpy(), points[keep, 1].numpy(), s=5, c=colour, alpha=0.25, linewidths=0, label=label)
            size = (9 * weight / weight.mean()).clamp_max(90)
            axes.scatter(place[:, 0].numpy(), place[:, 1].numpy(), s=size.numpy(), c=INK, alpha=0.75, linewidths=0)
            axes.set_xlim(float(low[0] - margin[0]), float(high[0] + margin[0]))
            axes.set_ylim(float(low[1] - margin[1]), float(high[1] + margin[1]))
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5, fontsize=7, markerscale=2)
            axes.set_title(f"t = {t:.3g}", loc="right", fontsize=9)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
            image = Image.open(buffer).convert("RGB")
            images.append(image.quantize(palette=images[0]) if images else image.quantize(colors=128))
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="PNG", save_all=True, append_images=images[1:], duration=round(1000 * seconds / len(images)), loop=0, optimize=True
    )
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _spread(n: int, most: int = _MOST) -> Tensor:
    """Indices of at most ``most`` evenly spaced points."""
    return torch.arange(n) if n <= most else torch.arange(most) * n // most
