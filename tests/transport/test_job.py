"""`popflow flow`: an AnnData file through the command line and back, resumed, unchanged but for its new keys."""

import base64
import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from popflow import citations
from popflow.cli.app import main
from popflow.runs import ConfigError, config_of, point_figures
from popflow.transport.config import FlowConfig, cite

OPTIONS = ["--time", "day", "--rep", "X_pca", "--dims", "2", "--hold-out", "2", "--steps", "30", "--width", "8"]


@pytest.fixture(scope="module")
def done(h5ad, tmp_path_factory):
    """One unbalanced run, and what it printed."""
    out = tmp_path_factory.mktemp("flow") / "run"
    before = h5ad.read_bytes()
    arguments = ["flow", str(h5ad), *OPTIONS, "--lagrangian", "unbalanced", "--lam", "0.5", "--types", "type", "--out", str(out), "--json"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(arguments) == 0
    assert h5ad.read_bytes() == before
    return out, json.loads(printed.getvalue()), arguments


def test_the_report_scores_beside_the_trivial_answers_and_shows_the_flow(done):
    out, told, _ = done
    assert told["ok"]
    scores = next(item for item in told["comparison"] if item["title"] == "Distance from the held-out cells")
    assert {row[1] for row in scores["rows"]} == {
        "flow",
        "path at the time",
        "OT-conditional flow matching",
        "previous marginal",
        "exact-OT midpoint",
        "independent midpoint",
        "sampling floor",
    }
    assert {row[0] for row in scores["rows"]} == {"2"}
    told_apart = {row[1]: row[5] for row in scores["rows"]}
    assert told_apart["previous marginal"] == "above"
    assert told_apart["sampling floor"] is None
    assert next(row for row in scores["rows"] if row[1] == "sampling floor")[2]["error"] > 0
    assert {"action", "action, lower bound", "action, upper bound", "mass born, not moved", "duality gap", "W1, flow"} <= told[
        "results"
    ].keys()
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    assert "Growth rate of each type" in page
    assert "Fate: from time 1 to time 10" in page


def test_the_animation_moves(done):
    from PIL import Image

    report = json.loads((done[0] / "report.json").read_text())["report"]
    image = next(item["image"] for item in report["diagnostics"] if item.get("alt") == "a moving cloud")
    film = Image.open(io.BytesIO(base64.b64decode(image.split(",", 1)[1])))
    assert film.n_frames > 10
    first = np.asarray(film.convert("RGB"))
    film.seek(film.n_frames - 1)
    assert (np.asarray(film.convert("RGB")) != first).any()


def test_the_file_comes_back_with_new_keys_alone(done, h5ad):
    import anndata as ad

    before, after = ad.read_h5ad(h5ad), ad.read_h5ad(done[0] / "cells.h5ad")
    new = {"obs": {"popflow_growth", "popflow_fate"}, "obsm": {"popflow_velocity", "X_popflow", "popflow_fate"}, "uns": {"popflow"}}
    for group, names in new.items():
        assert set(getattr(after, group).keys()) - set(getattr(before, group).keys()) == names
    for name in before.obs:
        assert before.obs[name].equals(after.obs[name])
    for name in before.obsm:
        assert np.array_equal(before.obsm[name], after.obsm[name])
    assert (before.X != after.X).nnz == 0
    assert before.var.equals(after.var)
    assert after.uns["title"] == "synthetic"
    gone = after.obs["day"].isna().to_numpy()
    assert gone.sum() == 1
    assert np.isnan(after.obsm["popflow_velocity"][gone]).all()
    assert np.isfinite(after.obsm["popflow_velocity"][~gone]).all()
    assert after.obsm["popflow_velocity"].shape == (180, 2)
    np.testing.assert_allclose(after.obsm["popflow_fate"][~gone].sum(1), 1, atol=1e-5)
    last = (after.obs["day"] == "10").to_numpy()
    assert (after.obs["popflow_fate"][last].astype(str) == after.obs["type"][last]).all()
    np.testing.assert_allclose(after.obsm["X_popflow"][last], after.obsm["X_pca"][last, :2], atol=1e-4)
    assert after.uns["popflow"]["settings"]["lagrangian"] == "unbalanced"
    assert list(after.uns["popflow"]["times"]) == [1.0, 2.0, 10.0]
    assert np.isfinite(after.uns["popflow"]["fit"]["action"])


def test_predicted_cells_are_decoded_to_genes(done):
    import anndata as ad

    predicted = ad.read_h5ad(done[0] / "predicted.h5ad")
    assert list(predicted.var_names) == [f"gene{k}" for k in range(12)]
    assert set(predicted.obs["time"]) == {2.0}
    assert predicted.obs["weight"].mean() == pytest.approx(1, abs=1e-5)
    assert predicted.obs["way"].value_counts().to_dict() == {"flow": 60, "path at the time": 60}


def test_scanpy_draws_the_new_keys(done):
    scanpy = pytest.importorskip("scanpy")
    import matplotlib as mpl

    mpl.use("Agg")
    adata = scanpy.read_h5ad(done[0] / "cells.h5ad")
    adata = adata[~adata.obs["day"].isna()].copy()
    for basis in ("X_pca", "X_popflow"):
        axes = scanpy.pl.embedding(adata, basis=basis, color=["popflow_growth", "popflow_fate"], show=False)
        drawn = axes[0].collections[0].get_offsets()
        np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(adata.obsm[basis][:, 0]), rtol=1e-5)


@pytest.mark.usefixtures("no_film")
def test_the_same_command_goes_on_with_the_same_run(done, capsys):
    out, told, arguments = done
    first = (out / "report.json").read_bytes()
    (out / "report.json").unlink()
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["results"] == told["results"]
    assert json.loads((out / "report.json").read_bytes())["report"]["comparison"] == json.loads(first)["report"]["comparison"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lam": 0.0}, "lam=0.0, wanted a number > 0"),
        ({"masses": "counts"}, "conserves mass. Fix: lagrangian='unbalanced'"),
        ({"lagrangian": "balanced"}, "did you mean 'unbalanced'"),
        ({"smooth": True, "velocity": "v"}, "smooth=True and velocity='v', wanted one of them"),
        ({"dims": 0}, "dims=0, wanted an integer >= 1"),
        ({"lam": 0.5}, "lam=0.5 has no effect without lagrangian='unbalanced'"),
        ({"noise": 0.5, "lagrangian": "unbalanced"}, "noise=0.5 has no effect without lagrangian='bridge'"),
        ({"draws": 4}, "draws=4 has no effect without lagrangian='bridge'"),
        ({"bandwidth": 0.5}, "bandwidth=0.5 has no effect without smooth or velocity"),
        ({"strength": 0.5, "smooth": True}, "strength=0.5 has no effect without velocity"),
        ({"cells": "."}, "cells='.' is a folder, wanted an AnnData file"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(FlowConfig, {"cells": "cells.h5ad", "time": "day"} | values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time", "dya"], "did you mean 'day'"),
        (["--time", "day", "--rep", "X_pc"], "did you mean 'X_pca'"),
        (["--time", "type", "--dims", "2"], "'upper' is not a number"),
        (["--time", "day", "--dims", "9"], "dims=9, wanted 1 to 4"),
        (["--time", "day", "--dims", "2", "--hold-out", "10"], "the time '10' (marginal 2) is an end point, wanted one of the times ['2']"),
        (["--time", "day", "--dims", "2", "--hold-out", "3"], "there is no snapshot at time '3'"),
        (["--time", "day", "--dims", "2", "--hold-out", "2", "--smooth"], "there are 2 training snapshots, wanted at least three"),
    ],
)
def test_what_does_not_fit_the_file_is_named(h5ad, tmp_path, capsys, options, message):
    assert main(["flow", str(h5ad), *options, "--out", str(tmp_path / "run")]) == 2
    assert message in re.sub(r"'lower'", "'upper'", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_taken_is_told_before_the_fit(h5ad, tmp_path, capsys):
    import anndata as ad

    adata = ad.read_h5ad(h5ad)
    adata.obs["popflow_growth"] = 1.0
    adata.write_h5ad(tmp_path / "taken.h5ad")
    assert main(["flow", str(tmp_path / "taken.h5ad"), *OPTIONS, "--out", str(tmp_path / "run")]) == 2
    assert "already has obs['popflow_growth']" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_film(monkeypatch):
    """Leave the animation away, which takes longest."""
    monkeypatch.setattr(point_figures, "moving", lambda *_, **__: "data:image/png;base64,AA==")


def test_what_is_cited_follows_the_configuration():
    config = {"cells": Path("cells.h5ad"), "time": "day"}
    assert cite(FlowConfig(**config, baseline=False)) == (citations.WASSERSTEIN_LAGRANGIAN_FLOWS,)
    assert {citations.OT_FLOW_MATCHING, citations.WASSERSTEIN_SPLINES} < set(cite(FlowConfig(**config, smooth=True)))
