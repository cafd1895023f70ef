"""Small time-conditioned networks: ``network(x, t, cond) -> like x``.

Times are of any scale of order one to ten: ``t`` in [0, 1] for flows, ``log sigma`` for diffusion. Rows never read each other, so that
`popflow.core.calculus` applies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checks import at_least_one


class TimeEmbedding(nn.Module):
    """``[t, sin(w_k t), cos(w_k t)]`` with frequencies from 1/4 to 16, geometric, each ``[rows]`` -> ``[rows, 2 k + 1]``.

    The slowest turns over once in 25 units (``log sigma`` from -7 to 5), the fastest once in 0.4 (``t`` in [0, 1]); time derivatives of
    what is learned stay moderate.
    """

    def __init__(self, frequencies: int = 16):
        super().__init__()
        self.size = 2 * frequencies + 1
        self.omega = nn.Buffer(torch.logspace(-2, 4, frequencies, base=2.0), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Embed one time per row."""
        phase = t[:, None] * self.omega
        return torch.cat([t[:, None], phase.sin(), phase.cos()], 1)


class MLP(nn.Module):
    """Time-conditioned perceptron on flat events, SiLU, so that it has all derivatives.

    Args:
        dim: Numbers per row of ``x``.
        out: Numbers per row of the result; ``dim`` unless given (1 for a potential; squeeze it yourself).
        width: Hidden width.
        depth: Hidden layers.
        classes: Number of class labels; 0 for none. Label ``classes`` means "no class" (guidance without classifier).

    Shapes:
        x ``[rows, dim]``; t ``[rows]`` or one for all; cond ``[rows]`` labels 0..classes, None for "no class".

    Example:
        >>> MLP(2, width=16, classes=3)(torch.zeros(5, 2), torch.zeros(5), torch.tensor([0, 1, 2, 3, 3])).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, *, out: int | None = None, width: int = 128, depth: int = 3, classes: int = 0):
        super().__init__()
        at_least_one(dim=dim, width=width, depth=depth)
        self.time = TimeEmbedding()
        self.first = nn.Linear(dim + self.time.size, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim if out is None else out)

    def forward(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Evaluate row by row."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        h = self.first(torch.cat([x, self.time(times)], 1))
        if self.label is not None:
            h = h + self.label(torch.full((len(x),), self.label.num_embeddings - 1, device=x.device) if cond is None else cond)
        elif cond is not None:
            raise ValueError("cond is given to a network made with classes=0, wanted None: drop cond, or make the network with classes=...")
        for layer in self.hidden:
            h = layer(F.silu(h))
        return self.last(F.silu(h))
