r"""A coupling flow that changes in time on a Gaussian path: closed-form drift, exact end laws, and no bound of Gaussian shape.

    z ~ N(0, I)  ->  y = c_L ∘ ... ∘ c_1 (z; t)  ->  x = mu_t + S_t y

Each coupling changes one half of y, given the other: ``y_i <- y_i exp(e alpha) + e beta`` with ``(2 atanh(alpha / 2), beta) = net(y_j, clock)``. The
envelope ``e = 2 (sqrt((1-s) sa^2 + s sb^2 + xi^2 T s (1 - s)) - ...)`` vanishes at both ends, where the law therefore is the Gaussian given: the
action of this path, its divergence from the reference, is at least that of the Schroedinger bridge between exactly these ends.

Without simulation or inverse, three things are carried through the layers together:

    point   y' = c(y)            rate   d/dt y' = J dy/dt + d_t c          score   J^-T (score - grad log |J|)

so that the drift ``u = dx/dt + xi^2/2 score`` costs one pass forward and one transposed pass in each layer. The base turns by a learned
antisymmetric Omega_t (``dz/dt = Omega z``), which changes no marginal.

Source: affine couplings, Dinh, Sohl-Dickstein and Bengio, *Density estimation using Real NVP*, ICLR 2017; the time-dependent use for
Doob's Lagrangian is ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one
from popflow.core.streams import Streams
from popflow.paths.curves import CLOCK
from popflow.paths.gaussian_path import FullPath
from popflow.paths.moments import log_normal


class _Conditioner(nn.Module):
    """Network ``(y [rows, d], clock [rows, 2]) -> [rows, out]`` with two hidden layers, its rate, and its transposed derivative in y."""

    def __init__(self, dim: int, out: int, width: int):
        super().__init__()
        self.dim = dim
        self.first, self.second, self.last = nn.Linear(dim + 2, width), nn.Linear(width, width), nn.Linear(width, out)

    def value(self, y: Tensor, clock: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([y, clock.expand(*y.shape[:-1], -1)], -1)))
        return self.last(torch.tanh(self.second(hidden)))

    def both(self, y: Tensor, clock: Tensor, y_rate: Tensor, clock_rate: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Value, rate, and the slopes of the hidden layers."""
        one = torch.tanh(self.first(torch.cat([y, clock], -1)))
        two = torch.tanh(self.second(one))
        slope_one, slope_two = 1 - one.square(), 1 - two.square()
        rate = slope_one * (torch.cat([y_rate, clock_rate], -1) @ self.first.weight.mT)
        rate = slope_two * (rate @ self.second.weight.mT)
        return self.last(two), rate @ self.last.weight.mT, (slope_one, slope_two)

    def pull(self, cotangent: Tensor, slopes: tuple[Tensor, Tensor]) -> Tensor:
        """``(d value / d y)^T cotangent``."""
        back = ((cotangent @ self.last.weight) * slopes[1]) @ self.second.weight
        return (back * slopes[0]) @ self.first.weight[:, : self.dim]


class FlowPath(nn.Module):
    """Coupling flow on a `FullPath` (the frame); arguments not named here are those of `popflow.paths.gaussian_path.GaussianPath`.

    Args:
        start: State ``[D]`` at time 0, two coordinates or more.
        end: State ``[D]`` at ``time``.
        time: Duration T.
        noise: Noise of the process, a number or ``[D]``.
        sigma0: Standard deviation of the laws at both ends, or a pair of them.
        rng: Initialises the networks.
        layers: Number of couplings.
        hidden: Width of their networks.

    Example:
        >>> path = FlowPath(torch.zeros(2), torch.ones(2), 1.0, noise=1.0, sigma0=0.1, rng=Streams(0), layers=2, hidden=8)
        >>> x = path.sample(0.3, 5, Streams(0))
        >>> path.drift(0.3, x).shape, path.log_prob(0.3, x).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    components = 1

    def __init__(
        self,
        start: Tensor,
        end: Tensor,
        time: float,
        *,
        noise: float | Tensor,
        sigma0: float | tuple[float, float],
        rng: Streams,
        layers: int = 8,
        hidden: int = 48,
        **options: Any,
    ):
        super().__init__()
        at_least_one(layers=layers, hidden=hidden)
        if len(start) < 2:
            raise ValueError(f"states of {len(start)} number, wanted two or more: couplings change one half given the other.")
        if options.get("components", 1) != 1:
            raise ValueError(f"components={options['components']!r}, wanted 1: the flow bends one Gaussian.")
        self.frame = FullPath(start, end, time, noise=noise, sigma0=sigma0, rng=rng, **options)
        self.time, self.dim = self.frame.time, self.frame.dim
        cut = self.dim // 2
        self.halves = [(slice(0, cut), slice(cut, None)), (slice(cut, None), slice(0, cut))]  # (changed, given)
        sizes = [(cut, self.dim - cut), (self.dim - cut, cut)]
        with rng.layers("couplings"):
            couplings = [_Conditioner(sizes[k % 2][1], 2 * sizes[k % 2][0], hidden) for k in range(layers)]
        self.couplings = nn.ModuleList(couplings).to(start)
        with torch.no_grad():
            for coupling in couplings:
                coupling.last.weight.mul_(0.1)
                coupling.last.bias.zero_()

    @property
    def start(self) -> Tensor:
        """State at time 0."""
        return self.frame.start

    @property
    def end(self) -> Tensor:
        """State at the last time."""
        return self.frame.end

    @property
    def ends(self) -> tuple[float, float]:
        """Standard deviations of both end laws."""
        return self.frame.ends

    @property
    def noise(self) -> Tensor:
        """Noise of the process, ``[D]``."""
        return self.frame.noise

    def base_dim(self) -> int:
        """Number of base coordinates."""
        return self.dim

    def _clock(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clock ``[rows, 2]``, envelope ``[rows, 1]``, and the rates of both."""
        s, spread = t / self.time, self.noise.mean() * math.sqrt(self.time)
        a, b = self.frame.ends
        clock = torch.stack([2 * s - 1, 0.25 * ((s + CLOCK) / (1 - s + CLOCK)).log()], -1)
        clock_rate = torch.stack([2 * torch.ones_like(s), 0.25 * (1 / (s + CLOCK) + 1 / (1 - s + CLOCK))], -1) / self.time
        still = (1 - s) * a**2 + s * b**2
        width = (still + spread**2 * s * (1 - s)).sqrt()
        envelope = 2 * (width - still.sqrt()) / spread
        still_rate = (b**2 - a**2) / (2 * still.sqrt())
        rate = 2 * ((b**2 - a**2 + spread**2 * (1 - 2 * s)) / (2 * width) - still_rate) / (spread * self.time)
        return clock, clock_rate, envelope[:, None], rate[:, None]

    def _carry(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, rates, scores and log-densities of states, from base points ``[rows, D]`` at times ``[rows]`` or one time for all."""
        frame = self.frame.moments(t)
        clock, clock_rate, e, e_rate = (value.expand(len(z), -1) for value in self._clock(t))
        y, score, log_q = z, -z, log_normal(z)
        rate = (frame.turn[:, 0] @ z[..., None])[..., 0]
        for k, coupling in enumerate(self.couplings):
            changed, given = self.halves[k % 2]
            y_i, y_j = y[:, changed], y[:, given]
            out, out_rate, slopes = coupling.both(y_j, clock, rate[:, given], clock_rate)  # pyright: ignore[reportCallIssue]
            (raw, beta), (raw_rate, beta_rate) = out.chunk(2, -1), out_rate.chunk(2, -1)
            half = torch.tanh(raw / 2)
            alpha, bend = 2 * half, 1 - half.square()  # bend is d alpha / d raw
            stretch = (e * alpha).exp()
            scaled = y_i * stretch
            rate_i = rate[:, changed] * stretch + scaled * (e_rate * alpha + e * bend * raw_rate) + e_rate * beta + e * beta_rate
            score_i = score[:, changed] / stretch
            pulled = coupling.pull(torch.cat([-e * bend * (1 + scaled * score_i), -e * score_i], -1), slopes)  # pyright: ignore[reportCallIssue]
            y = _join(k, scaled + e * beta, y_j)
            rate = _join(k, rate_i, rate[:, given])
            score = _join(k, score_i, score[:, given] + pulled)
            log_q = log_q - (e * alpha).sum(-1)
        factor = frame.factor[:, 0]
        x = frame.mean[:, 0] + _apply(factor, y)
        x_rate = frame.mean_rate[:, 0] + _apply(frame.factor_rate[:, 0], y) + _apply(factor, rate)
        score = torch.linalg.solve_triangular(factor.mT, score[..., None], upper=True)[..., 0]
        return x, x_rate, score, log_q - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points and drifts at times ``[rows]`` and base points ``[rows, D]``, as of `GaussianPath.forward` (nothing of the cost is known)."""
        x, rate, score, _ = self._carry(t, z)
        return x[None], (rate + 0.5 * self.noise**2 * score)[None], x.new_zeros(1, len(x)), x.new_ones(1)

    def base(self, t: float, x: Tensor) -> Tensor:
        """Base points of states ``[n, D]`` at one time: the couplings backwards."""
        times = self.start.new_full((1,), t)
        y = self.frame.moments(times).base(x[:, None, :])[:, 0]
        clock, _, e, _ = self._clock(times)
        for k in range(len(self.couplings) - 1, -1, -1):
            changed, given = self.halves[k % 2]
            raw, beta = self.couplings[k].value(y[:, given], clock).chunk(2, -1)  # pyright: ignore[reportCallIssue]
            y = _join(k, (y[:, changed] - e * beta) * (-e * 2 * torch.tanh(raw / 2)).exp(), y[:, given])
        return y

    def _at(self, t: float, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._carry(self.start.new_full((1,), t), self.base(t, x))

    def drift(self, t: float, x: Tensor) -> Tensor:
        """Drift ``[n, D]`` of the diffusion at time ``t``."""
        _, rate, score, _ = self._at(t, x)
        return rate + 0.5 * self.noise**2 * score

    def velocity(self, t: float, x: Tensor) -> Tensor:
        """Probability flow ``[n, D]``: the same marginals without noise."""
        return self._at(t, x)[1]

    def log_prob(self, t: float, x: Tensor) -> Tensor:
        """Log-density ``[n]`` of the marginal at time ``t``."""
        return self._at(t, x)[3]

    def sample(self, t: float, n: int, rng: Streams) -> Tensor:
        """Draw states ``[n, D]`` of the marginal at time ``t``."""
        z = rng.normal("noise", self.start.new_empty(n, self.dim))
        return self._carry(self.start.new_full((1,), t), z)[0]


def _join(k: int, changed: Tensor, given: Tensor) -> Tensor:
    """Put the halves of layer k back in their order."""
    return torch.cat([changed, given] if k % 2 == 0 else [given, changed], -1)


def _apply(matrix: Tensor, z: Tensor) -> Tensor:
    return (matrix @ z[..., None])[..., 0]
