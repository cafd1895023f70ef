"""Forces of molecules: the torch force field against OpenMM's Reference platform, agreement and evaluations per processor second.

The molecules are alanine dipeptide (22 atoms) and chignolin (138 atoms), from ``$POPFLOW_DATA/md``; without them, or with ``--quick``, small ones are made
here. Conformations are a minimum with Gaussian noise of 0.01 nm. Speeds are evaluations of all forces per second of one processor core (machines that
run these are shared), in turns of all competitors, medians over the turns. OpenMM is called in a loop, as it has no batches. TorchMD gets the parameters
of the same System and has no implicit solvent; ``--seeds`` counts the turns.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from harness import Row, dataset, run
from torch import Tensor

from popflow.paths.forcefield import COULOMB, TorchForce
from popflow.paths.molecule import system_of, water

FIELDS = {"vacuum": ["amber14/protein.ff14SB.xml"], "OBC2": ["amber14/protein.ff14SB.xml", "implicit/obc2.xml"]}
FILES = {"alanine dipeptide": "alanine_dipeptide_A.pdb", "chignolin": "chignolin_folded_relaxed.pdb"}
NOISE = 0.01
LIMIT = 0.5


def main(options: Namespace) -> list[Row]:
    """Compare energies and forces (part agreement), and speeds without solvent and in OBC2 (parts vacuum and OBC2)."""
    torch.set_num_threads(1)
    rows = []
    for name, (topology, x) in molecules(options.quick).items():
        for solvent, fields in ({"vacuum": ["amber14/tip3p.xml"]} if options.quick else FIELDS).items():
            system = system_of(topology, fields)
            if "agreement" in options.only:
                rows += agreement(f"{name}, {solvent}", system, x)
            if solvent in options.only:
                sizes = [1, 8] if options.quick else [1, 32] if name == "chignolin" else [1, 64, 256, 512]
                rows += speeds(f"{name}, {solvent}", system, x, sizes, options)
    return rows


def molecules(quick: bool) -> dict[str, tuple[Any, Tensor]]:
    """Topologies and minima ``[N, 3]``."""
    folder = dataset("md")
    if quick or folder is None:
        molecule = water()
        return {"water": (molecule.topology, molecule.a)}
    from openmm import app

    files = {name: app.PDBFile(str(folder / file)) for name, file in FILES.items()}
    return {
        name: (file.topology, torch.tensor(file.getPositions(asNumpy=True)._value, dtype=torch.float64))  # pyright: ignore[reportOptionalMemberAccess]
        for name, file in files.items()
    }


def disturbed(x: Tensor, n: int, seed: int = 0) -> Tensor:
    """``n`` conformations ``[n, 3 N]`` about one."""
    return x.reshape(1, -1) + NOISE * torch.randn(n, x.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(system: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Energies ``[n]`` and forces ``[n, 3 N]`` by a loop over OpenMM's Reference platform."""
    import openmm

    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        energies, forces = [], []
        for row in x.reshape(len(x), -1, 3).numpy():
            context.setPositions(row)
            state = context.getState(getEnergy=True, getForces=True)
            energies.append(state.getPotentialEnergy()._value)
            forces.append(torch.as_tensor(state.getForces(asNumpy=True)._value))
        return torch.tensor(energies, dtype=torch.float64), torch.stack(forces).reshape(len(x), -1).double()

    return evaluate


def agreement(name: str, system: Any, x: Tensor) -> list[Row]:
    """Largest differences over 64 conformations."""
    force_field, rows = TorchForce(system), disturbed(x, 64)
    energies, forces = reference(system)(rows)
    energy = float((force_field(rows) - energies).abs().max())
    relative = float(((force_field.force(rows) - forces).abs().amax(1) / forces.abs().amax(1)).max())
    notes = {"conformations": 64, "noise_nm": NOISE, "terms": [type(force).__name__ for force in system.getForces()]}
    return [
        Row(f"{name}: energy, largest difference from OpenMM Reference", energy, unit="kJ/mol", target=1e-6, notes=notes),
        Row(f"{name}: force, largest relative difference from OpenMM Reference", relative, target=1e-8, notes=notes),
    ]


def speeds(name: str, system: Any, x: Tensor, sizes: list[int], options: Namespace) -> list[Row]:
    """Evaluations per second by batch size: eager, compiled, and peers."""
    force_field, openmm = TorchForce(system), reference(system)
    fused = torch.compile(force_field.force, dynamic=False)
    out = []
    for n in sizes:
        rows = disturbed(x, n)
        runners: dict[str, Callable[[], Any]] = {
            "eager": lambda rows=rows: force_field.force(rows),
            "OpenMM loop": lambda rows=rows: openmm(rows),
        }
        absent: dict[str, float | str] = {}
        if name.startswith("alanine") and n >= 64:
            runners["compiled"] = lambda rows=rows: fused(rows)
        if name.endswith("vacuum"):
            try:
                runners["TorchMD"] = torchmd(system, rows)
            except ImportError as error:
                absent["TorchMD"] = f"absent: {error}"
        start = time.perf_counter()
        found = per_second(runners, n, options.seeds, 0.02 if options.quick else LIMIT)
        peers = {key: found[key] for key in ("OpenMM loop", "TorchMD") if key in found} | absent
        best = max(value for value in peers.values() if isinstance(value, float))
        for kind, from_size in (("eager", 256), ("compiled", 64)):
            if kind in found:
                judged = name.startswith("alanine") and n >= from_size
                out.append(
                    Row(
                        f"{name}: forces per second, batch {n}, {kind}, over the best peer",
                        found[kind] / best,
                        unit="times",
                        target=1.0 if judged else None,
                        direction=">=",
                        peers=peers,
                        seconds=time.perf_counter() - start,
                        notes={"per_second": found[kind], "threads": 1, "dtype": "float64"},
                    )
                )
    return out


def per_second(runners: dict[str, Callable[[], Any]], n: int, turns: int, limit: float) -> dict[str, float]:
    """Median evaluations per processor second, the runners in turn."""
    found: dict[str, list[float]] = {key: [] for key in runners}
    for go in runners.values():
        go()  # warm-up, compilation
    for _ in range(turns):
        for key, go in runners.items():
            count, start = 0, time.process_time()
            while (spent := time.process_time() - start) < limit:
                go()
                count += n
            found[key].append(count / spent)
    return {key: statistics.median(values) for key, values in found.items()}


def torchmd(system: Any, rows: Tensor) -> Callable[[], Any]:
    """TorchMD's forces with the parameters of a System without solvent, in kcal/mol and angstrom; its result is compared with OpenMM's first."""
    from torchmd.forces import Forces  # pyright: ignore[reportMissingImports]

    kcal = 4.184
    kinds = {type(force).__name__: force for force in system.getForces()}

    def table(force: Any, kind: str, atoms: int, per: Callable[[list[float]], list[float]]) -> dict[str, Tensor] | None:
        raw = [
            [getattr(one, "_value", one) for one in getattr(force, f"get{kind}Parameters")(i)]
            for i in range(getattr(force, f"getNum{kind}s")())
        ]
        if not raw:
            return None
        parameters = torch.tensor([per(list(row[atoms:])) for row in raw], dtype=torch.float64)
        numbers = torch.arange(len(raw))
        return {"idx": torch.tensor([row[:atoms] for row in raw]), "map": torch.stack([numbers, numbers], 1), "params": parameters}

    nonbonded = kinds["NonbondedForce"]
    n = system.getNumParticles()
    charge, sigma, epsilon = torch.tensor(
        [[one._value for one in nonbonded.getParticleParameters(i)] for i in range(n)], dtype=torch.float64
    ).T
    width, depth = 5 * (sigma[:, None] + sigma), (epsilon[:, None] * epsilon).sqrt() / kcal
    exceptions = [[getattr(one, "_value", one) for one in nonbonded.getExceptionParameters(i)] for i in range(nonbonded.getNumExceptions())]
    close = [row for row in exceptions if row[2] or row[4]]
    fourteen = None
    if close:
        scaled = [[4 * e / kcal * (10 * s) ** 12, 4 * e / kcal * (10 * s) ** 6, 1.0, float(charge[i] * charge[j]) / q if q else 1e30]
                  for i, j, q, s, e in close]  # fmt: skip
        numbers = torch.arange(len(close))
        fourteen = {"idx": torch.tensor([row[:2] for row in close]), "map": torch.stack([numbers, numbers], 1),
                    "params": torch.tensor(scaled, dtype=torch.float64)}  # fmt: skip
    parameters = SimpleNamespace(
        masses=torch.ones(n),
        charges=charge,
        device="cpu",
        nonbonded_params=torch.ones(1),
        mapped_atom_types=torch.arange(n),
        get_AB=lambda: (4 * depth * width**12, 4 * depth * width**6),
        get_exclusions=lambda kinds: [row[:2] for row in exceptions],
        bond_params=table(kinds["HarmonicBondForce"], "Bond", 2, lambda p: [p[1] / 200 / kcal, 10 * p[0]]),
        angle_params=table(kinds["HarmonicAngleForce"], "Angle", 3, lambda p: [p[1] / 2 / kcal, p[0]]),
        dihedral_params=table(kinds["PeriodicTorsionForce"], "Torsion", 4, lambda p: [p[2] / kcal, p[1], float(p[0])]),
        nonbonded_14_params=fourteen,
        improper_params=None,
    )
    terms = ["bonds", "angles", "dihedrals", "1-4", "electrostatics", "lj"]
    field = Forces(parameters, [term for term in terms if term != "1-4" or fourteen], exclusions=())
    x, box, forces = (
        10 * rows.reshape(len(rows), n, 3),
        torch.zeros(len(rows), 3, 3, dtype=torch.float64),
        torch.zeros(len(rows), n, 3).double(),
    )
    field.compute(x, box, forces)
    mine = TorchForce(system).force(rows).reshape_as(forces)
    off = float((10 * kcal * forces - mine).norm() / mine.norm())
    if off > 1e-4:  # its Coulomb constant has fewer digits
        raise RuntimeError(
            f"TorchMD's forces differ by {off:.2g} with Coulomb's constant {COULOMB}: the comparison would not be one of equals"
        )
    return lambda: field.compute(x, box, forces)


if __name__ == "__main__":
    run("forces", main, parts=("agreement", "vacuum", "OBC2"))
