"""Backbones as frames: reading, relative frames that forget where a fragment lies, torsions, and kernel experts with exact scores."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from popflow.compose import either, feynman_kac, linear, sample
from popflow.compose.proteins import (
    atoms,
    backbones,
    dihedral,
    extended,
    fragment_mixture,
    fragments,
    frame_draws,
    frame_mixture,
    helical,
    ideal_backbone,
    pdb_texts,
    relative,
    residue_frames,
    torsions,
)
from popflow.compose.spaces.so3 import exp, from_quaternion
from popflow.core import Streams

F64 = torch.float64
HELIX = ideal_backbone(torch.full((6,), math.radians(-63)), torch.full((6,), math.radians(-42)))
STRAND = ideal_backbone(torch.full((6,), math.radians(-120)), torch.full((6,), math.radians(135)))


def pdb_of(chain: Tensor, name: str = "A", first: int = 1) -> str:
    lines = [
        f"ATOM  {1:5d}  {atom:<3} ALA {name}{first + k:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
        for k, residue in enumerate(chain.tolist())
        for atom, (x, y, z) in zip(("N", "CA", "C"), residue, strict=True)
    ]
    return "\n".join(lines) + "\n"


# reading


def test_a_chain_is_read_back():
    (chain,) = backbones(pdb_of(HELIX))
    assert torch.allclose(chain, HELIX, atol=6e-4)


def test_chains_break_at_gaps_at_missing_atoms_and_between_names():
    far = HELIX + 30.0
    assert [len(c) for c in backbones(pdb_of(HELIX) + pdb_of(far, first=7))] == [6, 6]
    assert [len(c) for c in backbones(pdb_of(HELIX) + pdb_of(far, "B"))] == [6, 6]
    lines = pdb_of(HELIX).splitlines()
    assert [len(c) for c in backbones("\n".join(lines[:7] + lines[8:]))] == [2, 3]  # residue 3 without its CA


def test_of_several_models_and_places_the_first_counts():
    other = pdb_of(HELIX + 0.5)
    assert torch.allclose(backbones(pdb_of(HELIX) + other)[0], HELIX, atol=6e-4)
    assert len(backbones(pdb_of(HELIX) + "ENDMDL\n" + pdb_of(STRAND, "B"))) == 1
    assert backbones("HETATM" + pdb_of(HELIX)[6:30]) == []


def test_a_line_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"line 1: coordinates .* wanted three numbers of eight columns each"):
        backbones(pdb_of(HELIX).replace("0.000", "  abc", 1)[:54] + "\n")


def test_files_come_from_folders_archives_and_single_files(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/one.pdb").write_text(pdb_of(HELIX))
    (tmp_path / "notes.txt").write_text("no structure")
    archive = tmp_path / "package.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (("p/tests/two.ent", pdb_of(STRAND)), ("p/readme.md", "hello")):
            data = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [name for name, _ in pdb_texts(tmp_path)] == ["one.pdb"]
    assert [name for name, _ in pdb_texts(archive)] == ["two.ent"]
    assert backbones(next(iter(pdb_texts(tmp_path / "deep/one.pdb")))[1])[0].shape == (6, 3, 3)


def test_absent_files_are_said_to_be(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no PDB file .* in .*Fix: give a folder of PDB files, or the source archive"):
        list(pdb_texts(tmp_path))
    with pytest.raises(ValueError, match=r"cannot read PDB files of .*No such file .*Fix: give a folder"):
        list(pdb_texts(tmp_path / "nowhere"))


def test_broken_files_and_other_formats_are_named(tmp_path: Path):
    for name in ("whole.tar.gz", "one.pdb.gz"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ValueError, match=f"cannot read PDB files of .*{name}"):
            list(pdb_texts(tmp_path / name))
    with pytest.raises(ValueError, match="in the mmCIF format"):
        backbones("data_1UBQ\n#\n")


def test_real_files_of_installed_packages_are_read_where_there_are_any():
    try:
        texts = list(pdb_texts())
    except ValueError as error:
        pytest.skip(str(error))
    chains = [chain for _, text in texts for chain in backbones(text)]
    place = torch.cat(chains)
    assert float((place[:, 0] - place[:, 1]).norm(dim=-1).median()) == pytest.approx(1.46, abs=0.03)


# geometry


def test_frames_are_rotations_on_the_residue():
    rotations, origins = residue_frames(HELIX)
    assert torch.allclose(rotations.mT @ rotations, torch.eye(3, dtype=F64).expand(6, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(6, dtype=F64))
    local = (rotations.mT.unsqueeze(1) @ (HELIX - origins.unsqueeze(1)).unsqueeze(-1)).squeeze(-1)
    assert local[:, 2, 1:].abs().max() < 1e-12  # C on the first axis
    assert local[:, 0, 2].abs().max() < 1e-12  # N in the plane of the first two, on the side of the second
    assert (local[:, 0, 1] > 1).all()


def test_relative_frames_forget_where_a_fragment_lies():
    turn = from_quaternion(torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=F64))
    moved = HELIX @ turn.mT + torch.tensor([5.0, -3.0, 2.0], dtype=F64)
    for a, b in zip(relative(*residue_frames(HELIX)), relative(*residue_frames(moved)), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_atoms_of_relative_frames_are_the_fragment():
    for chain in (HELIX, STRAND):
        again = atoms(*relative(*residue_frames(chain)))
        assert torch.allclose(torch.pdist(again.flatten(0, 1)), torch.pdist(chain.flatten(0, 1)), atol=0.05)
        assert torch.allclose(torch.stack(torsions(again)), torch.stack(torsions(chain)), atol=0.02)


def test_torsions_are_those_that_were_put_in():
    phi, psi = (torch.tensor(v, dtype=F64) for v in ((0.3, -1.0, 2.0, -2.5), (-0.8, 2.9, 1.0, 0.1)))
    found = torsions(ideal_backbone(phi, psi))
    assert torch.allclose(found[0], psi[:-1], atol=1e-9)
    assert torch.allclose(found[1], phi[1:], atol=1e-9)
    square = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1.0, 0], [0, 1.0, 1.0]])
    assert float(dihedral(*square)) == pytest.approx(-math.pi / 2)


def test_helices_and_strands_are_told_apart():
    both = torch.stack([HELIX, STRAND])
    assert helical(both).tolist() == [True, False]
    assert extended(both).tolist() == [False, True]


def test_fragments_are_cut_and_equal_ones_kept_once():
    mixed = ideal_backbone(torch.linspace(-2, 1, 6), torch.linspace(1, -1, 6))
    assert fragments([mixed], 4).shape == (3, 4, 3, 3)
    assert fragments([mixed, mixed + 7.0, HELIX], 4).shape == (4, 4, 3, 3)
    with pytest.raises(ValueError, match="no chain has 7 residues in a row"):
        fragments([mixed], 7)
    with pytest.raises(ValueError, match="length=1, wanted at least 2"):
        fragments([mixed], 1)


def test_residues_in_one_line_have_no_frame():
    with pytest.raises(ValueError, match="1 residues have N, CA and C collinear"):
        residue_frames(torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]]]))
    with pytest.raises(ValueError, match="2 residues have N, CA and C collinear, coincident or undefined"):
        residue_frames(torch.stack([HELIX[0], torch.zeros(3, 3, dtype=F64), HELIX[1] * math.nan]))


# experts


def few(seed: int, count: int = 3) -> Tensor:
    angles = torch.randn(2, count, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.stack([ideal_backbone(phi, psi) for phi, psi in zip(*angles, strict=True)])


def test_the_score_is_the_slope_of_the_density_in_the_frame():
    q = fragment_mixture(few(0), 0.4, 0.8, weights=torch.tensor([1.0, 2.0, 3.0]))
    assert q.log_prob is not None
    space, sigma, h = q.home, 0.7, 1e-5
    x = frame_draws(*relative(*residue_frames(few(0))), 0.4, 0.8, 5, Streams(0))
    shifts = h * torch.eye(space.tangent[0], dtype=F64)
    slope = [
        (q.log_prob(space.move(x, e.expand(5, -1)), sigma) - q.log_prob(space.move(x, -e.expand(5, -1)), sigma)) / (2 * h) for e in shifts
    ]
    assert torch.allclose(q.score(x, sigma), torch.stack(slope, -1), atol=1e-6)


def test_draws_have_the_density_of_the_mixture():
    """Importance sampling of one mixture by draws of a wider one gives log Z = 0."""
    frames = relative(*residue_frames(few(1, 2)[:, :2]))
    narrow, wide = (frame_mixture(*frames, a, b) for a, b in ((0.4, 0.5), (0.6, 0.7)))
    assert narrow.log_prob is not None
    assert wide.log_prob is not None
    x = frame_draws(*frames, 0.6, 0.7, 40_000, Streams(0))
    ratio = narrow.log_prob(x, 1e-9) - wide.log_prob(x, 1e-9)
    assert abs(float(ratio.logsumexp(0)) - math.log(len(x))) < 0.05


def test_or_of_helix_and_strand_gives_half_of_each_and_bonds_that_hold():
    a, b = (fragment_mixture(chain[:3].unsqueeze(0), 0.1, 0.1, name=name) for chain, name in ((HELIX, "helix"), (STRAND, "strand")))
    out = sample(either([a, b]), linear(100, 0.02, 10.0), particles=200, rng=Streams(0))
    place = atoms(*a.home.split(out.x[0]))
    share = float(helical(place).float().mean())
    assert share + float(extended(place).float().mean()) > 0.9
    assert abs(share - 0.5) < 0.15
    assert float((place[:, :-1, 2] - place[:, 1:, 0]).norm(dim=-1).median()) == pytest.approx(1.33, abs=0.1)


def test_a_power_of_one_fragment_is_a_narrower_one():
    """``q^2`` of one kernel has half its variance, in rotations and translations alike."""
    q = fragment_mixture(HELIX[:2].unsqueeze(0), 0.3, 0.6)
    pop = sample(feynman_kac(q**2), linear(120, 0.02, 10.0), particles=1500, rng=Streams(0)).population
    rotations, places = q.home.split(pop.x)
    r, x = relative(*residue_frames(HELIX[:2]))
    w = pop.weights()[0].double()
    cosine = ((rotations[0, :, 0].double() * r[0]).sum((-2, -1)) - 1) / 2
    assert float((w * (places[0, :, 0].double() - x[0]).square().sum(-1)).sum()) == pytest.approx(3 * 0.36 / 2, rel=0.15)
    assert float((w * cosine.clamp(-1, 1).acos().square()).sum()) == pytest.approx(3 * 0.09 / 2, rel=0.15)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: fragment_mixture(HELIX), r"backbone has shape \(6, 3, 3\), wanted \[M, L, 3, 3\]"),
        (lambda: frame_mixture(torch.eye(3).expand(2, 1, 3, 3), torch.zeros(2, 2, 3)), r"shapes \(2, 1, 3, 3\) and \(2, 2, 3\)"),
        (lambda: frame_mixture(2 * torch.eye(3).expand(2, 1, 3, 3), torch.zeros(2, 1, 3)), "not orthonormal"),
        (lambda: frame_mixture(exp(torch.zeros(2, 1, 3)), torch.zeros(2, 1, 3), 0.0), "rotation_std=0.0"),
        (lambda: frame_mixture(exp(torch.zeros(2, 1, 3)), torch.full((2, 1, 3), torch.inf)), "6 numbers that are not finite"),
    ],
)
def test_bad_frames_are_named(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()
