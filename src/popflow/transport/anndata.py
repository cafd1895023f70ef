"""AnnData files in and out: snapshots from ``obs`` and ``obsm``; velocities, growth, fate and settings back under keys of their own.

    obs["popflow_growth"]         growth rate of each cell, one over the unit of time
    obs["popflow_fate"]           most probable type at the last time, where cell types were given
    obsm["popflow_velocity"]      drift, in units of the representation per unit of time
    obsm["X_popflow"]             where each cell is one snapshot later (cells of the last snapshot stay), to be drawn as an embedding
    obsm["popflow_fate"]          probability of each type of uns["popflow"]["types"]
    uns["popflow"]                settings and figures of the fit

Nothing else in a file is touched: it is copied byte by byte, and the new keys are added to the copy. Counts are never loaded whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.core.errors import CheckpointError, MissingExtraError, unknown
from popflow.transport.snapshots import Snapshots

KEY = "popflow"
_CHECKED, _AGREES = 64, 1e-2


@dataclass(frozen=True, eq=False)
class Cells:
    """Snapshots, and where their cells stand in the file.

    Attributes:
        snapshots: In the coordinates of the representation; standardise them before a fit.
        rows: For each marginal the rows of its cells in the file.
        count: Cells in the file, those without a time included.
        annotation: The type of each cell of each marginal, or None.
    """

    snapshots: Snapshots
    rows: tuple[np.ndarray, ...]
    count: int
    annotation: tuple[tuple[str, ...], ...] | None = None

    def spread(self, values: Sequence[Tensor], missing: float = float("nan")) -> np.ndarray:
        """Values per marginal ``[n_i, ...]`` in the order of the file ``[count, ...]``; ``missing`` for cells of no marginal."""
        first = values[0]
        out = np.full((self.count, *first.shape[1:]), missing, dtype=np.float32)
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
        time: Column of ``obs``: numbers, or text that reads as numbers; cells without a value are left out.
        rep: Key of ``obsm``.
        dims: How many leading coordinates of it; all unless given.
        velocity: Key of ``obsm`` with a known velocity of each cell in the coordinates of ``rep``.
        types: Column of ``obs`` with cell types, for fates and growth per type.
        masses: As in `Snapshots.of`.

    Raises:
        ValueError: for a key that is absent (naming the closest one), and what `Snapshots` refuses.
        TypeError: for a sparse representation or times that are no numbers.
        MissingExtraError: without anndata.
        CheckpointError: when the file cannot be read.
    """
    if isinstance(source, str | Path):
        adata = _open(source)
        try:
            return read(adata, time=time, rep=rep, dims=dims, velocity=velocity, types=types, masses=masses)
        finally:
            adata.file.close()
    keys = {"time": (time, source.obs), "rep": (rep, source.obsm), "velocity": (velocity, source.obsm), "types": (types, source.obs)}
    for name, (key, place) in keys.items():
        if key is not None and key not in place:
            raise ValueError(unknown(f"{name}: key of {'obs' if place is source.obs else 'obsm'}", key, map(str, place.keys())))
    x = _coordinates(rep, source.obsm[rep], dims)
    moving = None if velocity is None else _coordinates(velocity, source.obsm[velocity], dims)
    column = source.obs[time]
    timed = np.flatnonzero(~column.isna().to_numpy())
    labels = [value.item() if isinstance(value, np.generic) else value for value in column.iloc[timed].tolist()]
    place = torch.as_tensor(timed)
    snapshots = Snapshots.of(x[place], labels, masses, None if moving is None else moving[place])
    rows = tuple(timed[[k for k, label in enumerate(labels) if label == wanted]] for wanted in snapshots.labels)
    annotation = None
    if types is not None:
        names = source.obs[types].astype(object).where(~source.obs[types].isna(), "unknown").astype(str).to_numpy()
        annotation = tuple(tuple(names[r].tolist()) for r in rows)
    return Cells(snapshots, rows, source.n_obs, annotation)


def write(
    source: str | Path,
    target: str | Path,
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray],
    uns: Mapping[str, Any],
) -> Path:
    """Copy an ``.h5ad`` file and add keys to the copy; the copy is whole or absent.

    Args:
        source: The file; it is not changed.
        target: Where the copy goes.
        obs: Column -> values, one per cell (arrays, or pandas categoricals).
        obsm: Key -> array ``[cells, k]``.
        uns: What goes under ``uns["popflow"]``: numbers, text, lists and mappings of them.

    Raises:
        ValueError: when the file has one of the keys already and it is not of an earlier run of popflow.
        CheckpointError: when the copy cannot be written.
    """
    import h5py
    from anndata.io import write_elem

    source, target = Path(source), Path(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            ours = f"uns/{KEY}" in file
            for group, keys in (("obs", obs), ("obsm", obsm)):
                for key in keys:
                    if f"{group}/{key}" in file and not ours:
                        raise ValueError(f"{source} has {group}[{key!r}] already, wanted a file without it: rename or drop it there.")
            columns: Any = file["obs"]
            if "column-order" not in columns.attrs:
                raise ValueError(f"{source} is of a format before anndata 0.7, wanted a current one: read it and write it again.")
            for key, value in obs.items():
                write_elem(columns, key, value)
            order = [str(name) for name in columns.attrs["column-order"]]
            columns.attrs["column-order"] = [*order, *(key for key in obs if key not in order)]
            for key, value in obsm.items():
                write_elem(file.require_group("obsm"), key, value)
            write_elem(file.require_group("uns"), KEY, dict(uns))
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}. Fix: free space, or give another folder.") from error
    finally:
        if temporary is not None and temporary.exists():
            os.unlink(temporary)
    return target


def genes_of(source: Any, rep: str, positions: Tensor) -> tuple[np.ndarray, list[str]]:
    """Decode positions ``[n, d]`` in principal components to genes, ``mean + positions @ PCs[:, :d].T``, as ``[n, genes]``.

    The mean is that of ``X``, and the components are those of ``varm["PCs"]``; whether ``obsm[rep]`` is ``(X - mean) @ PCs`` is checked on
    some cells, for genes that were scaled, or components of other genes, decode to nothing meaningful.

    Args:
        source: An ``.h5ad`` file or an AnnData object with principal components of ``X``.
        rep: Key of ``obsm`` of the positions.
        positions: Raw coordinates.

    Raises:
        ValueError: when the representation cannot be decoded; the message says why.
    """
    if isinstance(source, str | Path):
        adata = _open(source)
        try:
            return genes_of(adata, rep, positions)
        finally:
            adata.file.close()
    if "PCs" not in source.varm:
        raise ValueError(f"varm has no 'PCs' (it has {sorted(map(str, source.varm.keys()))}), wanted the components behind obsm[{rep!r}].")
    if source.X is None:
        raise ValueError("X is empty, wanted the expression that the components were taken of.")
    components, known = np.asarray(source.varm["PCs"], dtype=np.float64), np.asarray(source.obsm[rep], dtype=np.float64)
    d = positions.shape[1]
    if components.shape[1] < known.shape[1] or known.shape[1] < d:
        raise ValueError(
            f"varm['PCs'] has {components.shape[1]} components and obsm[{rep!r}] {known.shape[1]}: they are not of one another."
        )
    total = np.zeros(source.n_vars)
    for begin in range(0, source.n_obs, 4096):
        total += np.asarray(source.X[begin : begin + 4096].sum(axis=0)).ravel()
    mean = total / source.n_obs
    sample = np.unique(np.linspace(0, source.n_obs - 1, _CHECKED).astype(int))
    rows = source.X[sample]
    seen = ((rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)) - mean) @ components[:, : known.shape[1]]
    error = np.abs(seen - known[sample]).max() / np.abs(known[sample]).max()
    if not error < _AGREES:
        raise ValueError(
            f"obsm[{rep!r}] is not (X - mean) @ varm['PCs'] (off by {error:.2g} of its largest value), wanted components of X as it is stored: "
            "genes were scaled, or X was changed after the components were taken."
        )
    return mean + positions.double().cpu().numpy() @ components[:, :d].T, [str(name) for name in source.var_names]


def write_predictions(
    target: str | Path,
    rep: str,
    positions: Tensor,
    *,
    times: Sequence[float],
    ways: Sequence[str],
    weights: Tensor,
    genes: tuple[np.ndarray, list[str]] | None = None,
) -> Path:
    """Write predicted cells as an ``.h5ad`` file of their own: time, weight and way in ``obs``, positions in ``obsm``, genes in ``X`` if known.

    Args:
        target: The file; whole or absent.
        rep: Key of the positions.
        positions: Raw coordinates ``[n, d]``.
        times: Of each cell.
        ways: How each was predicted.
        weights: Of each cell, relative to the mean at its time.
        genes: Expression ``[n, genes]`` and names, as `genes_of` gives them.
    """
    import pandas as pd
    from anndata import AnnData

    names = pd.Index([str(k) for k in range(len(positions))])
    obs = pd.DataFrame({"time": list(times), "way": pd.Categorical(ways), "weight": weights.double().cpu().numpy()}, index=names)
    x, var = (None, None) if genes is None else (genes[0].astype(np.float32), pd.DataFrame(index=pd.Index(genes[1])))
    adata = AnnData(X=x, obs=obs, var=var)
    adata.obsm[rep] = positions.float().cpu().numpy()
    target = Path(target)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.h5ad")
    try:
        adata.write_h5ad(temporary)
        temporary.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}. Fix: free space, or give another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def plain(value: Any) -> Any:
    """Settings as what ``uns`` can hold: nested mappings, numbers, text and lists; anything else as its JSON or text.

    >>> plain({"dims": 5, "held out": (2,), "noise": None})
    {'dims': 5, 'held out': [2], 'noise': 'none'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        same = {type(one) for one in value} in ({int}, {float}, {str}) or not value
        return list(value) if same else json.dumps(value, default=str)
    if value is None:
        return "none"
    return value if isinstance(value, bool | int | float | str) else str(value)


def _open(path: str | Path) -> Any:
    try:
        from anndata import read_h5ad
    except ImportError as error:
        raise MissingExtraError(f"anndata is not installed, it reads {path}. Fix: pip install 'popflow[cells]'.") from error
    try:
        return read_h5ad(path, backed="r")
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} as h5ad: {error}. Fix: give the path of an AnnData file.") from error


def _coordinates(key: str, value: Any, dims: int | None) -> Tensor:
    """An entry of ``obsm`` as float32 ``[cells, dims]``."""
    if hasattr(value, "tocsr"):
        raise TypeError(f"obsm[{key!r}] is sparse, wanted dense coordinates: take principal components (scanpy.pp.pca) and give their key.")
    array = np.asarray(value)
    if dims is not None and not 1 <= dims <= array.shape[1]:
        raise ValueError(f"dims={dims}, wanted 1 to {array.shape[1]}, the coordinates of obsm[{key!r}].")
    return torch.from_numpy(np.array(array[:, :dims], dtype=np.float32))
