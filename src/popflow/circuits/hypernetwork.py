r"""The quantum hypernetwork: a circuit whose measurement is a network, trained on the cost of its networks.

    E(theta) = sum_sigma p_theta(sigma) C(sigma) >= min C,        F_T(theta) = E(theta) - T H(p_theta)

Restarts are a batch dimension of one circuit and do not interact. During training, energies and temperatures are in units of the spread
``mean C - min C``, so that step sizes and tolerances mean the same on every task.

Source: Carrasquilla et al., *Quantum HyperNetworks*, arXiv 2301.08292; the free energy is the exact form of the evidence lower bound of
Nepote et al., *Variational Inference for Quantum HyperNetworks*, arXiv 2506.05888, for a uniform prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz, rotations
from popflow.circuits.cost import check_table, resolution
from popflow.circuits.statevector import born, born_of_gates
from popflow.core import NonFiniteError, Proportion, wilson
from popflow.core.checks import at_least_one, function

Objective = Callable[[Tensor, Tensor, float], Tensor]
"""``objective(p [B, 2^n], cost [2^n], progress) -> [B]``, with progress running from 0 to 1 and costs in units of their spread."""


def energy(p: Tensor, cost: Tensor, progress: float = 0.0) -> Tensor:
    """Mean cost of a measured network.

    >>> energy(torch.tensor([[0.5, 0.0, 0.0, 0.5]]), torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist()
    [1.5]
    """
    return p @ cost


def free_energy(temperature: float | Callable[[float], float]) -> Objective:
    """Return the free energy as an objective, at a fixed temperature or an annealed one such as ``lambda progress: 0.1 * (1 - progress)``."""
    return partial(_free_energy, temperature)


def _free_energy(temperature: float | Callable[[float], float], p: Tensor, cost: Tensor, progress: float) -> Tensor:
    return p @ cost - (temperature(progress) if callable(temperature) else temperature) * entropy(p)


def tail_mean(share: float) -> Objective:
    """Return the mean cost of the best ``share`` of the measurements (conditional value at risk) as an objective."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: wanted a share of the measurements in (0, 1].")
    return partial(_tail_mean, share)


def _tail_mean(share: float, p: Tensor, cost: Tensor, progress: float) -> Tensor:
    order = cost.argsort()
    below = p[:, order].detach().double().cumsum(-1)
    value = cost[order][torch.searchsorted(below, below[:, -1:] * share).clamp_(max=len(cost) - 1)]
    return value[:, 0] - (p * (value - cost).clamp_min(0)).sum(-1) / share


def entropy(p: Tensor) -> Tensor:
    """Entropy in nats of distributions ``[*batch, 2^n]``.

    >>> entropy(torch.tensor([0.25, 0.25, 0.25, 0.25])).exp().item()
    4.0
    """
    return -torch.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum(-1)


@dataclass(frozen=True, slots=True)
class Trained:
    """Restarts after training, with exact figures in float64.

    Attributes:
        ansatz: The circuit.
        angles: ``[R, depth, n, r]``.
        energy: ``[R]`` mean cost of a measurement, in the units of the table.
        code: ``[R]`` most probable network.
        cost: ``[R]`` cost of that network.
        optimum_mass: ``[R]`` probability of measuring an optimal network.
        evaluations: ``[R]`` circuits evaluated with their gradient.
    """

    ansatz: Ansatz
    angles: Tensor
    energy: Tensor
    code: Tensor
    cost: Tensor
    optimum_mass: Tensor
    evaluations: Tensor

    def best(self) -> int:
        """Return the restart whose most probable network costs least."""
        return int(self.cost.argmin())


def evaluate(ansatz: Ansatz, angles: Tensor, table: Tensor, evaluations: Tensor | None = None) -> Trained:
    """Return the exact figures of restarts ``[R, depth, n, r]`` on a table of costs."""
    n = _check(ansatz, table)
    optimum = table <= table.min() + resolution(table)
    rows = []
    with torch.no_grad():
        for some in angles.split(rows_at_once(n)):
            p = born(ansatz, some.double())
            code = p.argmax(-1)
            rows.append((p @ table, code, table[code], p[:, optimum].sum(-1)))
    mean, code, cost, mass = (torch.cat(column) for column in zip(*rows, strict=True))
    count = torch.zeros(len(angles), dtype=torch.long) if evaluations is None else evaluations
    return Trained(ansatz, angles, mean, code, cost, mass, count)


def rows_at_once(n: int) -> int:
    """Restarts in a batch: enough to amortise the calls on halves of the qubits, few enough for memory."""
    return max(1, 2**20 >> n)


def train_adam(
    ansatz: Ansatz, table: Tensor, angles: Tensor, *, steps: int = 200, lr: float = 0.1, objective: Objective = energy
) -> Trained:
    """Minimise an objective from angles ``[R, depth, n, r]`` with Adam, all restarts side by side.

    Training runs in the dtype of the angles; the returned figures are evaluated in float64.

    Raises:
        NonFiniteError: when an objective is not finite, naming restart and step.

    Example:
        >>> from popflow.core import Streams
        >>> ansatz, table = Ansatz(n=2, depth=2), torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64)
        >>> found = train_adam(ansatz, table, ansatz.random(4, Streams(0)), steps=100)
        >>> int(found.code[found.best()]), bool((found.energy > -1e-12).all())
        (3, True)
    """
    _check_training(ansatz, table, angles, steps, objective)
    cost, done = _scaled(table).to(angles.dtype), []
    for first, some in enumerate(angles.split(rows_at_once(ansatz.n))):
        theta = some.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([theta], lr=lr)
        for step in range(steps):
            optimiser.zero_grad()
            value = objective(born_of_gates(ansatz, rotations(theta)), cost, step / max(1, steps - 1))
            if not bool(value.isfinite().all()):
                bad = int((~value.isfinite()).nonzero()[0]) + first * rows_at_once(ansatz.n)
                raise NonFiniteError(f"the objective of restart {bad} is not finite at step {step}. Fix: a smaller lr than {lr}.")
            value.sum().backward()
            optimiser.step()
        done.append(theta.detach())
    return evaluate(ansatz, torch.cat(done), table, torch.full((len(angles),), steps))


def train_lbfgs(
    ansatz: Ansatz, table: Tensor, angles: Tensor, *, steps: int = 500, tolerance: float = 1e-6, objective: Objective = energy
) -> Trained:
    """Minimise an objective with L-BFGS in float64, one line search per restart, until the gradient is below the tolerance.

    Raises:
        NonFiniteError: when an objective is not finite, naming the restart.

    Example:
        >>> from popflow.core import Streams
        >>> ansatz, table = Ansatz(n=2, depth=2), torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64)
        >>> round(float(train_lbfgs(ansatz, table, ansatz.random(2, Streams(0))).energy.min()), 6)
        0.0
    """
    from scipy.optimize import minimize

    _check_training(ansatz, table, angles, steps, objective)
    cost, done, evaluations = _scaled(table), [], []

    def value_and_gradient(flat):
        theta = torch.tensor(flat, dtype=torch.float64, device=table.device).reshape(1, *ansatz.shape).requires_grad_()
        value = objective(born_of_gates(ansatz, rotations(theta)), cost, 1.0)[0]
        if not bool(value.isfinite()):
            raise NonFiniteError(f"the objective of restart {len(done)} is {value.item()}. Fix: finite angles to start from.")
        value.backward()
        assert theta.grad is not None
        return value.item(), theta.grad.flatten().cpu().numpy()

    for start in angles.double():
        found = minimize(
            value_and_gradient,
            start.flatten().cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "gtol": tolerance, "ftol": 1e-15},
        )
        done.append(torch.from_numpy(found.x).reshape(ansatz.shape))
        evaluations.append(found.nfev)
    return evaluate(ansatz, torch.stack(done).to(table.device), table, torch.tensor(evaluations))


def _check_training(ansatz: Ansatz, table: Tensor, angles: Tensor, steps: int, objective: Objective) -> None:
    """Check what a training takes; its steps then look at objectives alone, and name the restart."""
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"steps={steps}: wanted at least 1. Fix: evaluate(...) gives the figures of angles as they are.")
    at_least_one(steps=steps)
    function("objective", objective, "popflow.circuits.energy")
    _check(ansatz, table)
    ansatz.check(angles, finite=False)


def _check(ansatz: Ansatz, table: Tensor) -> int:
    n = check_table(table)
    if n != ansatz.n:
        raise ValueError(f"table holds 2^{n} costs, the ansatz has n={ansatz.n} qubits: wanted the same.")
    return n


def _scaled(table: Tensor) -> Tensor:
    low = table.min()
    return (table - low) / (table.mean() - low).clamp_min(torch.finfo(table.dtype).tiny)


@dataclass(frozen=True, slots=True)
class Success:
    """How often a restart succeeds, by three definitions.

    Attributes:
        energy: The mean cost is near the optimum, ``E <= C* + tolerance |C*|``.
        top: The most probable network is optimal.
        sampled: The best of ``shots`` measurements is optimal: the exact mean over restarts of ``1 - (1 - p*)^shots``.
    """

    energy: Proportion
    top: Proportion
    sampled: Proportion


def success(trained: Trained, table: Tensor, *, tolerance: float = 0.01, shots: int = 100) -> Success:
    """Return the success of restarts on a table, with 95 % Wilson intervals."""
    at_least_one(shots=shots)
    best, restarts = float(table.min()), len(trained.energy)
    reached = int((trained.energy <= best + tolerance * abs(best)).sum())
    top = int((trained.cost <= best + resolution(table)).sum())
    sampled = float(-torch.expm1(shots * torch.log1p(-trained.optimum_mass.clamp(0, 1))).sum())
    return Success(wilson(reached, restarts), wilson(top, restarts), wilson(min(max(sampled, 0.0), restarts), restarts))
