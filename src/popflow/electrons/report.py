"""The report of ``popflow ground``: the energy beside Hartree-Fock and the exact one, the course of the search, where the electrons are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.electrons.config import GroundConfig
from popflow.electrons.ground_state import Evaluation, Search
from popflow.electrons.molecule import Molecule
from popflow.electrons.references import CHEMICAL_ACCURACY, estimated, reference
from popflow.electrons.traps import Trap
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict
from popflow.runs.figures import lines, scatter

METRICS = {"fisher-rao": "Fisher-Rao", "wasserstein": "Wasserstein", "mixed": "mixed"}
_SHOWN = 1500


@dataclass(frozen=True)
class GroundResult:
    """What a search found.

    Attributes:
        config: The settings.
        system: The molecule or trap.
        found: The search.
        last: The evaluation with frozen parameters.
        hartree_fock: Hartree-Fock energy, Hartree; None where it was not computed.
    """

    config: GroundConfig
    system: Molecule | Trap
    found: Search
    last: Evaluation
    hartree_fock: float | None


def report(result: GroundResult, run: Run) -> Report:
    """Return the report of a search."""
    config, system, last, energy = result.config, result.system, result.last, result.last.energy
    exact = reference(system)
    curve = result.found.curve
    return Report(
        title=f"Ground state of {system.formula}: {energy}",
        summary=(
            f"{system.electrons} electrons ({spins(system)}), {config.network}, {config.walkers} walkers, {config.steps} steps of "
            f"{METRICS[config.metric]} descent. The energy is the mean local energy of frozen parameters over {config.sweeps} sweeps, nothing clipped, with "
            "a standard error from independent walkers and from blocks of sweeps. Its expectation is never below the exact ground-state energy."
        ),
        verdict=verdict(result, exact),
        figure=Figure(
            energies(curve, exact, result.hartree_fock),
            "The mean local energy during the search, averaged over ten steps.",
            "Energy against steps.",
        ),
        comparison=(comparison(result, exact),),
        diagnostics=(
            Figure(
                lines(
                    curve["step"],
                    {"variance of E_loc": curve["variance"]} | gradients(curve["gradient"]),
                    x_label="step",
                    y_label="Hartree^2; Hartree per bohr",
                    log_y=True,
                ),
                "Variance of the local energy, and the median of its gradient's length where it was computed; both are 0 at an eigenstate.",
                "Curves falling with the steps.",
            ),
            Figure(
                lines(curve["step"], {"acceptance": curve["acceptance"]}, x_label="step", y_label="acceptance"),
                "Share of Metropolis moves accepted; their width is adapted to 0.5 to 0.55.",
                "Acceptance against steps.",
            ),
            Figure(
                scatter(places(last.walkers.x, system), x_label=f"{axes(system)[0]} (bohr)", y_label=f"{axes(system)[1]} (bohr)"),
                "Electrons of the last walkers, drawn from the squared wave function and seen from one side.",
                "A cloud of points around the centres.",
            ),
        ),
        results={
            "energy": Measured(energy.value, energy.error),
            "variance": Measured(energy.variance),
            "gradient of the local energy": Measured(last.gradient),
            "acceptance": Measured(float(last.walkers.acceptance)),
            "rollbacks": Measured(result.found.rollbacks),
        },
        files={"psi.safetensors": "parameters of the wave function; begin another geometry from them with --start"},
        next=(f"popflow report {run.path}",),
    )


def spins(system: Molecule | Trap) -> str:
    """Say how many electrons of each spin there are, and whether that was assumed.

    >>> spins(Molecule.of("O 0 0 0; O 0 0 1.21"))
    '8 up, 8 down; spin 0 assumed, --spin states another'
    >>> spins(Molecule.of("O"))
    '5 up, 3 down'
    """
    assumed = isinstance(system, Molecule) and system.spin_assumed
    return f"{system.up} up, {system.down} down" + (f"; spin {system.up - system.down} assumed, --spin states another" if assumed else "")


def verdict(result: GroundResult, exact: float | None) -> Verdict:
    """Judge by the exact energy where it is known, by Hartree-Fock otherwise."""
    energy = result.last.energy
    if exact is not None:
        off = energy.value - exact
        good = abs(off) < max(CHEMICAL_ACCURACY, 3 * energy.error) and energy.error < CHEMICAL_ACCURACY
        return Verdict(
            good,
            f"{energy} is {1e3 * off:+.2f} millihartree from {exact:.6f}",
            f"within 1.6 millihartree, or three error bars, of the exact {exact:.6f} Hartree; error bar below 1.6 millihartree",
        )
    if result.hartree_fock is not None:
        below = result.hartree_fock - energy.value
        return Verdict(
            below > 3 * energy.error,
            f"{energy} is {1e3 * below:.1f} millihartree below Hartree-Fock",
            "below the Hartree-Fock energy in the same report by more than three error bars",
        )
    return Verdict(None, f"{energy}", "no exact or Hartree-Fock energy to compare with")


def comparison(result: GroundResult, exact: float | None) -> Table:
    """Energies beside one another."""
    energy = result.last.energy
    rows: list[tuple[str, str, str]] = [("this run", str(energy).removesuffix(" Hartree"), "0")]
    known = "exact, estimated" if estimated(result.system) else "exact"
    for name, value in ((known, exact), (f"Hartree-Fock, {result.config.basis}", result.hartree_fock)):
        if value is not None:
            rows.append((name, f"{value:.6f}", f"{1e3 * (energy.value - value):+.2f}"))
    return Table(
        "Energies", ("", "energy (Hartree)", "this run minus it (millihartree)"), tuple(rows), "Errors are one standard deviation."
    )


def energies(curve: dict[str, Tensor], exact: float | None, hartree_fock: float | None) -> str:
    """Draw the energy against steps: above the exact one on a logarithmic axis where that is known, otherwise as it is, without the first tenth."""
    if exact is not None:
        heights = {} if hartree_fock is None else {"Hartree-Fock": hartree_fock - exact}
        off = {"|E - exact|": (curve["energy"] - exact).abs()}
        return lines(
            curve["step"], off, x_label="step", y_label="Hartree", log_y=True, reference=heights | {"chemical accuracy": CHEMICAL_ACCURACY}
        )
    late = curve["step"] > curve["step"][-1] / 10
    heights = {} if hartree_fock is None else {"Hartree-Fock": hartree_fock}
    return lines(curve["step"][late], {"E": curve["energy"][late]}, x_label="step", y_label="energy (Hartree)", reference=heights)


def gradients(values: Tensor) -> dict[str, Tensor]:
    """The curve of gradients, if there is one."""
    return {"median |grad E_loc|": values} if values.isfinite().any() else {}


def axes(system: Molecule | Trap) -> tuple[str, str]:
    """The two axes along which a system is seen: those in which its centres are widest."""
    spread = system.centres.std(0, correction=0)
    order = sorted(range(system.dim), key=lambda k: (-float(spread[k]), k))[:2]
    first, last = ("xyz"[k] for k in order)
    return first, last


def places(x: Tensor, system: Molecule | Trap) -> dict[str, Tensor]:
    """Electrons of each spin, and the centres, in the plane of `axes`: ``[n, 2]`` each."""
    columns = ["xyz".index(name) for name in axes(system)]
    seen = x.double().cpu()[..., columns]
    parts = {"up": seen[:, : system.up], "down": seen[:, system.up :]}
    points = {
        f"spin {name}": part.flatten(0, 1)[:: max(1, math.ceil(part.shape[0] * part.shape[1] / _SHOWN))] for name, part in parts.items()
    }
    points = {name: part for name, part in points.items() if len(part)}
    return points | ({"nuclei": system.centres[:, columns]} if isinstance(system, Molecule) else {})


def smoothed(values: Tensor, over: int = 5) -> Tensor:
    """Running mean, for curves of several searches in one figure.

    >>> smoothed(torch.tensor([1.0, 3.0]), 2).tolist()
    [1.0, 2.0]
    """
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    first = (torch.arange(len(values)) + 1 - over).clamp(min=0)
    last = torch.arange(len(values)) + 1
    return (sums[last] - sums[first]) / (last - first)
