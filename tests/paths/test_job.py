"""`popflow path` from the command line to the report: potentials, a file, a molecule, bad input, what was counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from popflow.cli.app import main
from popflow.core.streams import Streams
from popflow.paths.config import PathConfig
from popflow.paths.doob import fit
from popflow.paths.job import run
from popflow.paths.scene import path, scene
from popflow.paths.shooting import Shooter
from popflow.runs import Run, point_figures

TINY = ("--steps", "4", "--batch", "8", "--evaluations", "256", "--paths", "6")
SURFACE = "def energy(x):\n    return x[..., 0] ** 4 - 2 * x[..., 0] ** 2 + x[..., 1:].square().sum(-1)\n"
OWN = ("--time", "1", "--noise", "1", "--sigma0", "0.1", "--dt", "0.05")


@pytest.fixture(autouse=True)
def no_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out animations, which take seconds and are tested with the figures."""
    monkeypatch.setattr(point_figures, "moving", lambda *given, **options: "data:image/png;base64,iVBORw0KGgo=")


def told(capsys, *arguments: str) -> dict:
    assert main(["path", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_known_potential_with_shooting_beside_it(tmp_path: Path, capsys) -> None:
    sizes = ("--potential", "double-well", "--dt", "0.02", "--shots", "3", "--family", "full", "--components", "2")
    found = told(capsys, *sizes, *TINY, "--out", str(tmp_path / "run"))
    results = {name: one["value"] for name, one in found["results"].items()}
    assert results["forces_training"] == results["hessian_vector_products"] == 4 * 8
    assert results["forces_paths"] == 6 * 50
    assert 0 <= results["arrival"] <= 1
    costs = {row[0]: row[1:] for row in found["diagnostics"][1]["rows"]}
    assert costs["training"] == [32, 32]
    (note,) = [one["note"] for one in found["comparison"] if "Highest energy" in one.get("title", "")]
    assert "No weighted mean" in note
    assert "highest_energy_weighted" not in results  # six paths: fewer than ten effective ones
    assert costs["shooting"][0] >= 4 * 200 * 50  # one path for each of 200 chains and the start, all of fixed length
    shares = {row[0]: row[1] for row in found["diagnostics"][0]["rows"]}
    parts = [shares[name] for name in shares if name.startswith(("kinetic", "force share", "work"))]
    assert sum(parts) == pytest.approx(results["action"])
    page = (tmp_path / "run/report.html").read_text()
    for part in ("Highest energy of a path", "Hessian-vector products", "U - U(A)", "points moving from A to B"):
        assert part in page or part.replace("-", "−") in page


def test_two_way_shots_go_on_from_fitted_paths(tmp_path: Path, capsys) -> None:
    sizes = ("--potential", "double-well", "--dt", "0.02", "--shots", "2", "--shooting", "two-way", "--family", "full")
    found = told(capsys, *sizes, *TINY, "--out", str(tmp_path / "run"))
    (table,) = [one for one in found["comparison"] if "Highest energy" in one.get("title", "")]
    (shot,) = [one for one in table["rows"] if one[0].startswith("two-way shooting, ")]
    assert shot[0].endswith("% accepted")
    costs = {one[0]: one[1] for one in found["diagnostics"][1]["rows"]}
    assert costs["shooting"] == 2 * 200 * 50  # no first paths to grow: the fitted ones are there


def test_two_way_shots_without_a_fitted_path_that_joins_both_states_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PathConfig(
        potential="double-well", family="diagonal", dt=0.05, steps=4, batch=8, evaluations=256, paths=6, shots=2, shooting="two-way"
    )
    monkeypatch.setattr(Shooter, "joins", lambda self, paths: torch.zeros(len(paths.x)))
    with Run.open(tmp_path / "run", config, job="path") as one:
        assert "no fitted path joins A and B" in str(run(config, one).plain())


def test_a_run_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    config = PathConfig(potential="double-well", family="diagonal", dt=0.05, steps=4, batch=8, evaluations=256, paths=6)
    with Run.open(tmp_path / "run", config, job="path") as one:
        first = run(config, one).plain()
    for stage in ("action", "paths"):
        (tmp_path / f"run/{stage}.safetensors").unlink()
    with Run.open(tmp_path / "run", config, job="path") as two:
        assert run(config, two).plain() == first


def test_forces_of_training_are_those_that_were_made() -> None:
    config = PathConfig(potential="double-well", family="full", components=3, steps=5, batch=20)
    made = scene(config)
    start = path(config, made, Streams(0))
    fitted = fit(made.process, start, steps=config.steps, batch=config.batch, rng=Streams(0), bar=False)
    assert fitted.forces == fitted.hvps == 5 * (20 // 3) * 3


@pytest.mark.parametrize(("states", "family"), [(("-1", "1"), "diagonal"), (("-1,0,0", "1,0,0"), "flow")], ids=["one", "three"])
def test_a_potential_of_ones_own_in_any_number_of_coordinates(states, family, tmp_path: Path, capsys) -> None:
    (tmp_path / "surface.py").write_text(SURFACE)
    ends = (f"--start={states[0]}", "--end", states[1], "--family", family)
    found = told(capsys, "--potential", f"{tmp_path / 'surface.py'}:energy", *ends, *OWN, *TINY, "--out", str(tmp_path / "run"))
    assert found["results"]["action"]["value"] > 0
    saved = (tmp_path / "run/paths.safetensors").exists()
    assert saved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dt", "0.0004"], "does not divide time=0.0275"),
        (["--sigma0", "0"], "sigma0"),
        (["--components", "0"], "components"),
        (["--components", "2"], "family='full'"),
        (["--family", "full", "--components", "20", "--evaluations", "64"], "wanted at least 80"),
        (["--sigma0", "0.5"], "they overlap"),
        (["--family", "kinematic"], "wanted flow, full or diagonal"),
        (["--start", "1,x"], "wanted finite numbers with commas"),
        (["--start", "1,2,3", "--end", "0,0,1"], "wanted 2: those of mueller-brown"),
        (["--start", "1,2", "--end", "1,2"], "are the same state"),
        (["--temperature", "400"], "is for a molecule"),
        (["--potential", "absent.py:energy"], "start, end, time, noise, sigma0, dt not given"),
        (["--potential", "double-wel"], "did you mean 'double-well'"),
        (["--time", "-1"], "time"),
        (["--shooting", "two-way"], "shots=0, wanted shots to make"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_bad_settings_are_refused_with_the_fix(options, message, tmp_path: Path, capsys) -> None:
    assert main(["path", *options, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(x):\n    return x\n", "has no attribute 'energy'"),
        ("def energy(x):\n    return x.sum()\n", "fails at start and end"),
        ("def energy(x):\n    return (x * float('nan')).sum(-1)\n", "wanted one finite energy"),
        ("energy = 3\n", "wanted a function"),
        ("raise RuntimeError('no')\n", "cannot load potential"),
    ],
)
def test_bad_potentials_are_refused(text: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "surface.py").write_text(text)
    ends = ("--start=-1,0", "--end", "1,0")
    code = main(["path", "--potential", f"{tmp_path / 'surface.py'}:energy", *ends, *OWN, *TINY, "--out", str(tmp_path / "run")])
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_exact_action_of_the_demo_is_the_grids(tmp_path: Path) -> None:
    config = PathConfig()
    made = scene(config)
    assert made.grid(0.1) is not None
    far = torch.stack([made.end + made.reach, made.end])
    assert made.arrived(far).tolist() == [False, True]
    assert float(made.energy(made.end)) == pytest.approx(38.53, abs=0.01)


MOLECULE = ("--time-ps", "0.05", "--steps", "2", "--batch", "4", "--evaluations", "64", "--paths", "2")


def test_a_molecule_from_two_files_to_a_trajectory_that_mdtraj_opens(files, tmp_path: Path, capsys) -> None:
    import mdtraj

    found = told(capsys, *map(str, files), *MOLECULE, "--out", str(tmp_path / "run"))
    assert found["results"]["forces_paths"]["value"] == 2 * 50
    opened = mdtraj.load(str(tmp_path / "run/path.xtc"), top=str(tmp_path / "run/path.pdb"))
    assert (opened.n_frames, opened.n_atoms) == (51, 22)
    assert opened.time[-1] == pytest.approx(0.05, abs=1e-4)
    saved = mdtraj.load(str(files[0]))
    lengths = [mdtraj.compute_distances(one, [[8, 10]])[0, 0] for one in (opened, saved)]  # a carbon-carbon bond, nm
    assert lengths[0] == pytest.approx(lengths[1], abs=0.03)
    page = (tmp_path / "run/report.html").read_text()
    assert "kJ/mol" in page
    assert "a molecule moving from A to B" in page


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"swap": (4, 5)}, (), "the elements differ"),
        ({"swap": (0, 2)}, (), "wanted one order"),
        ({"mirror": True}, (), "has one handedness in A and the other in B"),
        ({"scale": 0.1}, (), "PDB files hold angstroms"),
        ({"scale": 1.89}, (), "hold angstroms, not bohr"),
        ({}, ("--forcefield", "amber14/tip3p.xml"), "has no parameters for residue ACE1"),
        ({}, ("--forcefield", "amber14/absent.xml"), "absent.xml"),
        ({}, ("--dt", "0.0003"), "does not divide"),
        ({}, ("--noise", "1"), "is for a potential, not for the molecule"),
        ({}, ("--family", "full"), "wanted thermal or kinematic for molecules"),
    ],
)
def test_bad_molecules_are_refused_with_the_fix(change, options, message, files, pdb, tmp_path: Path, capsys) -> None:
    (tmp_path / "B.pdb").write_text(pdb(1, **change))
    assert main(["path", str(files[0]), str(tmp_path / "B.pdb"), *options, *MOLECULE, "--out", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_that_are_not_there_or_empty_and_one_state_twice_are_refused(files, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.pdb").write_text("")
    (tmp_path / "ligand.pdb").write_text(files[0].read_text().replace("NME", "LIG"))
    ligand = str(tmp_path / "ligand.pdb")
    for pair, message in (
        ((str(files[0]), str(tmp_path / "absent.pdb")), "absent.pdb cannot be read: No such file"),
        ((str(files[0]), str(tmp_path)), "cannot be read: Is a directory"),
        ((str(files[0]), str(tmp_path / "empty.pdb")), "it holds no atoms"),
        ((str(files[0]), str(files[0])), "A and B are the same state"),
        ((ligand, ligand), "LIG3 (6 atoms)"),  # beside ALA2, which only its neighbour makes unknown
    ):
        assert main(["path", *pair, "--out", str(tmp_path / "run")]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "run").exists()


def test_one_file_is_no_pair(files, capsys) -> None:
    assert main(["path", str(files[0])]) == 2
    assert "wanted both PDB files" in capsys.readouterr().err
