r"""Walkers: positions of the electrons drawn from ``|psi|^2`` by Metropolis moves of all electrons at once.

    y = x + width * noise,        accepted with probability min(1, |psi(y)|^2 / |psi(x)|^2)

``log|psi|`` of the present point is kept, so a move costs one forward pass. A proposal that is not finite is refused. The width follows the
acceptance of each sweep towards 0.5 to 0.55. Walkers that have stopped moving, or are not finite, are reported before the width follows them down.

Source: Metropolis et al., J. Chem. Phys. 21, 1087 (1953).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one, real
from popflow.core.errors import NonFiniteError
from popflow.core.streams import Streams
from popflow.electrons.wavefunctions import System
from popflow.learn.distributed import processes

LogPsi = Callable[[Tensor], Tensor]
"""``log|psi|``: ``[B, N, d] -> [B]``."""
STUCK = 1000
"""Moves refused in a row after which a walker counts as stuck."""


class WalkerError(NonFiniteError):
    """Walkers at a place of no probability, not finite, or stuck."""


@dataclass(frozen=True, slots=True)
class Walkers:
    """Independent walkers and the width of their moves.

    Attributes:
        x: ``[B, N, d]``, bohr.
        log_psi: ``[B]``, of the wave function of the last sweep.
        width: Standard deviation of a move, bohr: a scalar.
        age: ``[B]`` moves refused in a row.
        acceptance: Share of moves accepted in the last sweep: a scalar.
    """

    x: Tensor
    log_psi: Tensor
    width: Tensor
    age: Tensor
    acceptance: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds."""
        return {"x": self.x, "log_psi": self.log_psi, "width": self.width, "age": self.age, "acceptance": self.acceptance}

    def first(self, count: int) -> Walkers:
        """Take the first ``count`` walkers.

        Raises:
            ValueError: where there are fewer.
        """
        at_least_one(count=count)
        if count > len(self.x):
            raise ValueError(f"count={count}, wanted at most {len(self.x)}, as many as there are. Fix: place as many walkers as you want.")
        return Walkers(self.x[:count], self.log_psi[:count], self.width, self.age[:count], self.acceptance)

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Walkers:
        """Make walkers from `tensors`."""
        return Walkers(*(tensors[name].clone() for name in ("x", "log_psi", "width", "age", "acceptance")))


def place(
    psi: LogPsi, system: System, count: int, rng: Streams, *, dtype: torch.dtype | None = None, width: float | None = None
) -> Walkers:
    """Place walkers around the nuclei, or over the trap. They still have to equilibrate: `sweep` a hundred moves or more.

    Args:
        psi: ``log|psi|``.
        system: Where electrons begin.
        count: Number of walkers.
        rng: Streams; ``place`` is used.
        dtype: Of the positions; None: that of the parameters of ``psi``, or float32 where it has none.
        width: First width of the moves; None: 0.5 / (largest charge, or 1) + 0.1.

    Raises:
        ValueError: unless ``width`` is finite and above 0.
        WalkerError: when ``psi`` vanishes or is not finite at most places, as it is when all determinants are zero.
    """
    at_least_one(walkers=count)
    real(width=width)
    if width is not None and not 0 < width < math.inf:
        raise ValueError(f"width={width!r}, wanted finite and above 0: the standard deviation of a move in bohr. Fix: leave it out.")
    if dtype is None:
        parameter = next(psi.parameters(), None) if isinstance(psi, nn.Module) else None
        dtype = torch.float32 if parameter is None else parameter.dtype
    like = torch.zeros(count, system.electrons, system.dim, dtype=dtype, device=rng.device)
    x = system.start(like, rng.normal("place", like))
    log_psi = _evaluate(psi, x)
    for _ in range(10):
        bad = ~log_psi.isfinite()
        if not bad.any():
            break
        x = torch.where(bad[:, None, None], system.start(like, rng.normal("place", like)), x)
        log_psi = _evaluate(psi, x)
    if bad := int((~log_psi.isfinite()).sum()):
        raise WalkerError(
            f"log|psi| is not finite for {bad} of {count} walkers, ten times over: all determinants are zero there, or parameters are not finite. "
            "Fix: other initial weights (seed), more determinants, or float64."
        )
    scalar = like.new_tensor(0.5 / max(1, *system.charges) + 0.1 if width is None else width)
    return Walkers(x, log_psi, scalar, torch.zeros(count, dtype=torch.long, device=rng.device), like.new_tensor(0.5))


def sweep(psi: LogPsi, walkers: Walkers, rng: Streams, moves: int = 10) -> Walkers:
    """Bring ``log|psi|`` up to date with the parameters, then move every walker ``moves`` times.

    Args:
        psi: ``log|psi|``.
        walkers: Where they are.
        rng: Streams; ``move`` and ``accept`` are used.
        moves: Moves of each walker.

    Raises:
        WalkerError: for walkers that are not finite or have not moved for `STUCK` moves.
    """
    at_least_one(moves=moves)
    x, age, width = walkers.x, walkers.age, walkers.width
    log_psi = _evaluate(psi, x)
    _look(x, log_psi, age)
    accepted = torch.zeros((), dtype=torch.float64, device=x.device)
    for _ in range(moves):
        y = x + width * rng.normal("move", x)
        proposed = _evaluate(psi, y)
        chance = rng.uniform("accept", (len(x),)).clamp(min=1e-300).log()
        accept = proposed.isfinite() & (chance < 2 * (proposed - log_psi))
        x = torch.where(accept[:, None, None], y, x)
        log_psi = torch.where(accept, proposed, log_psi)
        age = torch.where(accept, torch.zeros_like(age), age + 1)
        accepted = accepted + accept.double().mean()
    acceptance = (accepted / moves).to(x.dtype)
    factor = torch.where(acceptance > 0.55, 1.1, torch.where(acceptance < 0.5, 1 / 1.1, 1.0)).to(x.dtype)
    return Walkers(x, log_psi, width * factor, age, acceptance)


def equilibrate(psi: LogPsi, walkers: Walkers, rng: Streams, *, sweeps: int = 30, moves: int = 10) -> Walkers:
    """Let walkers forget where they began: ``sweeps`` of `sweep`.

    >>> from popflow.electrons.exact import exact_state
    >>> from popflow.electrons.molecule import Molecule
    >>> hydrogen, rng = Molecule.of("H"), Streams(0)
    >>> walkers = place(exact_state(hydrogen), hydrogen, 2000, rng, dtype=torch.float64)
    >>> walkers = equilibrate(exact_state(hydrogen), walkers, rng)
    >>> bool(abs(walkers.x.norm(dim=2).mean() - 1.5) < 0.08)  # <r> = 3/2
    True
    """
    for _ in range(sweeps):
        walkers = sweep(psi, walkers, rng, moves)
    return walkers


def _evaluate(psi: LogPsi, x: Tensor) -> Tensor:
    """Evaluate ``psi``; processes launched by ``torchrun`` share the walkers."""
    with torch.no_grad():
        return processes(x.device).in_shares(psi, x)


def _look(x: Tensor, log_psi: Tensor, age: Tensor) -> None:
    lost = int((~(log_psi.isfinite() & x.flatten(1).isfinite().all(1))).sum())
    if lost:
        raise WalkerError(
            f"{lost} of {len(x)} walkers are not finite, or at a place where psi is 0. Fix: a smaller learning rate, more damping, or float64."
        )
    stuck = int((age >= STUCK).sum())
    if stuck:
        raise WalkerError(
            f"{stuck} of {len(x)} walkers have not moved for {STUCK} moves. Fix: a smaller width of the moves, a smaller learning rate, or place them again."
        )
