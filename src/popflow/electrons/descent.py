r"""Updates of the parameters: SPRING and MinSR in the space of samples, SINGD, IKFAC, Adam.

With ``J`` the centred, scaled rows of ``d_theta log|psi|`` and ``e`` the energies in excess::

    growth (MinSR, SPRING)    phi = J^T (J J^T + damping)^-1 e + decay (...)                        see `popflow.optim.gram`
    transport (Woodbury)      phi = (J^T J + damping_w)^-1 h = (h - J^T (J J^T + damping_w)^-1 J h) / damping_w,   h = E[<u, d_theta grad_x log|psi|>]

``h`` is no combination of the rows of ``J``. What lies outside them is enlarged by ``1 / damping_w``, so this damping must be large (0.1), or the
parameters run away within tens of steps; the published method uses Kronecker factors (here: SINGD), and Adam serves small systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from popflow.core.errors import unknown
from popflow.electrons.objective import Pull, surrogate
from popflow.electrons.wavefunctions import WaveFunction
from popflow.learn.distributed import processes, shard_rows
from popflow.learn.learner import pack, unpack
from popflow.optim import SINGD, Kernel, spring
from popflow.optim.gram import Update, apply

Name = Literal["spring", "minsr", "singd", "ikfac", "adam"]
RATES: dict[str, float] = {"minsr": 0.2, "spring": 0.02, "singd": 0.02, "ikfac": 0.02, "adam": 3e-3}
"""First learning rate of each."""


@runtime_checkable
class Descent(Protocol):
    """Moves the parameters of a wave function: `SampleSpace`, `ParameterSpace`, or one of your own."""

    def step(self, x: Tensor, towards: Pull, lr: float) -> None:
        """Make one step of size ``lr`` from walkers ``x``."""
        ...

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return what a checkpoint holds: tensors, and JSON."""
        ...

    def load(self, tensors: Mapping[str, Tensor], structure: Any) -> None:
        """Restore `state`."""
        ...


def jacobian(psi: WaveFunction, x: Tensor, chunk: int = 256) -> Kernel:
    """Return the rows ``d_theta log|psi|(x_b)``, centred, for `popflow.optim.spring`: ``B P`` numbers in memory.

    Example:
        >>> from popflow.electrons.exact import Decay
        >>> rows = jacobian(Decay(1.0, power=2, dim=1), torch.tensor([[[1.0]], [[2.0]]], dtype=torch.float64))
        >>> rows.loose["rate"].tolist()
        [-0.5, -2.0]
    """
    params = {name: value.detach() for name, value in psi.named_parameters() if value.requires_grad}
    rest = {name: value.detach() for name, value in psi.named_parameters() if not value.requires_grad} | dict(psi.named_buffers())

    def one(params: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(psi, (params, rest), (point.unsqueeze(0),)).squeeze(0)

    slopes = vmap(grad(one), in_dims=(None, 0), chunk_size=chunk)
    loose = processes(x.device).in_shares(partial(slopes, params), x)
    return Kernel({value: name for name, value in psi.named_parameters() if value.requires_grad}, [], loose, len(x), True)


def woodbury(rows: Kernel, gradient: Update, damping: float) -> Update:
    """Solve ``(J^T J + damping) phi = gradient`` in the space of samples.

    Raises:
        ValueError: unless ``damping > 0``.
    """
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping={damping!r}, wanted finite and above 0: 0.1 is usual for transport.")
    matrix = rows.gram()
    zeta = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device), rows.times(gradient))
    back = rows.transposed(zeta)
    return {name: (part - back[name]) / damping for name, part in gradient.items()}


class SampleSpace:
    """SPRING (or MinSR, at ``decay=0``) for growth, Woodbury for transport; one step ``theta -= min(lr, sqrt(norm_bound) / |J phi|) phi``.

    Args:
        psi: The wave function.
        damping: Of growth.
        decay: SPRING's memory of the last update, which ends where there is no growth.
        transport_damping: Of transport.
        norm_bound: Greatest mean square of the change of ``log|psi|`` (centred) in a step.
    """

    def __init__(
        self, psi: WaveFunction, *, damping: float = 1e-3, decay: float = 0.99, transport_damping: float = 0.1, norm_bound: float = 1e-2
    ):
        self.psi, self.damping, self.decay, self.transport_damping, self.norm_bound = psi, damping, decay, transport_damping, norm_bound
        self.previous: Update = {}

    def step(self, x: Tensor, towards: Pull, lr: float) -> None:
        """Make one step."""
        rows = jacobian(self.psi, x)
        if towards.excess.any():
            update = self.previous = spring(rows, towards.excess, self.previous, damping=self.damping, decay=self.decay)
        else:  # no growth: its last updates are of no meaning any more
            update, self.previous = {name: torch.zeros_like(part[0]) for name, part in rows.loose.items()}, {}
        if towards.velocity is not None:
            alone = Pull(torch.zeros_like(towards.excess), towards.velocity)
            value, _ = surrogate(self.psi, *_share(x, alone))
            names = [name for name, parameter in self.psi.named_parameters() if parameter.requires_grad]
            parts = torch.autograd.grad(
                value / 2, [dict(self.psi.named_parameters())[name] for name in names], allow_unused=True, materialize_grads=True
            )
            parts = processes(x.device).mean(parts)
            moved = woodbury(rows, dict(zip(names, parts, strict=True)), self.transport_damping)
            update = {name: part + moved[name] for name, part in update.items()}
        length = float(rows.times(update).norm())  # of the change of log|psi| at the walkers, per unit of lr
        apply(self.psi, update, min(lr, self.norm_bound**0.5 / max(length, 1e-30)), None)

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the last update."""
        return dict(self.previous), {}

    def load(self, tensors: Mapping[str, Tensor], structure: Any) -> None:
        """Restore the last update."""
        self.previous = {name: value.clone() for name, value in tensors.items()}


class ParameterSpace:
    """A `torch.optim` optimiser, or SINGD with curvature from ``log|psi|`` of each walker.

    Args:
        psi: The wave function.
        optimizer: Of its parameters; its learning rate is set at every step.
    """

    def __init__(self, psi: WaveFunction, optimizer: torch.optim.Optimizer):
        self.psi, self.optimizer = psi, optimizer

    def step(self, x: Tensor, towards: Pull, lr: float) -> None:
        """Make one step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        value, log_psi = surrogate(self.psi, *_share(x, towards))
        if isinstance(self.optimizer, SINGD):
            self.optimizer.observe(log_psi, torch.ones_like(log_psi))
        value.backward()
        learned = [parameter for parameter in self.psi.parameters() if parameter.grad is not None]
        for parameter, mean in zip(learned, processes(x.device).mean([cast(Tensor, p.grad) for p in learned]), strict=True):
            parameter.grad = mean
        self.optimizer.step()

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the state of the optimiser."""
        tensors: dict[str, Tensor] = {}
        return tensors, pack(self.optimizer.state_dict()["state"], tensors, "opt")

    def load(self, tensors: Mapping[str, Tensor], structure: Any) -> None:
        """Restore the state of the optimiser."""
        copies = {name: value.clone() for name, value in tensors.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": unpack(structure, copies), "param_groups": groups})


def _share(x: Tensor, towards: Pull) -> tuple[Tensor, Pull]:
    """Return what this process descends along: all of it, or its share where ``torchrun`` launched several."""
    these = processes(x.device)
    x, excess = shard_rows((x, towards.excess), these.rank, these.size)
    return x, Pull(excess, None if towards.velocity is None else shard_rows(towards.velocity, these.rank, these.size))


def descent(name: Name, psi: WaveFunction) -> Descent:
    """Make a descent by name, with its usual settings.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "spring":
        return SampleSpace(psi)
    if name == "minsr":
        return SampleSpace(psi, decay=0.0)
    if name == "adam":
        return ParameterSpace(psi, torch.optim.Adam(psi.parameters(), lr=RATES[name]))
    if name in ("singd", "ikfac"):
        adaptive = name == "singd"
        rest = {"interval": 1, "momentum": 0.9, "damping": 1e-3, "listen": False, "stochastic_rounding": False}
        return ParameterSpace(psi, SINGD(psi, lr=RATES[name], adaptive=adaptive, **rest))
    raise ValueError(unknown("optimiser", str(name), RATES))
