"""How few levels: the backward kernels of Feynman-Kac correctors side by side (rows of ``corrector.py``).

Each kernel of `popflow.compose.backward_kernel` runs in the same sampler with the same random numbers: the optimal one (denoising losses, the default), Euler-Maruyama, the
posterior of a point, and the local one (a divergence at each particle, counted as a second network call). Nine one-dimensional targets against quadrature; the product of even and
prime digits in 64 dimensions against the closed form of its log Z and against exact draws; GMM-40 cubed against quadrature.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from annealing import BETA, LEVELS, WIDTHS, gmm40, gmm40_law
from harness import Row

from popflow.compose import Target, feynman_kac, gaussian_mixture, geometric, karras, sample
from popflow.compose.zoo import even_prime
from popflow.core import Streams
from popflow.core.metrics import kolmogorov_smirnov_to_cdf, total_variation

Law = tuple[torch.Tensor, torch.Tensor, float]
"""Grid, cumulative distribution and log Z."""
SHORT = (30, 50, 100)
FIRST, LAST = 25.0, 0.02


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def steps_on_the_line(targets: dict[str, tuple[Target, float, Law]], options: argparse.Namespace) -> list[Row]:
    """Rows of the nine targets; each is ``name -> (target, zeta, law)``."""
    particles, seeds, shorts = (128, 1, (6, 8, 10)) if options.quick else (4096, 6, SHORT)
    wanted = [(kind, steps) for kind in ("optimal", "euler", "posterior") for steps in shorts]
    wanted += [("local", shorts[1]), ("euler", 3 * shorts[1])]
    errors: dict[tuple[str, int], list[float]] = {one: [] for one in wanted}
    rows, better = [], []
    for name, (target, zeta, (grid, cdf, log_z)) in targets.items():
        begin, ks, off = time.perf_counter(), {}, {}
        for kind, steps in wanted:
            each = []
            for seed in range(seeds):
                sampler = feynman_kac(target, zeta=zeta, variance=kind)
                out = sample(sampler, karras(steps, LAST, FIRST), particles=particles, rng=Streams(seed), dtype=torch.float64)
                far = float(kolmogorov_smirnov_to_cdf(out.x[0, :, 0], grid, cdf, out.population.weights()[0]))
                each.append((far, float(out.population.log_normalizer()) - log_z))
            ks[kind, steps], off[kind, steps] = mean([one[0] for one in each]), mean([one[1] for one in each])
            errors[kind, steps].append(off[kind, steps])
        calls = {steps: steps * len(target.experts) for steps in shorts}
        notes = {"zeta": zeta, "particles": particles, "seeds": seeds, "KS": _plain(ks), "log Z": _plain(off), "network calls": calls}
        for steps in shorts:
            claim = f"{name}, {steps} levels, {calls[steps]} network calls: KS"
            peers = {kind: ks[kind, steps] for kind in ("euler", "posterior")}
            bar = 0.10 if steps == shorts[0] else None
            rows.append(Row(claim, ks["optimal", steps], None, "", bar, "<=", peers, time.perf_counter() - begin, notes))
            peers = {kind: off[kind, steps] for kind in ("euler", "posterior")}
            rows.append(Row(claim.replace(": KS", ": error of log Z (shown)"), off["optimal", steps], None, "", None, "<=", peers))
        rows.append(
            Row(f"{name}, {shorts[0]} levels: KS over Euler's", ks["optimal", shorts[0]] / ks["euler", shorts[0]], None, "", 1.0, "<=")
        )
        few, many = ks["local", shorts[1]], ks["euler", 3 * shorts[1]]
        better.append(few <= many)
        claim = f"{name}, local kernel, {shorts[1]} levels, {2 * calls[shorts[1]]} network calls: KS (shown)"
        peers = {f"euler, {3 * shorts[1]} levels": many, "error of log Z": off["local", shorts[1]]}
        rows.append(Row(claim, few, None, "", None, "<=", peers))
    for steps in (shorts[0], shorts[2]):
        size = {kind: mean([abs(one) for one in errors[kind, steps]]) for kind in ("optimal", "euler", "posterior")}
        claim = f"nine targets, {steps} levels: mean |error of log Z| over Euler's"
        rows.append(Row(claim, size["optimal"] / size["euler"], None, "", 0.4, "<=", size))
    claim = f"targets of nine whose KS with the local kernel at {shorts[1]} levels is at most Euler's at {3 * shorts[1]}"
    rows.append(Row(claim, float(sum(better)), None, "", 5.0, ">="))
    return rows


def steps_on_digits(options: argparse.Namespace) -> list[Row]:
    """The product of the exact experts in 64 dimensions with five Langevin steps a level."""
    particles, seeds, shorts, few = (32, 1, (4,), 5) if options.quick else (512, 2, (75, 150, 300), 100)
    known, experts, rows = even_prime.truth(seeds, particles, LAST, Streams(100)), even_prime.exact_experts(), []
    for steps in sorted({*shorts, few}):
        seen = {}
        for kind in ("optimal", "euler"):
            begin, levels = time.perf_counter(), karras(steps, LAST, 15.0)
            sampler = feynman_kac(experts[0] * experts[1], kernel_steps=5, step_size=even_prime.step_size, variance=kind)
            each = [sample(sampler, levels, particles=particles, rng=Streams(seed)) for seed in range(seeds)]
            log_z = float(even_prime.log_normalizer(levels[-1:])[0])
            rng = Streams(7)
            judged = even_prime.judge(torch.cat([one.draw(particles, rng) for one in each]), known)
            seen[kind] = {
                "log Z": mean([float(one.population.log_normalizer()[0]) - log_z for one in each]),
                "MMD2": float(judged.mmd2.mean()),
                "distinct": float(judged.distinct.mean()),
                "share": float(judged.share.mean()),
                "seconds": time.perf_counter() - begin,
            }
        calls = steps * 2 * 6
        name, ours, euler = f"64 dimensions, product even prime, {steps} levels, {calls} network calls", seen["optimal"], seen["euler"]
        notes = {"particles": particles, "seeds": seeds, "all": seen}
        bar = 1.5 if steps in shorts else None
        rows.append(
            Row(f"{name}: |error of log Z|", abs(ours["log Z"]), None, "nats", bar, "<=", {"euler": euler["log Z"]}, ours["seconds"], notes)
        )
        bar = 7e-3 if steps == few else None
        rows.append(Row(f"{name}: MMD²", ours["MMD2"], None, "", bar, "<=", {"euler": euler["MMD2"]}))
        bar = 60.0 if steps == few else None
        rows.append(Row(f"{name}: distinct 2s of 86", ours["distinct"], None, "", bar, ">=", {"euler": euler["distinct"]}))
    return rows


def steps_on_gmm40(options: argparse.Namespace) -> list[Row]:
    """GMM-40 cubed at a fifth of the levels of ``annealing.py``."""
    particles, steps, seeds = (200, 10, 1) if options.quick else (10_000, 100, 4)
    means, rows = gmm40(), []
    for name, std in WIDTHS.items():
        masses, log_z, _ = gmm40_law(means, std, LEVELS[0])
        seen = {}
        for kind in ("optimal", "euler"):
            each = []
            for seed in range(seeds):
                sampler = feynman_kac(gaussian_mixture(means, std) ** BETA, zeta=2**0.5, variance=kind)
                grid = geometric(steps, *LEVELS)
                pop = sample(sampler, grid, particles=particles, rng=Streams(seed), dtype=torch.float64).population
                nearest = torch.cdist(pop.x[0], means).argmin(1)
                share = torch.zeros(40, dtype=torch.float64).index_add_(0, nearest, pop.weights()[0])
                each.append((float(total_variation(share, masses)), float(pop.log_normalizer()) - log_z))
            seen[kind] = [mean([one[k] for one in each]) for k in (0, 1)]
        claim, notes = f"GMM-40, std {name}, beta 3, zeta^2 = 2, {steps} levels and network calls", {"particles": particles, "seeds": seeds}
        rows.append(
            Row(
                f"{claim}: total variation of mode masses", seen["optimal"][0], None, "", 0.2, "<=", {"euler": seen["euler"][0]}, 0.0, notes
            )
        )
        rows.append(Row(f"{claim}: |error of log Z|", abs(seen["optimal"][1]), None, "", 0.5, "<=", {"euler": seen["euler"][1]}))
    return rows


def _plain(values: dict[tuple[str, int], float]) -> dict[str, float]:
    return {f"{kind} {steps}": value for (kind, steps), value in values.items()}
