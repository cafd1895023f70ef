"""Moving, weighing and breeding populations of samples.

    d_t p = -div(p v) + 1/2 sigma^2 lap p + p (g - E[g])

Rooms are loaded when they are used: ``popflow.core`` (populations, rates, steps, the one loop), ``popflow.learn`` (training),
``popflow.compose`` (composition of diffusion models), ``popflow.transport`` (population dynamics from snapshots), ``popflow.paths`` (transition paths),
``popflow.electrons`` (ground states), ``popflow.evolve`` (molecules bred against an oracle), ``popflow.optim`` (structured natural gradient), ``popflow.circuits``
(binary networks from a variational circuit), ``popflow.runs`` (run directories and reports).
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
