"""Tables in and out."""

import numpy as np
import pytest
import torch

from popflow.compose.constrained import Schema

TABLE = {
    "size": [1.0, 2.0, 4.0],
    "kind": ["b", "a", "c"],
    "count": [1, 2, 2],
    "same": [7.0, 7.0, 7.0],
    "on": [True, False, True],
    "only": ["x"] * 3,
}


def test_rows_come_back_as_they_were() -> None:
    schema = Schema.of(TABLE)
    z = schema.encode(TABLE)
    assert z.shape == (3, 1 + 1 + 2 + 3)
    torch.testing.assert_close(z[:, :2].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(z[:, :2].std(0, correction=0), torch.ones(2))
    back = schema.decode(z)
    for name, values in TABLE.items():
        assert [one if isinstance(one, str | bool) else pytest.approx(one) for one in values] == list(back[name])
    assert back["count"].dtype.kind == "i"


def test_samples_snap_to_whole_categories_and_numbers() -> None:
    schema = Schema.of(TABLE)
    z = schema.encode(TABLE)
    noisy = z + 0.2 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    snapped = schema.snap(noisy)
    torch.testing.assert_close(snapped[:, 1:], z[:, 1:])
    assert torch.equal(snapped[:, 0], noisy[:, 0])


def test_whole_numbers_stay_between_the_least_and_the_greatest_of_the_table() -> None:
    schema = Schema.of({"count": [0, 1, 4, 2], "size": [0.0, 1.0, 4.0, 2.0]})
    far = schema.encode({"count": [-3, 9, 3], "size": [-3.0, 9.0, 3.0]})  # rows of the user's own are taken as they are
    assert schema.decode(far)["count"].tolist() == [-3, 9, 3]
    snapped = schema.decode(schema.snap(far))
    assert snapped["count"].tolist() == [0, 4, 3]
    assert snapped["size"] == pytest.approx([-3.0, 9.0, 3.0], rel=1e-6)


def test_codes_of_categories_have_unit_variance() -> None:
    schema = Schema.of(np.array([["a"], ["b"], ["c"], ["d"]], dtype=object))
    torch.testing.assert_close(schema.encode(np.array([["a"], ["b"], ["c"], ["d"]], dtype=object)).var(0, correction=0), torch.ones(4))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"a": [1.0, float("nan")]}, ValueError, "column 'a' holds 1 of 2 values that are NaN"),
        ({"a": ["x", None]}, ValueError, "column 'a' lacks 1 of 2 values"),
        ({"a": [1.0, 2.0], "b": [1.0]}, ValueError, r"columns of lengths \[1, 2\]"),
        ({"a": np.array(["2020-01-01"], dtype="datetime64[D]")}, TypeError, "column 'a' has type datetime64"),
        ({"a": [[1], [2, 3]]} | {"b": [1, 2]}, TypeError, "column 'a' holds a list"),
        (np.zeros(3), ValueError, "wanted an array"),
    ],
)
def test_tables_of_another_kind_are_refused(rows, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Schema.of(
            {k: np.array(v, dtype=object) if k == "a" and isinstance(v[0], list) else v for k, v in rows.items()}
            if isinstance(rows, dict)
            else rows
        )


def test_unseen_categories_and_columns_are_named() -> None:
    schema = Schema.of(TABLE)
    with pytest.raises(ValueError, match=r"column 'kind' holds 'z', which was not there at the fit. Known: 'a', 'b', 'c'"):
        schema.encode(TABLE | {"kind": ["a", "z", "b"]})
    with pytest.raises(ValueError, match="rows lack the columns size"):
        schema.encode({name: values for name, values in TABLE.items() if name != "size"})
    with pytest.raises(ValueError, match="more were not in the fit"):
        schema.encode(TABLE | {"more": [1, 2, 3]})
    with pytest.raises(ValueError, match="did you mean 'kind'"):
        Schema.of(TABLE, categorical=["kin"])


def test_units_are_differentiable_and_refuse_categories() -> None:
    schema = Schema.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
    z = torch.tensor([[0.5]], requires_grad=True)
    rows = schema.units(z)
    assert rows.tolist() == [[2.5, 5.0]]
    assert torch.autograd.grad(rows.sum(), z)[0].item() == 1.0
    with pytest.raises(TypeError, match="hold categories"):
        Schema.of(TABLE).units(torch.zeros(1, 7))
