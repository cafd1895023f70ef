"""`popflow doctor --self-test`: one tiny problem with a known answer for each room, about a minute of one processor in all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

Figures = tuple[float, float, float]
"""Found, truth, and how far apart they may be."""


@dataclass(frozen=True, slots=True)
class Room:
    """The check of one room.

    Attributes:
        name: The room.
        figure: What is computed.
        run: Computes it.
    """

    name: str
    figure: str
    run: Callable[[], Figures]


def core() -> Figures:
    """Temper from N(0, 1) to N(0, 1/4) by Metropolis' rule: log Z is -log 2."""
    import torch

    from popflow.core import Population, Streams, chain, metropolis, resample_if, simulate, temper

    rng = Streams(0)
    start = Population.of(rng.normal("start", torch.empty(4000, 1, dtype=torch.float64)))
    step = chain(
        resample_if(0.5),
        temper(lambda pop, t0, t1: -1.5 * (t1 - t0) * pop.x.square().sum(-1)),
        metropolis(lambda t, pop: -(1 + 3 * t) / 2 * pop.x.square().sum(-1), 0.5, steps=2),
    )
    last = simulate(step, start, torch.linspace(0, 1, 21, dtype=torch.float64), rng=rng)
    return float(last.log_normalizer()), -math.log(2), 0.05


def learn() -> Figures:
    """Least squares by Adam, beside the answer of the normal equations: the sum of the weights."""
    import torch

    from popflow.core import Streams
    from popflow.learn import cosine, fit

    rng = Streams(0)
    x = rng.normal("x", torch.empty(100, 3, dtype=torch.float64))
    y = x.sum(1) + rng.normal("noise", torch.empty(100, dtype=torch.float64))
    truth = torch.linalg.lstsq(x, y[:, None]).solution.sum()
    found = fit(
        lambda params, batch: ((batch[0] @ params["w"] - batch[1]).square().mean(), {}),
        {"w": torch.zeros(3, dtype=torch.float64)},
        lambda rng: (x, y),
        steps=400,
        rng=rng,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        schedule=cosine(400),
        compile=False,
    )
    return float(found.params["w"].detach().sum()), float(truth), 1e-3


def optim() -> Figures:
    """One step of MinSR solves a linear problem: the weights are 1 and 2."""
    import torch
    from torch import nn

    from popflow.optim import kernel, minsr

    with torch.random.fork_rng(devices=[]):
        net = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    _, jacobian = kernel(net, lambda: net(x)[:, 0], centred=False)
    step = minsr(jacobian, torch.tensor([1.0, 4.0], dtype=torch.float64), damping=1e-12)["weight"]
    return float(step.sum()), 3.0, 1e-6


def runs() -> Figures:
    """A costly function is called once for each different input."""
    from popflow.runs import CostlyFunction

    costly = CostlyFunction(float, workers=1)
    costly([1.0, 2.0, 1.0, 3.0, 2.0])
    return float(costly.made), 3.0, 0.0


def compose() -> Figures:
    """The square of N(0, 1), by Feynman-Kac weights: its variance is 1/2."""
    import torch

    from popflow.compose import feynman_kac, gaussian_mixture, karras, sample
    from popflow.core import Streams

    expert = gaussian_mixture(torch.zeros(1, 1), 1.0)
    out = sample(feynman_kac(expert**2, kernel_steps=2), karras(100, 0.01, 20.0), particles=4096, rng=Streams(0))
    return float(out.population.mean(torch.square)), 0.5, 0.05


def transport() -> Figures:
    """Least action from N(0, 1) to N(3, 1) in one unit of time: 9/2."""
    import torch

    from popflow.core import Streams
    from popflow.transport import Lagrangian, LagrangianFlow, Snapshots

    start, end = (Streams(k).normal("cells", torch.empty(400, 1)) for k in (0, 1))
    flow = LagrangianFlow(Lagrangian(), width=32).fit(Snapshots.of([start, end + 3 + start.mean() - end.mean()]), steps=200, rng=Streams(0))
    return flow.report().action, 4.5, 0.2


def paths() -> Figures:
    """Brownian motion from N(0, 0.1^2) is within 0.2 of 2 after one unit of time: a rare event by weighed bridges, beside the normal distribution."""
    import torch

    from popflow.core import Streams
    from popflow.paths import DiagonalPath, Overdamped, grid, probability

    rng, width = Streams(0), 0.1
    ends = torch.zeros(1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)
    path = DiagonalPath(*ends, 1.0, noise=1.0, sigma0=width, rng=rng)
    free = Overdamped(lambda x: 0.0 * x.sum(-1), noise=1.0)
    found = probability(free, path, lambda x: (x[:, 0] - 2).abs() < 0.2, 4000, grid(1.0, 0.005), rng)
    spread = math.sqrt(2 * (1 + width**2))
    truth = (math.erf(2.2 / spread) - math.erf(1.8 / spread)) / 2
    return found.value, truth, 0.1 * truth


def electrons() -> Figures:
    """The local energy of exp(-r) is that of the hydrogen atom everywhere: -1/2 Hartree."""
    import torch

    from popflow.core import Streams
    from popflow.electrons import LocalEnergy, Molecule, exact_state

    atom = Molecule.of("H")
    x = Streams(0).normal("x", torch.empty(100, 1, 3, dtype=torch.float64))
    energy = LocalEnergy(exact_state(atom), atom)(x).energy
    return float(energy[(energy + 0.5).abs().argmax()].detach()), -0.5, 1e-8


def circuits() -> Figures:
    """A circuit of two qubits finds the least of four costs."""
    import torch

    from popflow.circuits import Ansatz, train_lbfgs
    from popflow.core import Streams

    ansatz = Ansatz(n=2, depth=2)
    trained = train_lbfgs(ansatz, torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=torch.float64), ansatz.random(4, Streams(0)))
    return float(trained.energy.min()), 0.5, 1e-6


def evolve() -> Figures:
    """Random molecules are bred to one that is as heavy as wanted, by graph moves: their best score is 0."""
    from rdkit.Chem.rdMolDescriptors import CalcNumHeavyAtoms

    from popflow.evolve import Crossover, Evolution, Recipe, draw, parse
    from popflow.evolve.selection import rank

    evolution = Evolution(draw(20, 0), {"graph": Crossover()}, Recipe(population=20, offspring=20, parents=rank()), budget=100, seed=0)
    while batch := evolution.ask():
        evolution.tell(batch, [-abs(CalcNumHeavyAtoms(parse(one)) - 15.0) for one in batch])
    return float(evolution.fitness().max()), 0.0, 0.0


ROOMS = (
    Room("core", "log Z of a tempered Gaussian", core),
    Room("learn", "sum of weights by least squares", learn),
    Room("optim", "sum of weights after one natural-gradient step", optim),
    Room("runs", "calls made for three different inputs of five", runs),
    Room("compose", "variance of a squared Gaussian", compose),
    Room("transport", "least action of a shift by 3", transport),
    Room("paths", "probability of a rare event", paths),
    Room("electrons", "energy of the hydrogen atom, the worst of 100 points", electrons),
    Room("circuits", "least mean cost of a circuit", circuits),
    Room("evolve", "distance in atoms from the molecule wanted", evolve),
)
"""The rooms, in the order in which they build on one another."""


def self_test() -> Iterator[dict[str, Any]]:
    """Run the check of each room and yield its outcome; a room whose packages are missing is absent, an error is a failure of that room alone."""
    from popflow.core.errors import MissingExtraError

    for room in ROOMS:
        begin = time.perf_counter()
        try:
            found, truth, within = room.run()
        except (MissingExtraError, ModuleNotFoundError) as error:
            yield {"name": f"self-test {room.name}", "status": "absent", "detail": str(error), "fix": ""}
            continue
        except Exception as error:
            said = f"{room.figure}: {type(error).__name__}: {error}"
            yield {
                "name": f"self-test {room.name}",
                "status": "failed",
                "detail": said,
                "fix": "reinstall popflow and torch with constraints.txt",
            }
            continue
        passed = abs(found - truth) <= within
        detail = (
            f"{room.figure} {found:.4g}, truth {truth:.4g}"
            + (f" within {within:.2g}" if within else "")
            + f", {time.perf_counter() - begin:.1f} s"
        )
        yield {
            "name": f"self-test {room.name}",
            "status": "ok" if passed else "failed",
            "detail": detail,
            "fix": "" if passed else "reinstall popflow and torch with constraints.txt",
            "found": found if math.isfinite(found) else None,
            "truth": truth,
        }
