"""The report of ``popflow path``: the action and its shares, energies along the paths, arrival, weights, and what all of it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.paths import figures
from popflow.paths.ase_force import ASEForce
from popflow.paths.config import PathConfig
from popflow.paths.doob import Action
from popflow.paths.ensemble import PathEnsemble
from popflow.paths.scene import Scene
from popflow.paths.trajectory import film
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, point_figures
from popflow.runs.figures import lines

FILES = {
    "path.pdb": "one simulated path, with its topology",
    "path.xtc": "the same, to open with path.pdb in mdtraj, MDAnalysis or VMD",
}
CALLS = "calls.jsonl"
FRAMES, DRAWN, FEW, ARRIVE, MEANS = 40, 60, 10, 0.95, 41


@dataclass(frozen=True)
class Shot:
    """Paths of fixed length between balls around A and B by shooting: highest energies and weights in the second half of the moves, the share of
    moves that were accepted, and what all of them cost.
    """

    highest: Tensor
    weight: Tensor
    accepted: float
    forces: int
    move: str

    def __str__(self) -> str:
        return "shooting, every path accepted" if self.move == "always" else f"two-way shooting, {self.accepted:.2%} accepted"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run has found.

    Attributes:
        config: The configuration.
        scene: Dynamics and states.
        path: The fitted path.
        action: Its action.
        ensemble: Simulated paths, with weights towards the reference with its end seen through N(B, sigma0^2).
        spent: Force evaluations of training; as many Hessian-vector products.
        shot: Paths by shooting, or None.
        exact: Action of the Schroedinger bridge on a grid, or None.
    """

    config: PathConfig
    scene: Scene
    path: Any
    action: Action
    ensemble: PathEnsemble
    spent: int
    shot: Shot | None
    exact: float | None = None

    @property
    def arrival(self) -> float:
        """Share of simulated paths that end near B."""
        return self.ensemble.arrival(self.scene.arrived)

    @property
    def weighed(self) -> bool:
        """Whether enough paths carry weight for weighted means, and their errors, to say anything."""
        return self.ensemble.ess >= FEW


def report(outcome: Outcome, run: Run) -> Report:
    """Write the report of a run."""
    scene, ensemble = outcome.scene, outcome.ensemble
    arrival = outcome.arrival
    statement = f"{arrival:.1%} of {len(ensemble.x)} simulated paths end within {scene.reach:.3g} of B; the action is {outcome.action}."
    return Report(
        title=f"Transition paths: {_name(outcome)}",
        summary=(
            "Paths from state A to state B in a given time, under the noise of the reference dynamics. A family of laws that starts around A and ends "
            "around B by construction is fitted without simulation: its action, the Kullback-Leibler divergence from the reference dynamics, is made "
            "small. The least possible action belongs to the reference dynamics conditioned on its ends; what lies above it is the gap of the "
            "family.\n\nThe fitted paths are then simulated, and weighed towards that conditioned process: the effective sample size says how near "
            "they are."
        ),
        verdict=Verdict(arrival >= ARRIVE, statement, f"at least {ARRIVE:.0%} of the simulated paths end near B"),
        figure=_landscape(outcome),
        comparison=(_energies(outcome), _profile(outcome), _film(outcome), *_molecule(outcome)),
        diagnostics=(_action(outcome), _cost(outcome)),
        results=results(outcome),
        files={
            "fit.safetensors": "the fitted path, with the state of its training",
            "paths.safetensors": "simulated paths x [paths, times, coordinates] and log-weights towards the reference",
            **(FILES if scene.molecule else {}),
            **({CALLS: "the ledger: every call of the calculator, written before it was used"} if outcome.config.costly else {}),
        },
        next=() if scene.molecule else (f"popflow path --potential {outcome.config.potential} --family full --components 3",),
    )


def _name(outcome: Outcome) -> str:
    a, b = outcome.config.a, outcome.config.b
    return outcome.config.potential if a is None or b is None else f"{a.name} to {b.name}, {outcome.config.temperature:g} K"


def barrier(outcome: Outcome) -> float:
    """Highest energy over A along the mean path, without thermal motion; of the component where it is lowest."""
    with torch.no_grad():
        means = outcome.path.moments(torch.linspace(0, outcome.scene.time, MEANS, dtype=torch.float64)).mean
    return float(outcome.scene.energy(means.movedim(1, 0)).amax(1).min())


def results(outcome: Outcome) -> dict[str, Measured]:
    """Key numbers by name."""
    found = {
        "action": Measured(outcome.action.value, outcome.action.error),
        "arrival": Measured(outcome.arrival),
        "ess": Measured(outcome.ensemble.ess),
        "forces_training": Measured(outcome.spent),
        "hessian_vector_products": Measured(outcome.spent),
        "forces_action": Measured(outcome.action.forces),
        "forces_paths": Measured(outcome.ensemble.forces),
    }
    if outcome.scene.molecule is not None:
        found["highest_energy_of_mean_path"] = Measured(barrier(outcome))
    if isinstance(outcome.scene.process.potential, ASEForce):
        counts = outcome.scene.process.potential.costly.ledger.counts()
        found["calculator_calls"], found["calculator_failures"] = (
            Measured(sum(counts.values())),
            Measured(sum(counts.values()) - counts["value"]),
        )
    if outcome.weighed:
        mean, error = outcome.ensemble.mean(outcome.scene.energy(outcome.ensemble.x).max(1).values)
        found["highest_energy_weighted"] = Measured(float(mean), float(error))
    return found if outcome.exact is None else {**found, "exact_action": Measured(outcome.exact)}


def _landscape(outcome: Outcome) -> Figure:
    scene, ensemble = outcome.scene, outcome.ensemble
    weighed = outcome.weighed
    mean = ensemble.mean(ensemble.x)[0] if weighed else ensemble.x.mean(0)
    drawn = ensemble.x[ensemble.weights.topk(min(DRAWN, len(ensemble.x))).indices.sort().values] if weighed else ensemble.x[:DRAWN]
    over = ", over contours of the potential, kT apart" if scene.dim == 2 else ""
    which = (
        f"The {len(drawn)} paths of the largest weights, and the weighted mean of all"
        if weighed
        else f"{len(drawn)} paths, and the mean of all"
    )
    return Figure(figures.landscape(scene, drawn, mean), f"{which}{over}.", "transition paths from A to B")


def _film(outcome: Outcome) -> Figure:
    scene, ensemble = outcome.scene, outcome.ensemble
    keep = torch.linspace(0, len(ensemble.times) - 1, min(FRAMES, len(ensemble.times))).round().long().unique()
    moving = figures.plane(scene, ensemble.x[:300, keep].movedim(0, 1))
    weights = torch.ones(moving.shape[:2], dtype=torch.float64)
    ends = [("start", figures.plane(scene, ensemble.x[:300, 0])), ("end", figures.plane(scene, ensemble.x[:300, -1]))]
    image = point_figures.moving(moving, weights, ends, times=ensemble.times[keep].tolist(), seconds=5.0, **figures.labels(scene))
    return Figure(image, "The simulated paths in time, without weights.", "points moving from A to B")


def _molecule(outcome: Outcome) -> tuple[Figure, ...]:
    scene = outcome.scene
    if scene.molecule is None:
        return ()
    image = film(scene.place(outcome.ensemble.x[0]), scene.molecule.elements, scene.molecule.bonds)
    return (Figure(image, "One simulated path.", "a molecule moving from A to B"),)


def _profile(outcome: Outcome) -> Figure:
    energy = outcome.scene.energy(outcome.ensemble.x)
    plain, sd = energy.mean(0), energy.std(0)
    curves, bands = {"simulated": plain}, {"simulated": (plain - sd, plain + sd)}
    caption = "Mean energy relative to A; bands: one standard deviation of the simulated paths"
    if outcome.weighed:
        weighted, error = outcome.ensemble.mean(energy)
        curves["weighted"], bands["weighted"] = weighted, (weighted - error, weighted + error)
        caption += ", one standard error of the weighted mean"
    image = lines(
        outcome.ensemble.times,
        curves,
        x_label="time, ps" if outcome.scene.molecule else "time",
        y_label="U - U(A)" + outcome.scene.unit,
        bands=bands,
    )
    return Figure(image, f"{caption}.", "energy along the paths")


def _energies(outcome: Outcome) -> Table:
    top = outcome.scene.energy(outcome.ensemble.x).max(1).values
    n = len(top)
    rows: list[tuple[Any, ...]] = [
        (
            "fitted paths",
            Measured(float(top.mean()), float(top.std()) / math.sqrt(n)),
            float(top.std()),
            float(top.min()),
            outcome.ensemble.forces,
        ),
    ]
    if outcome.weighed:
        (mean, error), second = outcome.ensemble.mean(top), outcome.ensemble.mean(top.square())[0]
        rows.append(("weighted", Measured(float(mean), float(error)), float((second - mean**2).clamp_min(0).sqrt()), None, 0))
    shooting = str(outcome.shot)
    if outcome.shot is not None and not bool((outcome.shot.weight > 0).any()):
        missing = f"no transition in {len(outcome.shot.weight)} moves" if outcome.shot.move == "always" else "no fitted path joins A and B"
        rows.append((shooting, missing, None, None, outcome.shot.forces))
    elif outcome.shot is not None:
        weight, highest = outcome.shot.weight, outcome.shot.highest
        total = weight.sum()
        mean = (weight * highest).sum() / total
        spread = ((weight * (highest - mean).square()).sum() / total).sqrt()
        scatter = (weight * (highest - mean)).sum(0).square().sum().sqrt() / total
        found = Measured(float(mean), float(scatter))
        rows.append((shooting, found, float(spread), float(highest[weight > 0].min()), outcome.shot.forces))
    energy = float(outcome.scene.energy(outcome.scene.end))
    note = (
        f"Highest U - U(A) of each path, {outcome.scene.unit[2:] or 'in the unit of the potential'}; U(B) - U(A) = {energy:.4g}. It grows as the time step falls, and a lower value "
        "is no better: the right one is that of the conditioned process. Weights: "
        + outcome.ensemble.law
        + ". Shooting: paths of the same length "
        f"between balls of radius {outcome.scene.reach:.3g} around A and B, another law of the ends; the first half of the moves is left out."
    )
    if outcome.shot is None:
        note = note.partition(" Shooting:")[0]
    if not outcome.weighed:
        note += (
            f" No weighted mean: the effective number of paths, {outcome.ensemble.ess:.1f}, is below {FEW}, where its error says nothing."
        )
    if outcome.scene.molecule is not None:
        note += f" Along the mean path, without thermal motion, it is {barrier(outcome):.4g}."
    return Table("Highest energy of a path", ("", "mean", "standard deviation", "least", "force evaluations"), tuple(rows), note)


def _action(outcome: Outcome) -> Table:
    action, ensemble = outcome.action, outcome.ensemble
    rows: list[tuple[Any, ...]] = [
        ("action, nats", Measured(action.value, action.error)),
        ("kinetic share, E |u|^2 T / (2 noise^2)", action.free),
        ("force share, E |b|^2 T / (2 noise^2)", action.force),
        ("work against the drift: the rest", action.value - action.free - action.force),
        ("effective sample size of the weights", f"{ensemble.ess:.1f} of {len(ensemble.x)}"),
        ("share of paths that arrive", outcome.arrival),
    ]
    if outcome.exact is not None:
        rows.insert(1, ("least possible action, from a grid", outcome.exact))
        rows.insert(2, ("gap of the family", Measured(action.value - outcome.exact, action.error)))
    note = "An action below the least possible one by more than three standard errors would be an error of the program."
    return Table("The action", ("", "value"), tuple(rows), note if outcome.exact is not None else "")


def _cost(outcome: Outcome) -> Table:
    rows = [
        ("training", outcome.spent, outcome.spent),
        ("action", outcome.action.forces, 0),
        ("simulated paths", outcome.ensemble.forces, 0),
    ]
    if outcome.shot is not None:
        rows.append(("shooting", outcome.shot.forces, 0))
    note = "Energies for figures are not counted."
    if isinstance(outcome.scene.process.potential, ASEForce):
        counts = outcome.scene.process.potential.costly.ledger.counts()
        note = (
            f"Calls of {outcome.config.calculator} in the ledger: {sum(counts.values())}, of which {sum(counts.values()) - counts['value']} failed, those of the first "
            "path, of relaxing the states and of figures included. A Hessian-vector product is two calls; a failure has no force, and an energy of zero."
        )
    return Table("What it cost", ("", "force evaluations", "Hessian-vector products"), tuple(rows), note)
