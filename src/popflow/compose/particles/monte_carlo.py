"""Ground truth for particle systems: Hamiltonian Monte Carlo with parallel tempering, centred on the centre of mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from popflow.compose.particles.energies import Cluster, apart
from popflow.core import Tempered, parallel_tempering


def tempered(system: Cluster, temperatures: Sequence[float], start: Tensor, **settings: Any) -> Tempered:
    """Sample ``exp(-E/T)`` at a ladder of temperatures, in ``(n - 1) d`` dimensions.

    Args:
        system: Supplies the energy.
        temperatures: Increasing; see `popflow.core.parallel_tempering`.
        start: Where every walker starts, ``[n, d]``; it is centred.
        **settings: ``sweeps``, ``burn``, ``rng`` and the others of `popflow.core.parallel_tempering`.

    Raises:
        ValueError: for particles that start on top of one another, and as `popflow.core.parallel_tempering`.

    Example:
        >>> import torch
        >>> from popflow.core import Streams
        >>> trap = Cluster("trap", 3, 1, lambda r2: (0 * r2, 0 * r2), trap=1.0)
        >>> start = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> found = tempered(trap, (1.0, 2.0), start, sweeps=20, burn=5, rng=Streams(0), chains=8, step_size=0.3)
        >>> found.at(2.0).shape, bool(found.x.sum(2).abs().max() < 1e-12)
        (torch.Size([16, 3, 1]), True)
    """
    first = apart(system, system.space.check(start.double()), what="start")
    return parallel_tempering(system.energy_and_force, temperatures, first, project=system.space.project, **settings)
