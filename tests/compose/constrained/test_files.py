"""Tables from files and arrays, with what users meet in them."""

import numpy as np
import pytest

from popflow.compose.constrained.files import from_arrays, read_table, write_rows


def test_a_csv_is_read_with_its_types(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("size,kind,count,y\n1.5,b,2,0.1\n2.5,a,3,0.2\n")
    table = read_table(tmp_path / "a.csv", ["y"])
    assert {name: column.tolist() for name, column in table.rows.items()} == {"size": [1.5, 2.5], "kind": ["b", "a"], "count": [2, 3]}
    assert table.rows["count"].dtype.kind == "i"
    assert table.values.tolist() == [[0.1], [0.2]]


def test_what_is_written_is_read_again(tmp_path) -> None:
    write_rows(tmp_path / "b.csv", {"x": [0.1 + 0.2, float("nan")], "name": ["a,b", 'c"d']})
    table = read_table(tmp_path / "b.csv", missing="drop")
    assert (table.rows["x"].tolist(), table.rows["name"].tolist(), table.dropped) == ([0.1 + 0.2], ["a,b"], 1)


@pytest.mark.parametrize(
    ("text", "targets", "message"),
    [
        ("a,y\n1,2\n,3\n", ["y"], "lacks values in 1 of 2 rows, the first in row 2, column 'a'. Fix: --missing drop"),
        ("a,yield\n1,2\n", ["yeild"], "did you mean 'yield'"),
        ("a,y\n1,high\n", ["y"], "target 'y' holds 'high', wanted numbers"),
        ("a,a\n1,2\n", [], "has two columns 'a'"),
        ("a,b\n1\n", [], "has 1 values in row 1, wanted 2"),
        ("a,b\n", [], "has no row below its header"),
        ("", [], "is no table"),
        ("y\n1\n", ["y"], "no column besides the target"),
    ],
)
def test_damaged_tables_are_told(tmp_path, text: str, targets: list[str], message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        read_table(tmp_path / "a.csv", targets)


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"ends in '\.xlsx', wanted"):
        read_table(tmp_path / "a.xlsx")
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot read"):
        from_arrays(tmp_path / "x.npy")


def test_arrays_of_design_bench_are_taken(tmp_path) -> None:
    tokens = np.random.default_rng(0).integers(0, 4, size=(20, 8))
    np.save(tmp_path / "x.npy", tokens)
    np.save(tmp_path / "y.npy", np.linspace(0, 1, 20)[:, None])
    table = from_arrays(tmp_path / "x.npy", tmp_path / "y.npy")
    assert all(column.dtype.kind == "i" for column in table.rows.values())
    assert table.values.shape == (20, 1)
    onehot = from_arrays(np.eye(4)[tokens])
    assert np.array_equal(np.stack(list(onehot.rows.values()), 1), tokens)
    np.savez(tmp_path / "both.npz", x=tokens, y=np.linspace(0, 1, 20))
    assert read_table(tmp_path / "both.npz", ["y"]).values.shape == (20, 1)
    with pytest.raises(ValueError, match="is not one-hot"):
        from_arrays(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"y has shape \(3,\) for 20 rows"):
        from_arrays(tokens, np.zeros(3))
