"""Exact draws from compositions of kernel mixtures: the ground truth for samplers, in any dimension.

For mixtures ``a = sum_i u_i N(m_i, h^2)`` and ``b = sum_j w_j N(n_j, h^2)`` the product of two is a mixture over pairs,

    N(y; m, h^2)^s N(y; n, h^2)^t  =  c exp(-s t |m - n|^2 / (2 (s + t) h^2)) N(y; (s m + t n)/(s + t), h^2/(s + t)),

and powers are bounded from above by mixtures: ``(sum u_i f_i)^s <= sum u_i f_i^s`` for ``s >= 1`` (Jensen) and ``<= sum (u_i f_i)^s`` for
``s <= 1``. A draw from the bound accepted with probability ``target / bound`` is an exact draw from ``a^s b^t`` (rejection sampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from popflow.core import Streams

MOST_ROUNDS = 1000
"""Rounds of proposals before giving up: acceptance is then below one in a thousand."""


def product_draws(a: Tensor, b: Tensor, bandwidth: float, n: int, rng: Streams, *, powers: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Draw from ``q_a^s q_b^t``, the kernel mixtures of two data sets with equal weights; ``[n, *event]``.

    Args:
        a: First data set ``[N, *event]``.
        b: Second data set ``[M, *event]``.
        bandwidth: Kernel width ``h`` of both; at noise level sigma pass ``sqrt(h^2 + sigma^2)``.
        n: Number of draws.
        rng: Random streams; uses the stream ``exact``.
        powers: ``(s, t)``, positive; ``(1, 1)`` is the product, ``(1/2, 1/2)`` the geometric mean.

    Raises:
        ValueError: for powers or a bandwidth that are not positive.
        RuntimeError: when fewer than one in a thousand proposals is accepted (powers well above one of mixtures that overlap).

    Example:
        >>> import torch
        >>> from popflow.compose.zoo.exact import product_draws
        >>> left, right = torch.tensor([[-1.0]]), torch.tensor([[1.0]])
        >>> y = product_draws(left, right, 1.0, 4096, Streams(0))
        >>> abs(float(y.mean())) < 0.05, abs(float(y.var()) - 0.5) < 0.05
        (True, True)
    """
    s, t = powers
    if not (s > 0 and t > 0 and bandwidth > 0):
        raise ValueError(f"powers={powers}, bandwidth={bandwidth}, wanted positive numbers.")
    h, m, w = float(bandwidth), a.flatten(1).double(), b.flatten(1).double()
    log_pairs = _log_bound_weights(len(m), s) + _log_bound_weights(len(w), t) - s * t / (s + t) * torch.cdist(m, w).square() / (2 * h**2)
    chances = log_pairs.flatten().softmax(0)

    def propose(count: int) -> Tensor:
        pair = torch.multinomial(chances, count, replacement=True, generator=rng("exact"))
        mean = (s * m[pair // len(w)] + t * w[pair % len(w)]) / (s + t)
        return mean + h / math.sqrt(s + t) * rng.normal("exact", mean)

    def accept(y: Tensor) -> Tensor:
        return _log_slack(y, m, s, h) + _log_slack(y, w, t, h)

    return _reject(propose, accept, n, rng).to(a.dtype).reshape(n, *a.shape[1:])


def mixture_draws(data: Sequence[Tensor], bandwidth: float, n: int, rng: Streams) -> Tensor:
    """Draw from the mixture, in equal shares, of the kernel mixtures of several data sets; ``[n, *event]``.

    >>> mixture_draws([torch.zeros(3, 2), torch.ones(5, 2)], 1e-3, 1000, Streams(0)).mean().round(decimals=1).item()
    0.5
    """
    which = torch.randint(len(data), (n,), generator=rng("exact"), device=rng.device)
    each = [one[torch.randint(len(one), (n,), generator=rng("exact"), device=rng.device)] for one in data]
    centres = torch.stack(each)[which, torch.arange(n)]
    return centres + bandwidth * rng.normal("exact", centres)


def guided_draws(everything: Tensor, chosen: Tensor, bandwidth: float, w: float, n: int, rng: Streams) -> Tensor:
    """Draw from classifier-free guidance ``q_u^{1-w} q_c^w`` of kernel mixtures, where the images of ``c`` are a subset of those of ``u``.

    ``q_u^{1-w} q_c^w = q_c (q_c/q_u)^{w-1}`` and ``q_c/q_u <= N_u/N_c``: a draw from ``q_c`` is kept with probability
    ``p(c | y)^{w-1}``, the posterior of belonging to the chosen images.

    Args:
        everything: Images of the unconditional model ``[N_u, *event]``.
        chosen: Images of the conditional model ``[N_c, *event]``, a subset of them.
        bandwidth: Kernel width.
        w: Guidance scale, at least 1.
        n: Number of draws.
        rng: Random streams; uses the stream ``exact``.

    Example:
        >>> import torch
        >>> from popflow.compose.zoo.exact import guided_draws
        >>> both = torch.tensor([[-1.0], [1.0]])
        >>> y = guided_draws(both, both[1:], 1.0, 3.0, 4096, Streams(0))
        >>> bool(y.mean() > 1.2)  # pushed away from the other
        True
    """
    if not (w >= 1 and bandwidth > 0):
        raise ValueError(f"w={w}, bandwidth={bandwidth}, wanted w >= 1 and a positive bandwidth; below 1 use product_draws.")
    h, u, c = float(bandwidth), everything.flatten(1).double(), chosen.flatten(1).double()
    if not bool((torch.cdist(c, u).min(1).values < 1e-6).all()):
        raise ValueError("chosen holds images that are not in everything, wanted a subset: the guided density would have no bound.")

    def propose(count: int) -> Tensor:
        mean = c[torch.randint(len(c), (count,), generator=rng("exact"), device=rng.device)]
        return mean + h * rng.normal("exact", mean)

    def accept(y: Tensor) -> Tensor:
        return (w - 1) * (_log_kernels(y, c, h).logsumexp(1) - _log_kernels(y, u, h).logsumexp(1)).clamp(max=0)

    return _reject(propose, accept, n, rng).to(everything.dtype).reshape(n, *everything.shape[1:])


def _reject(propose: Callable[[int], Tensor], accept: Callable[[Tensor], Tensor], n: int, rng: Streams) -> Tensor:
    """Rejection sampling; ``accept`` gives the log of the probability of keeping a proposal."""
    kept: list[Tensor] = []
    have = 0
    for _ in range(MOST_ROUNDS):
        y = propose(max(n, 256))
        chance = accept(y).exp()
        y = y[torch.rand(len(y), generator=rng("exact"), dtype=y.dtype, device=y.device) < chance]
        kept.append(y)
        have += len(y)
        if have >= n:
            return torch.cat(kept)[:n]
    raise RuntimeError(f"only {have} of {MOST_ROUNDS * max(n, 256)} proposals were accepted, wanted {n}: the mixtures hardly overlap.")


def _log_kernels(y: Tensor, centres: Tensor, h: float) -> Tensor:
    """Return ``-|y - m_i|^2 / (2 h^2)``, ``[rows, N]``."""
    return -torch.cdist(y, centres, compute_mode="use_mm_for_euclid_dist").square() / (2 * h**2)


def _log_bound_weights(count: int, power: float) -> float:
    """Log weight of one component in the bound of ``(mean_i f_i)^power``."""
    return -math.log(count) * (1.0 if power >= 1 else power)


def _log_slack(y: Tensor, centres: Tensor, power: float, h: float) -> Tensor:
    """Log of ``(mean_i f_i)^power`` over its bound, at most 0."""
    if power == 1:
        return torch.zeros(len(y), dtype=y.dtype, device=y.device)
    parts, count = _log_kernels(y, centres, h), len(centres)
    exact = power * (parts.logsumexp(1) - math.log(count))
    return (exact - (power * parts).logsumexp(1) - _log_bound_weights(count, power)).clamp(max=0)
