"""Populations of an AnnData file, and predicted cells as a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.core import Population
from popflow.core.checkpoint import whole
from popflow.core.errors import unknown
from popflow.transport.anndata import KEY, check_names, coordinates, opened
from popflow.transport.meta.populations import Pair, Populations


def read(
    source: Any,
    *,
    group: str,
    condition: str,
    control: str,
    rep: str = "X_pca",
    dims: int | None = None,
    types: str | None = None,
    cofactor: float | None = None,
) -> Populations:
    """Read populations from an ``.h5ad`` file or an AnnData object; cells without a patient or a condition are left out.

    Args:
        source: Path of the file, or the object.
        group: Column of ``obs`` with the patient.
        condition: Column of ``obs`` with the treatment.
        control: The treatment that stands for none.
        rep: Key of ``obsm``; ``"X"`` for the columns of the matrix itself, named as the variables.
        dims: How many leading coordinates of ``rep`` to use; None: all.
        types: Column of ``obs`` with cell types.
        cofactor: Features are ``arcsinh(x / cofactor)``; None leaves them as they are.

    Raises:
        ValueError: for a missing key (naming the closest one), and whatever `Populations.from_cells` refuses.
        TypeError: for sparse features.
        MissingExtraError: without anndata.
        CheckpointError: when the file cannot be read.
    """
    with opened(source) as adata:
        for name, key in (("populations", group), ("treatment", condition), ("types", types)):
            if key is not None and key not in adata.obs:
                raise ValueError(unknown(f"{name}: key of obs", key, map(str, adata.obs.keys())))
        if rep == "X":
            if adata.X is None:
                raise ValueError("X is empty, wanted features there: give the key of obsm that holds them.")
            matrix = adata.X[:]
            if hasattr(matrix, "tocsr"):
                raise TypeError("X is sparse, wanted dense features: take principal components (scanpy.pp.pca) and give their key.")
            x, names = torch.from_numpy(np.array(matrix, dtype=np.float32)), [str(name) for name in adata.var_names]
        else:
            if rep not in adata.obsm:
                raise ValueError(unknown("rep: key of obsm", rep, ["X", *map(str, adata.obsm.keys())]))
            x = coordinates(rep, adata.obsm[rep], dims)
            names = [f"{rep} {k + 1}" for k in range(x.shape[1])]
        known = ~(adata.obs[group].isna() | adata.obs[condition].isna()).to_numpy()
        place = torch.from_numpy(np.flatnonzero(known))
        obs = adata.obs[known]
        kinds = None
        if types is not None:
            check_names(types, obs[types])
            kinds = obs[types].astype(object).where(~obs[types].isna(), "unknown").astype(str).tolist()
        x = x[place] if cofactor is None else (x[place] / cofactor).arcsinh()
        return Populations.from_cells(
            x,
            obs[group].astype(str).tolist(),
            obs[condition].astype(str).tolist(),
            control=control,
            types=kinds,
            features=names,
            unit=f"units of {rep}" if cofactor is None else f"arcsinh({rep} / {cofactor:g})",
        )


def write_predictions(
    target: str | Path, populations: Populations, predicted: Mapping[Pair, Population], cofactor: float | None, about: Mapping[str, Any]
) -> Path:
    """Write predicted cells: patient, treatment and weight (relative to control cells) in ``obs``, features in ``X`` in the unit of the file.

    Args:
        target: The file; whole or absent.
        populations: They name the features and, through `Pair.source`, the control cells that row k of a prediction began as.
        predicted: Predicted cells of each pair.
        cofactor: As in `read`: features are transformed back.
        about: Entries of ``uns["popflow"]``.
    """
    import pandas as pd
    from anndata import AnnData

    cells: Tensor = torch.cat([pop.x for pop in predicted.values()]).cpu()
    columns = {
        name: pd.Categorical([value for pair, pop in predicted.items() for value in [getattr(pair, name)] * len(pop)])
        for name in ("group", "treatment")
    }
    weight = torch.cat([pop.log_w.exp() for pop in predicted.values()]).double().cpu().numpy()
    index = pd.Index([str(k) for k in range(len(cells))])
    adata = AnnData(
        X=(cells if cofactor is None else cells.sinh() * cofactor).float().numpy(),
        obs=pd.DataFrame({**columns, "weight": weight}, index=index),
        var=pd.DataFrame(index=pd.Index(populations.features)),
    )
    adata.uns[KEY] = dict(about)
    with whole(target) as temporary:
        adata.write_h5ad(temporary)
    return Path(target)
