r"""Paths of Gaussian laws between two states, and mixtures of them, by a network of time.

    q_t = sum_k w_k N(mu^k_t, Sigma^k_t),      u_t(x) = sum_k r_k(x) u^k_t(x),      r_k = w_k q^k_t / q_t

Both end laws hold by construction: with ``s = t / T`` every network output is multiplied by ``s (1 - s)``.

    mean                chart(initial(s) + s (1 - s) xi sqrt(T) h)                     initial: a straight line, or any given path
    standard deviation  bridge      sqrt((1-s) sa^2 + s sb^2 + xi^2 T s (1 - s) exp(h))   h = 0 is the Brownian bridge
                        log_linear  sa^(1-s) sb^s exp(s (1 - s) h)                     may fall below both ends (contracting drifts)

Source: Du et al., *Doob's Lagrangian*, NeurIPS 2024 (Gaussian and mixture paths; its standard deviation ``s0 + s (1 - s) exp(h)`` loses 1.7 nats
per dimension at ``s0 = 0.01 xi sqrt(T)``); the forms above, the clock and the kinematic path are ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one, function, real
from popflow.core.streams import Streams
from popflow.paths.curves import CLOCK, Curve, Widths, bridge, log_linear, with_rates
from popflow.paths.moments import Diagonal, Full, Kinematic, Moments


class Mixture(nn.Module, ABC):
    """The algebra of mixtures of Gaussian laws: a path of ``components`` with ``logits``, a ``start`` and a duration ``time``, and their `moments`."""

    components: int
    dim: int
    time: float
    start: Tensor
    logits: Tensor
    together = 1
    """Rows of a batch that share a time, where moments of a time are dear."""

    @abstractmethod
    def moments(self, t: Tensor) -> Any:
        """Moments of all components at times ``[rows]``, see `popflow.paths.moments`."""

    @property
    def weights(self) -> Tensor:
        """Weights of the components, ``[K]``."""
        return self.logits.softmax(0)

    def forward(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, drifts, control variates and weights of every component at times ``[rows]`` and base points ``z [rows, .]``.

        Returns:
            States ``[K, rows, .]``, drifts of the driven coordinates ``[K, rows, D]``, a known mean-zero part of the cost ``[K, rows]``, weights ``[K]``.
        """
        moments = self.moments(t)
        z = z[:, None, :].expand(-1, self.components, -1)
        x = moments.point(z)
        if self.components == 1:
            return x.movedim(1, 0), moments.drift(z).movedim(1, 0), moments.control(z).movedim(1, 0), self.weights
        x = x.movedim(1, 0)
        own = torch.eye(self.components, dtype=torch.bool, device=z.device)[:, None, :, None]
        base = torch.where(own, z.movedim(1, 0)[:, :, None, :], moments.base(x[:, :, None, :]))  # [K of x, rows, K, .]
        return x, self._mix(moments, base, moments.drift(base)), x.new_zeros(x.shape[:2]), self.weights

    def _mix(self, moments: Moments, base: Tensor, values: Tensor) -> Tensor:
        shares = (moments.log_prob(base) + self.logits.log_softmax(0)).softmax(-1)
        return (shares[..., None] * values).sum(-2)

    def drift(self, t: float, x: Tensor) -> Tensor:
        """Drift of the driven coordinates at time ``t`` and states ``[n, .]``."""
        moments = self.moments(self._times(t))
        base = moments.base(x[:, None, :])
        return self._mix(moments, base, moments.drift(base))

    def velocity(self, t: float, x: Tensor) -> Tensor:
        """Probability flow at time ``t`` and states ``[n, .]``: the same marginals without noise."""
        moments = self.moments(self._times(t))
        base = moments.base(x[:, None, :])
        return self._mix(moments, base, moments.velocity(base))

    def log_prob(self, t: float, x: Tensor) -> Tensor:
        """Log-density ``[n]`` of the marginal at time ``t``."""
        moments = self.moments(self._times(t))
        return (moments.log_prob(moments.base(x[:, None, :])) + self.logits.log_softmax(0)).logsumexp(-1)

    def sample(self, t: float, n: int, rng: Streams) -> Tensor:
        """Draw states ``[n, .]`` of the marginal at time ``t``, component by component."""
        moments, z = self.moments(self._times(t)), rng.normal("noise", self.start.new_empty(n, 1, self.base_dim()))
        which = torch.multinomial(self.weights.detach(), n, replacement=True, generator=rng("component"))
        return moments.point(z)[torch.arange(n), which]

    def base_dim(self) -> int:
        """Number of base coordinates of a state."""
        return self.dim

    def _times(self, t: float) -> Tensor:
        return self.start.new_full((1,), t)


class GaussianPath(Mixture):
    """What the Gaussian paths share: end states, clock, network and the algebra of mixtures. Use `DiagonalPath`, `FullPath`, `KinematicPath`.

    Args:
        start: State ``[D]`` at time 0; its dtype is that of the path (``path.double()`` changes it).
        end: State ``[D]`` at ``time``.
        time: Duration T.
        noise: Noise of the process, a number or ``[D]``.
        sigma0: Standard deviation of the laws at both ends, or a pair of them.
        rng: Initialises the network.
        components: Number of components K.
        learn_weights: Learn the weights of the components; their gradient is exact, because every component is drawn at every time.
        widths: `bridge` or `log_linear`.
        initial: Path of chart coordinates to start from, ``s [rows] -> [rows, M]``; a straight line unless given. It must meet both states.
        chart: Coordinates of the mean, ``[*batch, M] -> [*batch, D]``, differentiable: internal coordinates to positions, for example.
        bend: Standard deviation, in the middle of the path, of the random bends that tell components apart; unused for one component. Units:
            ``xi sqrt(T)``, for `KinematicPath` the root mean square of ``end - start``; with a chart, those of its coordinates.
        width: Width of the network.
        depth: Its hidden layers.

    Raises:
        ValueError: naming the argument that is wrong.
    """

    peak = 0.25
    """Largest value of the envelope of the mean."""

    def __init__(
        self,
        start: Tensor,
        end: Tensor,
        time: float,
        *,
        noise: float | Tensor,
        sigma0: float | tuple[float, float],
        rng: Streams,
        components: int = 1,
        learn_weights: bool = False,
        widths: Widths = bridge,
        initial: Curve | None = None,
        chart: Callable[[Tensor], Tensor] | None = None,
        bend: float = 0.5,
        width: int = 64,
        depth: int = 2,
    ):
        super().__init__()
        _check_ends(start, end, time)
        at_least_one(components=components, width=width, depth=depth)
        function("widths", widths, "bridge")
        ends = sigma0 if isinstance(sigma0, tuple) else (sigma0, sigma0)
        real(start_sigma=ends[0], end_sigma=ends[1])
        if not (min(ends) > 0 and max(ends) < math.inf):
            raise ValueError(
                f"sigma0={sigma0!r}, wanted positive and finite: the action grows like D log(1 / sigma0), and is infinite at 0."
            )
        self.time, self.ends, self.widths, self.components = float(time), (float(ends[0]), float(ends[1])), widths, components
        self.dim = len(start)
        self.start, self.end = nn.Buffer(start.clone()), nn.Buffer(end.clone())
        self.noise = nn.Buffer(torch.as_tensor(noise, dtype=start.dtype).expand(self.driven_dim()).clone())
        self.initial, self.chart = initial or self._line, chart or _same
        with torch.no_grad():
            line = self.initial(start.new_tensor([0.0, 1.0]))
            reached = self.chart(line)
        self.chart_dim = line.shape[-1]
        if reached.shape != (2, self.dim) or not torch.allclose(reached, torch.stack([start, end]), atol=1e-3 * min(ends), rtol=1e-5):
            raise ValueError(f"initial (through chart) misses start or end, by {_gap(reached, start, end)}: wanted a path that meets both.")
        self.logits = nn.Parameter(torch.zeros(components, dtype=start.dtype), requires_grad=learn_weights)
        with rng.layers("path network"):
            sizes = [2, *[width] * depth]
            layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), _Swish())]
            head = nn.Linear(width, components * (self.chart_dim + self.shape_dim()))
            self.network = nn.Sequential(*layers, head).to(start)
        with torch.no_grad():
            head.weight.mul_(0.1)
            head.bias.zero_()
            if components > 1:
                bias = head.bias.view(components, -1)[:, : self.chart_dim]
                bias.copy_(bend / self.peak * rng.normal("bends", bias))

    def driven_dim(self) -> int:
        """Number of coordinates that noise drives."""
        return self.dim

    @abstractmethod
    def shape_dim(self) -> int:
        """Number of network outputs for the shape of a component."""

    def _line(self, s: Tensor) -> Tensor:
        return torch.lerp(self.start, self.end, s[:, None])

    def _heads(self, s: Tensor, split: list[int]) -> tuple[Tensor, ...]:
        clock = 0.25 * ((s + CLOCK) / (1 - s + CLOCK)).log()
        out = self.network(torch.stack([2 * s - 1, clock], -1))
        return out.view(len(s), self.components, -1).split([self.chart_dim, *split], -1)

    def _spread(self) -> Tensor:
        return self.noise * math.sqrt(self.time)

    def _mean(self, s: Tensor, h: Tensor) -> Tensor:
        scale = self._spread() if self.chart_dim == self.dim and self.chart is _same else 1.0
        return self.chart(self.initial(s)[:, None] + (s * (1 - s))[:, None, None] * scale * h)


class DiagonalPath(GaussianPath):
    """Path of Gaussians with independent coordinates; see `GaussianPath` for the arguments.

    Example:
        >>> path = DiagonalPath(torch.zeros(2), torch.ones(2), 1.0, noise=1.0, sigma0=0.1, rng=Streams(0))
        >>> path.sample(1.0, 1000, Streams(0)).mean(0).round(decimals=1).tolist()
        [1.0, 1.0]
    """

    def shape_dim(self) -> int:
        """One standard deviation per coordinate."""
        return self.dim

    def moments(self, t: Tensor) -> Diagonal:
        """Moments and their rates, by one forward-mode derivative."""

        def laws(t: Tensor) -> tuple[Tensor, Tensor]:
            s = t / self.time
            bends, h = self._heads(s, [self.dim])
            return self._mean(s, bends), self.widths(s[:, None, None], h, self.ends, self._spread())

        (mean, sd), (mean_rate, sd_rate) = with_rates(laws, t)
        return Diagonal(mean, sd, mean_rate, sd_rate, self.noise)


class FullPath(GaussianPath):
    """Path of Gaussians with all correlations, ``O(D^2)`` outputs; see `GaussianPath` for the arguments.

    The lower-triangular factor has the given widths on its diagonal, and learned entries times ``s (1 - s) xi sqrt(T)`` below it; a learned
    antisymmetric matrix turns the base. The turn leaves all marginals as they are and can only lower the action.

    Example:
        >>> path = FullPath(torch.zeros(2), torch.ones(2), 1.0, noise=1.0, sigma0=0.1, rng=Streams(0))
        >>> path.drift(0.5, torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    def shape_dim(self) -> int:
        """Diagonal, entries below it, and the turn."""
        return self.dim * self.dim

    def moments(self, t: Tensor) -> Full:
        """Moments and their rates, by one forward-mode derivative."""
        pairs = self.dim * (self.dim - 1) // 2
        rows, columns = torch.tril_indices(self.dim, self.dim, -1)

        def laws(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            s = t / self.time
            bends, h, low, turn = self._heads(s, [self.dim, pairs, pairs])
            sd = self.widths(s[:, None, None], h, self.ends, self._spread())
            lower = torch.zeros(*sd.shape, self.dim, dtype=sd.dtype, device=sd.device)
            lower = lower.index_put((_all(sd, 0), _all(sd, 1), rows, columns), (s * (1 - s))[:, None, None] * self._spread()[rows] * low)
            return self._mean(s, bends), lower + torch.diag_embed(sd), turn / self.time

        (mean, factor, turn), (mean_rate, factor_rate, _) = with_rates(laws, t)
        spin = torch.zeros_like(factor).index_put((_all(mean, 0), _all(mean, 1), rows, columns), turn)
        return Full(mean, factor, mean_rate, factor_rate, spin - spin.mT, self.noise)


class KinematicPath(GaussianPath):
    """Path of an underdamped process: positions and velocities of Gaussians for which ``dx = v dt`` holds exactly, without artificial noise.

    ``start`` and ``end`` are positions ``[D]``; states are ``[x, v]``. At both ends positions have standard deviation ``sigma0``, and
    velocities are at rest on average, with the thermal spread ``thermal = sqrt(kT / m)``: the end laws of a Boltzmann ensemble. The curve and
    its outputs enter with vanishing slope at both ends. Widths are log-linear. Other arguments: `GaussianPath`.

    Args:
        thermal: Standard deviation of the velocities at both ends, a number or ``[D]``.

    Example:
        >>> path = KinematicPath(torch.zeros(1), torch.ones(1), 1.0, noise=1.0, sigma0=0.1, thermal=0.5, rng=Streams(0))
        >>> path.sample(0.5, 5, Streams(0)).shape, path.drift(0.5, torch.zeros(3, 2)).shape
        (torch.Size([5, 2]), torch.Size([3, 1]))
    """

    peak = 1.0

    def __init__(self, start: Tensor, end: Tensor, time: float, *, thermal: float | Tensor, **options: Any):
        super().__init__(start, end, time, widths=log_linear, **options)
        self.thermal = nn.Buffer(torch.as_tensor(thermal, dtype=start.dtype).expand(len(start)).clone())

    def shape_dim(self) -> int:
        """Width of the positions, and of the velocities given them."""
        return 2 * self.dim

    def base_dim(self) -> int:
        """Positions and velocities."""
        return 2 * self.dim

    def moments(self, t: Tensor) -> Kinematic:
        """Moments and their rates, by a forward-mode derivative of a forward-mode derivative."""

        def laws(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            s = t / self.time
            smooth, envelope = s * s * (3 - 2 * s), 16 * (s * (1 - s)).square()
            bends, h, loose = self._heads(s, [self.dim, self.dim])
            mean = self.chart(self.initial(smooth)[:, None] + envelope[:, None, None] * self._scale() * bends)
            one = smooth[:, None, None]
            log_a = 2 * ((1 - one) * math.log(self.ends[0]) + one * math.log(self.ends[1])) + 2 * envelope[:, None, None] * h
            return mean, log_a.exp(), self.thermal**2 * (envelope[:, None, None] * loose).exp()

        def first(t: Tensor) -> tuple[Tensor, ...]:
            (mean, a, loose), (speed, a_rate, _) = with_rates(laws, t)
            c = a_rate / 2
            return mean, speed, a, c, c.square() / a + loose

        (mean, speed, a, c, e), (_, speed_rate, _, c_rate, e_rate) = with_rates(first, t)
        return Kinematic(mean, speed, speed_rate, a, c, e, c_rate, e_rate, self.noise)

    def _scale(self) -> float | Tensor:
        return (self.end - self.start).square().mean().sqrt() if self.chart is _same else 1.0


class _Swish(nn.Module):
    """``x sigmoid(x)``: torch's own has no derivative of second order in forward mode, which velocities of velocities need."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


def _all(like: Tensor, dim: int) -> Tensor:
    shape = [1, 1, 1]
    shape[dim] = -1
    return torch.arange(like.shape[dim], device=like.device).view(shape)


def _same(x: Tensor) -> Tensor:
    return x


def _gap(reached: Tensor, start: Tensor, end: Tensor) -> str:
    if reached.shape != (2, len(start)):
        return f"shape {tuple(reached.shape)} for two states of {len(start)} numbers"
    return f"{float((reached - torch.stack([start, end])).abs().max()):.3g}"


def _check_ends(start: Tensor, end: Tensor, time: float) -> None:
    real(time=time)
    if not (0 < time < math.inf):
        raise ValueError(f"time={time!r}, wanted a positive duration.")
    if start.ndim != 1 or start.shape != end.shape or start.dtype != end.dtype or not start.is_floating_point():
        raise ValueError(f"start {tuple(start.shape)} {start.dtype} and end {tuple(end.shape)} {end.dtype}, wanted two alike of shape [D].")
    if not bool(torch.isfinite(start).all() & torch.isfinite(end).all()):
        raise ValueError("start or end holds values that are not finite.")
