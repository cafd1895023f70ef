"""Doob's Lagrangian against closed forms: bridges, exact sampling, underdamped bridges, and a rare event of the double well.

python benchmarks/doob_exact.py [--only bridges sampler underdamped rare] [--quick] [--keep]
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
from harness import Row, run
from torch import Tensor

from popflow.core import Streams
from popflow.paths import (
    DiagonalPath,
    DoubleWell,
    FullPath,
    Grid,
    Overdamped,
    action,
    bridge,
    clock_grid,
    fit,
    grid,
    log_linear,
    probability,
    simulate_exactly,
)
from popflow.paths.curves import Widths, with_rates
from popflow.paths.moments import Kinematic


@dataclass(frozen=True)
class Case:
    """A bridge of ``dx = -theta x dt + xi dW`` between ``N(a, s0^2)`` and ``N(b, s0^2)`` in time 1."""

    name: str
    theta: float
    s0: float
    a: float
    b: float
    widths: Widths
    xi: float = 1.0

    def _coupling(self) -> tuple[float, float, float]:
        phi = math.exp(-self.theta)
        noise = self.xi**2 * (-math.expm1(-2 * self.theta) / (2 * self.theta) if self.theta else 1.0)
        return phi, noise, 0.5 * (-noise / phi + math.sqrt((noise / phi) ** 2 + 4 * self.s0**4))

    def action(self) -> float:
        """The least action, between the two laws of the end states."""
        phi, noise, c = self._coupling()
        s2 = self.s0**2
        reference = torch.tensor([[s2, phi * s2], [phi * s2, phi * phi * s2 + noise]], dtype=torch.float64)
        wanted = torch.tensor([[s2, c], [c, s2]], dtype=torch.float64)
        gap = torch.tensor([0.0, self.b - phi * self.a], dtype=torch.float64)
        inverse = reference.inverse()
        return 0.5 * float((inverse @ wanted).trace() + gap @ inverse @ gap - 2 + reference.logdet() - wanted.logdet())

    def moments(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation at times r."""
        c, theta = self._coupling()[2], self.theta
        if theta:
            left, right = (theta * (1 - r)).sinh() / math.sinh(theta), (theta * r).sinh() / math.sinh(theta)
            free = self.xi**2 / theta * (theta * r).sinh() * (theta * (1 - r)).sinh() / math.sinh(theta)
        else:
            left, right, free = 1 - r, r, self.xi**2 * r * (1 - r)
        variance = self.s0**2 * (left**2 + right**2) + 2 * left * right * c + free
        return left * self.a + right * self.b, variance.sqrt()


CASES = (
    Case("Brownian, s0 = 0.1", 0.0, 0.1, -1.0, 1.0, bridge),
    Case("Brownian, s0 = 0.01", 0.0, 0.01, -1.0, 1.0, bridge),
    Case("Ornstein-Uhlenbeck theta = 2, s0 = 0.1", 2.0, 0.1, -1.0, 1.0, bridge),
    Case("contracting, theta = 4, s0 = 0.5", 4.0, 0.5, -1.0, 1.0, log_linear),
)


def bridges(options: argparse.Namespace) -> list[Row]:
    """Action, mean and standard deviation of fitted one-dimensional bridges."""
    rows = []
    for case in CASES:
        process = Overdamped(lambda x, theta=case.theta: theta * x.square().sum(-1) / 2, noise=case.xi)
        errors, lows, means, sds, values = [], [], [], [], []
        begin = time.perf_counter()
        for seed in range(options.seeds):
            a, b = (torch.tensor([value], dtype=torch.float64) for value in (case.a, case.b))
            path = DiagonalPath(a, b, 1.0, noise=case.xi, sigma0=case.s0, widths=case.widths, rng=Streams(seed))
            fitted = fit(process, path, steps=20 if options.quick else 800, batch=256, rng=Streams(seed), lr=3e-3, bar=False)
            got = action(process, fitted.path, 2000 if options.quick else 100_000, Streams(100 + seed))
            r = torch.linspace(0, 1, 101, dtype=torch.float64)
            moments, (mean, sd) = fitted.path.moments(r), case.moments(r)
            values.append(got.value)
            errors.append(abs(got.value / case.action() - 1))
            lows.append((got.value - case.action()) / got.error)
            means.append(float((moments.mean[:, 0, 0] - mean).abs().max()))
            sds.append(float((moments.sd[:, 0, 0] / sd - 1).abs().max()))
        notes = {"actions": values, "closed form": case.action()}
        seconds = time.perf_counter() - begin
        rows += [
            Row(f"relative error of the action: {case.name}", max(errors), target=0.02, seconds=seconds, notes=notes),
            Row(f"action over the closed form: {case.name}", min(lows), unit="standard errors", target=-3.0, direction=">="),
            Row(f"largest error of the mean: {case.name}", max(means), target=0.02),
            Row(f"largest relative error of the sd: {case.name}", max(sds), target=0.05),
        ]
    return rows


def sampler(options: argparse.Namespace) -> list[Row]:
    """Moments of the exact sampler at coarse and at fine steps, for a diagonal and a correlated path that were never fitted."""
    n = 2000 if options.quick else 20_000
    rows = []
    ends = torch.tensor([-0.5, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.0], dtype=torch.float64)
    for make in (DiagonalPath, FullPath):
        path = make(*ends, 1.0, noise=1.0, sigma0=0.05, rng=Streams(0)).requires_grad_(False)
        for value in path.parameters():
            value.add_(0.3 * Streams(1).normal("loud", value))
        worst = 0.0
        for steps in (10, 100 if options.quick else 1000):
            paths = simulate_exactly(path, n, grid(1.0, 1 / steps), Streams(steps))
            k = steps // 2
            reference = path.sample(0.5, 4_000_000 if not options.quick else 100_000, Streams(9))
            x = paths.x[:, k]
            z = (x.mean(0) - reference.mean(0)) / (x.std(0) / n**0.5)
            spread = (x.var(0) / reference.var(0) - 1) / (2 / n) ** 0.5
            worst = max(worst, float(torch.cat([z, spread]).abs().max()))
        rows.append(
            Row(f"exact sampler, 10 and {steps} steps, largest z of moments: {make.__name__}", worst, unit="standard errors", target=3.5)
        )
    return rows


def underdamped(options: argparse.Namespace) -> list[Row]:
    """The kinematic formulas against the bridge of a damped oscillator, from matrix exponentials."""
    k, friction, noise, end = 3.0, 0.7, 1.3, 2.0
    f = torch.tensor([[0.0, 1.0], [-k, -friction]], dtype=torch.float64)
    driven = torch.diag(torch.tensor([0.0, noise**2], dtype=torch.float64))

    def flow(t: Tensor) -> tuple[Tensor, Tensor]:
        """Propagator and covariance after a time, by Van Loan's block exponential."""
        zero = torch.zeros(2, 2, dtype=torch.float64)
        block = torch.linalg.matrix_exp(torch.cat([torch.cat([-f, driven], 1), torch.cat([zero, f.mT], 1)]) * t)
        phi = block[2:, 2:].mT
        return phi, phi @ block[:2, 2:]

    whole, covariance_end = flow(torch.tensor(end, dtype=torch.float64))
    a, b = torch.tensor([-1.0, 0.3], dtype=torch.float64), torch.tensor([0.8, -0.2], dtype=torch.float64)

    def laws(t: Tensor) -> tuple[Tensor, Tensor]:
        (phi, q), (later, _) = flow(t), flow(end - t)
        gain = q @ later.mT @ covariance_end.inverse()
        return phi @ a + gain @ (b - whole @ a), q - gain @ later @ q

    worst = 0.0
    for t in (0.3, 0.8, 1.2, 1.7):
        time = torch.tensor(t, dtype=torch.float64)
        (mean, cov), (mean_rate, cov_rate) = with_rates(laws, time)
        one = [
            value.reshape(1, 1, 1)
            for value in (mean[0], mean[1], mean_rate[1], cov[0, 0], cov[0, 1], cov[1, 1], cov_rate[0, 1], cov_rate[1, 1])
        ]
        law = Kinematic(*one, noise=torch.tensor([noise], dtype=torch.float64))
        x = torch.tensor([[0.4, -0.9], [-0.2, 0.6], [1.0, 1.0]], dtype=torch.float64)
        got = law.drift(law.base(x[:, None, :]))[:, 0, 0]
        later, left = flow(end - time)
        score = later.mT @ left.inverse() @ (b[:, None] - later @ x.mT)
        exact = (f @ x.mT)[1] + noise**2 * score[1]
        worst = max(worst, float(((got - exact) / exact).abs().max()), float((law.c - 0.5 * cov_rate[0, 0]).abs()))
    return [Row("underdamped bridge, largest relative error of the drift", worst, target=1e-7)]


def rare(options: argparse.Namespace) -> list[Row]:
    """Double well: the probability to be near, and to have reached, the other minimum, against a grid and brute force."""
    well, b = DoubleWell(1), 2**0.5
    time_, steps, n = 1.0, (100 if options.quick else 1000), (500 if options.quick else 20_000)
    process = Overdamped(well, noise=1.0)
    a = torch.tensor([-b], dtype=torch.float64)
    ends = {"noise": 1.0, "sigma0": (0.05, 0.15), "rng": Streams(0)}
    learned = DiagonalPath(a, -a, time_, components=3, **ends)  # paths cross early, in the middle or late
    learned = fit(process, learned, steps=20 if options.quick else 800, batch=256, rng=Streams(0), lr=5e-3, bar=False).path
    exact = Grid(process, (-3.0,), (3.0,), 0.01 if options.quick else 0.0025)
    rows = []
    for hit, word in ((False, "at the last time"), (True, "first hit")):

        def inside(x: Tensor) -> Tensor:
            return (x[:, 0] - b).abs() < 0.3

        times = clock_grid(time_, steps)
        got = probability(process, learned, inside, n, times, Streams(5), start=a, first_hit=hit)
        truth = exact.probability(a, inside, time_, 400, hit=hit)
        brute_n, brute_steps = (20_000, 100) if options.quick else (200_000, 400)
        share, error = brute(process, a, inside, brute_n, brute_steps, time_, hit)
        notes = {
            "estimate": got.value,
            "interval": [got.low, got.high],
            "quadrature": truth,
            "brute force": [share, error],
            "brute force, forces": brute_n * brute_steps,
            "forces": got.forces,
            "share of simulated paths in the set": got.hits,
            "effective paths": got.ess,
            "shape of the tail of the weights": got.tail,
            "truth lies in the interval": got.low <= truth <= got.high,
        }
        rows += [
            Row(
                f"double well, ball {word}: relative error against the grid",
                abs(got.value / truth - 1),
                got.error / truth,
                target=0.1,
                notes=notes,
            ),
            Row(
                f"double well, ball {word}: distance to brute force",
                abs(got.value - share) / math.hypot(got.error, error),
                unit="standard errors",
                target=3.0,
            ),
        ]
    return rows


def brute(process: Overdamped, start: Tensor, inside, n: int, steps: int, time_: float, hit: bool) -> tuple[float, float]:
    """Share of plain Euler paths in the set, and its standard error."""
    x, rng, h = start.expand(n, 1).clone(), Streams(77), time_ / steps
    met = torch.zeros(n, dtype=torch.bool)
    for _ in range(steps):
        x = x + h * process.drift(x) + math.sqrt(h) * rng.normal("noise", x)
        met = (met if hit else torch.zeros_like(met)) | inside(x)
    share = float(met.double().mean())
    return share, math.sqrt(max(share, 1 / n) * (1 - share) / n)


PARTS = {"bridges": bridges, "sampler": sampler, "underdamped": underdamped, "rare": rare}


def main(options: argparse.Namespace) -> list[Row]:
    """Measure Doob's Lagrangian against closed forms."""
    torch.manual_seed(0)
    rows = []
    for name in options.only:
        found = PARTS[name](options)
        for row in found:
            row.notes["part"] = name
        rows += found
    return rows


if __name__ == "__main__":
    run("doob_exact", main, parts=tuple(PARTS))
