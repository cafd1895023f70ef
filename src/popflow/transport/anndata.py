"""AnnData files in and out: snapshots from ``obs`` and ``obsm``; velocities, growth, fates and settings written back under new keys.

    obs["popflow_growth"]         growth rate of each cell, one over the unit of time; relative to the mean of its time unless masses are true
    obs["popflow_fate"]           most probable type at the last time, where cell types were given
    obsm["popflow_velocity"]      drift, in units of the representation per unit of time
    obsm["X_popflow"]             where each cell is one snapshot later (cells of the last snapshot stay), to be drawn as an embedding;
                                  under noise the mean over uns["popflow"]["draws"] draws, as for the fates
    obsm["popflow_fate"]          probability of each type of uns["popflow"]["types"]
    uns["popflow"]                settings and figures of the fit

Nothing else in a file is touched: it is copied byte by byte, and the new keys are added to the copy. Counts are never loaded whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.core.checkpoint import whole
from popflow.core.errors import CheckpointError, MissingExtraError, unknown
from popflow.core.streams import Streams
from popflow.transport.evaluate import Flow
from popflow.transport.fate import Fates, fates_at_every_time, growth_rates
from popflow.transport.predict import Prediction, draws_of, expected, in_blocks
from popflow.transport.snapshots import Snapshots

KEY = "popflow"
_CHECKED, _AGREES = 64, 1e-2
_MOST_TYPES = 200
"""Tables of fates and growth have a row for each type."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Snapshots, and the rows of their cells in the file.

    Attributes:
        snapshots: The cells in the coordinates of the representation; standardise them before a fit.
        rows: For each marginal the rows of its cells in the file.
        count: Number of cells in the file, including those without a time.
        rep: Key of ``obsm`` with the coordinates.
        annotation: The type of each cell of each marginal, or None.
    """

    snapshots: Snapshots
    rows: tuple[np.ndarray, ...]
    count: int
    rep: str
    annotation: tuple[tuple[str, ...], ...] | None = None

    def spread(self, values: Sequence[Tensor]) -> np.ndarray:
        """Values per marginal ``[n_i, ...]`` in the order of the file ``[count, ...]``; NaN for cells of no marginal."""
        out = np.full((self.count, *values[0].shape[1:]), np.nan, dtype=np.float32)
        for rows, value in zip(self.rows, values, strict=True):
            out[rows] = value.detach().cpu().float().numpy()
        return out


def read(
    source: Any,
    *,
    time: str,
    rep: str = "X_pca",
    dims: int | None = None,
    velocity: str | None = None,
    types: str | None = None,
    masses: Sequence[float] | str | None = None,
) -> Cells:
    """Read snapshots from an ``.h5ad`` file (opened in backed mode: counts stay on disk) or an AnnData object, backed or not.

    Args:
        source: Path of the file, or the object.
        time: Column of ``obs``: numbers, text that reads as numbers, or dates or durations (see `in_days`); cells without a value are left out.
        rep: Key of ``obsm``.
        dims: How many of its leading coordinates to use; None: all.
        velocity: Key of ``obsm`` with a measured velocity of each cell in the coordinates of ``rep``.
        types: Column of ``obs`` with cell types, for fates and growth per type.
        masses: As in `Snapshots.of`.

    Raises:
        ValueError: for a missing key (naming the closest one), and whatever `Snapshots` refuses.
        TypeError: for a sparse representation or times that are not numbers.
        MissingExtraError: without anndata.
        CheckpointError: when the file cannot be read.
    """
    with opened(source) as adata:
        keys = {"time": (time, adata.obs), "rep": (rep, adata.obsm), "velocity": (velocity, adata.obsm), "types": (types, adata.obs)}
        for name, (key, place) in keys.items():
            if key is not None and key not in place:
                raise ValueError(unknown(f"{name}: key of {'obs' if place is adata.obs else 'obsm'}", key, map(str, place.keys())))
        x = coordinates(rep, adata.obsm[rep], dims)
        moving = None if velocity is None else coordinates(velocity, adata.obsm[velocity], dims)
        column = in_days(adata.obs[time])
        timed = np.flatnonzero(~column.isna().to_numpy())
        labels = [value.item() if isinstance(value, np.generic) else value for value in column.iloc[timed].tolist()]
        place = torch.as_tensor(timed)
        snapshots = Snapshots.of(x[place], labels, masses, None if moving is None else moving[place])
        rows = tuple(timed[[k for k, label in enumerate(labels) if label == wanted]] for wanted in snapshots.labels)
        annotation = None
        if types is not None:
            check_names(types, adata.obs[types])
            names = adata.obs[types].astype(object).where(~adata.obs[types].isna(), "unknown").astype(str).to_numpy()
            annotation = tuple(tuple(names[r].tolist()) for r in rows)
        return Cells(snapshots, rows, adata.n_obs, rep, annotation)


def in_days(column: Any) -> Any:
    """A column of durations as numbers of days, of dates as days since the first; any other column as it is.

    Durations and dates are ``timedelta64`` and ``datetime64``, or text such as "36 h", "2 days" and "2024-05-01": h5ad files hold text alone.

    >>> import pandas as pd
    >>> in_days(pd.Series(["36 h", "2 days", None])).tolist(), in_days(pd.Series(["2024-05-01", "2024-05-03T12:00"])).tolist()
    ([1.5, 2.0, nan], [0.0, 2.5])
    """
    import pandas

    pd: Any = pandas  # its stubs know less of columns than it does
    values = column.astype(column.cat.categories.dtype) if isinstance(column.dtype, pd.CategoricalDtype) else column
    if values.dtype.kind not in "mM":
        if pd.api.types.is_numeric_dtype(values) or pd.to_numeric(values.dropna(), errors="coerce").notna().any():
            return column
        spans = pd.to_timedelta(values, errors="coerce")
        dates = pd.to_datetime(values, errors="coerce", format="ISO8601") if spans.isna().any() else spans
        values = next((read for read in (spans, dates) if bool((read.notna() == values.notna()).all())), None)
        if values is None:
            return column
    return ((values - values.min()) if values.dtype.kind == "M" else values) / pd.Timedelta(days=1)


def write_flow(
    source: str | Path,
    target: str | Path,
    cells: Cells,
    flow: Flow,
    *,
    fate: Fates | None,
    about: Mapping[str, Any],
    rng: Streams,
    draws: int | None = None,
) -> Path:
    """Copy the file of the cells and add what a flow predicts for each: velocity, growth, place one snapshot later, and fate.

    Args:
        source: The file that the cells were read from.
        target: Where the copy goes.
        cells: The cells, scaled as for the fit.
        flow: The fitted flow.
        fate: Fates of the first marginal at the last; None writes none.
        about: Entries of ``uns["popflow"]``: numbers, text, lists, and mappings of them.
        rng: Streams for the noise of the flow.
        draws: Draws of the noise over which places one snapshot later are averaged, as in `popflow.transport.fate.fates`.

    Raises:
        ValueError, CheckpointError: as `write`.
    """
    import pandas as pd

    snapshots, times = cells.snapshots, [float(t) for t in cells.snapshots.times]
    scale = torch.ones(snapshots.dim) if snapshots.scale is None else snapshots.scale.cpu()
    each = list(zip(times, snapshots.x, strict=True))
    velocity = [in_blocks(lambda x, t=t: flow.velocity(t, x), x).cpu() * scale for t, x in each]
    later = [
        in_blocks(lambda x, k=k: expected(flow, x, times[k], times[k + 1], rng, draws=draws), x) for k, x in enumerate(snapshots.x[:-1])
    ]
    obs: dict[str, Any] = {f"{KEY}_growth": cells.spread(growth_rates(flow, snapshots))}
    obsm = {f"{KEY}_velocity": cells.spread(velocity), f"X_{KEY}": cells.spread([snapshots.raw(x) for x in (*later, snapshots.x[-1])])}
    about = {**about, "times": times, "draws": draws_of(flow, draws)}
    if fate is not None and cells.annotation is not None:
        share = cells.spread(fates_at_every_time(flow, snapshots, cells.annotation, fate, rng=rng))
        code = np.where(np.isnan(share[:, 0]), -1, share.argmax(1))
        obs[f"{KEY}_fate"], obsm[f"{KEY}_fate"] = pd.Categorical.from_codes(code, categories=list(fate.types)), share
        about["types"] = list(fate.types)
    return write(source, target, obs, obsm, about)


def check_place(source: str | Path, *, types: bool) -> None:
    """Check before a fit that `write_flow` can add its keys to a file; with ``types`` also those of fates.

    Raises:
        ValueError: as `write`.
        CheckpointError: when the file cannot be read.
    """
    import h5py

    fate = [f"{KEY}_fate"] if types else []
    try:
        with h5py.File(source) as file:
            _check_place(file, source, [f"{KEY}_growth", *fate], [f"{KEY}_velocity", f"X_{KEY}", *fate])
    except (OSError, KeyError) as error:
        raise CheckpointError(f"cannot read {source} as h5ad: {error}. Fix: give the path of an AnnData file.") from error


def _check_place(file: Any, source: str | Path, obs: Iterable[str], obsm: Iterable[str]) -> None:
    for group, keys in (("obs", obs), ("obsm", obsm)):
        for key in keys:
            if f"{group}/{key}" in file and f"uns/{KEY}" not in file:
                raise ValueError(f"{source} already has {group}[{key!r}], wanted a file without it: rename or drop it there.")
    if "column-order" not in file["obs"].attrs:
        raise ValueError(f"{source} uses a format older than anndata 0.7, wanted a current one: read it and write it again.")


def write(source: str | Path, target: str | Path, obs: Mapping[str, Any], obsm: Mapping[str, np.ndarray], uns: Mapping[str, Any]) -> Path:
    """Copy an ``.h5ad`` file and add columns, arrays and ``uns["popflow"]`` to the copy; the copy is written atomically.

    Raises:
        ValueError: when the file has one of the keys already and it is not of an earlier run of popflow.
        CheckpointError: when the copy cannot be written.
    """
    import h5py
    from anndata.io import write_elem

    with whole(target) as temporary:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            _check_place(file, source, obs, obsm)
            columns: Any = file["obs"]
            for key, value in obs.items():
                write_elem(columns, key, value)
            order = [str(name) for name in columns.attrs["column-order"]]
            columns.attrs["column-order"] = [*order, *(key for key in obs if key not in order)]
            for key, value in obsm.items():
                write_elem(file.require_group("obsm"), key, value)
            write_elem(file.require_group("uns"), KEY, dict(uns))
    return Path(target)


def write_predictions(source: Any, target: str | Path, rep: str, predictions: Sequence[Prediction]) -> str:
    """Write predicted cells to an ``.h5ad`` file of their own: time, weight and way in ``obs``, positions in ``obsm``, genes in ``X`` if known.

    Args:
        source: The file that the snapshots were read from, or its AnnData object: its principal components decode genes.
        target: The file to write; whole or absent.
        rep: Key of the positions.
        predictions: Cells in raw coordinates; weights are written relative to their mean.

    Returns:
        Whether genes were decoded, in words.
    """
    import pandas as pd
    from anndata import AnnData

    positions = torch.cat([one.cells.x for one in predictions])
    try:
        genes, names = genes_of(source, rep, positions)
        x, var, told = genes.astype(np.float32), pd.DataFrame(index=pd.Index(names)), "with genes decoded from principal components"
    except ValueError as error:
        x, var, told = None, None, f"without genes: {error}"
    columns = {
        "time": [one.time for one in predictions for _ in range(len(one.cells))],
        "way": pd.Categorical([one.way for one in predictions for _ in range(len(one.cells))]),
        "weight": torch.cat([one.cells.weights() * len(one.cells) for one in predictions]).double().cpu().numpy(),
    }
    obs = pd.DataFrame(columns, index=pd.Index([str(k) for k in range(len(positions))]))
    adata = AnnData(X=x, obs=obs, var=var)
    adata.obsm[rep] = positions.float().cpu().numpy()
    with whole(target) as temporary:
        adata.write_h5ad(temporary)
    return told


def genes_of(source: Any, rep: str, positions: Tensor) -> tuple[np.ndarray, list[str]]:
    """Decode positions ``[n, d]`` in principal components to genes, ``mean + positions @ PCs[:, :d].T``, as ``[n, genes]``.

    The mean is that of ``X``, and the components are those of ``varm["PCs"]``. Whether ``obsm[rep]`` is ``(X - mean) @ PCs`` is checked on
    some cells: genes that were scaled, or components of other genes, decode to nothing meaningful.

    Args:
        source: An ``.h5ad`` file or an AnnData object with principal components of ``X``.
        rep: Key of ``obsm`` of the positions.
        positions: Raw coordinates.

    Raises:
        ValueError: when the representation cannot be decoded; the message says why.
    """
    with opened(source) as adata:
        if "PCs" not in adata.varm:
            raise ValueError(
                f"varm has no 'PCs' (it has {sorted(map(str, adata.varm.keys()))}), wanted the components behind obsm[{rep!r}]."
            )
        if adata.X is None:
            raise ValueError("X is empty, wanted the expression that the components were computed from.")
        components, known = np.asarray(adata.varm["PCs"], dtype=np.float64), np.asarray(adata.obsm[rep], dtype=np.float64)
        d = positions.shape[1]
        if components.shape[1] < known.shape[1] or known.shape[1] < d:
            raise ValueError(f"varm['PCs'] has {components.shape[1]} components and obsm[{rep!r}] {known.shape[1]}: they do not match.")
        total = np.zeros(adata.n_vars)
        for begin in range(0, adata.n_obs, 4096):
            total += np.asarray(adata.X[begin : begin + 4096].sum(axis=0)).ravel()
        mean = total / adata.n_obs
        sample = np.unique(np.linspace(0, adata.n_obs - 1, _CHECKED).astype(int))
        rows = adata.X[sample]
        seen = ((rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)) - mean) @ components[:, : known.shape[1]]
        error = np.abs(seen - known[sample]).max() / np.abs(known[sample]).max()
        if not error < _AGREES:
            raise ValueError(
                f"obsm[{rep!r}] is not (X - mean) @ varm['PCs'] (off by {error:.2g} of its largest value), wanted components of X as it is "
                "stored: genes were scaled, or X was changed after the components were computed."
            )
        return mean + positions.double().cpu().numpy() @ components[:, :d].T, [str(name) for name in adata.var_names]


@contextmanager
def opened(source: Any) -> Iterator[Any]:
    """Open a path in backed mode and close it at the end; an object stays as it is."""
    if not isinstance(source, str | Path):
        yield source
        return
    try:
        from anndata import read_h5ad
    except ImportError as error:
        raise MissingExtraError(f"anndata is not installed; it reads {source}. Fix: pip install 'popflow[cells]'.") from error
    try:
        adata = read_h5ad(source, backed="r")
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read {source}: no such file. Fix: give the path of an AnnData file.") from error
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {source} as h5ad: {error}. Fix: give the path of an AnnData file.") from error
    try:
        yield adata
    finally:
        adata.file.close()


def check_names(key: str, column: Any) -> None:
    """Refuse a column of measurements, or of one name for each cell, as cell types."""
    kinds = column.nunique()
    if column.dtype.kind == "f" and bool((column.dropna() % 1 != 0).any()):
        raise ValueError(
            f"types={key!r} holds numbers such as {column.dropna().iloc[0]!s}, wanted a column of `obs` with names of cell types."
        )
    if kinds > _MOST_TYPES:
        raise ValueError(f"types={key!r} holds {kinds} different names, wanted at most {_MOST_TYPES}: a column of `obs` with cell types.")


def coordinates(key: str, value: Any, dims: int | None) -> Tensor:
    """An entry of ``obsm`` as float32 ``[cells, dims]``."""
    if hasattr(value, "tocsr"):
        raise TypeError(f"obsm[{key!r}] is sparse, wanted dense coordinates: take principal components (scanpy.pp.pca) and give their key.")
    array = np.asarray(value)
    if dims is not None and not 1 <= dims <= array.shape[1]:
        raise ValueError(
            f"dims={dims}, wanted 1 to {array.shape[1]}, the number of coordinates in obsm[{key!r}]. Fix: dims={array.shape[1]} takes all."
        )
    return torch.from_numpy(np.array(array[:, :dims], dtype=np.float32))
