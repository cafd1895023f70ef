"""The algebra of targets: ``a * b``, ``a ** beta``, ``a / b``, ``cfg(u, c, w)``, ``tilt(a, reward)``.

An `Expert` is a model of one noised density ``q(y, sigma)`` that gives ``epsilon = -sigma * grad log q``. A `Target` is

    p(y, sigma)  proportional to  prod_i q_i(y, sigma)^{beta_i(sigma)} * exp(sum_j gamma_j(sigma) r_j(y))

whose exponents may depend on the noise level. Nothing is evaluated until a sampler asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from popflow.compose.exponents import Exponent, at, plus, times
from popflow.compose.rewards import Reward
from popflow.compose.spaces.space import Euclidean, Space
from popflow.core.checks import is_put_off, refuse, untouched
from popflow.core.errors import NonFiniteError

Model = Callable[[Tensor, float, Tensor | None], Tensor]
"""``model(y [rows, *event], sigma, cond [rows, *c] or None) -> epsilon [rows, *tangent]`` in sigma coordinates; tangent vectors are shaped like
points, except for rotations."""
Loss = Callable[[float], float | Sequence[float]]
"""``loss(sigma)``: denoising loss per coordinate, ``E|eps - eps_theta|^2 / d`` in [0, 1]; one number for each factor of a product of spaces."""


class _Algebra:
    """Products, powers and quotients of experts and targets."""

    def __mul__(self, other: Expert | Target) -> Target:
        a, b = Target.of(self), Target.of(other)
        return Target(a.factors + b.factors, a.rewards + b.rewards)

    __rmul__ = __mul__

    def __pow__(self, beta: Exponent) -> Target:
        a = Target.of(self)
        rewards = tuple(replace(r, gamma=times(r.gamma, beta)) for r in a.rewards)
        return Target(tuple((expert, times(old, beta)) for expert, old in a.factors), rewards)

    def __truediv__(self, other: Expert | Target) -> Target:
        return self * Target.of(other) ** -1.0


@dataclass(frozen=True, eq=False)
class Expert(_Algebra):
    """A model of a noised density: ``model(y, sigma, cond) -> epsilon``, score ``-epsilon / sigma``.

    Attributes:
        model: The noise prediction in sigma coordinates. Experts with the same ``model`` object are evaluated in one batched call.
        event: Shape of one sample.
        cond: One condition (label, embedding), expanded over the rows; None for unconditional models.
        name: Name in errors, tables and reports.
        space: Where samples live: a `popflow.compose.spaces.Space`, or the label of a Euclidean latent space. Experts of different spaces do
            not compose.
        log_prob: ``log_prob(y [rows, *event], sigma) -> [rows]`` where the density is known exactly.
        chunk: At most this many rows in one call of the model; None for all.
        loss: Its denoising loss, which says how wide long steps are (`popflow.compose.backward_kernel`); None to have it measured when it is needed.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> a = gaussian_mixture(torch.tensor([[0.0], [2.0]]), std=0.5, name="a")
        >>> b = gaussian_mixture(torch.tensor([[2.0]]), std=1.0, name="b")
        >>> (a**2 * b / a).describe(sigma=1.0)
        'a^1 * b^1'
    """

    model: Model
    event: tuple[int, ...]
    cond: Tensor | None = None
    name: str = "expert"
    space: str | Space = "data"
    log_prob: Callable[[Tensor, float], Tensor] | None = None
    chunk: int | None = None
    loss: Loss | None = None

    def __post_init__(self):
        if self.cond is not None and not isinstance(self.cond, Tensor):
            raise TypeError(f"expert {self.name!r}: cond is {self.cond!r}, wanted a tensor, e.g. torch.tensor(3) for a label.")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"expert {self.name!r}: chunk={self.chunk}, wanted at least 1 row per call, or None for all.")
        if not isinstance(self.space, str) and tuple(self.event) != self.space.event:
            raise ValueError(f"expert {self.name!r}: event={self.event}, wanted {self.space.event}, the shape of a point of {self.space}.")

    @cached_property
    def home(self) -> Space:
        """The space itself, also where ``space`` is only a label."""
        return Euclidean(self.event, self.space) if isinstance(self.space, str) else self.space

    def given(self, cond: Tensor, name: str | None = None, loss: Loss | None = None) -> Expert:
        """Return the same model under a condition, which has a denoising loss of its own; experts made so are evaluated together."""
        return replace(self, cond=cond, name=name or self.name, loss=loss)

    def score(self, y: Tensor, sigma: float) -> Tensor:
        """Gradient of the log-density at ``y [..., *event]``, ``[..., *tangent]``.

        Raises:
            ValueError: for the wrong shape, or values that are not points of the space (uncentred particles are centred, with a warning).
        """
        if tuple(y.shape[y.ndim - len(self.event) :]) != tuple(self.event):
            raise ValueError(f"expert {self.name!r}: y has shape {tuple(y.shape)}, wanted [..., {', '.join(map(str, self.event))}].")
        return scores([self], self.home.check(y), sigma)[0]


@dataclass(frozen=True, eq=False)
class Target(_Algebra):
    """A product of powers of experts, tilted by rewards. Built by the operators, not by hand.

    Attributes:
        factors: ``(expert, exponent)`` pairs; the same expert twice is merged into one, exponents of zero are dropped.
        rewards: Tilts.
    """

    factors: tuple[tuple[Expert, Exponent], ...]
    rewards: tuple[Reward, ...] = field(default=())

    def __post_init__(self):
        merged: dict[int, tuple[Expert, Exponent]] = {}
        for expert, beta in self.factors:
            old = merged.get(id(expert))
            merged[id(expert)] = (expert, beta if old is None else plus(old[1], beta))
        object.__setattr__(self, "factors", tuple((expert, beta) for expert, beta in merged.values() if callable(beta) or beta != 0))
        check_same_space(self.experts)

    @staticmethod
    def of(item: object) -> Target:
        """Return a target as it is, and an expert as the target with exponent one."""
        if isinstance(item, Target):
            return item
        if isinstance(item, Expert):
            return Target(((item, 1.0),))
        if isinstance(item, Real):
            raise TypeError(
                f"a target times or over {item}: a number leaves a density as it is. Fix: an exponent is a power, target**{item}."
            )
        raise TypeError(
            f"wanted an Expert or a Target, got {type(item).__name__}: make one with popflow.compose.from_network or gaussian_mixture."
        )

    @property
    def experts(self) -> tuple[Expert, ...]:
        """The distinct experts."""
        return tuple(expert for expert, _ in self.factors)

    @property
    def home(self) -> Space:
        """The space that its samples live in."""
        return self.experts[0].home

    @property
    def varies(self) -> bool:
        """Whether an exponent depends on the noise level."""
        return any(callable(beta) for _, beta in self.factors)

    def exponents(self, sigma: float) -> list[float]:
        """Exponents ``beta_i`` at a noise level."""
        return [at(beta, sigma) for _, beta in self.factors]

    def describe(self, sigma: float = 0.0) -> str:
        """Return the formula at a noise level."""
        parts = [f"{expert.name}^{beta:g}" for expert, beta in zip(self.experts, self.exponents(sigma), strict=True)]
        return " * ".join(parts + [f"exp({at(r.gamma, sigma):g} {r.name})" for r in self.rewards])


def cfg(unconditional: Expert | Target, conditional: Expert | Target, w: Exponent) -> Target:
    """Classifier-free guidance as a density: ``u^{1-w} c^w``, guided score ``s_u + w (s_c - s_u)`` (Ho and Salimans 2022)."""
    return Target.of(unconditional) ** plus(1.0, times(w, -1.0)) * Target.of(conditional) ** w


def tilt(
    target: Expert | Target,
    reward: Callable[[Tensor], Tensor],
    gamma: Exponent = 1.0,
    *,
    gradient: bool = True,
    name: str = "reward",
) -> Target:
    """Multiply a target by ``exp(gamma(sigma) r(y))``.

    A number ``gamma`` is reached gradually, ``gamma / (1 + sigma^2)``: at large noise a reward of ``y`` says little about the data.

    Args:
        target: The target to tilt.
        reward: ``r(y [rows, *event]) -> [rows]``.
        gamma: Strength at sigma = 0, or a function of sigma.
        gradient: False for a reward that cannot be differentiated: it then weighs the particles without guiding them.
        name: Name in errors.

    Example:
        >>> from popflow.compose import gaussian_mixture, tilt
        >>> a = gaussian_mixture(torch.tensor([[0.0]]), std=1.0, name="a")
        >>> tilt(a**2, lambda y: -y[:, 0].square(), 3.0, name="centred").describe()
        'a^2 * exp(3 centred)'
    """
    strength = gamma if callable(gamma) else (lambda sigma: gamma / (1 + sigma**2))
    base = Target.of(target)
    return Target(base.factors, (*base.rewards, Reward(reward, strength, gradient, name)))


def scores(experts: Sequence[Expert], y: Tensor, sigma: float) -> Tensor:
    """Scores ``-epsilon_i / sigma`` of several experts at the same points ``[..., *event]``: ``[M, ..., *tangent]``, tangent to their space.

    Experts that share a model are evaluated in one batched call.

    Raises:
        NonFiniteError: naming the expert and the noise level, when an output is not finite.
    """
    event = experts[0].event
    rows = y.reshape(-1, *event)
    groups: dict[int, list[int]] = {}
    for i, expert in enumerate(experts):
        groups.setdefault(id(expert.model), []).append(i)
    out: list[Tensor | None] = [None] * len(experts)
    together = None
    for members in groups.values():
        try:
            together = _evaluate([experts[i] for i in members], rows, sigma)
        except Exception as error:
            names, cond = [experts[i].name for i in members], experts[members[0]].cond
            given = "no condition" if cond is None else f"a condition of shape {tuple(cond.shape)}"
            error.add_note(f"Raised by the model of expert {names} at sigma={sigma:g} for samples {tuple(rows.shape)} and {given}.")
            raise
        for i, epsilon in zip(members, together, strict=True):
            _check_finite(experts[i].name, epsilon, rows, sigma)
            out[i] = epsilon
    stacked = together if len(groups) == 1 and together is not None else torch.stack([epsilon for epsilon in out if epsilon is not None])
    space = experts[0].home
    if isinstance(space, Euclidean):
        return (stacked / -sigma).reshape(len(experts), *y.shape)
    return space.project(stacked / -sigma).reshape(len(experts), *y.shape[: y.ndim - len(event)], *space.tangent)


def _check_finite(name: str, epsilon: Tensor, rows: Tensor, sigma: float) -> None:
    """Refuse predictions that are not finite; ``rows`` is what they were made from."""
    total = len(rows)

    def error(bad: int, lost: int) -> NonFiniteError:
        fix = "check the model in this range of noise, its precision (fp16 overflows), and that the grid lies inside its training range."
        if lost:
            fix = f"{lost} of the samples it was given were not finite either: the previous step was too large; take more levels."
        return NonFiniteError(f"expert {name!r} returned values that are not finite for {bad} of {total} samples at sigma={sigma:g}: {fix}")

    if is_put_off() or not bool(epsilon.isfinite().all()):
        refuse(torch.stack([(~value.isfinite()).reshape(total, -1).any(1).sum() for value in (epsilon, rows)]), error)


def _evaluate(experts: list[Expert], rows: Tensor, sigma: float) -> Tensor:
    """Noise predictions ``[m, rows, *event]`` of experts that share one model."""
    first, m, n, conds = experts[0], len(experts), len(rows), [e.cond for e in experts]
    given = [c for c in conds if c is not None]
    with torch.no_grad():
        if not given:
            alone = _chunked(first, rows, sigma, None)
            out = alone.expand(m, *alone.shape)
        elif len(given) < m:
            raise ValueError(
                f"experts {[e.name for e in experts]} share one model but some have no condition: give each a cond, or use one expert alone."
            )
        elif any(c.shape != given[0].shape for c in given):
            raise ValueError(
                f"experts {[e.name for e in experts]} share one model and have conditions of shapes {[tuple(c.shape) for c in given]}, wanted "
                "one shape: they are evaluated in one call."
            )
        else:
            cond = torch.stack(given).unsqueeze(1).expand(m, n, *given[0].shape).flatten(0, 1)
            every = rows if m == 1 else rows.repeat(m, *[1] * (rows.ndim - 1))
            out = _chunked(first, every, sigma, cond).unflatten(0, (m, n))
    wanted = (n, *first.home.tangent)
    if out.shape != (m, *wanted):
        raise ValueError(
            f"expert {first.name!r} returned shape {tuple(out.shape[1:])} for samples {tuple(rows.shape)}, wanted {wanted}: a model that also "
            "predicts variances must drop that half, and event must be the shape of one sample."
        )
    return out.to(rows.dtype)


def _chunked(expert: Expert, rows: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
    model = partial(untouched, f"expert {expert.name!r}", expert.model)
    if expert.chunk is None or expert.chunk >= len(rows):
        return model(rows, sigma, cond)
    parts = range(0, len(rows), expert.chunk)
    return torch.cat([model(rows[k : k + expert.chunk], sigma, None if cond is None else cond[k : k + expert.chunk]) for k in parts])


def check_same_space(experts: Sequence[Expert]) -> None:
    """Raise a ValueError if the samples of two experts differ in shape or space."""
    for first, other in pairwise(experts):
        if other.event != first.event:
            raise ValueError(
                f"experts {first.name!r} and {other.name!r} have samples of shape {first.event} and {other.event}, wanted the same: "
                "only models of one space compose."
            )
        if other.space != first.space:
            raise ValueError(
                f"experts {first.name!r} and {other.name!r} live in the spaces {first.space!r} and {other.space!r}, wanted the same: "
                "latents of different encoders, or particles and plain vectors, do not compose."
            )
