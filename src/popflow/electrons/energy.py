r"""The local energy, its gradient in the electrons' positions, and what is done about heavy tails.

    E_loc(x) = V(x) - 1/2 (lap log|psi| + |grad log|psi||^2),        G(x) = grad_x E_loc(x)

``E_loc`` comes from the forward Laplacian, and ``G`` from one reverse pass through it. No derivative of either in the parameters is ever needed.
``psi`` is an eigenstate exactly where ``E_loc`` is constant and ``G = 0``.

Near a node or an inexact cusp ``E_loc ~ c/r``: its mean is finite, the mean of ``|G|^2 ~ 1/r^4`` is not. So energies are clipped, and velocities bounded.

Source: Neklyudov et al., *Wasserstein quantum Monte Carlo*, NeurIPS 2023 (arXiv 2307.07050); clipping: Pfau et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one
from popflow.electrons.wavefunctions import System, WaveFunction
from popflow.learn.distributed import processes


class Local(NamedTuple):
    """What is known at each walker.

    Attributes:
        energy: ``E_loc [B]``, Hartree.
        score: ``grad log|psi| [B, N d]``.
        gradient: ``grad E_loc [B, N d]``, Hartree per bohr; None when it was not asked for.
    """

    energy: Tensor
    score: Tensor
    gradient: Tensor | None


class LocalEnergy:
    """``E_loc`` of a wave function, and its gradient.

    Args:
        psi: The wave function.
        system: Its potential.
        chunk: Walkers computed at a time; any number gives the same answer. The memory is that of ``N d + 2`` forward passes of a chunk. If None: 64 on a
            processor, where they stay in its cache, and 4096 on a GPU.
        compile: Compile with `torch.compile`, for walkers in whole chunks (others run as they are). It costs a minute before the first answer.

    Example:
        >>> from popflow.electrons.exact import exact_state
        >>> from popflow.electrons.traps import hookes_atom
        >>> system = hookes_atom()
        >>> x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> local = LocalEnergy(exact_state(system), system)(x, gradient=True)
        >>> local.energy.round(decimals=9).tolist(), bool(local.gradient.abs().max() < 1e-9)
        ([2.0, 2.0, 2.0, 2.0], True)
    """

    def __init__(self, psi: WaveFunction, system: System, *, chunk: int | None = None, compile: bool = False):
        if chunk is not None:
            at_least_one(chunk=chunk)
        self.psi, self.system, self.chunk = psi, system, chunk
        self._compiled: Callable[[Tensor, bool], Local] | None = None
        if compile:
            self._compiled = torch.compile(self._evaluate, dynamic=False)

    def __call__(self, x: Tensor, *, gradient: bool = False) -> Local:
        """Evaluate at ``x [B, N, d]``; processes launched by ``torchrun`` share the walkers."""
        with frozen(self.psi), highest_precision():
            return Local(*processes(x.device).in_shares(partial(self._in_chunks, gradient=gradient), x.detach()))

    def _in_chunks(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        chunk = self.chunk or (64 if x.device.type == "cpu" else 4096)
        parts = [self._part(part, gradient, len(part) == chunk) for part in x.split(chunk)]
        grads = [part.gradient for part in parts if part.gradient is not None]
        return torch.cat([p.energy for p in parts]), torch.cat([p.score for p in parts]), torch.cat(grads) if grads else None

    def _part(self, x: Tensor, gradient: bool, whole: bool) -> Local:
        evaluate = self._compiled if self._compiled and whole else self._evaluate
        if not gradient:
            with torch.no_grad():
                return evaluate(x, False)
        x = x.requires_grad_()
        energy, score, _ = evaluate(x, True)
        (slope,) = torch.autograd.grad(energy.sum(), x)
        return Local(energy.detach(), score.detach(), slope.flatten(1))

    def _evaluate(self, x: Tensor, gradient: bool) -> Local:
        jet = self.psi.forward_laplacian(x)
        kinetic = -0.5 * (jet.laplacian + jet.jacobian.square().sum(1))
        return Local(kinetic + self.system.potential(x), jet.jacobian, None)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Treat the parameters of a module as constants within the block."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def highest_precision() -> Iterator[None]:
    """Switch TF32 off within the block: the Laplacian is a difference of large terms."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def clip(values: Tensor, reach: float = 5.0) -> Tensor:
    """Clip to the median plus or minus ``reach`` times the mean distance from it.

    >>> clip(torch.tensor([0.0, 0.0, 0.0, 0.0, 40.0]), 1.0).tolist()
    [0.0, 0.0, 0.0, 0.0, 8.0]
    """
    median = values.median()
    width = reach * (values - median).abs().mean()
    return values.clamp(median - width, median + width)


def typical(norms: Tensor, reach: float = 5.0) -> Tensor:
    """Say which walkers have a score norm of at most the median plus ``reach`` mean distances from it; others are nearest to nodes."""
    median = norms.median()
    return norms <= median + reach * (norms - median).abs().mean()


@dataclass(frozen=True, slots=True)
class Energy:
    """An energy with its standard error.

    >>> str(Energy(-1.17443, 0.00021)), str(Energy(-0.5, 0.0)), str(Energy(-14.667, 0.013))
    ('-1.1744(2) Hartree', '-0.5000000 Hartree', '-14.667(13) Hartree')
    >>> str(Energy(-1.17443, math.nan))  # of one walker at one time
    '-1.1744300 Hartree, of unknown error'
    """

    value: float
    error: float
    variance: float = math.nan

    def __str__(self) -> str:
        if not math.isfinite(self.error):
            return f"{self.value:.7f} Hartree, of unknown error"
        if self.error < 1e-12:
            return f"{self.value:.7f} Hartree"
        digits = max(0, -math.floor(math.log10(self.error)))
        last = round(self.error * 10**digits)
        if last == 1:  # two figures of an error that begins with a one
            digits, last = digits + 1, round(self.error * 10 ** (digits + 1))
        return f"{self.value:.{digits}f}({last}) Hartree"


def blocked_error(series: Tensor | Sequence[float], least: int = 16) -> float:
    """Standard error of the mean of a correlated series: the largest over blocks of 1, 2, 4, ... entries, as long as ``least`` blocks remain.

    Source: Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989).

    >>> round(blocked_error(torch.tensor([0.0, 1.0]).repeat_interleave(64).repeat(16)), 4)  # 2048 entries, but 32 independent ones
    0.0898
    """
    blocks = torch.as_tensor(series, dtype=torch.float64)
    if len(blocks) < 2:
        return math.nan
    found = []
    while len(blocks) >= max(2, least) or not found:
        found.append(float(blocks.std() / len(blocks) ** 0.5))
        half = len(blocks) // 2
        blocks = (blocks[: 2 * half : 2] + blocks[1 : 2 * half : 2]) / 2
    return max(found)


def chains_error(sweeps: Tensor, walkers: Tensor) -> float:
    """Standard error of the mean over walkers that are independent chains: the larger of two.

    One is the scatter of the means of walkers, ``std(walkers) / sqrt(B)``: right however long a chain remembers, and noisy for few walkers. The other is
    `blocked_error` of the means of sweeps, which needs sweeps many times longer than the memory, and few sweeps cannot tell that they are not.

    Args:
        sweeps: Mean over walkers at each sweep ``[T]``.
        walkers: Mean over sweeps of each walker ``[B]``.

    >>> round(chains_error(torch.zeros(4), torch.tensor([0.0, 2.0, 0.0, 2.0])), 4)  # every walker stays where it is
    0.5774
    """
    found = [blocked_error(sweeps)] if len(sweeps) > 1 else []
    if len(walkers) > 1:
        found.append(float(walkers.double().std() / len(walkers) ** 0.5))
    return max(found, default=math.nan)
