r"""Ensembles of paths: simulate a fitted path, and weigh it towards the true conditioned process.

Q is the chain with the drift u of the path, P the same chain with the drift b of the reference. With steps ``h`` and normal increments eps

    log dP/dQ = sum_i [ - sqrt(h) <(u - b) / xi, eps_i> - (h / 2) |(u - b) / xi|^2 ]            (exact for the chains, at any h)

A *law* says towards what the paths are weighted; it adds a function of the two end states. All share the start law q_0 of the path:

    reference()   P                    E_Q[dP/dQ f] = E_P[f]: probabilities of reaching sets
    pinned(nu)    P nu(x_T) / Z        the reference with its end seen through a density nu
    projected()   P f(x_0) g(x_T)      the Schroedinger bridge between q_0 and q_T, f and g exponentials of quadratic forms: exact as the ends
                                       shrink, because log f and log g are smooth where the end laws live

Source: Girsanov's theorem; Csiszar, *I-divergence geometry*, 1975 (the projection); Burda, Grosse and Salakhutdinov, ICLR 2016 (the bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from popflow.core import Population, State, Streams, Trace, chain, resample_if, simulate as follow
from popflow.core.checks import at_least_one, shaped
from popflow.core.process import Rates
from popflow.core.simulate import monotone
from popflow.core.steps import Step, heun
from popflow.paths.gaussian_path import DiagonalPath, FullPath
from popflow.paths.process import Process, Underdamped, match


@dataclass(frozen=True, eq=False)
class PathEnsemble:
    """Weighted paths at the recorded times.

    Attributes:
        x: States ``[n, K + 1, .]``.
        times: Recorded times ``[K + 1]``.
        log_w: Log-weights ``[n]``, not normalised.
        law: What the weights lead to, and by which chain.
        forces: Force evaluations spent.
        family: State at time 0 that each path descends from, ``[n]``; None for paths that were never resampled, all independent.
    """

    x: Tensor
    times: Tensor
    log_w: Tensor
    law: str
    forces: int
    family: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``[n]``."""
        return self.log_w.softmax(0)

    @property
    def ess(self) -> float:
        """Effective number of paths, ``1 / sum w^2``."""
        return float(1 / self.weights.square().sum())

    def mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean of ``[n, ...]`` over paths, and its standard error.

        The error is that of the delta method, over families where paths were resampled (Chan and Lai, Ann. Statist. 41 (2013) 2877). It says
        nothing when `ess` is below about ten: at one it tends to 0.
        """
        w = self.weights.reshape(-1, *[1] * (values.ndim - 1))
        mean = (w * values).sum(0)
        return mean, self._by_family(w * (values - mean)).square().sum(0).sqrt()

    def _by_family(self, values: Tensor) -> Tensor:
        return values if self.family is None else torch.zeros_like(values).index_add(0, self.family, values)

    def log_bound(self) -> tuple[float, float]:
        """``log mean exp log_w`` and its standard error: for `reference` weights times an event a consistent estimate of the log-probability.

        Its expectation is a lower bound that tightens with n (the importance-weighted bound); for `reference` weights and a path that ends in the
        event surely it is minus the action at n = 1.
        """
        n = len(self.log_w)
        scatter = float(self._by_family(self.weights).square().sum())
        return float(self.log_w.logsumexp(0)) - math.log(n), math.sqrt(max(0.0, scatter - 1 / n))

    def resample(self, n: int, rng: Streams) -> Tensor:
        """Draw ``n`` paths ``[n, K + 1, .]`` from the weights."""
        return self.x[torch.multinomial(self.weights, n, replacement=True, generator=rng("resample"))]

    def arrival(self, inside: Callable[[Tensor], Tensor]) -> float:
        """Share of simulated paths, unweighted, whose last state satisfies ``inside [n, .] -> [n]``."""
        return float(inside(self.x[:, -1]).double().mean())

    def pinned(self, log_density: Callable[[Tensor], Tensor], name: str = "nu") -> PathEnsemble:
        """Weigh towards the reference with its end seen through a density: ``log_density [n, .] -> [n]``."""
        added = shaped("log_density", log_density(self.x[:, -1]), self.log_w)
        return replace(self, log_w=self.log_w + added, law=f"{self.law}, times {name}(x_T)")

    def projected(self, start: Tensor, end: Tensor) -> PathEnsemble:
        """Weigh towards the Schroedinger bridge between the laws that independent draws ``start`` and ``end [m, .]`` represent.

        The weights are multiplied by ``exp(a.phi(x_0) + b.phi(x_T))``, phi all monomials of degree one and two, such that weighted moments of both
        end states are those of the draws: the projection of P in the Kullback-Leibler sense, a convex problem solved by Newton's method.

        Raises:
            ValueError: when no such weights exist: the simulated ends do not cover the laws.
        """
        x = torch.cat([_scaled(self.x[:, 0], start), _scaled(self.x[:, -1], end)], 1)
        wanted = torch.cat([_scaled(start, start).mean(0), _scaled(end, end).mean(0)])
        tilt = _match(x, wanted, self.log_w)
        return replace(self, log_w=self.log_w + x @ tilt, law=f"{self.law}, times f(x_0) g(x_T): the bridge between both end laws")


def grid(time: float, dt: float) -> Tensor:
    """Times from 0 to ``time`` in steps ``dt``, float64.

    Raises:
        ValueError: when ``time / dt`` is no whole number.

    Example:
        >>> grid(0.0275, 1e-4).shape
        torch.Size([276])
    """
    steps = round(time / dt) if 0 < dt <= time else 0
    if steps < 1 or not math.isclose(steps * dt, time, rel_tol=1e-6):
        near = time / max(1, steps)
        raise ValueError(f"dt={dt!r} for time={time!r}, wanted a step that divides it: for example dt={near:.6g}.")
    return torch.linspace(0, time, steps + 1, dtype=torch.float64)


def spanning(path: Any, times: Tensor) -> list[float]:
    """Return times as numbers, or refuse those that do not go from 0 to the duration of the path."""
    instants = list(monotone(times))
    if instants[0] != 0 or not math.isclose(instants[-1], path.time, rel_tol=1e-9):
        raise ValueError(f"times go from {instants[0]!r} to {instants[-1]!r}, wanted 0 to the duration {path.time!r} of the path.")
    return instants


def guided(process: Process, path: Any, weigh: bool = True) -> Step:
    """A step of `popflow.core.simulate` with the drift of the path: Euler for positions, semi-implicit for ``[x, v]`` (v first, then x by the new v).

    It adds ``log dP/dQ`` of the step to the weights; without ``weigh`` no force is evaluated.

    Raises:
        ValueError: when the path has another noise than the process, or states of another kind.
    """
    match(process, path)
    under = isinstance(process, Underdamped)

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        x, h = pop.x, t1 - t0
        noise, drift = path.noise.to(x), path.drift(t0, x)
        eps = rng.normal("noise", drift)
        kick = drift * h + noise * math.sqrt(h) * eps
        if under:
            velocity = x[..., drift.shape[-1] :] + kick
            moved = torch.cat([x[..., : drift.shape[-1]] + h * velocity, velocity], -1)
        else:
            moved = x + kick
        if weigh:
            gap = (drift - process.driven(x)) / noise
            pop = pop.reweight(-math.sqrt(h) * (gap * eps).sum(-1) - 0.5 * h * gap.square().sum(-1))
        return pop.replace(x=moved)

    return step


def simulate(
    process: Process,
    path: Any,
    n: int,
    times: Tensor,
    rng: Streams,
    *,
    keep: Sequence[int] | None = None,
    weigh: bool = True,
    resample_below: float | None = None,
    twist: Callable[[float, Tensor], Tensor] | None = None,
) -> PathEnsemble:
    """Simulate paths with the fitted drift and weigh them towards the reference.

    Args:
        process: Reference dynamics.
        path: Fitted path; make it ``path.double()`` first.
        n: Paths.
        times: From 0 to the duration of the path: `grid` or `clock_grid`.
        rng: Random streams.
        keep: Indices of the times to record; all unless given.
        weigh: Compute weights, one force per path and step.
        resample_below: Resample whole paths when the effective sample size falls below this share (sequential Monte Carlo).
        twist: Log of a look-ahead function ``(t, x [n, .]) -> [n]``, zero at the last time: weights are multiplied by its ratios, so that
            resampling already looks at where paths must go. Final weights are unchanged in expectation.

    Raises:
        ValueError: for times that do not span the path, resampling without weights, a twist that does not vanish at the last time, or a path
            that does not match the process.

    Example:
        >>> from popflow.paths import DiagonalPath, Overdamped
        >>> free = Overdamped(lambda x: 0 * x.sum(-1), noise=1.0)
        >>> path = DiagonalPath(torch.zeros(1).double(), torch.ones(1).double(), 1.0, noise=1.0, sigma0=0.1, rng=Streams(0)).requires_grad_(False)
        >>> paths = simulate(free, path, 100, grid(1.0, 0.01), Streams(0))
        >>> paths.x.shape, paths.law
        (torch.Size([100, 101, 1]), 'P: the reference chain of 100 steps from the start law of the path')
    """
    at_least_one(n=n)
    instants = spanning(path, times)
    if (resample_below is not None or twist is not None) and not weigh:
        raise ValueError("resample_below or twist without weigh, wanted weights to resample by: weigh=True.")
    kept = set(range(len(instants)) if keep is None else (k % len(instants) for k in keep))
    frames: list[Tensor] = []
    family: list[Tensor] = []

    def record(state: State) -> None:
        """Keep the state; what was kept before follows its path through resampling."""
        if "ancestor" in state.pop.aux:
            order = state.pop.aux["ancestor"].long()
            if not torch.equal(order, torch.arange(n, device=order.device)):
                frames[:] = [frame[order] for frame in frames]
                family[:] = [family[0][order] if family else order]
        if state.k in kept:
            frames.append(state.pop.x)

    with torch.no_grad():
        pop = Population.of(path.sample(0.0, n, rng))
        step = guided(process, path, weigh)
        if twist is not None:
            pop = pop.reweight(twist(0.0, pop.x))
            step = _twisted(step, twist)
        if resample_below is not None:
            step = chain(_label, resample_if(resample_below), step)
            pop = pop.replace(aux={"ancestor": torch.arange(n, dtype=torch.float64, device=pop.x.device)})
        pop = follow(step, pop, times, rng=rng, record=[record])
        left = 0.0 if twist is None else float(twist(instants[-1], pop.x).abs().max())
    if left > 1e-6:
        raise ValueError(f"twist reaches {left:.3g} at the last time, wanted 0: it would stay in the weights. Fix: let it vanish there.")
    law = (
        f"P: the reference chain of {len(instants) - 1} steps from the start law of the path" if weigh else "Q: the path itself, no weights"
    )
    chosen = times[sorted(kept)] if keep is not None else times
    return PathEnsemble(torch.stack(frames, 1), chosen, pop.log_w + pop.log_z, law, n * (len(instants) - 1) * weigh, *family)


def _label(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
    """Number the particles before resampling, so that recorders know whom each descends from."""
    return pop.replace(aux={"ancestor": torch.arange(len(pop), dtype=torch.float64, device=pop.x.device)})


def _twisted(step: Step, twist: Callable[[float, Tensor], Tensor]) -> Step:
    def twisted(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        before, pop = twist(t0, pop.x), step(pop, t0, t1, rng)
        return pop.reweight(twist(t1, pop.x) - before)

    return twisted


def simulate_exactly(path: Any, n: int, times: Tensor, rng: Streams) -> PathEnsemble:
    """Simulate a Gaussian path exactly in its marginals, at any step: its base is a stationary linear process.

    Mixtures draw a component for each path and keep it: the same marginals, another law of paths (not the diffusion with the mixed drift).

    Raises:
        TypeError: for paths that are not `DiagonalPath` or `FullPath`.
    """
    if not issubclass(type(path), DiagonalPath | FullPath):
        raise TypeError(f"path={type(path).__name__}, wanted DiagonalPath or FullPath: other paths are simulated by `simulate`.")
    instants = monotone(times)
    with torch.no_grad():
        z = rng.normal("noise", path.start.new_empty(n, 1, path.base_dim())).expand(-1, path.components, -1)
        which = torch.multinomial(path.weights, n, replacement=True, generator=rng("component"))
        here, rows = path.moments(path.start.new_tensor(instants[:1])), torch.arange(n)
        frames = [here.point(z)[rows, which]]
        for t0, t1 in pairwise(instants):
            middle, later = (path.moments(path.start.new_tensor([t])) for t in ((t0 + t1) / 2, t1))
            z = here.transition(z, rng.normal("noise", z), later, middle, t1 - t0)
            frames.append(later.point(z)[rows, which])
            here = later
    law = "Q: the path itself" if path.components == 1 else "Q: one component for each path"
    return PathEnsemble(torch.stack(frames, 1), times, path.start.new_zeros(n), f"{law}, exact in its marginals", 0)


def probability_flow(path: Any, n: int, times: Tensor, rng: Streams) -> PathEnsemble:
    """Follow the probability flow by Heun's method: smooth paths with the marginals of the fitted path."""
    trace = Trace(x=lambda state: state.pop.x)
    with torch.no_grad():
        pop = Population.of(path.sample(0.0, n, rng))
        follow(heun(lambda t, pop: Rates(drift=path.velocity(t, pop.x))), pop, times, rng=rng, record=[trace])
    return PathEnsemble(trace["x"].movedim(0, 1), times, path.start.new_zeros(n), "probability flow of the path, no weights", 0)


def _scaled(x: Tensor, like: Tensor) -> Tensor:
    """Monomials of degree one and two of states, scaled by the spread of ``like``."""
    z = (x - like.mean(0)) / like.std(0)
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    return torch.cat([z, z[:, i] * z[:, j]], 1)


def _match(x: Tensor, wanted: Tensor, log_w: Tensor) -> Tensor:
    """``argmin_a log sum w exp(a.x) - a.wanted`` by Newton's method with halved steps."""
    tilt = torch.zeros_like(wanted)

    def value(tilt: Tensor) -> float:
        return float((log_w + x @ tilt).logsumexp(0) - log_w.logsumexp(0) - tilt @ wanted)

    for _ in range(100):
        w = (log_w + x @ tilt).softmax(0)
        mean = w @ x
        if float((mean - wanted).abs().max()) < 1e-8:
            return tilt
        centred = x - mean
        step = torch.linalg.solve(
            (w[:, None] * centred).mT @ centred + 1e-12 * torch.eye(len(tilt), dtype=x.dtype, device=x.device), mean - wanted
        )
        size, now = 1.0, value(tilt)
        while size > 1e-6 and not value(tilt - size * step) < now:
            size /= 2
        if size <= 1e-6:
            break
        tilt = tilt - size * step
    gap = float(((log_w + x @ tilt).softmax(0) @ x - wanted).abs().max())
    if gap > 1e-4:
        raise ValueError(f"the ends of the paths cannot be weighted to the laws given: moments stay off by {gap:.3g} sd. Fix: more paths.")
    return tilt
