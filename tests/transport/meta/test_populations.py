"""Pairs of clouds from arrays, tables and disk; what does not fit is named."""

import re

import numpy as np
import pytest
import torch

from popflow.core import CheckpointError
from popflow.transport.meta import Populations
from popflow.transport.meta.populations import rows


def table():
    """Three patients, two of them treated with one or two drugs."""
    g = torch.Generator().manual_seed(0)
    group = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    condition = (["Ref"] * 10 + ["x"] * 10 + ["y"] * 10) + (["x"] * 10 + ["Ref"] * 10) + ["Ref"] * 10
    return torch.randn(60, 2, generator=g), group, condition


def test_a_table_of_cells_becomes_pairs():
    x, group, condition = table()
    found = Populations.from_cells(x, group, condition, control="Ref", types=["s", "t"] * 30, features=["m1", "m2"], unit="counts")
    assert [str(pair) for pair in found.pairs] == ["a, x", "a, y", "b, x", "c, x", "c, y"]
    assert [pair.target is None for pair in found.pairs] == [False, False, False, True, True]
    assert (found.groups, found.treatments, found.type_names, found.unit) == (("a", "b", "c"), ("x", "y"), ("s", "t"), "counts")
    assert torch.equal(rows(found.clouds[found.pairs[2].source]), x[40:50])
    assert torch.equal(rows(found.clouds[found.pairs[2].target]), x[30:40])
    assert found.pairs[0].source == found.pairs[1].source
    assert found.proportions(0).tolist() == [0.5, 0.5]
    assert len(found.complete().pairs) == 3
    parts = found.by_type()
    assert parts.groups[:2] == ("a / s", "a / t")
    assert len(parts.clouds[parts.pairs[0].source]) == 5


def test_patients_and_their_pairs_are_held_out():
    found = Populations.from_cells(*table(), control="Ref")
    training, test = found.hold_out("a")
    assert {pair.group for pair in training.pairs} == {"b", "c"}
    assert {pair.group for pair in test.pairs} == {"a"}
    training, test = found.hold_out("a", treatment="y")
    assert [str(pair) for pair in test.pairs] == ["a, y"]
    with pytest.raises(ValueError, match="unknown group 'aa': did you mean 'a'"):
        found.hold_out("aa")
    with pytest.raises(ValueError, match="wanted some, and some to learn from"):
        found.hold_out("a", "b")


def test_the_disk_gives_back_what_was_stored(tmp_path):
    x, group, condition = table()
    found = Populations.from_cells(x, group, condition, control="Ref", types=["s", "t"] * 30)
    found.store(tmp_path)
    again = Populations.open(tmp_path)
    assert (again.pairs, again.features, again.type_names) == (found.pairs, found.features, found.type_names)
    for k, cloud in enumerate(found.clouds):
        index = torch.tensor([3, 0, 3])
        assert torch.equal(rows(again.clouds[k], index), rows(cloud, index))
        assert torch.equal(again.proportions(k), found.proportions(k))
    with pytest.raises(CheckpointError, match=r"populations\.json"):
        Populations.open(tmp_path / "nowhere")
    (tmp_path / "cloud-1.npy").unlink()
    with pytest.raises(CheckpointError, match=r"lacks \['cloud-1\.npy'\]"):
        Populations.open(tmp_path)
    (tmp_path / "populations.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot read"):
        Populations.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": "Rfe"}, "unknown control: condition 'Rfe': did you mean 'Ref'"),
        ({"condition": ["Ref"] * 60}, "no patient has cells under control='Ref' and another one"),
        ({"condition": ["x"] * 30 + ["Ref"] * 30}, "['a'] have treated cells and none under control='Ref'"),
        ({"group": ["a"] * 59}, "group holds 59 values for 60 cells"),
        ({"features": ["m1"]}, "has shape (10, 2), wanted [cells, 1]"),
        ({"features": ["m1", "m1"]}, "features has ['m1'] more than once"),
        ({"group": [None] * 30 + ["b"] * 20 + [float("nan")] * 10}, "group holds 40 missing values"),
    ],
)
def test_what_does_not_fit_a_table_is_named(change, message):
    x, group, condition = table()
    arguments = {"group": group, "condition": condition, "control": "Ref"} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        Populations.from_cells(x, **arguments)


def test_what_does_not_fit_lists_is_named():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="there are 1 sources, 2 targets"):
        Populations.of([x], [x, x])
    with pytest.raises(ValueError, match=r"the pair \(a, treated\) is there twice"):
        Populations.of([x, x + 1], [x + 2, x + 3], groups=["a", "a"])
    with pytest.raises(ValueError, match=r"control cells of 0\) holds 1 cell"):
        Populations.of([x[:1]], [x])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 cells"):
        Populations.of([x], [torch.where(torch.arange(5)[:, None] == 2, torch.nan, x)])
    with pytest.raises(ValueError, match="pairs is empty"):
        Populations.of([], [])
    with pytest.raises(ValueError, match="1 groups, 1 treatments and 2 masses"):
        Populations.of([x], [x + 1], groups=["a"], masses=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"the mass of \(0, treated\) is nan"):
        Populations.of([x], [x + 1], masses=[float("nan")])
    with pytest.raises(ValueError, match=r"dtypes \['torch\.float32', 'torch\.float64'\]"):
        Populations.of([x], [x.double() + 1])
    with pytest.raises(ValueError, match=r"types\[0\] holds 2 to 2, wanted places in type_names=\('s', 't'\), from 0 to 1"):
        Populations.of([x], [x + 1], types=([[2] * 5], [[0] * 5]), type_names=["s", "t"])
    from pandas import DataFrame
    from scipy.sparse import csr_matrix

    with pytest.raises(TypeError, match="cells is a DataFrame, wanted an array"):
        Populations.of([DataFrame(x.numpy())], [x + 1])

    with pytest.raises(TypeError, match="sparse"):
        Populations.of([csr_matrix(np.eye(3))], [x])
