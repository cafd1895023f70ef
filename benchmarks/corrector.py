"""Feynman-Kac correctors against exact answers.

One dimension: powers 1/2, 2, 3, guidance w = 2, geometric mean, product, power of a product, three experts and a reward, on stated Gaussian
mixtures; weighted Kolmogorov-Smirnov distance to the exact law (by quadrature), the same sampler without weights beside it, error of log Z.

Sixty-four dimensions: kernel mixtures of handwritten digits, whose products are kernel mixtures again and can be drawn from exactly.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import Row, run
from torch import Tensor

from popflow.compose import Target, cfg, feynman_kac, gaussian_mixture, karras, sample, tilt
from popflow.core import Streams


def mixture(weights: list[float], means: list[float], stds: list[float], name: str):
    m = torch.tensor(means, dtype=torch.float64).unsqueeze(1)
    return gaussian_mixture(m, torch.tensor(stds, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64), name=name)


Q = mixture([0.3, 0.7], [-2.0, 1.5], [0.8, 0.4], "q")
Q1 = mixture([0.5, 0.5], [-1.0, 2.0], [1.0, 0.7], "q1")
Q2 = mixture([0.3, 0.7], [0.0, 2.5], [0.6, 0.8], "q2")


DENSITIES = {e.name: e.log_prob for e in (Q, Q1, Q2)}
# the same density without its closed form: densities have to be tracked along the path
BLIND = replace(Q, log_prob=None, name="q")


def bump(y: Tensor) -> Tensor:
    return -(y[:, 0] - 1).square() / 0.5


def ramp(sigma: float) -> float:
    """Exponent from 1 at large noise to 3 at none."""
    return 1 + 2 / (1 + sigma**2)


# name -> target, its law at sigma = 0, zeta, whether the bar "half of the unweighted" and "log Z" apply, KS bar
TARGETS: dict[str, tuple[Target, Callable[[Tensor], Tensor] | None, float, bool, bool, float]] = {
    "q^(1/2)": (Q**0.5, None, 2**0.5, False, False, 0.05),
    "q^2": (Q**2.0, None, 2**0.5, False, False, 0.05),
    "q^3": (Q**3.0, None, 2**0.5, False, False, 0.05),
    "q^3 by a ramp of beta, tracked densities": (BLIND**ramp, None, 1.0, False, False, 0.03),
    "guidance q1^-1 q2^2": (cfg(Q1, Q2, 2.0), None, 1.0, True, True, 0.05),
    "geometric mean q1^.5 q2^.5": (Q1**0.5 * Q2**0.5, None, 1.0, True, True, 0.05),
    "product q1 q2": (Q1 * Q2, None, 1.0, True, False, 0.05),
    "power of a product (q1 q2)^2": ((Q1 * Q2) ** 2.0, None, 2**0.5, False, False, 0.05),
    "three experts q^.5 q1^.8 q2^.4": (Q**0.5 * Q1**0.8 * Q2**0.4, None, 1.0, False, False, 0.05),
    "reward q exp(-(x-1)^2/.5)": (tilt(Q, bump), bump, 1.0, False, True, 0.05),
}


def exact_law(target: Target, reward: Callable[[Tensor], Tensor] | None, sigma: float) -> tuple[Tensor, Tensor, float]:
    """Grid, cumulative distribution and log Z of a one-dimensional target."""
    x = torch.linspace(-14, 14, 28001, dtype=torch.float64).unsqueeze(1)
    log_p = sum(b * DENSITIES[e.name](x, sigma) for e, b in zip(target.experts, target.exponents(sigma), strict=True))
    if reward is not None:
        log_p = log_p + reward(x)
    mass = (log_p - log_p.max()).exp()
    cdf = torch.cumulative_trapezoid(mass, x[:, 0])
    log_z = float(cdf[-1].log() + log_p.max())
    return x[:, 0], torch.cat([cdf.new_zeros(1), cdf]) / cdf[-1], log_z


def ks_to(x: Tensor, weights: Tensor, grid: Tensor, cdf: Tensor) -> float:
    order = x.argsort()
    x, cumulative = x[order], weights[order].cumsum(0)
    low = torch.searchsorted(grid, x).clamp(1, len(grid) - 1)
    share = ((x - grid[low - 1]) / (grid[low] - grid[low - 1])).clamp(0, 1)
    truth = torch.lerp(cdf[low - 1], cdf[low], share)
    return float(torch.maximum((cumulative - truth).abs(), (cumulative - weights[order] - truth).abs()).max())


def one_dimension(options: argparse.Namespace) -> list[Row]:
    particles, steps, seeds = (512, 50, 1) if options.quick else (4096, 400, options.seeds)
    rows = []
    for name, (target, reward, zeta, half, log_z_bar, bar) in TARGETS.items():
        begin, sigmas = time.perf_counter(), karras(steps, 0.01, 20.0)
        grid, cdf, log_z = exact_law(target, reward, 0.0)
        ks, plain, errors, ess = [], [], [], []
        for seed in range(seeds):
            for correct, out in ((True, ks), (False, plain)):
                sampler = feynman_kac(target, zeta=zeta, correct=correct)
                result = sample(sampler, sigmas, particles=particles, rng=Streams(seed), dtype=torch.float64)
                out.append(ks_to(result.x[0, :, 0], result.population.weights()[0], grid, cdf))
                if correct:
                    errors.append(float(result.population.log_normalizer()) - log_z)
                    ess.append(float(result.trace["ess"].min()))
        mean, off = sum(ks) / seeds, sum(plain) / seeds
        error = float(torch.tensor(ks).std() / math.sqrt(seeds)) if seeds > 1 else None
        notes = {"zeta": zeta, "particles": particles, "steps": steps, "seeds": seeds, "each": ks, "log_z": log_z, "smallest_ess": min(ess)}
        seconds = time.perf_counter() - begin
        rows.append(Row(f"{name}: KS", mean, error, "", bar, "<=", {"without weights": off}, seconds, notes))
        rows.append(Row(f"{name}: KS over the unweighted sampler's", mean / off, None, "", 0.5 if half else 1.0, "<="))
        if log_z_bar:
            wrong = sum(errors) / seeds
            rows.append(Row(f"{name}: |error of log Z|", abs(wrong), None, "", 0.05, "<=", {"exact log Z": log_z}, 0.0, {"each": errors}))
        else:
            rows.append(Row(f"{name}: error of log Z (shown, no bar)", sum(errors) / seeds, None, "", None, "<=", {"exact log Z": log_z}))
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """Feynman-Kac correctors against exact answers in 1 and 64 dimensions."""
    return one_dimension(options)


if __name__ == "__main__":
    run("corrector", main, seeds=4)
