"""The latent edit: its gradient is that of the likelihood, its head learns from scores, and what it moves is the state after the gap alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from popflow.cli.app import main
from popflow.core import Streams
from popflow.evolve import FillGap, LatentEdit, Parent, SmilesModel, canonical, draw
from popflow.evolve.latent import direction, latent_gradients, moved
from popflow.evolve.smiles_model import fill, from_tensors
from popflow.evolve.smiles_tokens import EOS, MIDDLE, PREFIX, SUFFIX, encode

ROWS = [
    [PREFIX, *encode("CC"), SUFFIX, *encode("N"), MIDDLE, *encode("OCO"), EOS],
    [PREFIX, *encode("C"), SUFFIX, *encode("CN"), MIDDLE, *encode("F"), EOS],
    [PREFIX, SUFFIX, *encode("Cl"), MIDDLE, *encode("CC(=O)C"), EOS],
]


@pytest.fixture
def small() -> SmilesModel:
    with Streams(0).layers():
        model = SmilesModel(12, 6, 8)
        torch.nn.init.normal_(model.collect.weight, std=0.5)
    return from_tensors(model.state_dict())


def log_likelihood(model: SmilesModel, tokens: list[int]) -> float:
    """``log p(m <eos> | h)``, one token after another, as the model is used to decode."""
    state, total, place = None, 0.0, tokens.index(MIDDLE)
    for k, token in enumerate(tokens[:-1]):
        logits, state = model.step(torch.tensor([token]), state)
        total += float(torch.log_softmax(logits.double(), -1)[0, tokens[k + 1]]) if k >= place else 0.0
    return total


def test_the_gradient_is_that_of_the_likelihood_of_what_stood_in_the_gap(small: SmilesModel) -> None:
    found = latent_gradients(small, ROWS)
    for k in (0, 5, 11):
        step = torch.zeros(12)
        step[k] = 0.02
        for tokens, row in zip(ROWS, found, strict=True):
            slope = (log_likelihood(moved(small, step), tokens) - log_likelihood(moved(small, -step), tokens)) / 0.04
            assert float(row[k]) == pytest.approx(slope, abs=2e-4)


def test_no_move_is_the_model_itself_and_the_model_given_stays(small: SmilesModel) -> None:
    gaps = [("CC", "N"), ("C", "c1ccccc1"), ("", "O")]

    def texts(model: SmilesModel) -> list[str]:
        return fill(model, gaps, torch.Generator().manual_seed(0))

    assert texts(moved(small, torch.zeros(12))) == texts(small)
    assert texts(moved(small, torch.full((12,), 30.0))) != texts(small)
    assert texts(small) == texts(from_tensors(small.state_dict()))


def test_equal_scores_teach_nothing(small: SmilesModel) -> None:
    some = ["CCO", "CCN", "CCCC"]
    assert not direction(small, some, np.ones(3), np.random.default_rng(0)).any()
    move = direction(small, some, np.array([0.0, 1.0, 2.0]), np.random.default_rng(0))
    assert move.isfinite().all()
    assert move.any()
    turned = direction(small, some, np.array([2.0, 1.0, 0.0]), np.random.default_rng(0))
    torch.testing.assert_close(turned, -move, msg="a bad molecule repels as a good one attracts")


def test_children_are_those_of_infills_where_nothing_is_learned() -> None:
    parents = [Parent(canonical(one), 1.0) for one in ("CC(=O)Nc1ccc(O)cc1", "CCOc1ccccc1", "C[Si](C)(C)C")]
    rng = np.random.default_rng(0)
    kids = LatentEdit()(parents, 12, rng)
    assert kids
    assert all(canonical(kid.smiles) == kid.smiles and kid.smiles not in kid.parents and kid.operator == "latent" for kid in kids)
    again = np.random.default_rng(0)
    again.random((2 * 4, 3))  # the gaps that the head reads
    assert [kid.smiles for kid in FillGap()(parents, 12, again)] == [kid.smiles for kid in kids]
    assert LatentEdit()([Parent("C[Si](C)(C)C", 1.0)], 3, rng) == []
    with pytest.raises(ValueError, match="strength=-1"):
        LatentEdit(strength=-1)


def test_children_of_the_same_parents_are_the_same() -> None:
    parents = [Parent(one, float(one.count("F"))) for one in draw(12, 0)]
    assert LatentEdit(gaps=1)(parents, 6, np.random.default_rng(1)) == LatentEdit(gaps=1)(parents, 6, np.random.default_rng(1))


def test_the_verb_gives_it_credit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seeds.smi").write_text("CCOc1ccccc1\nCC(=O)Nc1ccc(O)cc1\nCCN(CC)CC(=O)Nc1c(C)cccc1C\n")
    given = ["--oracle", "qed", "--operators", "latent,graph", "--budget", "9", "--offspring", "3", "--recipe", "graph-ga", "--out", "run"]
    assert main(["evolve", "seeds.smi", *given]) == 0
    report = json.loads(Path("run/report.json").read_text())["report"]
    (credit,) = (table for table in report["diagnostics"] if table.get("title") == "Credit of the operators")
    assert [row[0] for row in credit["rows"]] == ["latent", "graph"]
    assert "latent" in {row["operator"] for row in csv.DictReader(Path("run/top.csv").read_text().splitlines())}
