"""`popflow flow --populations`: patients through the command line, scored, explained, resumed; what does not fit is named."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from popflow import citations
from popflow.cli.app import main
from popflow.runs import ConfigError, config_of
from popflow.transport.config import FlowConfig, cite
from popflow.transport.meta import Pair, Scores, load, observed_effects
from popflow.transport.meta.anndata import read
from popflow.transport.meta.report import _verdict

COLUMNS = ["--populations", "patient", "--treatment", "condition", "--control", "Ref"]
OPTIONS = [*COLUMNS, "--rep", "X", "--cofactor", "5", "--types", "type", "--steps", "30", "--width", "8", "--members", "2"]


@pytest.fixture(scope="module")
def screen_file(tmp_path_factory) -> Path:
    """Four patients, Ref and Stim, two types; a fifth with control cells alone; a cell without a patient."""
    ad, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    patient = np.repeat(["P1", "P2", "P3", "P4"], 80).tolist() + ["P5"] * 40
    condition = np.tile(np.repeat(["Ref", "Stim"], 40), 4).tolist() + ["Ref"] * 40
    kind = rng.integers(0, 2, 360)
    x = rng.normal(size=(360, 3)) * 0.3 + kind[:, None] + 0.5 * np.array([int(name[1]) for name in patient])[:, None]
    x[:, 0] += 2.0 * (np.array(condition) == "Stim")
    obs = {"patient": patient, "condition": condition, "type": np.where(kind, "T", "B"), "depth": np.linspace(0, 1, 360)}
    adata = ad.AnnData(
        X=(5 * np.sinh(x)).astype(np.float32),
        obs=pd.DataFrame(obs, index=[f"c{k}" for k in range(360)]),
        var=pd.DataFrame(index=["CD3", "CD4", "pS6"]),
    )
    adata.obs.loc["c3", "patient"] = np.nan
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def done(screen_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("flow") / "run"
    arguments = ["flow", str(screen_file), *OPTIONS, "--hold-out", "P4", "--out", str(out), "--json"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(arguments) == 0
    return out, json.loads(printed.getvalue()), arguments


def test_the_report_scores_explains_and_warns(done):
    out, told, _ = done
    tables = {item["title"]: item for item in (*told["comparison"], *told["diagnostics"]) if "columns" in item}
    scores = tables["Distance from the treated cells of held-out populations"]
    assert "arcsinh(X / 5)" in scores["columns"][2]
    assert {row[0] for row in scores["rows"]} == {"P4, Stim"}
    assert {row[1] for row in scores["rows"]} >= {"flow", "plain flow matching", "identity", "mean shift", "sampling floor", "ideal shift"}
    effect = tables["Predicted effect on each feature: P4, Stim"]
    assert [row[0] for row in effect["rows"]] == ["CD3", "CD4", "pS6"]
    own = [row[5] for row in effect["rows"]]
    assert own == pytest.approx([1.0] * 3, abs=0.3)  # 0.5 a patient, and P4 is 2 above the mean of 1, 2, 3
    assert {row[0] for row in tables["Proportions of cell types"]["rows"]} == {"P4, Stim", "P5, Stim"}
    assert "Observed effect of Stim within the training patients" in tables
    assert {row[0] for row in tables["How far to trust the predictions"]["rows"]} == {"P4, Stim", "P5, Stim"}
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert page.count("Response of each feature") == 2


def test_predicted_cells_come_back_in_the_unit_of_the_file(done, screen_file):
    import anndata as ad

    predicted = ad.read_h5ad(done[0] / "predicted.h5ad")
    assert predicted.obs["group"].value_counts().to_dict() == {"P4": 40, "P5": 40}
    assert list(predicted.var_names) == ["CD3", "CD4", "pS6"]
    populations = read(screen_file, group="patient", condition="condition", control="Ref", rep="X", types="type", cofactor=5)
    flows = [load(done[0] / f"flow-{k}.safetensors") for k in (1, 2)]
    pair = next(p for p in populations.pairs if p.group == "P5")
    mean = torch.stack([flow.predict(populations.clouds[pair.source], "Stim").x for flow in flows]).mean(0)
    np.testing.assert_allclose(predicted.X[40:], 5 * mean.sinh().numpy(), rtol=1e-4, atol=1e-3)
    assert predicted.uns["popflow"]["unit"] == "units of X"


def test_the_file_is_read_by_its_names(screen_file):
    populations = read(screen_file, group="patient", condition="condition", control="Ref", rep="X", cofactor=5)
    assert populations.features == ("CD3", "CD4", "pS6")
    assert len(populations.clouds[populations.pairs[0].source]) == 39  # one cell has no patient
    effect = observed_effects(populations, "Stim")
    assert effect[0].low < 2.0 < effect[0].high
    assert abs(effect[1].effect) < 0.4
    assert effect[0].high - effect[0].low < 1.0


def test_the_same_command_goes_on_with_the_same_run(done, capsys):
    out, told, arguments = done
    (out / "report.json").unlink()
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["results"] == told["results"]


@pytest.mark.parametrize("options", [["--lagrangian", "unbalanced", "--masses", "counts"], ["--lagrangian", "bridge", "--no-baseline"]])
def test_growth_and_noise_work_too(screen_file, tmp_path, options):
    few = [*COLUMNS, "--rep", "X", "--cofactor", "5", "--steps", "3", "--width", "8", "--members", "1"]
    assert main(["flow", str(screen_file), *few, *options, "--hold-out", "P1", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "time=None and populations=None, wanted one of them"),
        ({"time": "day", "populations": "p"}, "wanted one of them"),
        ({"populations": "p", "treatment": "t"}, "wanted the column with the treatments and the name of the control"),
        ({"time": "day", "control": "Ref"}, "control='Ref' has no effect without populations"),
        ({"populations": "p", "treatment": "t", "control": "c", "smooth": True}, "smooth=True has no effect with populations"),
        ({"populations": "p", "treatment": "t", "control": "c", "rep": "X", "dims": 3}, "dims=3 has no effect with rep='X'"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(FlowConfig, {"cells": "cells.h5ad"} | values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--populations", "patien"], "did you mean 'patient'"),
        (["--control", "Rfe"], "did you mean 'Ref'"),
        (["--rep", "X_pca"], "unknown rep: key of obsm 'X_pca'"),
        (["--hold-out", "P6"], "unknown group 'P6'"),
        (["--types", "typ"], "did you mean 'type'"),
        (["--types", "depth"], "types='depth' holds numbers such as 0.0"),
    ],
)
def test_what_does_not_fit_the_file_is_named(screen_file, tmp_path, capsys, change, message):
    assert main(["flow", str(screen_file), *OPTIONS, *change, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_flow_has_to_beat_the_mean_shift_within_types_too():
    pair = Pair("a", "Stim", 0, 1)
    near = {name: Scores(1.0, 1.0, 1.0) for name in ("identity", "mean shift", "treated cells of the others")}
    for by_type, passed in ((0.8, True), (0.6, False)):
        scores = {
            "flow": Scores(0.7, 1.0, 1.0),
            "ideal shift": Scores(0.5, 1.0, 1.0),
            "mean shift within cell types": Scores(by_type, 1.0, 1.0),
        }
        assert _verdict({pair: near | scores}).passed is passed


def test_what_is_cited_follows_the_configuration():
    config = {"cells": Path("c.h5ad"), "populations": "p", "treatment": "t", "control": "c"}
    assert cite(FlowConfig(**config)) == (citations.META_FLOW_MATCHING, citations.OT_FLOW_MATCHING)
    assert cite(FlowConfig(**config, lagrangian="bridge")) == (citations.META_FLOW_MATCHING, citations.WASSERSTEIN_LAGRANGIAN_FLOWS)
