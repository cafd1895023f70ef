r"""Transition path sampling by shooting: Markov chains of paths that follow the dynamics exactly, many at once.

A path is a chain of frames of length ``L`` with the law ``P[x] = pi(x_0) prod p(x_k -> x_{k+1})`` of equilibrium dynamics. It either runs from its last
frame in one state to its first frame in the other (variable length), or has a given number of frames and begins in A and ends in B (fixed length).
Time can be reversed (``pi(x) p(x -> y) = pi(y) p(y -> x)``, with velocities turned), so a path may be grown both ways from any of its frames:

- two-way    choose a frame, draw new velocities, grow both halves anew;  accept with ``min(1, n_old / n_new)`` if the path joins A and B
- one-way    choose a frame, grow one half anew;                          the same rule
- always     accept **every** path, also those that return to where they came from:

      (path, mark i)  ~  P[x] u(x_i)        new mark:  i ~ u(x_i) / sum_k u(x_k)        new path:  both halves grown from x_i

  Both moves are Gibbs steps, so nothing is rejected and no first transition path is needed. The paths then have the law ``P[x] sum_k u(x_k)``, and each
  transition path counts with weight ``1 / sum_k u(x_k)``, exactly. ``u >= 0`` says where to shoot from: best near the barrier. The same average is a
  frequency: ``Z_u E[1_AB / sum_k u(x_k)] / dt`` transitions per time in equilibrium, ``Z_u = int pi u``.

Here ``n`` counts the frames to choose from: those outside of A and B (variable length), or all but the two ends (fixed length). Overdamped dynamics
follows Euler-Maruyama and underdamped dynamics BAOAB, one force per step; both can be reversed up to the error of the integrator.

Sources: C. Dellago, P. Bolhuis, P. Geissler, *Transition path sampling*, Adv. Chem. Phys. 123, 1 (2002); the extended ensemble of paths and marks:
S. Falkner, A. Coretti, B. Peters, P. Bolhuis, C. Dellago, *Revisiting shooting point Monte Carlo methods for transition path sampling*, J. Chem. Phys.
163 (2025); another scheme that accepts all, one-way and on transition paths alone: M. Haeupl et al., *An always-accepting algorithm for transition path
sampling*, arXiv:2602.13130 (2026); BAOAB: B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core.checks import at_least_one, shaped
from popflow.core.streams import Streams
from popflow.paths.process import Process, Underdamped, force

Indicator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Paths:
    """Discrete paths of unequal length.

    Attributes:
        x: States ``[n, most, S]``; after its last frame a path repeats it.
        length: Frames ``[n]`` of each.
        mark: The frame ``[n]`` that each was grown from.
    """

    x: Tensor
    length: Tensor
    mark: Tensor

    @property
    def last(self) -> Tensor:
        """Last states ``[n, S]``."""
        return self.x[torch.arange(len(self.x)), self.length - 1]

    def inside(self) -> Tensor:
        """Frames between the two ends, ``[n, most]`` of bool."""
        k = torch.arange(self.x.shape[1], device=self.x.device)
        return (k >= 1) & (k < self.length.unsqueeze(1) - 1)

    def where(self, take: Tensor, other: Paths) -> Paths:
        """These paths where ``take [n]``, the other ones elsewhere."""
        most = max(self.x.shape[1], other.x.shape[1])
        x = torch.where(take.view(-1, 1, 1), _padded(self.x, most), _padded(other.x, most))
        length, mark = torch.where(take, self.length, other.length), torch.where(take, self.mark, other.mark)
        return Paths(x[:, : int(length.max())], length, mark)


@dataclass(frozen=True, eq=False)
class Shooter:
    """What the moves share: the dynamics, the time step, the two states, and the kind of path.

    Attributes:
        process: Overdamped or underdamped dynamics.
        dt: Time step.
        in_a: Indicator of A on positions, ``[n, D] -> [n]`` of bool.
        in_b: Indicator of B.
        frames: Frames of each path; None for paths that end where they enter A or B.
        most: Longest half of a path of variable length, in steps.

    Raises:
        ValueError: for a time step that is not positive, or fewer than 3 frames.
    """

    process: Process
    dt: float
    in_a: Indicator
    in_b: Indicator
    frames: int | None = None
    most: int = 100_000

    def __post_init__(self) -> None:
        if not (self.dt > 0 and math.isfinite(self.dt)):
            raise ValueError(f"dt={self.dt!r}, wanted a positive time step.")
        at_least_one(most=self.most)
        if self.frames is not None and self.frames < 3:
            raise ValueError(f"frames={self.frames!r}, wanted at least 3: two ends and a frame to shoot from.")

    def position(self, x: Tensor) -> Tensor:
        """Positions ``[..., D]`` of states ``[..., S]``."""
        return x[..., : self.process.dim(x)]

    def reversed(self, x: Tensor) -> Tensor:
        """States with their velocities turned."""
        if not isinstance(self.process, Underdamped):
            return x
        position, velocity = x.split(self.process.dim(x), -1)
        return torch.cat([position, -velocity], -1)

    def refreshed(self, x: Tensor, rng: Streams) -> Tensor:
        """States with new velocities of the Maxwell distribution."""
        if not isinstance(self.process, Underdamped):
            return x
        position = self.position(x)
        spread = (self.process.kt / torch.as_tensor(self.process.mass, dtype=x.dtype, device=x.device)).sqrt()
        return torch.cat([position, spread * rng.normal("velocity", position)], -1)

    def state(self, x: Tensor) -> Tensor:
        """0 in A, 1 in B, -1 elsewhere, ``[n]`` for states ``[n, S]``."""
        place = self.position(x)
        a, b = (shaped("the indicator of a state", inside(place), place[:, 0]).bool() for inside in (self.in_a, self.in_b))
        return torch.where(a, 0, torch.where(b, 1, -1))

    def joins(self, paths: Paths) -> Tensor:
        """1 for paths from A to B, -1 for those from B to A, 0 for others; ``[n]``."""
        return (self.state(paths.last) - self.state(paths.x[:, 0])) * (self.state(paths.x[:, 0]) >= 0) * (self.state(paths.last) >= 0)

    def forwards(self, paths: Paths) -> Paths:
        """The paths, with those from B to A turned round: they are as likely as their mirror images in time."""
        turn = self.joins(paths) < 0
        k = torch.arange(paths.x.shape[1], device=paths.x.device)
        index = torch.where(turn.unsqueeze(1), paths.length.unsqueeze(1) - 1 - k, k).clamp_min(0)
        x = paths.x.gather(1, index.unsqueeze(2).expand_as(paths.x))
        x = torch.where(turn.view(-1, 1, 1), self.reversed(x), x)
        beyond = k >= paths.length.unsqueeze(1)
        x = torch.where(beyond.unsqueeze(2), x[torch.arange(len(x)), paths.length - 1].unsqueeze(1), x)
        return Paths(x, paths.length, torch.where(turn, paths.length - 1 - paths.mark, paths.mark))

    def grow(self, x: Tensor, rng: Streams, steps: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
        """Follow the dynamics from states ``[n, S]`` for given numbers of steps ``[n]``, or until A or B.

        Returns:
            Frames ``[n, most + 1, S]``, the steps ``[n]`` that were made, and the forces that were evaluated.

        Raises:
            ValueError: when a path has reached neither state after ``most`` steps.
        """
        frames, done, forces = [x], torch.zeros(len(x), dtype=torch.long, device=x.device), 0
        limit = torch.full_like(done, self.most) if steps is None else steps
        alive = (limit > 0).nonzero().flatten()
        if steps is None:
            alive = alive[self.state(x[alive]) < 0]
        memory: Tensor | None = None
        current = x
        while len(alive):
            moved, memory, used = _step(self.process, current[alive], self.dt, rng, memory)
            forces += used
            current = current.index_copy(0, alive, moved)
            frames.append(current)
            done[alive] += 1
            keep = done[alive] < limit[alive]
            if steps is None:
                free = self.state(moved) < 0
                if bool((free & ~keep).any()):
                    raise ValueError(
                        f"{int((free & ~keep).sum())} paths reached neither state in most={self.most} steps. Fix: larger states, or most."
                    )
                keep = free
            alive, memory = alive[keep], None if memory is None else memory[keep]
        return torch.stack(frames, 1), done, forces

    def both(self, x: Tensor, mark: Tensor | None, rng: Streams) -> tuple[Paths, int]:
        """Grow paths both ways from states ``[n, S]``, which become the frames ``mark [n]`` of paths of fixed length."""
        ahead, behind = (None, None) if mark is None or self.frames is None else (self.frames - 1 - mark, mark)
        back, before, one = self.grow(self.reversed(x), rng, behind)
        front, after, two = self.grow(x, rng, ahead)
        return _joined(self.reversed(back), before, front, after), one + two

    def start(self, x: Tensor, rng: Streams) -> tuple[Paths, int]:
        """First paths for `always`, grown from positions ``[n, D]`` outside of A and B; and the forces they took."""
        state = torch.cat([x, torch.zeros_like(x)], -1) if isinstance(self.process, Underdamped) else x
        mark = None
        if self.frames is not None:
            mark = 1 + (rng.uniform("frame", (len(x),)) * (self.frames - 2)).long()
        elif bool((self.state(state) >= 0).any()):
            raise ValueError("x holds points in A or B, wanted points between the states: a path from there has no frame to shoot from.")
        return self.both(self.refreshed(state, rng), mark, rng)

    def choose(self, paths: Paths, rng: Streams, u: Tensor | None = None) -> Tensor:
        """Choose a frame of each path: between its ends, with probabilities proportional to ``u [n, most]`` (equal without).

        A path with no frame to shoot from is a ValueError.
        """
        mass = paths.inside().double() if u is None else u * paths.inside()
        total = mass.cumsum(1)
        for k in (~((total[:, -1] > 0) & total[:, -1].isfinite())).nonzero().flatten().tolist():
            raise ValueError(
                f"u sums to {float(total[k, -1])!r} over path {k}, which starts at {paths.x[k, 0].tolist()[:6]}, wanted positive and finite: "
                "there is no frame to shoot from. Fix: a u that is positive wherever paths start."
            )
        at = rng.uniform("frame", (len(mass), 1)).to(mass.device) * total[:, -1:]
        return torch.searchsorted(total, at, right=True).flatten().clamp_max(mass.shape[1] - 1)


def two_way(shooter: Shooter, paths: Paths, rng: Streams) -> tuple[Paths, Tensor, int]:
    """One two-way shot of every path: the paths now, which were accepted ``[n]``, the forces."""
    mark = shooter.choose(paths, rng)
    x = shooter.refreshed(paths.x[torch.arange(len(mark)), mark], rng)
    new, forces = shooter.both(x, None if shooter.frames is None else mark, rng)
    new, joins = shooter.forwards(new), shooter.joins(new) != 0
    return *_decide(new, paths, joins, rng), forces


def one_way(shooter: Shooter, paths: Paths, rng: Streams) -> tuple[Paths, Tensor, int]:
    """One one-way shot of every path, forwards or backwards at even chances: the paths now, which were accepted ``[n]``, the forces."""
    mark = shooter.choose(paths, rng)
    n = torch.arange(len(mark), device=mark.device)
    x, forward = paths.x[n, mark], rng.uniform("side", (len(mark),)).to(mark.device) < 0.5
    steps = None if shooter.frames is None else torch.where(forward, shooter.frames - 1 - mark, mark)
    grown, made, forces = shooter.grow(torch.where(forward.unsqueeze(1), x, shooter.reversed(x)), rng, steps)
    k = torch.arange(paths.x.shape[1], device=mark.device)
    old_back = shooter.reversed(paths.x.gather(1, (mark.unsqueeze(1) - k).clamp_min(0).unsqueeze(2).expand_as(paths.x)))
    after = paths.length - 1 - mark
    old_front = paths.x.gather(1, torch.minimum(mark.unsqueeze(1) + k, paths.length.unsqueeze(1) - 1).unsqueeze(2).expand_as(paths.x))
    most, pick = max(grown.shape[1], paths.x.shape[1]), forward.view(-1, 1, 1)
    back = torch.where(pick, _padded(old_back, most), _padded(grown, most))
    front = torch.where(pick, _padded(grown, most), _padded(old_front, most))
    new = _joined(shooter.reversed(back), torch.where(forward, mark, made), front, torch.where(forward, made, after))
    return *_decide(new, paths, shooter.joins(new) > 0, rng), forces


@dataclass(frozen=True, eq=False)
class Always:
    """The move that accepts every path.

    Attributes:
        u: How much to shoot from positions, ``[n, D] -> [n]``, not negative; None for equally much from everywhere between the states.
    """

    u: Indicator | None = None

    def mass(self, shooter: Shooter, paths: Paths) -> Tensor:
        """``u`` at the frames between the ends, ``[n, most]``; 0 elsewhere."""
        inside = paths.inside()
        if self.u is None:
            return inside.double()
        place = shooter.position(paths.x)
        return self.u(place.flatten(0, 1)).view(inside.shape).double() * inside

    def weight(self, shooter: Shooter, paths: Paths) -> Tensor:
        """``1 / sum_k u(x_k)`` of transition paths, 0 of others; ``[n]``."""
        return torch.where(shooter.joins(paths) != 0, 1 / self.mass(shooter, paths).sum(1), 0.0)

    def __call__(self, shooter: Shooter, paths: Paths, rng: Streams) -> tuple[Paths, Tensor, int]:
        """Choose a new mark on every path and grow a new path from it."""
        mark = shooter.choose(paths, rng, self.mass(shooter, paths))
        x = shooter.refreshed(paths.x[torch.arange(len(mark)), mark], rng)
        new, forces = shooter.both(x, None if shooter.frames is None else mark, rng)
        return new, torch.ones(len(mark), dtype=torch.bool, device=mark.device), forces


@dataclass(frozen=True)
class Shots:
    """What chains of paths have seen.

    Attributes:
        values: What was observed on each path, ``[moves, n, ...]``.
        weight: ``[moves, n]``: 1 for chains that keep transition paths; ``1 / sum u`` or 0 for `Always`.
        accepted: ``[moves, n]`` of bool.
        forces: Forces that were evaluated.
        paths: The last paths, to continue from.
        always: Whether the move was `Always`.
    """

    values: Tensor
    weight: Tensor
    accepted: Tensor
    forces: int
    paths: Paths
    always: bool

    @property
    def acceptance(self) -> float:
        """Share of accepted moves."""
        return float(self.accepted.double().mean())

    def mean(self) -> tuple[Tensor, Tensor]:
        """Weighted mean of the observed values over transition paths, and its standard error from the scatter of the chains.

        Raises:
            ValueError: when there was no transition path.
        """
        if not bool((self.weight > 0).any()):
            raise ValueError(f"{len(self.weight)} moves of {len(self.weight[0])} chains met no transition path. Fix: more moves.")
        weight = self.weight.reshape(*self.weight.shape, *[1] * (self.values.ndim - 2))
        top, bottom = (weight * self.values).sum(0), weight.sum(0)
        mean, n = top.sum(0) / bottom.sum(0), len(self.weight[0])
        return mean, ((top - mean * bottom).square().sum(0) * n / max(1, n - 1)).sqrt() / bottom.sum(0)

    def frequency(self, z: float, dt: float) -> tuple[float, float]:
        """Transitions per time in equilibrium, both directions together, from `Always`; with its standard error. ``z = int pi u`` off A and B.

        Raises:
            ValueError: for other moves, whose weights know of no frequency.
        """
        if not self.always:
            raise ValueError("these shots keep transition paths and know of no frequency, wanted shots by Always. Fix: move=Always(u).")
        each = self.weight.mean(0) * (z / dt)
        return float(each.mean()), float(each.std()) / math.sqrt(len(each))


Move = Callable[[Shooter, Paths, Streams], tuple[Paths, Tensor, int]]


def shoot(shooter: Shooter, move: Move, paths: Paths, moves: int, rng: Streams, observe: Callable[[Paths], Tensor] | None = None) -> Shots:
    """Run a chain of moves on every path at once.

    Args:
        shooter: Dynamics, time step and states.
        move: `two_way`, `one_way` or `Always`.
        paths: First paths: transition paths for the first two, any of `Shooter.start` for the last.
        moves: Moves of each chain. Leave out the first ones, which remember the start.
        rng: Random streams.
        observe: What to record of transition paths from A to B, ``Paths -> [n, ...]``; their duration in steps if None.

    Example:
        >>> from popflow.paths import DoubleWell, Overdamped
        >>> shooter = Shooter(Overdamped(DoubleWell(dim=1), 1.4), 0.01, lambda x: x[:, 0] < -1, lambda x: x[:, 0] > 1)
        >>> rng = Streams(0)
        >>> first, _ = shooter.start(torch.zeros(20, 1, dtype=torch.float64), rng)
        >>> shots = shoot(shooter, Always(), first, 5, rng)
        >>> shots.acceptance, bool((shots.weight > 0).any())
        (1.0, True)

    Raises:
        ValueError: for no paths, or one that is no transition path, which `two_way` and `one_way` begin with.
    """
    at_least_one(moves=moves)
    if not len(paths.x) or (not isinstance(move, Always) and bool((shooter.joins(paths) <= 0).any())):
        raise ValueError("paths holds none, or one that does not lead from A to B, wanted transition paths: those that Always has found.")
    look = observe or (lambda one: one.length.double() - 1)
    values, weights, accepted, forces = [], [], [], 0
    for _ in range(moves):
        paths, taken, used = move(shooter, paths, rng)
        forces += used
        accepted.append(taken)
        weights.append(move.weight(shooter, paths) if isinstance(move, Always) else torch.ones(len(taken), dtype=torch.float64))
        values.append(look(shooter.forwards(paths)))
    return Shots(torch.stack(values), torch.stack(weights), torch.stack(accepted), forces, paths, isinstance(move, Always))


def transitions(shooter: Shooter, paths: Paths) -> Paths:
    """The paths that join A and B, from A to B: where `two_way` and `one_way` may begin."""
    ahead = shooter.forwards(paths)
    keep = shooter.joins(ahead) > 0
    return Paths(ahead.x[keep], ahead.length[keep], ahead.mark[keep])


def _decide(new: Paths, old: Paths, joins: Tensor, rng: Streams) -> tuple[Paths, Tensor]:
    ratio = old.inside().sum(1) / new.inside().sum(1).clamp_min(1)
    taken = joins & (rng.uniform("accept", (len(joins),)).to(ratio.device) < ratio)
    return new.where(taken, old), taken


def _joined(back: Tensor, before: Tensor, front: Tensor, after: Tensor) -> Paths:
    """Join the half that was grown backwards, ``[n, ., S]`` with ``before [n]`` steps, to the other, with ``after [n]`` steps."""
    length = before + after + 1
    k = torch.arange(int(length.max()), device=back.device) - before.unsqueeze(1)
    shape = (*k.shape, back.shape[2])
    early = back.gather(1, (-k).clamp(0, back.shape[1] - 1).unsqueeze(2).expand(shape))
    late = front.gather(1, torch.minimum(k.clamp_min(0), after.unsqueeze(1)).unsqueeze(2).expand(shape))
    return Paths(torch.where((k < 0).unsqueeze(2), early, late), length, before)


def _padded(x: Tensor, most: int) -> Tensor:
    return x if x.shape[1] >= most else torch.cat([x, x[:, -1:].expand(-1, most - x.shape[1], -1)], 1)


def _step(process: Process, x: Tensor, dt: float, rng: Streams, memory: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    """One step of Euler-Maruyama or BAOAB; ``memory`` is the force of the state, which BAOAB needs twice."""
    if not isinstance(process, Underdamped):
        noise = process.noise if not isinstance(process.noise, Tensor) else process.noise.to(x)
        return x + dt * process.drift(x) + math.sqrt(dt) * noise * rng.normal("noise", x), None, len(x)
    position, velocity = x.split(process.dim(x), -1)
    mass = torch.as_tensor(process.mass, dtype=x.dtype, device=x.device)
    used = 0
    if memory is None:
        memory, used = force(process.potential, position), len(x)
    keep = math.exp(-process.friction * dt)
    velocity = velocity + dt / 2 * memory / mass
    position = position + dt / 2 * velocity
    velocity = keep * velocity + ((1 - keep * keep) * process.kt / mass).sqrt() * rng.normal("noise", velocity)
    position = position + dt / 2 * velocity
    memory = force(process.potential, position)
    return torch.cat([position, velocity + dt / 2 * memory / mass], -1), memory, used + len(x)
