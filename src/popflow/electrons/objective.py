r"""Geometries of energy descent on ``q = |psi|^2``, and the parameter gradients they give.

    d_t q = transport * div(q u) - growth * q (E_loc - E),        u = grad c*(grad E_loc)

Projected on the family ``psi_theta`` by least ``KL(q_t+dt | q_theta)``, one step is ``theta <- theta - F^-1 g`` with the Fisher matrix of ``log q`` and::

    g = transport E[ <u(x), grad_x d_theta log q> ] + growth E[ (E_loc - E) d_theta log q ]

The growth part (Fisher-Rao) is the gradient of the energy, the transport part (Wasserstein) is not: no line search on the energy applies to it. A raw
``u = grad E_loc`` has infinite variance, so costs with bounded velocities are offered: ``c*(y) = sum log cosh y_i`` (tanh), ``|y|_1`` (sign), and the
norm cut at ``sqrt(N d / 3)``. ``u`` is a constant of the step.

Source: Neklyudov et al., *Wasserstein quantum Monte Carlo*, NeurIPS 2023 (arXiv 2307.07050).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from popflow.core.checks import real
from popflow.core.errors import unknown
from popflow.electrons.energy import Local, clip, typical
from popflow.electrons.wavefunctions import WaveFunction

Cost = Literal["tanh", "sign", "clip"]
Weight = float | Callable[[float], float]
"""A number, or a function of progress in [0, 1]."""


@dataclass(frozen=True)
class Objective:
    """A geometry of descent: the weights of transport and growth, and the cost of transport.

    Attributes:
        transport: Weight of the Wasserstein part.
        growth: Weight of the Fisher-Rao part.
        cost: Cost of transport.

    Raises:
        ValueError: for an unknown cost, or negative weights.

    Example:
        >>> Objective.mixed(0.5).weights(0.0)
        (1.0, 0.5)
        >>> warm = Objective(transport=after(0.25, 1.0))  # Fisher-Rao for the first quarter
        >>> warm.weights(0.1), warm.weights(0.5)
        ((0.0, 1.0), (1.0, 1.0))
    """

    transport: Weight = 0.0
    growth: Weight = 1.0
    cost: Cost | str = "tanh"

    def __post_init__(self) -> None:
        if self.cost not in ("tanh", "sign", "clip"):
            raise ValueError(unknown("cost", str(self.cost), ("tanh", "sign", "clip")))
        self.weights(0.0)

    @staticmethod
    def fisher_rao() -> Objective:
        """Growth alone: imaginary time, the usual variational Monte Carlo."""
        return Objective()

    @staticmethod
    def wasserstein(cost: Cost | str = "tanh") -> Objective:
        """Transport alone."""
        return Objective(1.0, 0.0, cost)

    @staticmethod
    def mixed(growth: Weight = 1.0, cost: Cost | str = "tanh") -> Objective:
        """Transport, and growth of this weight."""
        return Objective(1.0, growth, cost)

    def weights(self, progress: float) -> tuple[float, float]:
        """Return the weights of transport and growth at ``progress`` in [0, 1]."""
        found = {}
        for name, weight in (("transport", self.transport), ("growth", self.growth)):
            value = weight(progress) if callable(weight) else weight
            real(**{name: value})
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} at progress {progress:g}, wanted finite and 0 or more.")
            found[name] = float(value)
        return found["transport"], found["growth"]

    def velocity(self, gradient: Tensor) -> Tensor:
        """``u [B, N d]`` from ``grad E_loc``; its negative is the velocity."""
        if self.cost == "tanh":
            return torch.tanh(gradient)
        if self.cost == "sign":
            return torch.sign(gradient)
        reach = (gradient.shape[1] / 3) ** 0.5
        norm = gradient.norm(dim=1, keepdim=True)
        return gradient * (reach / norm.clamp(min=reach))


def after(start: float, weight: float) -> Callable[[float], float]:
    """Return a weight that is 0 until ``progress = start``: a warm start with the other part.

    >>> after(0.5, 2.0)(0.4), after(0.5, 2.0)(0.6)
    (0.0, 2.0)
    """
    return lambda progress: weight if progress >= start else 0.0


@dataclass(frozen=True, slots=True)
class Pull:
    """What a step descends along, constants at the walkers.

    Attributes:
        excess: ``growth * (E_loc - E)``, clipped and centred: ``[B]``; all 0 without growth.
        velocity: ``transport * u``, 0 at walkers nearest to nodes, rescaled for their share: ``[B, N d]``; None without transport.
    """

    excess: Tensor
    velocity: Tensor | None


def pull(objective: Objective, local: Local, progress: float) -> Pull:
    """Make the constants of a step from what is known at the walkers."""
    transport, growth = objective.weights(progress)
    clipped = clip(local.energy)
    excess = growth * (clipped - clipped.mean())
    if not transport:
        return Pull(excess, None)
    if local.gradient is None:
        raise ValueError("local.gradient is None, wanted the gradient of the local energy: LocalEnergy(...)(x, gradient=True).")
    keep = typical(local.score.norm(dim=1))
    velocity = transport * objective.velocity(local.gradient) * (len(keep) / keep.sum().clamp(min=1))
    return Pull(excess, torch.where(keep.unsqueeze(1), velocity, torch.zeros_like(velocity)))  # whatever is at a node, 0 * nan included


def surrogate(psi: WaveFunction, x: Tensor, towards: Pull) -> tuple[Tensor, Tensor]:
    """Return a scalar whose gradient in the parameters is ``g``, and ``log|psi| [B]`` of the same graph.

    ``mean_b [ excess_b log q(x_b) + <u_b, grad_x log q(x_b)> ]`` with ``log q = 2 log|psi|``.

    Example:
        >>> from popflow.electrons.exact import Decay
        >>> psi = Decay(2.0, power=2, dim=1)  # log q = -2 x^2: d/da grad_x log q = -2 x
        >>> x = torch.tensor([[[1.0]], [[-1.0]]], dtype=torch.float64)
        >>> value, _ = surrogate(psi, x, Pull(torch.zeros(2, dtype=torch.float64), -x.flatten(1)))
        >>> float(torch.autograd.grad(value, psi.rate)[0])
        2.0
    """
    if towards.velocity is None:
        log_psi = psi(x)
        return 2 * (towards.excess * log_psi).mean(), log_psi
    x = x.detach().requires_grad_()
    log_psi = psi(x)
    (score,) = torch.autograd.grad(log_psi.sum(), x, create_graph=True)
    along = (towards.velocity * score.flatten(1)).sum(1)
    return 2 * (towards.excess * log_psi + along).mean(), log_psi
