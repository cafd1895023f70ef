"""Feynman-Kac correctors against exact answers.

One dimension: powers 1/2, 2, 3, guidance w = 2, geometric mean, product, power of a product, three experts and a reward, on stated Gaussian
mixtures; weighted Kolmogorov-Smirnov distance to the exact law (by quadrature), the same sampler without weights beside it, error of log Z.

How few levels: see ``step_accuracy``.

Sixty-four dimensions: kernel mixtures of even, prime and all handwritten digits; weights with Langevin kernels on their product, their geometric
mean and guidance. Exact draws come from rejection sampling (`popflow.compose.zoo.exact`); they are themselves held against self-normalised
importance sampling, whose proposal is wider and flatter and whose target is the experts' own log-densities. Distances: the largest
Kolmogorov-Smirnov distance over 16 fixed projections, and the total variation of the class masses that the digits classifier finds.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from harness import Row, run
from step_accuracy import LAST as END, steps_on_digits, steps_on_gmm40, steps_on_the_line
from torch import Tensor

from popflow.compose import Target, cfg, feynman_kac, gaussian_mixture, karras, sample, tilt
from popflow.compose.exponents import at
from popflow.compose.zoo import classifier, digits
from popflow.compose.zoo.exact import guided_draws, product_draws
from popflow.core import Streams
from popflow.core.metrics import kolmogorov_smirnov, kolmogorov_smirnov_to_cdf, total_variation


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


def one_dimension(options: argparse.Namespace) -> list[Row]:
    particles, steps, seeds = (128, 12, 1) if options.quick else (4096, 400, options.seeds)
    rows = []
    for name, (target, reward, zeta, half, log_z_bar, bar) in TARGETS.items():
        begin, sigmas = time.perf_counter(), karras(steps, 0.01, 20.0)
        grid, cdf, log_z = exact_law(target, reward, 0.0)
        ks, plain, errors, ess = [], [], [], []
        for seed in range(seeds):
            for correct, out in ((True, ks), (False, plain)):
                sampler = feynman_kac(target, zeta=zeta, correct=correct)
                result = sample(sampler, sigmas, particles=particles, rng=Streams(seed), dtype=torch.float64)
                out.append(float(kolmogorov_smirnov_to_cdf(result.x[0, :, 0], grid, cdf, result.population.weights()[0])))
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


LAST = 0.02
"""Last noise level in 64 dimensions; the truth is the target there: kernels of width ``sqrt(h^2 + LAST^2)``."""
WIDTH = math.sqrt(digits.BANDWIDTH**2 + LAST**2)


@dataclass(frozen=True)
class Composition:
    """A target on digits, exact draws of it, and the mixture ``sum_k exp(log_w_k) N(centre_k, width^2)`` near it that serves as a proposal."""

    target: Target
    draws: Callable[[int, Streams], Tensor]
    centres: Tensor
    log_w: Tensor
    width: float


def compositions() -> dict[str, Composition]:
    data = digits.training()
    even, prime, everything = (data.of(c).images for c in (digits.EVEN, digits.PRIME, digits.ALL))
    q_even, q_prime, q_all = (
        digits.kernel_expert(c, name=n) for c, n in ((digits.EVEN, "even"), (digits.PRIME, "prime"), (digits.ALL, "all"))
    )
    out = {}
    for name, power in (("product", 1.0), ("geometric mean", 0.5)):
        a, b = even.flatten(1).double(), prime.flatten(1).double()
        best = (-power * torch.cdist(a, b).square() / (4 * WIDTH**2)).flatten().topk(20000)
        pairs = (a[best.indices // len(b)] + b[best.indices % len(b)]) / 2

        def draws(n: int, rng: Streams, power: float = power) -> Tensor:
            return product_draws(even, prime, WIDTH, n, rng, powers=(power, power))

        out[name] = Composition(q_even**power * q_prime**power, draws, pairs, best.values / 2, 1.08 * WIDTH / math.sqrt(2 * power))
    outside = torch.where(torch.isin(data.labels, torch.tensor(digits.PRIME)), 0.0, math.log(0.2)).double()
    guided = Composition(
        cfg(q_all, q_prime, 2.0),
        lambda n, rng: guided_draws(everything, prime, WIDTH, 2.0, n, rng),
        everything.flatten(1).double(),
        outside,
        1.08 * WIDTH,
    )
    return {
        "product even prime": out["product"],
        "geometric mean even^.5 prime^.5": out["geometric mean"],
        "guidance all^-1 prime^2": guided,
    }


def class_masses(images: Tensor, weights: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        said = classifier.load()(images.float()).argmax(1)
    weights = torch.full((len(said),), 1 / len(said)) if weights is None else weights
    return torch.zeros(10, dtype=torch.float64).index_add_(0, said, weights.double())


def importance(case: Composition, n: int, rng: Streams) -> tuple[Tensor, Tensor]:
    """Samples and normalised weights for the target, from its proposal mixture; the target's density by the experts themselves."""
    which = torch.multinomial(case.log_w.softmax(0), n, replacement=True, generator=rng("exact"))
    x = case.centres[which] + case.width * rng.normal("exact", case.centres[which])
    parts = [case.log_w.log_softmax(0) - torch.cdist(rows, case.centres).square() / (2 * case.width**2) for rows in x.split(256)]
    log_proposal, images = torch.cat([each.logsumexp(1) for each in parts]), x.reshape(n, *digits.EVENT)
    log_target = sum(at(beta, LAST) * e.log_prob(images, LAST) for e, beta in case.target.factors if e.log_prob is not None)
    return images, (log_target - log_proposal).softmax(0)


def sixty_four_dimensions(options: argparse.Namespace) -> list[Row]:
    particles, steps, seeds, draws = (64, 6, 1, 128) if options.quick else (2048, 300, options.seeds, 16384)
    fixed = torch.randn(16, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    toward = (fixed / fixed.norm(dim=-1, keepdim=True)).T
    images = digits.training().images.flatten(1).double()
    samplers = {"weights and kernel": {"kernel_steps": 5}, "weights alone": {}, "kernel alone": {"correct": False, "kernel_steps": 5}}
    samplers["neither"] = {"correct": False}
    rows = []
    for name, case in compositions().items():
        begin, truth = time.perf_counter(), case.draws(draws, Streams(100))
        masses = class_masses(truth)

        def projected(x: Tensor) -> Tensor:
            return (x.double().flatten(1) @ toward).T

        def distances(x: Tensor, weights: Tensor | None, truth: Tensor = truth, masses: Tensor = masses) -> dict[str, float]:
            return {
                "KS": max(float(kolmogorov_smirnov(a, b, weights)) for a, b in zip(*map(projected, (x, truth)), strict=True)),
                "TV": float(total_variation(class_masses(x, weights), masses)),
                "distinct": len(torch.cdist(x.flatten(1).double(), images).argmin(1).unique()),
            }

        found: dict[str, list[dict[str, float]]] = {sampler: [] for sampler in samplers}
        for seed in range(seeds):
            for sampler, settings in samplers.items():
                sampler_of = feynman_kac(case.target, step_size=langevin_step, **settings)
                out = sample(sampler_of, karras(steps, LAST, 15.0), particles=particles, rng=Streams(seed))
                ess = out.trace["ess"][:, 0] / particles
                seen = {
                    "ESS at the end": float(ess[-1]),
                    "smallest ESS": float(ess.min()),
                    "ancestors": float(out.trace["ancestors"][-1, 0]),
                }
                found[sampler].append(distances(out.x[0], out.population.weights()[0]) | seen)
        exact = distances(case.draws(particles, Streams(200)), None)
        x, weights = importance(case, draws, Streams(300))
        independent = distances(x, weights)

        def mean(sampler: str, key: str, found: dict[str, list[dict[str, float]]] = found) -> float:
            return sum(one[key] for one in found[sampler]) / len(found[sampler])

        for key, what in (("KS", "largest KS over 16 projections"), ("TV", "total variation of class masses")):
            each = torch.tensor([one[key] for one in found["weights and kernel"]])
            peers = {s: mean(s, key) for s in list(samplers)[1:]} | {f"{particles} exact draws": exact[key]}
            peers["rejection against importance sampling"] = independent[key]
            error = float(each.std() / math.sqrt(seeds)) if seeds > 1 else None
            notes = {"particles": particles, "steps": steps, "each": found["weights and kernel"], "exact masses": masses.tolist()}
            rows.append(
                Row(f"64 dimensions, {name}: {what}", float(each.mean()), error, "", 0.10, "<=", peers, time.perf_counter() - begin, notes)
            )
        peers = {key: mean("weights and kernel", key) for key in ("ESS at the end", "smallest ESS", "ancestors")}
        peers |= {f"{s}, ancestors": mean(s, "ancestors") for s in ("weights alone",)}
        peers |= {f"{s}, images": mean(s, "distinct") for s in list(samplers)[1:]} | {"exact draws, images": float(exact["distinct"])}
        peers["share of effective importance samples"] = float(1 / weights.square().sum() / draws)
        claim = f"64 dimensions, {name}: distinct nearest training images (shown, no bar)"
        rows.append(Row(claim, mean("weights and kernel", "distinct"), None, "", None, "<=", peers))
    return rows


def langevin_step(sigma: float) -> float:
    """A tenth of the variance of the experts' kernels at a level, at most a tenth."""
    return 0.1 * min(sigma**2 + digits.BANDWIDTH**2, 1.0)


def nine_targets() -> dict[str, tuple[Target, float, tuple[Tensor, Tensor, float]]]:
    """Targets, noise scales (zeta^2 = 2 for powers above one) and laws."""
    every = {
        "product q1 q2": Q1 * Q2,
        "geometric mean q1^.5 q2^.5": Q1**0.5 * Q2**0.5,
        "guidance q1^-1 q2^2": cfg(Q1, Q2, 2.0),
        "guidance q1^-3 q2^4": cfg(Q1, Q2, 4.0),
        "q^2": Q**2.0,
        "q^3": Q**3.0,
        "unlike powers q1^1.7 q2^.6": Q1**1.7 * Q2**0.6,
        "quotient q1^2 q2^-.5": Q1**2.0 / Q2**0.5,
        "three experts q^.5 q1^.8 q2^.4": Q**0.5 * Q1**0.8 * Q2**0.4,
    }
    return {name: (target, 2**0.5 if len(target.experts) == 1 else 1.0, exact_law(target, None, END)) for name, target in every.items()}


PARTS = {
    "line": one_dimension,
    "digits": sixty_four_dimensions,
    "steps on the line": lambda options: steps_on_the_line(nine_targets(), options),
    "steps on digits": steps_on_digits,
    "steps on GMM-40": steps_on_gmm40,
}


def main(options: argparse.Namespace) -> list[Row]:
    """Feynman-Kac correctors against exact answers in 1 and 64 dimensions, and in how few levels."""
    rows = []
    for name in options.only:
        rows += [replace(row, notes={**row.notes, "part": name}) for row in PARTS[name](options)]
    return rows


if __name__ == "__main__":
    run("corrector", main, seeds=4, parts=tuple(PARTS))
