r"""The columns of a table, and the coordinates that the diffusion model sees.

A numeric column becomes one standardised coordinate ``(x - mean) / std``; a constant one none, and is put back on the way out. A column of ``K``
categories becomes a code of ``K`` coordinates, ``(1[x = k] - 1/K) K / sqrt(K - 1)``, which has unit variance where all categories are equally
frequent. Coordinates that do not stand for a row, such as samples of a diffusion model, are decoded to the nearest one: the category of the largest
coordinate, and in columns of whole numbers the nearest one between the least and the greatest of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.core.errors import unknown


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Its name, or its number as text.
        mean: Mean of a numeric column; the value of a constant one.
        std: Standard deviation of a numeric column, 0 for a constant one.
        integer: Whether values are whole numbers.
        low: The least of them.
        high: The greatest of them.
        categories: The values of a column of categories, sorted as text; None for a numeric column.
    """

    name: str
    mean: float = 0.0
    std: float = 0.0
    integer: bool = False
    low: float = -math.inf
    high: float = math.inf
    categories: tuple[Any, ...] | None = None

    @property
    def width(self) -> int:
        """Coordinates that it takes."""
        if self.categories is not None:
            return len(self.categories) if len(self.categories) > 1 else 0
        return int(self.std > 0)


@dataclass(frozen=True, eq=False)
class Schema:
    """The columns of a table in their order, learned from rows by `Schema.of`.

    Attributes:
        columns: The columns.
        form: What rows came as, and what `decode` returns: ``"array"``, ``"frame"`` (of pandas) or ``"mapping"``.
        dtype: Type of the array that `decode` returns.

    Example:
        >>> schema = Schema.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> schema.dim, schema.encode(np.array([[2.0, 5.0]])).tolist(), schema.decode(torch.tensor([[1.0]])).tolist()
        (1, [[0.0]], [[3.0, 5.0]])
        >>> letters = Schema.of({"base": ["A", "C", "A"]})
        >>> letters.decode(letters.encode({"base": ["C"]}))["base"].tolist()
        ['C']
    """

    columns: tuple[Column, ...]
    form: str = "array"
    dtype: Any = np.float64

    @staticmethod
    def of(rows: Any, categorical: Sequence[str | int] | str = ()) -> Schema:
        """Learn the columns from rows.

        Args:
            rows: A pandas DataFrame, a mapping of name to values, or an array ``[n, columns]``.
            categorical: Names or numbers of columns whose numbers are labels, or ``"all"``. Columns of text, booleans and pandas categories are
                recognised.

        Raises:
            ValueError: for no rows, values that are missing or infinite, or a name in ``categorical`` that is no column.
            TypeError: for a column that holds neither numbers nor text.
        """
        table = columns_of(rows)
        wanted = set(table) if categorical == "all" else {str(_name(one, list(table))) for one in categorical}
        absent = wanted - table.keys()
        if absent:
            raise ValueError(unknown("column in categorical", sorted(absent)[0], table))
        found = tuple(_column(name, values, name in wanted) for name, values in table.items())
        numeric = all(column.categories is None or all(isinstance(one, int | float) for one in column.categories) for column in found)
        integer = all(column.integer or column.categories is not None for column in found)
        form = "mapping" if isinstance(rows, Mapping) else "frame" if hasattr(rows, "iloc") else "array"
        return Schema(found, form, (np.int64 if integer else np.float64) if numeric else object)

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return sum(column.width for column in self.columns)

    @property
    def numeric(self) -> tuple[int, ...]:
        """Places of the columns that have a numeric coordinate; these coordinates come first."""
        return tuple(i for i, column in enumerate(self.columns) if column.categories is None and column.width)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Places of the columns of categories, those of one size together, in ascending size; their codes follow in this order."""
        places = [i for i, column in enumerate(self.columns) if column.categories is not None and column.width]
        sizes = sorted({self.columns[i].width for i in places})
        return tuple(tuple(i for i in places if self.columns[i].width == size) for size in sizes)

    @property
    def groups(self) -> tuple[tuple[int, int, int], ...]:
        """``(first coordinate, number of columns, categories)`` of every group of `blocks`."""
        start, found = len(self.numeric), []
        for places in self.blocks:
            size = self.columns[places[0]].width
            found.append((start, len(places), size))
            start += len(places) * size
        return tuple(found)

    def encode(self, rows: Any) -> Tensor:
        """Return the coordinates of rows, ``[n, dim]`` in float32.

        Raises:
            ValueError: for missing columns, values that are missing or infinite, and categories that were not there when the schema was learned.
        """
        table = columns_of(rows)
        names = [column.name for column in self.columns]
        if not set(names) <= table.keys():
            lacking = [name for name in names if name not in table]
            raise ValueError(
                f"rows lack the columns {', '.join(lacking[:5])}, wanted {', '.join(names[:10])}: give the columns of the fit."
            )
        if len(table) > len(names):
            extra = [name for name in table if name not in names]
            raise ValueError(f"rows have {len(table)} columns, wanted {len(names)}: {', '.join(extra[:5])} were not in the fit. Drop them.")
        n = len(next(iter(table.values())))
        parts = [np.empty((n, 0))]
        for i in self.numeric:
            column = self.columns[i]
            parts.append(((_numbers(column.name, table[column.name]) - column.mean) / column.std)[:, None])
        for column in self.columns:
            if column.categories is None and not column.width:
                _numbers(column.name, table[column.name])
        for places in self.blocks:
            for i in places:
                labels, size = _labels(self.columns[i], table[self.columns[i].name]), self.columns[i].width
                parts.append((np.eye(size)[labels] - 1 / size) * code_scale(size))
        return torch.from_numpy(np.concatenate(parts, 1)).float()

    def snap(self, z: Tensor) -> Tensor:
        """Return the coordinates of the row nearest to each ``z [..., dim]``: whole codes, whole numbers in the range of the table."""
        if not self.groups and not any(self.columns[i].integer for i in self.numeric):
            return z
        z = z.clone()
        for k, i in enumerate(self.numeric):
            column = self.columns[i]
            if column.integer:
                whole = (z[..., k].double() * column.std + column.mean).round().clamp(column.low, column.high)
                z[..., k] = (whole - column.mean).div(column.std).to(z.dtype)
        for start, count, size in self.groups:
            part = z[..., start : start + count * size].unflatten(-1, (count, size))
            code = torch.nn.functional.one_hot(part.argmax(-1), size).to(z.dtype)
            z[..., start : start + count * size] = ((code - 1 / size) * code_scale(size)).flatten(-2)
        return z

    def decode(self, z: Tensor) -> Any:
        """Return rows ``[n, columns]`` of coordinates ``[n, dim]``, in the form that the schema was learned from."""
        table = self.values(z)
        if self.form == "mapping":
            return table
        if self.form == "frame":
            import pandas

            return pandas.DataFrame(table)
        return np.stack([np.asarray(values).astype(self.dtype) for values in table.values()], 1) if table else np.empty((len(z), 0))

    def values(self, z: Tensor) -> dict[str, Any]:
        """Return the columns of rows as a mapping of name to values."""
        z = z.detach().cpu().double()
        made: dict[int, Any] = {}
        for k, i in enumerate(self.numeric):
            column = self.columns[i]
            values = z[:, k].numpy() * column.std + column.mean
            made[i] = np.rint(values).astype(np.int64) if column.integer else values
        for (start, count, size), places in zip(self.groups, self.blocks, strict=True):
            labels = z[:, start : start + count * size].unflatten(1, (count, size)).argmax(2).numpy()
            for k, i in enumerate(places):
                made[i] = _array(self.columns[i].categories or ())[labels[:, k]]
        for i, column in enumerate(self.columns):
            if i not in made:
                only = column.categories[0] if column.categories else int(column.mean) if column.integer else column.mean
                made[i] = _array((only,))[np.zeros(len(z), dtype=int)]
        return {column.name: made[i] for i, column in enumerate(self.columns)}

    def units(self, z: Tensor) -> Tensor:
        """Return ``[n, columns]`` in the user's units, differentiable in ``z``; for tables of numbers alone.

        Raises:
            TypeError: when a column holds categories.
        """
        if any(column.categories is not None for column in self.columns):
            names = [column.name for column in self.columns if column.categories is not None]
            raise TypeError(f"columns {', '.join(names[:5])} hold categories, and have no gradient: give the objective as a black box.")
        made = [
            torch.full_like(z[..., 0], column.mean) if z.shape[-1] else z.new_full(z.shape[:-1], column.mean) for column in self.columns
        ]
        for k, i in enumerate(self.numeric):
            made[i] = z[..., k] * self.columns[i].std + self.columns[i].mean
        return torch.stack(made, -1)


def code_scale(size: int) -> float:
    """Scale of the code of a column with ``size`` categories.

    >>> code_scale(2)
    2.0
    """
    return size / math.sqrt(size - 1)


def columns_of(rows: Any) -> dict[str, np.ndarray]:
    """Return the columns of a DataFrame, a mapping or an array, by name.

    Raises:
        ValueError: for no rows or columns of different lengths.
        TypeError: for anything else than a table.
    """
    if isinstance(rows, Mapping):
        table = {str(name): np.asarray(values) for name, values in rows.items()}
    elif hasattr(rows, "iloc") and hasattr(rows, "columns"):
        table = {str(name): _of_series(rows[name]) for name in rows.columns}
        if len(table) < len(rows.columns):
            raise ValueError("two columns of the DataFrame have the same name, wanted different ones: rename one.")
    else:
        array = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        if array.ndim != 2:
            raise ValueError(f"rows have {array.ndim} dimension(s), wanted an array [rows, columns]: reshape it.")
        table = {str(i): array[:, i] for i in range(array.shape[1])}
    lengths = {len(values) for values in table.values()}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"rows have columns of lengths {sorted(lengths)}, wanted one length, at least 1: give at least one row.")
    return table


def _of_series(series: Any) -> np.ndarray:
    """Values of a pandas column; categories and pandas' own text and booleans become objects."""
    return np.asarray(series, dtype=object) if str(series.dtype) in ("category", "string", "boolean") else np.asarray(series)


def _name(one: str | int, names: list[str]) -> str:
    return names[one] if isinstance(one, int) and str(one) not in names and -len(names) <= one < len(names) else str(one)


def _column(name: str, values: np.ndarray, categorical: bool) -> Column:
    if categorical or values.dtype.kind in "OUSb":
        plain = values.tolist()
        if (
            values.dtype.kind == "O"
            and not categorical
            and all(isinstance(one, int | float) and not isinstance(one, bool) for one in plain)
        ):
            return _column(name, values.astype(float), categorical=False)
        missing = sum(one is None or (isinstance(one, float) and math.isnan(one)) for one in plain)
        if missing:
            raise ValueError(f"column {name!r} lacks {missing} of {len(plain)} values (NaN or None): drop these rows, or fill them in.")
        odd = next((one for one in plain if not isinstance(one, str | int | float | bool)), None)
        if odd is not None:
            raise TypeError(f"column {name!r} holds a {type(odd).__name__}: the argument must be a string or a real number. Convert it.")
        return Column(name, categories=tuple(sorted(set(plain), key=lambda one: (str(type(one)), one))))
    numbers = _numbers(name, values)
    std, mean = float(numbers.std()), float(numbers.mean())
    constant = std <= 1e-12 * max(1.0, abs(mean))
    mean, std = (float(numbers[0]), 0.0) if constant else (mean, std)
    if values.dtype.kind in "iu":
        return Column(name, mean, std, True, float(numbers.min()), float(numbers.max()))
    return Column(name, mean, std)


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiubO":
        raise TypeError(f"column {name!r} has type {values.dtype}, wanted numbers or text: convert it.")
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"column {name!r} holds {error}: the argument must be a string or a real number. Convert it.") from error
    bad = (~np.isfinite(numbers)).nonzero()[0]
    if len(bad):
        raise ValueError(
            f"column {name!r} holds {len(bad)} of {len(numbers)} values that are NaN or infinite, the first in row {bad[0]}. Fix: drop these rows, with "
            "their values, or fill them in."
        )
    return numbers


def _labels(column: Column, values: np.ndarray) -> np.ndarray:
    places = {one: k for k, one in enumerate(column.categories or ())}
    plain = values.tolist()
    new = next((one for one in plain if one not in places), None)
    if new is not None or any(one not in places for one in plain):
        known = ", ".join(map(repr, list(places)[:10]))
        raise ValueError(
            f"column {column.name!r} holds {new!r}, which was not there at the fit. Known: {known}. Fix: drop these rows, or fit again."
        )
    return np.array([places[one] for one in plain])


def _array(values: Sequence[Any]) -> np.ndarray:
    """An array of values of one kind; of objects where they differ."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    kinds = {type(one) for one in values}
    return np.array(values) if len(kinds) == 1 and not kinds & {str} else array
