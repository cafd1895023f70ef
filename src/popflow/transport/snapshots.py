"""Samples of a population at several times: real times, masses, and held-out marginals that no fit uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace as _replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Samples ``x[i] [n_i, d]`` of the marginals at the times ``t_0 < ... < t_{M-1}``; cells of different times are not paired.

    Model coordinates come from raw ones by ``(raw - shift) / scale``. Make them with `Snapshots.of`, which sorts and converts.

    Attributes:
        x: One tensor ``[n_i, d]`` per time, of one dtype and device.
        times: ``[M]``, float64, strictly increasing, in the user's own unit.
        mass: ``[M]``, float64, above 0: total mass relative to the first.
        labels: The times as the user gave them.
        held_out: Marginals that only `popflow.transport.evaluate` may see. Their values are neither checked nor used by any fit.
        velocity: Measured velocities like ``x``, in units of ``x`` per unit of time (RNA velocity), or None.
        shift: ``[d]``, see above.
        scale: ``[d]``, see above.

    Raises:
        ValueError: for fewer than two times, times that are not finite and increasing, fewer than two cells at a time, shapes that do not
            fit, values that are not finite, masses that are not above 0, and held-out marginals at an end.

    Example:
        >>> snapshots = Snapshots.of([torch.zeros(3, 2), torch.ones(4, 2), torch.full((6, 2), 2.0)], times=[2, 3, 7], masses="counts")
        >>> snapshots.unit_times.tolist(), [round(m, 2) for m in snapshots.mass.tolist()]
        ([0.0, 0.2, 1.0], [1.0, 1.33, 2.0])
        >>> snapshots.hold_out(1).training.labels
        (2, 7)
    """

    x: tuple[Tensor, ...]
    times: Tensor
    mass: Tensor
    labels: tuple[Any, ...]
    held_out: tuple[int, ...] = ()
    velocity: tuple[Tensor, ...] | None = None
    shift: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.x)
        if count < 2:
            raise ValueError(f"x holds {count} snapshot(s), wanted at least two: a flow needs samples of two different times.")
        if self.times.shape != (count,) or len(self.labels) != count:
            raise ValueError(
                f"times has shape {tuple(self.times.shape)} and there are {len(self.labels)} labels for {count} snapshots, wanted one each."
            )
        if not bool(self.times.isfinite().all()) or not bool((self.times.diff() > 0).all()):
            raise ValueError(f"times={self.times.tolist()}, wanted finite, strictly increasing ones: Snapshots.of sorts them.")
        _check_masses("mass", self.mass, count)
        for k in self.held_out:
            if not 0 < k < count - 1:
                which = f"the time {self.labels[k]!r} (marginal {k}) is an end point" if 0 <= k < count else f"there is no marginal {k}"
                raise ValueError(
                    f"hold out: {which}, wanted one of the times {list(self.labels[1:-1])} (marginals {list(range(1, count - 1))}): what lies "
                    "outside the training times would be extrapolated."
                )
        dim = self.x[0].shape[-1] if self.x[0].ndim == 2 else None
        for k, rows in enumerate(self.x):
            if rows.ndim != 2 or rows.shape[-1] != dim or rows.shape[-1] == 0 or not rows.is_floating_point():
                raise ValueError(f"x[{k}] is {rows.dtype} of shape {tuple(rows.shape)}, wanted floating-point [cells, {dim or 'dim'}].")
            if len(rows) < 2:
                raise ValueError(
                    f"x[{k}] holds {len(rows)} cell(s) at time {self.labels[k]!r}, wanted at least two: drop that time or merge it."
                )
            self._finite(f"x[{k}]", k, rows)
            if self.velocity is not None:
                if len(self.velocity) != count or self.velocity[k].shape != rows.shape:
                    raise ValueError(f"velocity does not have the shapes of x: wanted {tuple(rows.shape)} at time {self.labels[k]!r}.")
                self._finite(f"velocity[{k}]", k, self.velocity[k])

    def _finite(self, name: str, k: int, rows: Tensor) -> None:
        if k not in self.held_out and not bool(rows.isfinite().all()):
            bad = int((~rows.isfinite()).any(-1).sum())
            raise ValueError(f"{name} holds NaN or infinite values in {bad} of {len(rows)} cells, wanted finite ones: drop or impute them.")

    @staticmethod
    def of(
        x: Any,
        times: Sequence[Any] | Tensor | np.ndarray | None = None,
        masses: Sequence[float] | Tensor | str | None = None,
        velocity: Any = None,
    ) -> Snapshots:
        """Make snapshots from one array per time, or from one array of all cells with a time for each.

        Args:
            x: A list or tuple of arrays ``[n_i, d]``, one per time, or one array ``[n, d]``.
            times: One per array, or one per cell: numbers, or text that reads as a number ("2", "10"; sorted as numbers). None numbers a
                list of arrays 0, 1, ...
            masses: Total masses, in the order of the arrays (of the sorted times where ``x`` is one array); ``"counts"`` takes the numbers
                of cells, None the same mass at all times. Only their ratios matter.
            velocity: Like ``x``, or None.

        Raises:
            ValueError: see the class; also for two labels of the same time ("1" and 1.0).
            TypeError: for sparse matrices, and times that are not numbers.
        """
        if isinstance(x, Tensor | np.ndarray) or _sparse(x):
            x, times, velocity = _grouped(dense("x", x), times, None if velocity is None else dense("velocity", velocity))
        else:
            x = [dense(f"x[{k}]", rows) for k, rows in enumerate(x)]
            velocity = None if velocity is None else [dense(f"velocity[{k}]", rows) for k, rows in enumerate(velocity)]
            times = list(range(len(x))) if times is None else _plain(times)
        labels = tuple(times)
        values = [_number(label) for label in labels]
        order = sorted(range(len(values)), key=values.__getitem__)
        for a, b in pairwise(order):
            if values[a] == values[b]:
                raise ValueError(
                    f"times: the labels {labels[a]!r} and {labels[b]!r} are the same time {values[a]!r}, wanted one array per time: "
                    "concatenate those arrays, or repair the labels."
                )
        if len(x) != len(labels):
            raise ValueError(f"times holds {len(labels)} values for {len(x)} snapshots, wanted one each.")
        if isinstance(masses, str):
            if masses != "counts":
                raise ValueError(f'masses={masses!r}, wanted numbers, "counts" or None.')
            masses = [float(len(rows)) for rows in x]
        mass = torch.ones(len(x), dtype=torch.float64) if masses is None else torch.as_tensor(masses, dtype=torch.float64).cpu()
        _check_masses("masses", mass, len(x))
        mass = mass[order]
        return Snapshots(
            tuple(x[k] for k in order),
            torch.tensor([values[k] for k in order], dtype=torch.float64),
            mass / mass[0],
            tuple(labels[k] for k in order),
            velocity=None if velocity is None else tuple(velocity[k] for k in order),
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """Number of coordinates of a cell."""
        return self.x[0].shape[1]

    @property
    def unit_times(self) -> Tensor:
        """The times mapped to [0, 1] with their real spacing, ``[M]``, float64."""
        return (self.times - self.times[0]) / (self.times[-1] - self.times[0])

    def index(self, label: Any) -> int:
        """Return the number of the marginal at a time, given as a number or as its label.

        >>> Snapshots.of([torch.zeros(2, 1)] * 3, times=["0", "10", "2"]).index(2)
        1
        """
        wanted = _number(label)
        for k, t in enumerate(self.times.tolist()):
            if t == wanted:
                return k
        raise ValueError(f"there is no snapshot at time {label!r}, wanted one of {list(self.labels)}.")

    def hold_out(self, *k: int) -> Snapshots:
        """Return the snapshots with the marginals ``k`` (0 is the first) reserved for evaluation."""
        return _replace(self, held_out=tuple(sorted({*self.held_out, *k})))

    @property
    def training(self) -> Snapshots:
        """The snapshots without those held out, which a fit may use. Times, masses and coordinates stay."""
        if not self.held_out:
            return self
        keep = [k for k in range(len(self)) if k not in self.held_out]
        return _replace(
            self,
            x=tuple(self.x[k] for k in keep),
            times=self.times[keep],
            mass=self.mass[keep],
            labels=tuple(self.labels[k] for k in keep),
            held_out=(),
            velocity=None if self.velocity is None else tuple(self.velocity[k] for k in keep),
        )

    def standardised(self) -> Snapshots:
        """Subtract the mean and divide every coordinate by its standard deviation, both of the training marginals together."""
        cells = torch.cat(self.training.x)
        return self._transformed(cells.mean(0), _spread(cells))

    def scaled(self) -> Snapshots:
        """Subtract the mean and divide all coordinates by the largest of their standard deviations: distances keep their proportions."""
        cells = torch.cat(self.training.x)
        return self._transformed(cells.mean(0), _spread(cells).max().expand(self.dim))

    def _transformed(self, shift: Tensor, scale: Tensor) -> Snapshots:
        return _replace(
            self,
            x=tuple((rows - shift) / scale for rows in self.x),
            velocity=None if self.velocity is None else tuple(rows / scale for rows in self.velocity),
            shift=self.raw(shift),
            scale=scale if self.scale is None else self.scale * scale,
        )

    def raw(self, x: Tensor) -> Tensor:
        """Return model coordinates ``[..., d]`` in raw ones."""
        return x if self.shift is None or self.scale is None else x * self.scale.to(x) + self.shift.to(x)

    def model(self, raw: Tensor) -> Tensor:
        """Return raw coordinates ``[..., d]`` in those of the model."""
        return raw if self.shift is None or self.scale is None else (raw - self.shift.to(raw)) / self.scale.to(raw)

    def to(self, *args: Any, **kwargs: Any) -> Snapshots:
        """Move or cast the coordinates as `torch.Tensor.to`; times and masses stay float64 on the CPU."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return None if value is None else value.to(*args, **kwargs)

        return _replace(self, **{name: moved(getattr(self, name)) for name in ("x", "velocity", "shift", "scale")})


def _check_masses(name: str, mass: Tensor, count: int) -> None:
    if mass.shape != (count,) or not bool((mass.isfinite() & (mass > 0)).all()):
        raise ValueError(f"{name}={mass.tolist()}, wanted one finite number above 0 for each of {count} times.")


def _spread(cells: Tensor) -> Tensor:
    """Standard deviation of each coordinate; refuse one that is 0."""
    scale = cells.std(0, correction=0)
    if not bool((scale > 0).all()):
        flat = (scale <= 0).nonzero().flatten().tolist()
        raise ValueError(f"the coordinates {flat} are the same in all training cells and cannot be scaled: drop them.")
    return scale


def _grouped(x: Tensor, times: Any, velocity: Tensor | None) -> tuple[list[Tensor], list[Any], list[Tensor] | None]:
    """Split one array of cells by their times."""
    if times is None:
        raise ValueError("times is None with one array x, wanted a time for each cell: or pass a list of arrays.")
    labels = _plain(times)
    if x.ndim != 2 or len(labels) != len(x):
        raise ValueError(f"times holds {len(labels)} values for x of shape {tuple(x.shape)}, wanted [cells, dim] and a time for each cell.")
    if velocity is not None and velocity.shape != x.shape:
        raise ValueError(f"velocity has shape {tuple(velocity.shape)}, wanted that of x, {tuple(x.shape)}.")
    members: dict[Any, list[int]] = {}
    for k, label in enumerate(labels):
        members.setdefault((type(label), label), []).append(k)
    groups = sorted(members.items(), key=lambda group: _number(group[0][1]))

    def split(rows: Tensor) -> list[Tensor]:
        return [rows[index] for _, index in groups]

    return split(x), [label for (_, label), _ in groups], None if velocity is None else split(velocity)


def _plain(times: Any) -> list[Any]:
    """Times as plain Python values."""
    return times.tolist() if isinstance(times, Tensor | np.ndarray) else [t.item() if isinstance(t, np.generic) else t for t in times]


def _number(label: Any) -> float:
    """The time that a label stands for."""
    try:
        if isinstance(label, bool) or label is None:
            raise ValueError
        value = float(label)
    except (TypeError, ValueError):
        raise TypeError(
            f"times: {label!r} is not a number, wanted numbers or text that reads as one: text sorts as '10' < '2'. "
            "Fix: map the labels to times in one unit, for example days."
        ) from None
    if not math.isfinite(value):
        raise ValueError(f"times: {label!r} is not finite, wanted the time of the snapshot: drop cells without one.")
    return value


def _sparse(x: Any) -> bool:
    return hasattr(x, "tocsr") or (isinstance(x, Tensor) and x.layout != torch.strided)


def dense(name: str, x: Any) -> Tensor:
    """Return an array as a floating-point tensor.

    Raises:
        TypeError: for sparse arrays, and tables with names, whose columns would be taken in whatever order they stand.
    """
    if _sparse(x):
        raise TypeError(f"{name} is a sparse {type(x).__name__}, wanted dense coordinates: take principal components of it.")
    if hasattr(x, "columns") and hasattr(x, "to_numpy"):
        raise TypeError(
            f"{name} is a {type(x).__name__}, wanted an array. Fix: give its to_numpy(), and the names of its columns as features if asked for."
        )
    rows = torch.as_tensor(x)
    return rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())
