"""AnnData in: files and objects, what they lack; components decoded to genes, or the reason why not; a file is not half written."""

import numpy as np
import pytest
import torch

from popflow.core.errors import CheckpointError
from popflow.transport.anndata import genes_of, read, write

ad = pytest.importorskip("anndata")


def test_a_file_in_backed_mode_and_an_object_give_the_same(h5ad):
    given = {"time": "day", "dims": 3, "types": "type", "velocity": "velocity"}
    a, b = read(h5ad, **given), read(ad.read_h5ad(h5ad), **given)
    backed = ad.read_h5ad(h5ad, backed="r")
    c = read(backed, **given)
    backed.file.close()
    raw = ad.read_h5ad(h5ad)
    for cells in (a, b, c):
        assert cells.snapshots.labels == ("1", "2", "10")
        assert cells.annotation == a.annotation
        for k, rows in enumerate(cells.rows):
            assert np.array_equal(rows, a.rows[k])
            assert torch.equal(cells.snapshots.x[k], torch.from_numpy(raw.obsm["X_pca"][rows, :3]))
            assert torch.equal(cells.snapshots.velocity[k], torch.from_numpy(raw.obsm["velocity"][rows, :3]))
    assert sum(map(len, a.rows)) == 179  # one has no day
    back = a.spread(a.snapshots.x)
    assert np.isnan(back).any(1).sum() == 1
    assert np.array_equal(back[a.rows[1]], a.snapshots.x[1].numpy())


def test_durations_and_dates_count_in_days(h5ad):
    pd = pytest.importorskip("pandas")
    adata = ad.read_h5ad(h5ad)
    day = adata.obs["day"].astype(float)
    expected = read(adata, time="day").snapshots
    span = pd.to_timedelta(day, unit="D")
    date = pd.Timestamp("2024-05-01", tz="UTC") + span
    for name, column, first in (
        ("timedelta", span, 1.0),
        ("categories of timedelta", span.astype("category"), 1.0),
        ("text", (24 * day).map("{:g} h".format, na_action="ignore"), 1.0),
        ("datetime", date, 0.0),
        ("ISO text", date.dt.strftime("%Y-%m-%d").astype("category"), 0.0),
    ):
        adata.obs["when"] = column
        found = read(adata, time="when").snapshots
        assert found.times.tolist() == pytest.approx([first, first + 1, first + 9]), name
        assert all(torch.equal(a, b) for a, b in zip(found.x, expected.x, strict=True)), name
        assert found.index(first + 9) == 2
    adata.obs["when"] = ["2024-05-01", "soon"] * 90
    with pytest.raises(TypeError, match="is not a number"):
        read(adata, time="when")


def test_components_decode_to_genes_or_say_why_not(h5ad):
    adata = ad.read_h5ad(h5ad)
    genes, names = genes_of(h5ad, "X_pca", torch.from_numpy(adata.obsm["X_pca"]))
    assert names[0] == "gene0"
    np.testing.assert_allclose(genes, adata.X.toarray(), atol=0.35)  # two of twelve directions carry all but noise of 0.05
    assert np.abs(genes - adata.X.toarray()).mean() < 0.06
    scaled = adata.copy()
    scaled.X = scaled.X * 2
    with pytest.raises(ValueError, match=r"is not \(X - mean\) @ varm\['PCs'\] \(off by"):
        genes_of(scaled, "X_pca", torch.zeros(1, 2))
    del scaled.varm["PCs"]
    with pytest.raises(ValueError, match="varm has no 'PCs'"):
        genes_of(scaled, "X_pca", torch.zeros(1, 2))


def test_keys_of_others_are_not_overwritten_and_failures_leave_nothing(h5ad, tmp_path):
    values = np.zeros(180, dtype=np.float32)
    with pytest.raises(ValueError, match=r"already has obs\['batch'\]"):
        write(h5ad, tmp_path / "out.h5ad", {"batch": values}, {}, {})
    assert list(tmp_path.iterdir()) == []
    one = write(h5ad, tmp_path / "one.h5ad", {"popflow_growth": values}, {}, {"seed": 0})
    two = write(one, tmp_path / "two.h5ad", {"popflow_growth": values + 1}, {}, {"seed": 1})
    assert ad.read_h5ad(two).obs["popflow_growth"].tolist() == [1.0] * 180
    assert list(ad.read_h5ad(two).obs.columns).count("popflow_growth") == 1
    with pytest.raises(CheckpointError, match="cannot write"):
        write(tmp_path / "absent.h5ad", tmp_path / "three.h5ad", {}, {}, {})


def test_bad_input_is_named(h5ad, tmp_path):
    adata = ad.read_h5ad(h5ad)
    adata.obsm["sparse"] = adata.X
    with pytest.raises(TypeError, match=r"obsm\['sparse'\] is sparse, wanted dense coordinates"):
        read(adata, time="day", rep="sparse")
    with pytest.raises(ValueError, match="unknown velocity: key of obsm 'velocit': did you mean 'velocity'"):
        read(adata, time="day", velocity="velocit")
    adata.obs["pseudotime"] = [k / 7 for k in range(adata.n_obs)]
    with pytest.raises(
        ValueError, match=r"types='pseudotime' holds numbers such as 0\.0, wanted a column of `obs` with names of cell types"
    ):
        read(adata, time="day", types="pseudotime")
    many = ad.concat([adata, adata], keys=["a", "b"], index_unique="-")
    many.obs["barcode"] = [f"c{k}" for k in range(many.n_obs)]
    with pytest.raises(ValueError, match="types='barcode' holds 360 different names, wanted at most 200"):
        read(many, time="day", types="barcode")
    adata.obs["cluster"] = [float(k % 3) for k in range(adata.n_obs)]
    assert read(adata, time="day", types="cluster").annotation is not None
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(CheckpointError, match="as h5ad"):
        read(tmp_path / "text.h5ad", time="day")
    with pytest.raises(CheckpointError, match=r"absent\.h5ad: no such file\. Fix"):
        read(tmp_path / "absent.h5ad", time="day")
