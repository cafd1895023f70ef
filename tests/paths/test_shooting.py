"""Shooting against brute force: durations of transitions, their frequency, and the law of fixed-length paths."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.paths.exact import Grid
from popflow.paths.potentials import DoubleWell
from popflow.paths.process import BOLTZMANN, Counted, Overdamped, Underdamped
from popflow.paths.shooting import Always, Paths, Shooter, one_way, shoot, transitions, two_way

DT = 0.01
WALKERS = 1000


def in_a(x: Tensor) -> Tensor:
    return x[:, 0] < -1.0


def in_b(x: Tensor) -> Tensor:
    return x[:, 0] > 1.0


def near_the_top(x: Tensor) -> Tensor:
    return torch.exp(-8 * x[:, 0].square()) + 1e-3


@pytest.fixture(scope="module")
def shooter() -> Shooter:
    """The double well at kT = 1, a barrier of 4."""
    return Shooter(Overdamped(DoubleWell(dim=1), noise=math.sqrt(2)), DT, in_a, in_b)


@pytest.fixture(scope="module")
def brute(shooter: Shooter) -> tuple[Tensor, float]:
    """Durations in steps of all transitions in a long simulation, and their number per walker and time."""
    rng, walkers, steps = Streams(1), WALKERS, 3000
    grid = Grid(shooter.process, (-2.5,), (2.5,), 0.01)
    start = torch.multinomial(grid.equilibrium, walkers, replacement=True, generator=rng("start"))
    x, last, since, found = grid.points[start], torch.full((walkers,), -1), torch.zeros(walkers, dtype=torch.long), []
    count = 0
    for k in range(steps):
        x = x + DT * shooter.process.drift(x) + math.sqrt(2 * DT) * rng.normal("noise", x)
        state = shooter.state(x)
        arrived = (state >= 0) & (last >= 0) & (state != last)
        found.append(k - since[arrived])
        count += int(arrived.sum())
        inside = state >= 0
        last, since = torch.where(inside, state, last), torch.where(inside, k, since)
    return torch.cat(found).double(), count / (walkers * steps * DT)


@pytest.fixture(scope="module")
def always(shooter: Shooter):
    rng = Streams(0)
    paths, _ = shooter.start(torch.zeros(400, 1, dtype=torch.float64), rng)
    return shoot(shooter, Always(near_the_top), paths, 12, rng)


def agree(mean: Tensor, error: Tensor, brute: Tensor) -> None:
    """Means of indicators of duration bins and of the duration itself, within 3.5 standard errors of both sides (6 comparisons)."""
    edges = BINS
    own = torch.stack([*((brute >= a) & (brute < b) for a, b in itertools.pairwise(edges)), brute * DT], 1).double()
    z = (mean - own.mean(0)) / (error.square() + own.var(0) / len(own)).sqrt()
    assert float(z.abs().max()) < 3.5, z.tolist()
    assert float(error[-1] / mean[-1]) < 0.05  # the comparison has power


BINS = [0, 25, 40, 60, 90, 10**9]


def durations(paths: Paths) -> Tensor:
    steps = paths.length - 1
    return torch.stack([*((steps >= a) & (steps < b) for a, b in itertools.pairwise(BINS)), steps * DT], 1).double()


@pytest.mark.parametrize("move", [two_way, one_way], ids=["two-way", "one-way"])
def test_chains_of_transition_paths_have_the_durations_of_brute_force(move, shooter: Shooter, always, brute) -> None:
    rng = Streams(2)
    first = transitions(shooter, always.paths)
    warm = shoot(shooter, move, first, 20, rng)
    shots = shoot(shooter, move, warm.paths, 60, rng, durations)
    assert 0.05 < shots.acceptance < 0.9
    agree(*shots.mean(), brute[0])


def test_every_path_accepted_has_the_same_durations_and_the_frequency_of_transitions(shooter: Shooter, always, brute) -> None:
    shots = shoot(shooter, Always(near_the_top), always.paths, 40, Streams(3), durations)
    assert shots.acceptance == 1.0
    agree(*shots.mean(), brute[0])
    grid = Grid(shooter.process, (-2.5,), (2.5,), 0.005)
    between = ~(in_a(grid.points) | in_b(grid.points))
    z = float((grid.equilibrium * near_the_top(grid.points))[between].sum())
    value, error = shots.frequency(z, DT)
    spread = math.sqrt(brute[1] / (WALKERS * 30.0))  # Poisson
    assert abs(value - brute[1]) < 3 * math.hypot(error, spread) + 0.03 * brute[1]  # 3 %: the Euler chain is reversible to O(dt)


def test_where_one_shoots_from_does_not_matter_once_paths_are_weighed(shooter: Shooter, always) -> None:
    even = shoot(shooter, Always(), always.paths, 25, Streams(4), durations)
    peaked = shoot(shooter, Always(near_the_top), always.paths, 25, Streams(5), durations)
    (a, ea), (b, eb) = even.mean(), peaked.mean()
    assert float(((a - b) / (ea**2 + eb**2).sqrt()).abs().max()) < 3.5
    raw = (peaked.weight > 0).double()
    unweighted = (raw.unsqueeze(2) * peaked.values).sum((0, 1)) / raw.sum()
    assert abs(float(unweighted[-1] - b[-1])) > 4 * float(eb[-1])  # without weights, long paths are seen too often


def test_paths_of_fixed_length_have_the_law_of_equilibrium_paths_between_the_states(shooter: Shooter) -> None:
    """Where the path is half way, against brute force from equilibrium; one-way, two-way and always agree with it."""
    frames, rng = 61, Streams(6)
    fixed = Shooter(shooter.process, DT, in_a, in_b, frames=frames)
    paths, _ = fixed.start(torch.zeros(600, 1, dtype=torch.float64), rng)

    def middle(paths: Paths) -> Tensor:
        return torch.cat([paths.x[:, frames // 2], paths.x[:, frames // 2].square(), paths.x[:, frames // 4]], 1)

    grid = Grid(shooter.process, (-2.5,), (2.5,), 0.01)
    start = torch.multinomial(grid.equilibrium, 150_000, replacement=True, generator=rng("start"))
    x = grid.points[start]
    kept, seen = in_a(x), {}
    for k in range(1, frames):
        x = x + DT * shooter.process.drift(x) + math.sqrt(2 * DT) * rng.normal("brute", x)
        if k in (frames // 4, frames // 2):
            seen[k] = x
    kept &= in_b(x)
    brute = torch.cat([seen[frames // 2], seen[frames // 2].square(), seen[frames // 4]], 1)[kept]
    assert len(brute) > 200
    warm = shoot(fixed, Always(near_the_top), paths, 20, rng)
    chains = {"always": shoot(fixed, Always(near_the_top), warm.paths, 40, rng, middle)}
    first = transitions(fixed, warm.paths)
    for name, move in {"two-way": two_way, "one-way": one_way}.items():
        chains[name] = shoot(fixed, move, shoot(fixed, move, first, 40, rng).paths, 60, rng, middle)
    for name, shots in chains.items():
        mean, error = shots.mean()
        z = (mean - brute.mean(0)) / (error.square() + brute.var(0) / len(brute)).sqrt()
        assert float(z.abs().max()) < 3.5, (name, z.tolist())
        assert bool((shots.paths.length == frames).all())


def test_forces_are_counted_as_they_are_made() -> None:
    counted = Counted(DoubleWell(dim=1))
    for process in (Overdamped(counted, math.sqrt(2)), Underdamped(counted, mass=1.0, friction=2.0, temperature=1 / BOLTZMANN)):
        counted.forces, rng = 0, Streams(0)
        shooter = Shooter(process, DT, in_a, in_b)
        paths, first = shooter.start(torch.zeros(30, 1, dtype=torch.float64), rng)
        shots = shoot(shooter, Always(), paths, 3, rng)
        more = shoot(shooter, two_way, transitions(shooter, shots.paths), 3, rng)
        last = shoot(shooter, one_way, more.paths, 3, rng)
        assert counted.forces == first + shots.forces + more.forces + last.forces
        assert counted.hvps == 0


def test_underdamped_paths_keep_the_maxwell_distribution_and_end_where_they_should() -> None:
    process = Underdamped(DoubleWell(dim=1), mass=2.0, friction=1.0, temperature=1 / BOLTZMANN)
    shooter, rng = Shooter(process, 0.02, in_a, in_b), Streams(0)
    paths, _ = shooter.start(torch.zeros(300, 1, dtype=torch.float64), rng)

    def speed(paths: Paths) -> Tensor:
        inside = paths.inside()
        return torch.stack([(paths.x[..., 1].square() * inside).sum(1), paths.x[..., 1].sum(1) * 0 + inside.sum(1)], 1)

    shots = shoot(shooter, Always(), shoot(shooter, Always(), paths, 5, rng).paths, 8, rng, speed)
    each = shots.values.sum(0)  # all paths, sum_k u = n: each frame between the states counts once per frame after weighing by 1/n
    per = (shots.values[..., 0] / shots.values[..., 1]).mean(0)
    assert float(each[:, 1].min()) > 0
    assert abs(float(per.mean()) - 0.5) < 4 * float(per.std()) / math.sqrt(300) + 0.02  # <v^2> = kT / m
    ahead = transitions(shooter, shots.paths)
    assert bool(in_a(ahead.x[:, 0]).all())
    assert bool(in_b(ahead.last).all())
    moving = (ahead.x[:, 1:, 0] - ahead.x[:, :-1, 0]) * ahead.inside()[:, 1:]
    assert float((moving * ahead.x[:, 1:, 1]).sum()) > 0  # positions follow velocities, also where time was turned


def test_what_cannot_be_shot_is_refused(shooter: Shooter) -> None:
    rng = Streams(0)
    with pytest.raises(ValueError, match="x holds points in A or B"):
        shooter.start(torch.tensor([[-1.4]], dtype=torch.float64), rng)
    with pytest.raises(ValueError, match="reached neither state in most=2 steps"):
        Shooter(shooter.process, DT, in_a, in_b, most=2).start(torch.zeros(4, 1, dtype=torch.float64), rng)
    with pytest.raises(ValueError, match="dt=0, wanted a positive time step"):
        Shooter(shooter.process, 0, in_a, in_b)
    with pytest.raises(ValueError, match="frames=2, wanted at least 3"):
        Shooter(shooter.process, DT, in_a, in_b, frames=2)
    stay, _ = shooter.start(torch.zeros(40, 1, dtype=torch.float64), rng)
    with pytest.raises(ValueError, match="does not lead from A to B"):
        shoot(shooter, two_way, stay, 1, rng)
    none = Paths(stay.x[:0], stay.length[:0], stay.mark[:0])
    with pytest.raises(ValueError, match="paths holds none, or one"):
        shoot(shooter, two_way, none, 1, rng)


def test_chains_that_cannot_move_and_figures_without_ground_are_refused(shooter: Shooter, always) -> None:
    rng = Streams(0)
    first, _ = shooter.start(torch.zeros(4, 1, dtype=torch.float64), rng)
    with pytest.raises(ValueError, match=r"u sums to 0.0 over path 0, which starts at"):
        shoot(shooter, Always(lambda x: 0 * x[:, 0]), first, 1, rng)
    kept = shoot(shooter, two_way, transitions(shooter, always.paths), 1, rng)
    with pytest.raises(ValueError, match="wanted shots by Always"):
        kept.frequency(1.0, DT)
    none = replace(always, weight=torch.zeros_like(always.weight))
    with pytest.raises(ValueError, match=r"met no transition path\. Fix: more moves"):
        none.mean()
