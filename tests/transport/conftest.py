"""A small AnnData file: three branches of cells at three times, principal components of its counts, types, a velocity."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def h5ad(tmp_path_factory) -> Path:
    """Cells at days 1, 2 and 10, out of order, as text; sparse counts; a cell without a day."""
    ad, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    day = rng.permutation(np.repeat([1, 2, 10], 60))
    shift = np.log2(day)[:, None] * np.array([[1.0, -0.5]])
    branch = rng.integers(0, 2, 180)
    latent = rng.normal(size=(180, 2)) * 0.4 + shift + np.where(branch, 1.0, -1.0)[:, None] * np.array([[0.0, 0.3]]) * day[:, None] ** 0.5
    genes = np.abs(latent @ rng.normal(size=(2, 12)) + 20 + 0.05 * rng.normal(size=(180, 12)))
    mean = genes.mean(0)
    _, _, components = np.linalg.svd(genes - mean, full_matrices=False)
    adata = ad.AnnData(
        X=csr_matrix(genes),
        obs=pd.DataFrame(
            {"day": pd.Categorical(day.astype(str)), "type": np.where(branch, "upper", "lower"), "batch": rng.integers(0, 2, 180)},
            index=[f"cell{k}" for k in range(180)],
        ),
        var=pd.DataFrame(index=[f"gene{k}" for k in range(12)]),
        obsm={"X_pca": ((genes - mean) @ components[:4].T).astype(np.float32)},
        varm={"PCs": components[:4].T.copy()},
        uns={"title": "synthetic"},
    )
    adata.obsm["velocity"] = adata.obsm["X_pca"][:, :4] * 0.1
    adata.obs.loc["cell7", "day"] = np.nan
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(path)
    return path
