"""Snapshots: real times, masses, what is held out is never looked at, and what bad input says."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from popflow.transport import Snapshots


def normal(n, d=2, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def chain(dtype=torch.float32):
    """Four snapshots whose cells all show their time."""
    return Snapshots.of([normal(5 + k, seed=k, dtype=dtype) + 10 * k for k in range(4)], times=[2, 3, 4, 7], masses="counts")


def test_times_are_sorted_as_numbers_and_keep_their_spacing():
    x = normal(6)
    snapshots = Snapshots.of(x, ["10", "2", "10", "2", "1", "1"])
    assert snapshots.labels == ("1", "2", "10")
    assert torch.equal(snapshots.x[2], x[[0, 2]])
    assert snapshots.unit_times.tolist() == [0, 1 / 9, 1]
    listed = Snapshots.of([x[2:], x[:2]], times=[3.5, 1.0], masses=[8, 2])
    assert torch.equal(listed.x[0], x[:2])
    assert listed.mass.tolist() == [1, 4]
    assert (listed.index("3.5"), listed.index(1)) == (1, 0)


def test_what_is_held_out_changes_nothing():
    held = chain().hold_out(2)
    poisoned = replace(held, x=tuple(torch.full_like(x, torch.nan) if k == 2 else x for k, x in enumerate(held.x)))
    for scale in (Snapshots.standardised, Snapshots.scaled):
        clean, dirty = scale(held), scale(poisoned)
        assert torch.equal(clean.shift, dirty.shift)
        assert torch.equal(clean.scale, dirty.scale)
        assert all(torch.equal(a, b) for a, b in zip(clean.training.x, dirty.training.x, strict=True))
        assert clean.training.labels == (2, 3, 7)
        assert clean.training.held_out == ()
        assert clean.training.mass.tolist() == pytest.approx([1, 6 / 5, 8 / 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_is_undone_and_follows_velocities(dtype):
    raw = chain(dtype)
    raw = replace(raw, velocity=tuple(x * 0.5 for x in raw.x))
    for scaled in (raw.standardised(), raw.scaled(), raw.scaled().standardised()):
        assert scaled.x[0].dtype == dtype
        for k in range(4):
            torch.testing.assert_close(scaled.raw(scaled.x[k]), raw.x[k])
            torch.testing.assert_close(scaled.model(raw.x[k]), scaled.x[k])
            torch.testing.assert_close(scaled.velocity[k] * scaled.scale, raw.velocity[k])
    together = torch.cat(raw.standardised().x)
    torch.testing.assert_close(together.std(0, correction=0), torch.ones(2, dtype=dtype))
    proportions = torch.cat(raw.scaled().x).std(0) / torch.cat(raw.x).std(0)
    torch.testing.assert_close(proportions[0], proportions[1])


def bad(x, message, error=ValueError, **rest):
    with pytest.raises(error, match=message):
        Snapshots.of(x, **rest)


def test_bad_input_is_named():
    from scipy.sparse import csr_matrix

    a, b = normal(3), normal(4)
    bad([a], r"x holds 1 snapshot\(s\), wanted at least two")
    bad(a, "the time of each cell|wanted a time for each cell", times=None)
    bad([a, b], "'day 1' is not a number", TypeError, times=["day 1", "day 2"])
    bad([a, b], "True is not a number", TypeError, times=[True, 2])
    bad([a, b], "not finite, wanted the time", times=[1.0, float("nan")])
    bad([a, b], r"the labels '1' and 1.0 are the same time 1.0", times=["1", 1.0])
    bad(torch.cat([a, a]), r"the labels .* are the same time 1.0", times=["1", "1", "1", 1, 1, 1])
    bad([a, b], r"times holds 3 values for 2 snapshots", times=[1, 2, 3])
    bad([a, b * torch.tensor([1.0, torch.inf])], r"x\[1\] holds NaN or infinite values in 4 of 4 cells")
    bad([a, b[:1]], r"x\[1\] holds 1 cell\(s\) at time 1, wanted at least two")
    bad([a, normal(4, 3)], r"x\[1\] is torch.float32 of shape \(4, 3\), wanted floating-point \[cells, 2\]")
    bad([csr_matrix(a.numpy()), b], r"x\[0\] is a sparse csr_matrix, wanted dense coordinates", TypeError)
    bad(csr_matrix(np.eye(3)), "x is a sparse csr_matrix", TypeError, times=[1, 1, 2])
    bad([a.to_sparse(), b], "sparse Tensor", TypeError)
    bad([a, b], r"masses=\[1.0, 0.0\], wanted one finite number above 0", masses=[1, 0])
    bad([a, b], r"wanted one finite number above 0 for each of 2 times", masses=[1, -1])
    bad([a, b], "masses='count', wanted numbers, \"counts\" or None", masses="count")
    bad([a, b], "velocity does not have the shapes of x", velocity=[a, a])
    for end, told in (
        (0, "the time 2 (marginal 0) is an end point"),
        (3, "the time 7 (marginal 3) is an end point"),
        (4, "there is no marginal 4"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{told}, wanted one of the times [3, 4] (marginals [1, 2])")):
            chain().hold_out(end)
    with pytest.raises(ValueError, match="there is no marginal -1"):
        chain().hold_out(-1)
    with pytest.raises(ValueError, match="there is no snapshot at time 5"):
        chain().index(5)
    with pytest.raises(ValueError, match=r"the coordinates \[1\] are the same in all training cells"):
        Snapshots.of([a * torch.tensor([1.0, 0.0]), b * torch.tensor([1.0, 0.0])]).standardised()
