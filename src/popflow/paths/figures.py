"""Figures of transition paths in two coordinates, over the contours of their potential; of one coordinate, over its energy."""

from __future__ import annotations

import torch
from torch import Tensor

from popflow.paths.scene import Scene
from popflow.runs.canvas import COLOURS, INK, axes_of, data_uri, style

LABELS = {"x_label": "x", "y_label": "y"}


def plane(scene: Scene, x: Tensor) -> Tensor:
    """Two coordinates ``[..., 2]`` to draw of states ``[..., D]``: the first two, or the only one and the energy relative to A."""
    return x[..., :2] if scene.dim > 1 else torch.cat([x, scene.energy(x).unsqueeze(-1)], -1)


def labels(scene: Scene) -> dict[str, str]:
    """Labels of the axes."""
    return LABELS if scene.dim > 1 else {"x_label": "x", "y_label": "U - U(A)"}


def landscape(scene: Scene, paths: Tensor, mean: Tensor) -> str:
    """Paths ``[n, K + 1, D]`` and their mean ``[K + 1, D]`` over the potential, as a PNG; contours are kT apart, up to 30 kT over A."""
    drawn = plane(scene, torch.cat([paths.flatten(0, 1), mean]))
    low, high = drawn.quantile(0.001, 0), drawn.quantile(0.999, 0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    with style():
        figure, axes = axes_of(*labels(scene).values(), width=6.0, height=4.6)
        if scene.dim == 2:
            xs, ys = (torch.linspace(float(a), float(b), 160, dtype=torch.float64) for a, b in zip(low, high, strict=True))
            energy = scene.energy(torch.cartesian_prod(xs, ys)).reshape(160, 160).T
            kt = float(scene.process.noise) ** 2 / 2
            least = float(energy.min())
            levels = (least + kt * torch.arange(31)).tolist()
            field = axes.contourf(xs.numpy(), ys.numpy(), energy.clamp_max(levels[-1]).numpy(), levels=levels, cmap="Greys_r", alpha=0.55)
            figure.colorbar(field, ax=axes, label="U - U(A)", shrink=0.85)
        for one in plane(scene, paths):
            axes.plot(*one.T.numpy(), color=COLOURS[0], linewidth=0.5, alpha=0.5)
        axes.plot(*plane(scene, mean).T.numpy(), color=COLOURS[1], linewidth=1.8, label="weighted mean")
        for name, state in (("A", scene.start), ("B", scene.end)):
            place = plane(scene, state[None])[0].tolist()
            axes.scatter(*[[one] for one in place], s=30, c=INK, zorder=4)
            axes.annotate(name, tuple(place), xytext=(5, 5), textcoords="offset points", fontsize=10)
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
        axes.legend(fontsize=8)
        return data_uri(figure, "png")
