"""Superposition, internal coordinates and initial paths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from popflow.paths.coordinates import ZMatrix, dihedrals, idpp, kabsch, rmsd
from popflow.paths.forcefield import TorchForce
from popflow.paths.molecule import Molecule

PHI_PSI = torch.tensor([[4, 6, 8, 14], [6, 8, 14, 16]])


def rotations(n: int) -> Tensor:
    turns, _ = torch.linalg.qr(torch.randn(n, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    return turns * torch.linalg.det(turns)[:, None, None].sign()


def test_kabsch_recovers_rotations_in_batches_and_of_flat_molecules() -> None:
    x = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flat = x * torch.tensor([1.0, 1.0, 0.0])
    line = x * torch.tensor([1.0, 0.0, 0.0])
    for points in (x, flat, line):
        moved = points @ rotations(5).transpose(1, 2) + 3.0
        turned, centred = kabsch(moved, points)
        assert float((turned - centred).abs().max()) < 1e-6
    mirror = x * torch.tensor([1.0, 1.0, -1.0])
    assert float(rmsd(mirror, x).min()) > 0.1  # a reflection is no rotation
    distances = torch.cdist(kabsch(mirror, x)[0], kabsch(mirror, x)[0])
    assert torch.allclose(distances, torch.cdist(mirror, mirror), atol=1e-9)
    with pytest.raises(ValueError, match="wanted the same"):
        kabsch(x, x[:, 1:])


def test_dihedrals_of_the_two_states(dipeptide: Molecule) -> None:
    found = dihedrals(torch.stack([dipeptide.a, dipeptide.b]), PHI_PSI).rad2deg()
    assert found[0].tolist() == pytest.approx([-151.6, 160.1], abs=0.5)
    assert found[1].tolist() == pytest.approx([61.2, -41.2], abs=0.5)


def test_internal_coordinates_and_back(dipeptide: Molecule) -> None:
    z = ZMatrix.of(22, dipeptide.bonds)
    x = torch.stack([dipeptide.a, dipeptide.b])
    assert float((z.to_cartesian(z.to_internal(x)) - x).abs().max()) < 1e-12
    bonded = {frozenset(pair) for pair in dipeptide.bonds}
    assert all(frozenset(row[:2]) in bonded for row in z.rows.tolist())
    internal = z.to_internal(dipeptide.a).requires_grad_()
    z.to_cartesian(internal).square().sum().backward()
    assert internal.grad is not None
    assert bool(internal.grad.isfinite().all())


def test_winding_chooses_the_way_round(dipeptide: Molecule) -> None:
    z = ZMatrix.of(22, dipeptide.bonds)
    s = torch.linspace(0, 1, 41, dtype=torch.float64)
    row = next(row for row in z.rows.tolist() if {row[0], row[3]} <= {4, 14} or (row[0] == 4))
    quadruple = torch.tensor([row])
    short = dihedrals(z.between(dipeptide.a, dipeptide.b, s), quadruple)[:, 0]
    change = float(dihedrals(dipeptide.b, quadruple) - dihedrals(dipeptide.a, quadruple))
    change = math.remainder(change, 2 * math.pi)
    long = dihedrals(z.between(dipeptide.a, dipeptide.b, s, {row[0]: -1 if change > 0 else 1}), quadruple)[:, 0]
    steps = [torch.remainder(way.diff() + math.pi, 2 * math.pi) - math.pi for way in (short, long)]
    assert float(steps[0].sum()) == pytest.approx(change, abs=1e-9)
    assert abs(float(steps[1].sum())) == pytest.approx(2 * math.pi - abs(change), abs=1e-9)
    ends = z.between(dipeptide.a, dipeptide.b, s)[[0, -1]]
    assert torch.allclose(ends[0], dipeptide.a, atol=1e-12)
    assert float(rmsd(ends[1], dipeptide.b)) < 1e-9


def test_bad_z_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="atom 3 refers to"):
        ZMatrix(torch.tensor([[3, 2, 1, 4], [4, 2, 1, 0]]), (0, 1, 2))
    with pytest.raises(ValueError, match="placed twice"):
        ZMatrix(torch.tensor([[2, 0, 1, 2]]), (0, 1, 2))
    with pytest.raises(ValueError, match="the bonds join 3 of 4 atoms"):
        ZMatrix.of(4, [(0, 1), (1, 2)])


def test_initial_paths_avoid_the_clash_of_the_straight_line(dipeptide: Molecule) -> None:
    field = TorchForce(dipeptide.system)
    s = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None, None]
    line = dipeptide.a + s * (dipeptide.b - dipeptide.a)
    path = idpp(dipeptide.a, dipeptide.b, 11, steps=100)
    assert torch.equal(path[0], dipeptide.a)
    assert torch.equal(path[-1], dipeptide.b)
    assert float(field(line.flatten(1)).max()) > 1e6
    assert float(field(path.flatten(1)).max()) < 500
    with pytest.raises(ValueError, match="images=2"):
        idpp(dipeptide.a, dipeptide.b, 2)
