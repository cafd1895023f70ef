"""`popflow path` with ASE calculators and with OpenMM: a reaction from two files, the ledger, resuming, and bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from popflow.cli.app import main
from popflow.paths import thermal_path
from popflow.paths.ase_force import ASEForce
from popflow.paths.calculated import relaxed, states
from popflow.paths.config import PathConfig
from popflow.paths.coordinates import kabsch
from popflow.paths.first_paths import carried, distance_path, first_paths
from popflow.paths.scene import scene
from popflow.paths.thermal_path import _unmoved
from popflow.runs import Ledger, point_figures

HCN, HNC = "H -1.065 0 0\nC 0 0 0\nN 1.142 0 0", "H 2.175 0 0\nC 0 0 0\nN 1.170 0 0"
XTB = ("--calculator", "popflow.paths:gfn2_xtb")
TINY = ("--steps", "2", "--batch", "2", "--evaluations", "64", "--paths", "2", "--time", "0.01", "--dt", "0.001", "--sigma0", "0.005")
MODULE = """
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.lj import LennardJones

class Pushing(LennardJones):
    "An energy without forces."
    implemented_properties = ("energy",)

def argon():
    return LennardJones(sigma=3.4, epsilon=0.01, rc=50.0, smooth=False)

class Fragile(LennardJones):
    "No energy beyond 5 angstroms."
    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        if atoms.get_distance(0, 1) > 5:
            raise CalculationFailed("too far")
        super().calculate(atoms, properties, system_changes)

def fragile():
    return Fragile(sigma=3.4, epsilon=0.01, rc=50.0, smooth=False)

def energy_alone():
    return Pushing()

def needs(charge):
    return LennardJones()

def broken():
    raise FileNotFoundError("no parameters")

number = 3
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No animation, and a short elastic band."""
    monkeypatch.setattr(point_figures, "moving", lambda *given, **options: "data:image/png;base64,iVBORw0KGgo=")
    monkeypatch.setattr(sys.modules[thermal_path.__module__], "_ROUNDS", 2)


def xyz(folder: Path, **texts: str) -> list[Path]:
    """XYZ files by name, of lines of atoms."""
    for name, text in texts.items():
        (folder / f"{name}.xyz").write_text(f"{len(text.splitlines())}\n{name}\n{text}\n")
    return [folder / f"{name}.xyz" for name in texts]


def scaled(text: str, factor: float) -> str:
    rows = [row.split() for row in text.splitlines()]
    return "\n".join(" ".join([row[0], *(str(factor * float(one)) for one in row[1:])]) for row in rows)


def refused(capsys, *arguments: str) -> str:
    assert main(["path", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_reaction_in_one_command_whose_calls_are_made_once(tmp_path: Path, capsys) -> None:
    files, run = xyz(tmp_path, hcn=HCN, hnc=HNC), tmp_path / "run"
    command = ["path", *map(str, files), *XTB, "--minimise", *TINY, "--out", str(run), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    calls = Ledger.read(run / "calls.jsonl")
    found = {name: one["value"] for name, one in first["results"].items()}
    assert found["calculator_calls"] == len(calls) > 2 * found["hessian_vector_products"]
    assert found["calculator_failures"] == 0
    assert 250 < found["highest_energy_of_mean_path"] < 700  # the relaxed scan has 306
    assert "calls.jsonl" in (run / "report.html").read_text()
    for stage in ("fit", "action", "paths"):  # as if killed before it had saved anything but its calls
        (run / f"{stage}.safetensors").unlink()
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["results"] == first["results"]
    lines = [line for line in (run / "calls.jsonl").read_text().splitlines() if '"key"' in line]
    assert len(lines) == len(calls)


def test_openmm_gives_the_path_that_torch_gives(files, tmp_path: Path, capsys) -> None:
    found = []
    for options in ((), ("--calculator", "openmm"), ("--calculator", "openmm:CPU")):
        sizes = ("--time", "0.05", "--steps", "2", "--batch", "2", "--evaluations", "64", "--paths", "2", "--family", "kinematic")
        assert main(["path", *map(str, files), *options, *sizes, "--out", str(tmp_path / f"run{len(found)}"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["results"])
    for other, tolerance in zip(found[1:], (1e-6, 1e-3), strict=True):
        assert other["action"]["value"] == pytest.approx(found[0]["action"]["value"], rel=tolerance)
        assert "calculator_calls" not in other
    assert "wanted one of Reference" in refused(capsys, *map(str, files), "--calculator", "openmm:Abacus", "--out", str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_module:mine", "cannot import it: No module named 'absent_module'"),
        ("mine:absent", "has no attribute 'absent'"),
        ("mine:number", "is a int, wanted a function that makes an ASE calculator"),
        ("mine:needs", "cannot be made: TypeError"),
        ("mine:broken", "cannot be made: FileNotFoundError: no parameters"),
        ("mine:energy_alone", "wanted an ASE calculator with energies and forces"),
        ("mine", "wanted MODULE:FUNCTION, openmm or openmm:PLATFORM"),
        ("openmm:", "wanted MODULE:FUNCTION, openmm or openmm:PLATFORM"),
    ],
)
def test_calculators_that_cannot_be_made_are_refused(name, message, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = xyz(tmp_path, hcn=HCN, hnc=HNC)
    assert message in refused(capsys, *map(str, files), "--calculator", name, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("b", "options", "message"),
    [
        (HNC, (), "names no residues, which a force field needs. Fix: a PDB file, or calculator"),
        (HNC, ("--calculator", "openmm"), "names no residues"),
        (HNC, (*XTB, "--forcefield", "amber14/tip3p.xml"), "which needs none"),
        (HNC, ("--workers", "2"), "is for calculator=MODULE:FUNCTION"),
        (scaled(HNC, 0.1), XTB, "hold angstroms, not nanometres"),
        (scaled(HNC, 1.8897), XTB, "hold angstroms, not bohr"),
        ("C 0 0 0\nH 2.175 0 0\nN 1.170 0 0", XTB, "atom 1 is MOL1:H1 (H) in A and MOL1:C1 (C) in B: the elements differ"),
        ("H 2.175 0 0\nC 0 0 0", XTB, "A has 3 atoms and B has 2"),
        (HNC.replace("H 2.175", "Qq 2.175"), XTB, "cannot be read as an XYZ file"),
        (f"{HNC}\n3\nagain\n{HNC}", XTB, "cannot be read as an XYZ file"),
        (HNC, (*XTB, "--sigma0", "0.05"), "they overlap"),
    ],
)
def test_files_that_no_calculator_can_use_are_refused(b: str, options, message: str, tmp_path: Path, capsys) -> None:
    files = xyz(tmp_path, a=HCN, b=b)
    assert message in refused(capsys, *map(str, files), *options, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_boxes_several_structures_and_other_formats_are_refused(tmp_path: Path) -> None:
    (a,) = xyz(tmp_path, a=HCN)
    box = tmp_path / "box.xyz"
    box.write_text(f'3\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3 pbc="T T T"\n{HNC}\n')
    with pytest.raises(ValueError, match="has a periodic box"):
        states(a, box)
    box.write_text(f"3\none\n{HNC}\n3\ntwo\n{HNC}\n")
    with pytest.raises(ValueError, match="holds 2 structures, wanted one"):
        states(a, box)
    with pytest.raises(ValueError, match=r"ends in '\.mol', wanted a PDB or an XYZ file"):
        states(a, tmp_path / "b.mol")


def test_a_calculator_that_fails_at_a_state_says_what_it_said(tmp_path: Path, capsys) -> None:
    files = xyz(tmp_path, a=HCN, b="H 60 0 0\nC 0 0 0\nN 1.170 0 0")  # a field that does not converge
    told = refused(capsys, *map(str, files), *XTB, *TINY, "--out", str(tmp_path / "run"))
    assert "fails at state B: " in told or "not a minimum" in told


def test_a_pair_is_relaxed_to_the_minimum_of_its_potential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    from popflow.paths.calculated import calculator

    files = xyz(tmp_path, near="Ar 0 0 0\nAr 3.6 0 0", far="Ar 0 0 0\nAr 0 4.3 0")
    potential = ASEForce(["Ar", "Ar"], calculator("mine:argon"), workers=1)
    found = relaxed(states(*files), potential, tolerance=1e-3)
    for x in (found.a, found.b):
        assert float((x[0] - x[1]).norm()) == pytest.approx(0.34 * 2 ** (1 / 6), abs=1e-4)
    assert float((found.a - found.b).norm()) < 1e-3  # superposed
    loose = states(*xyz(tmp_path, c="Ar 0 0 0\nAr 4.9 0 0", d="Ar 0 0 0\nAr 5.1 0 0"))
    with pytest.raises(ValueError, match="the calculator fails while a state is relaxed: CalculationFailed: too far"):
        relaxed(loose, ASEForce(["Ar", "Ar"], calculator("mine:fragile"), workers=1))


def test_superposition_by_masses_keeps_heavy_atoms(tmp_path: Path) -> None:
    made = states(*xyz(tmp_path, a=HCN, b=HNC))
    along = [float(x[2, 0] - x[1, 0]) for x in (made.a, made.b)]
    assert along == pytest.approx([0.1142, 0.1170], abs=1e-9)  # CN points the same way, and H changes sides
    masses = made.masses[::3]
    assert float((masses[:, None] * made.a).sum(0).abs().max()) < 1e-12
    turned, centred = kabsch(made.a, made.b)
    assert float((turned[2] - turned[1]) @ (centred[2] - centred[1])) < 0
    assert float((turned[0] - centred[0]).norm()) < float(
        (made.a[0] - made.b[0]).norm()
    )  # H stays, and CN turns, where all atoms count the same


def test_a_centre_whose_bonds_stay_keeps_its_hand_and_one_that_reacts_need_not(tmp_path: Path) -> None:
    legs = [(0.629, 0.629, 0.629), (-0.629, -0.629, 0.629), (-0.629, 0.629, -0.629), (0.629, -0.629, -0.629)]
    around = ("H", "F", "Cl", "Br")
    length = {"H": 1.0, "F": 1.25, "Cl": 1.6, "Br": 1.75}

    def methane(hand: int) -> str:
        rows = [f"{s} {hand * length[s] * x} {length[s] * y} {length[s] * z}" for s, (x, y, z) in zip(around, legs, strict=True)]
        return "\n".join(["C 0 0 0", *rows])

    with pytest.raises(ValueError, match="has one handedness in A and the other in B"):
        states(*xyz(tmp_path, right=methane(1), left=methane(-1)))
    flat = "C 0 0 0\nH 1.08 0 0\nH -0.54 0.935 0\nH -0.54 -0.935 0"
    inverted = states(*xyz(tmp_path, before=f"{flat}\nCl 0 0 1.8\nBr 0 0 -3.3", after=f"{flat}\nCl 0 0 3.3\nBr 0 0 -1.95"))
    assert inverted.bonds == [(0, 1), (0, 2), (0, 3)]  # neither the bond that breaks nor the one that forms
    assert len(first_paths(inverted, lambda x: x.square().sum(-1))) == 1  # by distances: what stays does not join the atoms


def test_a_path_between_straight_states_turns_evenly(tmp_path: Path) -> None:
    made = states(*xyz(tmp_path, a=HCN, b=HNC))
    path = distance_path(made).unflatten(1, (-1, 3))
    assert float((path[0] - made.a).abs().max()) < 1e-9
    assert float((path[-1] - made.b).abs().max()) < 1e-9
    steps = (path[1:] - path[:-1])[:, 1:].norm(dim=(1, 2))  # of C and N
    assert float(steps.max()) < 0.02  # nm: no image is turned round
    masses = made.masses[::3]
    assert float((masses[:, None] * path).sum(1).abs().max()) < 1e-6
    turned = carried(path, -path[-1], masses)
    assert float((turned[-1].reshape(3, 3) + path[-1]).abs().max()) < 1e-12


def test_a_band_of_a_molecule_has_no_force_or_torque() -> None:
    rng = torch.Generator().manual_seed(3)
    x, pull = (torch.randn(4, 15, dtype=torch.float64, generator=rng) for _ in range(2))
    x[0] = torch.arange(5.0)[:, None].mul(torch.tensor([1.0, 2.0, 3.0])).flatten()  # a straight one: no turn about its axis
    left = _unmoved(pull, x)
    place, force = x.unflatten(1, (-1, 3)), left.unflatten(1, (-1, 3))
    assert float(force.sum(1).abs().max()) < 1e-9
    assert float(torch.linalg.cross(place - place.mean(1, keepdim=True), force).sum(1).abs().max()) < 1e-9
    assert torch.allclose(_unmoved(left, x), left, atol=1e-9)


@pytest.fixture
def argon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PathConfig]:
    """Settings of three atoms of argon in a row, of which the middle one goes from one to the other."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    a, b = xyz(tmp_path, a="Ar 0 0 0\nAr 3.82 0 0\nAr 9 0 0", b="Ar 0 0 0\nAr 5.18 0 0\nAr 9 0 0")
    return lambda **changes: PathConfig(a=a, b=b, calculator="mine:argon", **changes)


def test_scenes_with_calculators_need_no_bonds_and_name_their_source(argon) -> None:
    config = argon()
    assert [file.name for file in config.inputs()] == ["mine.py"]  # another text of the module is another run
    made = scene(config)
    assert made.process.potential.costly.made == 2  # a call for each state, and none again for the check of forces
    assert made.molecule.bonds == []
    assert float(made.process.mass[0]) == pytest.approx(39.948, abs=0.01)
    assert made.process.potential.failed == 0.0
