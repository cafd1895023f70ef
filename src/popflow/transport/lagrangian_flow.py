"""The fitted flow: learn the potential of a Lagrangian from snapshots, push populations along it, and certify the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from popflow.core import Ito, Population, Rates, Streams, euler, heun, simulate
from popflow.core.calculus import value_and_grad, value_grad_and_laplacian
from popflow.core.checks import at_least_one, shaped
from popflow.learn import MLP, Fit, cosine, fit
from popflow.transport import path_coupling
from popflow.transport.conditional_paths import Bend, ConditionalPaths, follow, radius
from popflow.transport.lagrangian import WFR, Lagrangian, residual
from popflow.transport.saddle import Potential, dual, path_energy, saddle_loss, two_rates
from popflow.transport.snapshots import Snapshots

REBORN = 0.1
"""Share of a snapshot born instead of moved from which a certificate warns."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Quality of a fit, in the units of the snapshots (length squared per time; times the mass where masses are true).

    Attributes:
        action: Action of the learned flow, pushed from the cells of each training snapshot to the next, summed over the intervals.
        dual: ``D(s)``: at most the action of the path through the snapshots, for any ``s``.
        path_energy: ``P``: energy of the conditional paths one by one, at least the action; None with noise, where it is not finite.
        gap: ``path_energy - dual``, the mean square of what the potential misses of the velocity and growth of the paths: never negative, zero
            where one potential explains them all; None with noise.
        explained: ``dual / path_energy``: share of the energy of the paths that one potential explains. It falls below 1 where paths cross, and
            where mass is born or dies among mass that travels; None with noise or another potential, and where nothing moves.
        residual: Root mean square of the gradient of the Hamilton-Jacobi residual along the path, an acceleration; 0 at the optimum.
        residual_relative: The residual times ``T^2`` over the radius of all cells.
        born: Largest share of a snapshot that no mass of the previous one reaches; pushed cells cannot reach it either.
    """

    action: float
    dual: float
    path_energy: float | None
    gap: float | None
    explained: float | None
    residual: float
    residual_relative: float
    born: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the other figures hide: mass that is reborn instead of moved, and an action below its lower bound.

        >>> Certificate(1e-6, 1e-6, 1e-6, 0.0, 1.0, 0.0, 0.0, born=1.0).warnings[0][:60]
        '100% of the mass of a snapshot is born there, not moved ther'
        """
        found = []
        if self.born > REBORN:
            found.append(
                f"{self.born:.0%} of the mass of a snapshot is born there, not moved there: no cell of the snapshot before is within "
                "pi / sqrt(lam) of it. A small action and gap then say nothing of movement, and pushed cells do not get there. Fix: scale the "
                "coordinates, or lower lam."
            )
        if self.action < self.dual - 0.05 * abs(self.dual):
            found.append(
                f"the action of the pushed cells, {self.action:.3g}, is below the lower bound {self.dual:.3g}: they do not meet the snapshots. "
                "Fix: more steps, or wider networks."
            )
        return tuple(found)


class LagrangianFlow:
    """Least action through snapshots: ``LagrangianFlow(lagrangian).fit(snapshots, rng=Streams(0))``, then `push`, `velocity`, `growth`.

    Args:
        lagrangian: The action to minimise; its constants are in the units of the snapshots (positions as given to `fit`, times in the user's unit).
        coupling: Which cells of consecutive snapshots are connected: `path_coupling.least_action` or `path_coupling.random_pairs` (as
            published: slower, and learned bends have to undo the crossings).
        width: Hidden width of the networks.
        depth: Their hidden layers.
        lr: Learning rate of the potential, warmed up over a tenth of the steps and lowered along a cosine.
        path_lr: Learning rate of the bend. None: ``lr`` where the anchor is 1, and a tenth of it in a saddle, where the potential has to stay
            near its optimum for the present path.
        anchor: Share of the paths' own energy in the objective of the bend, see `popflow.transport.saddle`. None: 1 for the coupling of
            least action and 0 for any other.
        slices: Times in a batch.
        paths: Paths at each of these times.
        network: ``network(dim) -> nn.Module`` for the potential, called as ``module(x [rows, dim], u [rows]) -> [rows, 1]``; None for a
            perceptron with SiLU.

    Raises:
        ValueError: for an anchor outside [0, 1] or sizes below 1.

    Example:
        >>> x_0, x_1 = (torch.randn(200, 1, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
        >>> flow = LagrangianFlow(Lagrangian(), width=32).fit(Snapshots.of([x_0, x_1 + 3], times=[0, 2]), steps=150, rng=Streams(0))
        >>> end = flow.push(x_0, 0.0, 2.0, Streams(0))
        >>> abs(float(end.mean()) - float(x_1.mean()) - 3) < 0.1, abs(flow.report().action - 4.5 / 2) < 0.3
        (True, True)
    """

    def __init__(
        self,
        lagrangian: Lagrangian,
        *,
        coupling: path_coupling.PathCoupling = path_coupling.least_action,
        width: int = 64,
        depth: int = 3,
        lr: float = 3e-3,
        path_lr: float | None = None,
        anchor: float | None = None,
        slices: int = 16,
        paths: int = 16,
        network: Callable[[int], nn.Module] | None = None,
    ):
        self.lagrangian, self.coupling = lagrangian, coupling
        self.anchor = (1.0 if coupling is path_coupling.least_action else 0.0) if anchor is None else anchor
        if not 0 <= self.anchor <= 1:
            raise ValueError(f"anchor={anchor!r}, wanted a share in [0, 1].")
        at_least_one(width=width, depth=depth, slices=slices, paths=paths)
        self.width, self.depth, self.lr, self.slices, self.per_slice = width, depth, lr, slices, paths
        self.path_lr = (lr if self.anchor == 1 else lr / 10) if path_lr is None else path_lr
        self.make_network = network or partial(MLP, out=1, width=width, depth=depth)
        self._fitted: tuple[Potential, Bend | None, ConditionalPaths, Snapshots, int] | None = None
        self.learned: Fit | None = None

    def fit(self, snapshots: Snapshots, *, steps: int = 1000, rng: Streams, **options: Any) -> LagrangianFlow:
        """Learn the potential (and the bend, where the paths need one); held-out marginals are not used. Returns the flow itself.

        Args:
            snapshots: The samples. Their masses count under ``WFR(lam, normalized=False)``; `W2` conserves mass and takes every one as 1.
            steps: Steps of the optimiser.
            rng: Streams for the networks, plans and batches.
            **options: Handed to `popflow.learn.fit`: ``record``, ``checkpoint``, ``compile`` and so on.

        Raises:
            ValueError: for a potential without a minimiser, a network without second derivatives under noise, masses that normalised growth
                would ignore, times too large for the dtype of the cells, and functions of the user that return another shape.
            DivergenceError: from `popflow.learn.fit`.
        """
        self._check(snapshots)
        lagrangian, training = self.lagrangian, snapshots.training
        cells = torch.cat(training.x)
        with rng.layers():
            potential = Potential(lagrangian, snapshots, self.make_network(snapshots.dim)).to(cells)
            bend = None
            if self.coupling is not path_coupling.least_action or not lagrangian.is_static:
                bend = Bend(lagrangian, snapshots, width=self.width, depth=2).to(cells)
        if lagrangian.noise:
            _refuse_flat(potential.network, cells)
        paths = ConditionalPaths.of(lagrangian, snapshots, self.coupling, rng)
        params = {f"s.{name}": p for name, p in potential.named_parameters()}
        first = len(params)
        if bend is not None:
            params |= {f"b.{name}": p for name, p in bend.named_parameters()}
        betas = (0.9, 0.99) if bend is None or self.anchor == 1 else (0.5, 0.9)
        self.learned = fit(
            saddle_loss(lagrangian, potential, bend, (float(radius(cells)) / potential.span) ** 2, self.anchor),
            params,
            lambda rng: paths.draw(rng, self.slices, self.per_slice),
            steps=steps,
            rng=rng,
            optimizer=partial(two_rates, first=first, lr=self.lr, path_lr=self.path_lr, betas=betas),
            schedule=cosine(steps, warmup=steps // 10),
            clip_norm=10.0,
            ema=min(0.99, max(0.5, 1 - 10 / steps)),  # over a tenth of a short run
            **options,
        )
        for player, module in (("s.", potential), ("b.", bend)):
            if module is not None:
                mine = {name[2:]: value for name, value in self.learned.ema.items() if name.startswith(player)}
                module.load_state_dict(mine, strict=False)
                module.requires_grad_(False)
        self._fitted = potential, bend, paths, snapshots, rng.seed
        return self

    @property
    def noise(self) -> float:
        """Standard deviation of the noise, in units of length per square root of time; where it is above 0, `push` is random."""
        return self.lagrangian.noise

    @property
    def relative_growth(self) -> bool:
        """Whether `growth` counts relative to the mean of the population: masses are normalised."""
        return self.lagrangian.lam > 0 and self.lagrangian.normalized

    def potential(self, t: Tensor | float, x: Tensor) -> Tensor:
        """``s(t, x)`` ``[n]``."""
        return self._rates(t, x)[0]

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """``v = u + grad s`` ``[n, d]`` at a time in the user's unit (or one per row); with noise the drift of the diffusion.

        It may jump at a snapshot, where it is that of the interval before.
        """
        return self._rates(t, x)[1]

    def growth(self, t: Tensor | float, x: Tensor) -> Tensor:
        """``g = lam s`` ``[n]``, per unit of time; zero for a Lagrangian without growth."""
        return self.lagrangian.lam * self._rates(t, x)[0]

    def process(self, t: float, pop: Population) -> Rates:
        """Drift, noise and growth of a population ``[n, d]``; the mean of ``aux["action"]``, if it is there, is the action so far."""
        lagrangian, x = self.lagrangian, pop.x
        value, velocity = self._rates(t, x)
        growth = Ito(lagrangian.lam * value) if lagrangian.lam else None
        track = {}
        if "action" in pop.aux:
            weights = pop.weights() * len(pop) if lagrangian.normalized else pop.log_w.exp()
            level = (weights * value).mean() if lagrangian.lam and lagrangian.normalized else 0.0
            times = torch.full_like(value, t)
            drift = 0.0 if lagrangian.drift is None else shaped("drift", lagrangian.drift(times, x), x)
            energy = (velocity - drift).square().sum(-1) / 2 + lagrangian.lam / 2 * (value - level).square()
            if lagrangian.potential is not None:
                energy = energy - shaped("potential", lagrangian.potential(times, x), value)
            track["action"] = Ito(weights * energy)
        return Rates(velocity, lagrangian.noise or None, growth, track)

    def push(self, pop: Population | Tensor, t0: float, t1: float, rng: Streams, *, steps: int | None = None) -> Population:
        """Move a population from ``t0`` to ``t1`` (the user's times): Heun's method, or Euler-Maruyama with noise; growth goes to its weights.

        Args:
            pop: A population ``[n, d]``, or its positions.
            t0: Start.
            t1: End, later than ``t0``; earlier too where there is no noise.
            rng: Streams for the noise.
            steps: Steps of the integrator. None: 100 from the first to the last snapshot, in proportion, and four times as many with noise.

        Raises:
            ValueError: for positions of another dimension, or noise backwards in time.
        """
        pop = pop if isinstance(pop, Population) else Population.of(pop)
        if t0 == t1:
            return pop
        noisy = self.lagrangian.noise > 0
        if noisy and t1 < t0:
            raise ValueError(f"t0={t0}, t1={t1}: a flow with noise runs forwards, wanted t1 > t0.")
        share = abs(t1 - t0) / self._ready()[0].span
        count = steps or max(2, math.ceil((400 if noisy else 100) * share))
        times = torch.linspace(t0, t1, count + 1, dtype=torch.float64)
        inside = 1e-3 * (t1 - t0) / count  # velocities may jump at a snapshot: the ends are approached from within

        def process(t: float, pop: Population) -> Rates:
            return self.process(t + inside if t == t0 else t - inside if t == t1 else t, pop)

        return simulate((euler if noisy else heun)(process), pop, times, rng=rng)

    def interpolate(self, t: float, n: int, rng: Streams) -> Population:
        """Draw ``n`` cells of the path itself at a time between the first and the last snapshot, weighted by their mass.

        Both snapshots around ``t`` contribute, and nothing is integrated: the best prediction for a time in between. `push` follows given
        cells instead.

        Args:
            t: Time, in the user's unit.
            n: Cells.
            rng: Streams for the choice of paths and their noise.

        Raises:
            ValueError: for a time outside, or ``n < 1``.

        Example:
            >>> flow = LagrangianFlow(Lagrangian(), width=8).fit(Snapshots.of([torch.zeros(5, 1), torch.full((5, 1), 4.0)]), steps=2, rng=Streams(0))
            >>> flow.interpolate(0.25, 3, Streams(0)).x.flatten().tolist()
            [1.0, 1.0, 1.0]
        """
        _, bend, paths, _, _ = self._ready()
        first, last = float(paths.times[0]), float(paths.times[-1])
        if not first <= t <= last:
            raise ValueError(f"t={t}, wanted a time from {first} to {last}: beyond the snapshots use push, which follows the flow.")
        at_least_one(n=n)
        place = (torch.arange(n, dtype=torch.float64) + rng.uniform("interpolate", (1, n)).cpu()) / n  # one in each of n equal parts
        batch = paths.at(torch.tensor([t], dtype=torch.float64), place, rng)
        with torch.no_grad():
            point = follow(self.lagrangian, batch, bend)
        return Population.of(point.x).reweight(point.mass.log())

    def report(self, *, cells: int = 1024, draws: int = 64) -> Certificate:
        """Action, its bounds and their gap, the share one potential explains, and the Hamilton-Jacobi residual, estimated with fresh random numbers.

        Args:
            cells: Most cells of each snapshot that are pushed.
            draws: Batches of paths over which the bounds and the residual are averaged.
        """
        potential, bend, paths, snapshots, seed = self._ready()
        lagrangian, training, rng = self.lagrangian, snapshots.training, Streams(seed)
        action = 0.0
        for k in range(len(training) - 1):
            x = training.x[k][:cells]
            pop = Population.of(x, action=x.new_zeros(len(x)))
            pushed = self.push(pop, float(training.times[k]), float(training.times[k + 1]), rng)
            mass = 1.0 if lagrangian.normalized else float(training.mass[k])
            action += mass * float(pushed.aux["action"].double().mean())
        lower = upper = force = 0.0
        for _ in range(draws):
            batch = paths.draw(rng, self.slices, self.per_slice)
            t, point = batch["t"].flatten(), follow(lagrangian, batch, bend)
            probe = batch["probe"].flatten(0, 1) if "probe" in batch else None
            with torch.no_grad():
                lower += float(dual(lagrangian, potential, t, point, probe).double().mean()) / draws
                upper += float(path_energy(lagrangian, t, point).double().mean()) / draws
            _, (slope,) = value_and_grad(lambda x: residual(lagrangian, potential, t, x, probe), point.x)  # noqa: B023
            force += float((point.mass * slope.detach().square().sum(-1)).mean()) / draws
        lower, upper = potential.span * lower, potential.span * upper
        whole = not lagrangian.noise and lagrangian.potential is None
        return Certificate(
            action=action,
            dual=lower,
            path_energy=None if lagrangian.noise else upper,
            gap=None if lagrangian.noise else upper - lower,
            explained=lower / upper if whole and upper > 0 else None,
            residual=math.sqrt(force),
            residual_relative=math.sqrt(force) * potential.span**2 / float(radius(paths.x)),
            born=max(plan.born for plan in paths.plans),
        )

    def _rates(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """``s`` and ``u + grad s``."""
        potential = self._ready()[0]
        dim = potential.means.shape[1]
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [n, {dim}], the coordinates of the snapshots that were fitted.")
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        with torch.no_grad():
            value, (slope,) = value_and_grad(lambda x: potential(times, x), x)
            if self.lagrangian.drift is not None:
                slope = slope + shaped("drift", self.lagrangian.drift(times, x), x)
        return value, slope

    def _ready(self) -> tuple[Potential, Bend | None, ConditionalPaths, Snapshots, int]:
        if self._fitted is None:
            raise ValueError("the flow has not been fitted: call fit(snapshots, rng=Streams(0)) first.")
        return self._fitted

    def _check(self, snapshots: Snapshots) -> None:
        """Refuse problems without a solution, and settings that would be ignored."""
        lagrangian, training = self.lagrangian, snapshots.training
        longest = float(training.times.diff().max())
        if lagrangian.stiffness > 0 and math.sqrt(lagrangian.stiffness) * longest >= math.pi:
            raise ValueError(
                f"potential: sqrt(stiffness) times the longest interval is {math.sqrt(lagrangian.stiffness) * longest:.4g}, wanted below pi: "
                "after half a period the action has no lower bound. Fix: a smaller stiffness (one over a time squared), or more snapshots."
            )
        if isinstance(lagrangian.kinetic, WFR) and lagrangian.normalized and not bool((training.mass == 1).all()):
            raise ValueError(
                f"masses={training.mass.tolist()} with WFR(normalized=True), which gives every snapshot mass one. Fix: "
                "WFR(lam, normalized=False) to meet the masses, or snapshots without masses."
            )
        coarse = torch.finfo(training.x[0].dtype).eps * float(training.times.abs().max())
        if coarse > 1e-4 * float(training.times.diff().min()):
            raise ValueError(
                f"times go up to {float(training.times[-1]):.6g} and are {float(training.times.diff().min()):.3g} apart, too near for "
                f"{training.x[0].dtype}. Fix: subtract the first time, or use float64 cells."
            )
        x = torch.cat([rows[:2] for rows in training.x])
        if not bool((torch.cat(training.x).std(0) > 0).any()):
            raise ValueError("x: all cells of all snapshots coincide, wanted samples that differ.")
        t = training.times.to(x)[:1].expand(len(x))
        if lagrangian.potential is not None:
            shaped("potential", lagrangian.potential(t, x), t)
        if lagrangian.drift is not None:
            shaped("drift", lagrangian.drift(t, x), x)


def _refuse_flat(network: nn.Module, cells: Tensor) -> None:
    """Refuse a network whose Laplacian is zero everywhere (ReLU): it would silently turn a bridge into optimal transport."""
    x = ((cells - cells.mean(0)) / cells.std().clamp_min(1e-6))[:64]
    u = torch.linspace(0, 1, len(x), dtype=x.dtype, device=x.device)
    _, _, laplacian = value_grad_and_laplacian(lambda x: network(x, u)[:, 0], x)
    if not bool((laplacian != 0).any()):
        raise ValueError(
            "network: its second derivatives in x are zero everywhere (ReLU, or linear), and the noise acts through them alone. "
            "Fix: a smooth activation, SiLU or tanh."
        )
