r"""Rate and committor that weighted trajectories imply, whatever process they were simulated with.

Trajectories ``x [n, K + 1, D]`` at ``times [K + 1]`` carry log-weights ``log dP/dQ [n]`` towards the reference P, such as the `reference` law of `PathEnsemble`, or zeros where
they were simulated with P itself. With ``tau`` the first time in B, ``S(t) = P(tau > t | x_0 in A)`` and ``w = dP/dQ``

    rate         k = -d log S / dt between t_0 and T  =  E_Q[w 1(t_0 < tau <= T)] / int_{t_0}^T S(t) dt,       1 - S(t) = E_Q[w 1(tau <= t)]
    committor    q(z) = E_Q[sum_k w 1(x_k in z) 1(B next)] / E_Q[sum_k w 1(x_k in z) 1(A or B next)]

The rate is that of A -> B once starts in A have relaxed: after ``t_0``, and for times far below 1/k or not. Starts are those of P and Q alike, so that their number is not weighted.
A visit of a cell counts with what its trajectory meets next; visits that meet neither state before the end are left out, and those that decide fast are seen first: ``decided``
says which share was seen. States are met at the recorded times alone; between them crossings go unseen, an error of order ``noise sqrt(dt)`` in the position of a border.

Sources: D. Chandler, J. Chem. Phys. 68, 2959 (1978) for the plateau of the rate; W. E and E. Vanden-Eijnden, J. Stat. Phys. 123, 503 (2006) for the committor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from popflow.core.checks import shaped
from popflow.paths.process import require_finite

Indicator = Callable[[Tensor], Tensor]
"""Whether states ``[m, D]`` are in a set, ``[m]`` of bool."""


def rate(x: Tensor, log_w: Tensor, times: Tensor, in_a: Indicator, in_b: Indicator, since: float = 0.0) -> tuple[float, float]:
    """Rate of A -> B, per time, with its standard error, from trajectories that begin in A; the error is infinite when none arrives after ``since``.

    Args:
        x: Trajectories ``[n, K + 1, D]``; those that begin outside of A do not count.
        log_w: Log-weights ``[n]``, ``log dP/dQ``: not normalised, with their mean as it is.
        times: ``[K + 1]``, ascending.
        in_a: Indicator of A.
        in_b: Indicator of B.
        since: Time t_0 after which starts have relaxed.

    Raises:
        ValueError: for shapes that do not fit, a ``since`` that leaves no time, or no start in A.
        NonFiniteError: for weights that are not finite.

    Example:
        >>> x = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])[..., None]  # one of two arrives, at time 2
        >>> rate(x, torch.zeros(2), torch.tensor([0.0, 1.0, 2.0]), lambda x: x[:, 0] < 1, lambda x: x[:, 0] > 1)[0]
        0.25
    """
    _fit(x, log_w, times)
    last = float(times[-1])
    if not float(times[0]) <= since < last:
        raise ValueError(f"since={since!r}, wanted a time from {float(times[0])!r} to before {last!r}, that of the last frame.")
    begins = _in(in_a, x)[:, 0]
    if not bool(begins.any()):
        raise ValueError("no trajectory begins in A, wanted starts in it. Fix: another in_a, or paths that start there.")
    weight, inside = log_w.double().exp()[begins], _in(in_b, x)[begins]
    arrives = inside.any(1)
    tau = torch.where(arrives, times.double()[inside.int().argmax(1)], float("inf"))
    hits = weight * (arrives & (tau > since))
    lost = torch.where(arrives, weight * (last - tau.clamp_min(since)), 0.0)
    exposure = (last - since) - lost
    if not bool(hits.any()):
        return 0.0, float("inf")
    value = float(hits.sum() / exposure.sum())
    scatter = (hits - value * exposure).square().sum().sqrt()
    return value, float(scatter / exposure.sum())


def committor(
    x: Tensor, log_w: Tensor, in_a: Indicator, in_b: Indicator, coordinate: Callable[[Tensor], Tensor], edges: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Committor in cells of a coordinate: the probability to meet B next, not A; its standard error; and the share of visits that was decided, each ``[m]``.

    A cell without a visit that was decided has NaN.

    Args:
        x: Trajectories ``[n, K + 1, D]``, from anywhere.
        log_w: Log-weights ``[n]``; any constant may be added.
        in_a: Indicator of A, where the committor is 0.
        in_b: Indicator of B.
        coordinate: Of states, ``[m, D] -> [m]``.
        edges: Borders of the cells, ``[m + 1]``, ascending. Frames in A or B are in no cell.

    Raises:
        ValueError: for shapes that do not fit.
        NonFiniteError: for weights that are not finite.

    Example:
        >>> x = torch.tensor([[0.5, 2.0, 2.0], [0.5, 0.4, -1.0], [0.5, 0.6, 2.0]])[..., None]
        >>> q, error, decided = committor(x, torch.zeros(3), lambda x: x[:, 0] < 0, lambda x: x[:, 0] > 1, lambda x: x[:, 0], torch.tensor([0.0, 1.0]))
        >>> round(float(q), 3), float(decided)
        (0.6, 1.0)
    """
    _fit(x, log_w, torch.arange(x.shape[1]))
    a, b = _in(in_a, x), _in(in_b, x)
    met = torch.where(b, 1.0, torch.where(a, 0.0, torch.nan)).double()
    following = torch.full_like(met, torch.nan)
    for k in range(x.shape[1] - 2, -1, -1):  # what is met next, from the end
        following[:, k] = torch.where(met[:, k + 1].isnan(), following[:, k + 1], met[:, k + 1])
    value = shaped("coordinate", coordinate(x.flatten(0, 1)), x[..., 0].flatten()).view(a.shape)
    cell = torch.bucketize(value, edges.to(value), right=True) - 1
    weight = (log_w.double() - log_w.max().double()).exp()
    found = []
    for one in range(len(edges) - 1):
        here = (cell == one) & ~a & ~b
        seen = here & ~following.isnan()
        top, bottom = (torch.where(seen, following, 0.0).sum(1) * weight), seen.sum(1) * weight
        q = top.sum() / bottom.sum()
        error = (top - q * bottom).square().sum().sqrt() / bottom.sum()
        found.append(torch.stack([q, error, bottom.sum() / (here.sum(1) * weight).sum()]))
    q, error, decided = torch.stack(found, 1)
    return q, error, decided


def _in(inside: Indicator, x: Tensor) -> Tensor:
    """Whether frames are in a set, ``[n, K + 1]``."""
    return shaped("the indicator of a state", inside(x.flatten(0, 1)), x[..., 0].flatten()).bool().view(x.shape[:2])


def _fit(x: Tensor, log_w: Tensor, times: Tensor) -> None:
    if x.ndim != 3 or log_w.shape != x.shape[:1] or times.shape != x.shape[1:2] or x.shape[1] < 2:
        raise ValueError(
            f"x {tuple(x.shape)}, log_w {tuple(log_w.shape)}, times {tuple(times.shape)}, wanted [n, K + 1 >= 2, D], [n] and [K + 1]: one weight for each trajectory."
        )
    require_finite("log_w", log_w)
