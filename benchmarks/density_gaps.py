"""True gaps between the log-densities of experts of unequal widths that AND is to keep equal; rows of `density.py`.

The tracked gap is zero in every form of AND. The true one, by the experts' exact densities at the last level, shows what the tracking is worth: the published form
(Euler's kernels, Ito sum), Bayes' rule with a table of widths, and with the curvature of each expert at each particle.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import torch
from harness import Row
from torch import Tensor

from popflow.compose import Expert, both, gaussian_mixture, karras, kernel_mixture, sample
from popflow.compose.superposition import Kernel
from popflow.compose.zoo import digits
from popflow.core import Streams

F64 = torch.float64
NAMES: dict[Kernel, str] = {"curvature": "curvature of each particle", "optimal": "table", "euler": "published"}


def true_gaps(experts: Sequence[Expert], grid: Tensor, particles: int, kind: Kernel, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``log q_i - log q_1`` at the end, ``[particles, M - 1]``, and the samples."""
    x = sample(both(experts, variance=kind), grid, particles=particles, rng=Streams(seed), dtype=F64).x[0]
    log_q = torch.stack([e.log_prob(x, float(grid[-1])) for e in experts if e.log_prob is not None], -1)
    return log_q[:, 1:] - log_q[:, :1], x


def compared(claim: str, experts: Sequence[Expert], grid: Tensor, particles: int, bars: tuple[float | None, float | None]) -> list[Row]:
    """Rows of the true gap per particle: largest mean and largest standard deviation over pairs; other forms beside them."""
    begin, found = time.perf_counter(), {kind: true_gaps(experts, grid, particles, kind)[0] for kind in NAMES}
    mean = {kind: float(gap.mean(0).abs().max()) for kind, gap in found.items()}
    spread = {kind: float(gap.std(0).max()) for kind, gap in found.items()}
    seconds, error = time.perf_counter() - begin, spread["curvature"] / particles**0.5
    others = [kind for kind in NAMES if kind != "curvature"]
    return [
        Row(f"{claim}: |mean true gap|", mean["curvature"], error, "nats", bars[0], "<=", {NAMES[k]: mean[k] for k in others}, seconds),
        Row(f"{claim}: its standard deviation", spread["curvature"], None, "nats", bars[1], "<=", {NAMES[k]: spread[k] for k in others}),
    ]


def gaussians(dim: int) -> list[Expert]:
    """Widths .3 and 1.5, means at distance 1."""
    means = torch.eye(1, dim, dtype=F64)
    return [gaussian_mixture(0 * means, 0.3, name="narrow"), gaussian_mixture(means, 1.5, name="wide")]


MIXTURES = {
    "widths (.3, .5), (1.2, .8)": ((0.3, 0.5), (1.2, 0.8)),
    "widths (.4, .6, .5), (1, 1.5)": ((0.4, 0.6, 0.5), (1.0, 1.5)),
    "widths (.3, .5), (1.2, .8), (.6, .9)": ((0.3, 0.5), (1.2, 0.8), (0.6, 0.9)),
    "widths (.4, .7, .5), (1, 1.5), (.8, .3)": ((0.4, 0.7, 0.5), (1.0, 1.5), (0.8, 0.3)),
}
"""Name -> standard deviations of the components of each expert."""


def mixtures(widths: Sequence[Sequence[float]], dim: int, seed: int) -> list[Expert]:
    """Means are standard normal."""
    rng = torch.Generator().manual_seed(seed)
    return [gaussian_mixture(torch.randn(len(w), dim, generator=rng, dtype=F64), torch.tensor(w, dtype=F64)) for w in widths]


def images(widths: tuple[float, float]) -> list[Expert]:
    """Kernel mixtures of even and of prime digits."""
    sets = (digits.training().of(classes).images.flatten(1).double() for classes in (digits.EVEN, digits.PRIME))
    return [kernel_mixture(data, width, name=name) for data, width, name in zip(sets, widths, ("even", "prime"), strict=True)]


def on_digits(quick: bool) -> list[Row]:
    """In 64 dimensions: experts of unequal and of equal widths, and how far the samples go."""
    particles, steps = (8, 6) if quick else (128, 600)
    grid, experts, begin, rows = karras(steps, 0.02, 15.0), images((0.3, 0.5)), time.perf_counter(), []
    found = {kind: true_gaps(experts, grid, particles, kind) for kind in NAMES}
    furthest = {kind: float(x.abs().max()) for kind, (_, x) in found.items()}
    lost = {f"{NAMES[kind]}: share beyond 3": float((x.abs().amax(1) > 3).double().mean()) for kind, (_, x) in found.items()}
    gap = {kind: gap[(x.abs().amax(1) <= 3)] for kind, (gap, x) in found.items()}  # of what is left
    shown = {NAMES[kind]: f"{float(one.mean()):.3f} ({float(one.std()):.3f})" for kind, one in gap.items() if kind != "curvature"}
    mean, spread, name = float(gap["curvature"].mean()), float(gap["curvature"].std()), f"AND on digits, widths .3 and .5, {steps} levels"
    rows.append(Row(f"{name}: |mean true gap|", abs(mean), spread / particles**0.5, "nats", 0.1, "<=", shown, time.perf_counter() - begin))
    rows.append(Row(f"{name}: its standard deviation", spread, None, "nats", 0.5, "<="))
    for kind in ("curvature", "optimal"):
        rows.append(
            Row(f"{name}: largest coordinate, {NAMES[kind]}", furthest[kind], None, "", 3.0, "<=", lost if kind == "curvature" else {})
        )
    return [*rows, at_shared_images(grid, particles)]


def at_shared_images(grid: Tensor, particles: int) -> Row:
    """Return the row of images that both experts hold, the 2s: at equal widths their scores agree there, and no move closes a gap.

    ``log q_even - log q_prime`` is then ``log(N_prime / N_even)``, the ratio of the weights of one image.
    """
    gap, x = true_gaps(images((0.3, 0.3)), grid, particles, "curvature")
    twos, others = (digits.training().of(c).images.flatten(1).double() for c in ((2,), (0, 3, 4, 5, 6, 7, 8)))
    at = torch.cdist(x, twos).amin(1) + 1.0 < torch.cdist(x, others).amin(1)  # at such an image, and nowhere near another class
    counts = [len(digits.training().of(classes).images) for classes in (digits.EVEN, digits.PRIME)]
    floor = abs(math.log(counts[1] / counts[0]))
    peers = {"log(N_even / N_prime)": floor, "share of samples there": float(at.double().mean()), "mean gap there": float(gap[at].mean())}
    peers |= {"mean gap elsewhere": float(gap[~at].mean()), "its standard deviation": float(gap[~at].std())}
    return Row(
        "AND on digits, equal widths: median |true gap| at images that both hold",
        float(gap[at].abs().median()),
        None,
        "nats",
        None,
        "<=",
        peers,
    )


def gaps(options: argparse.Namespace) -> list[Row]:
    """Rows of Gaussians, mixtures and digits."""
    quick, rows = options.quick, []
    for dim in (2,) if quick else (2, 16, 64):
        steps = 6 if quick else 50
        claim = f"AND of Gaussians of widths .3 and 1.5, {dim} dimensions, {steps} levels"
        rows += compared(claim, gaussians(dim), karras(steps, 0.02, 20.0), 16 if quick else 1000, (0.01, None))
    for dim, bar in ((2, 0.05),) if quick else ((2, 0.05), (16, 0.1)):
        for k, (name, widths) in enumerate(MIXTURES.items()):
            claim = f"AND of {len(widths)} mixtures, {name}, {dim} dimensions, {6 if quick else 200} levels"
            experts, grid = mixtures(widths, dim, 100 + k), karras(6 if quick else 200, 0.02, 20.0)
            rows += compared(claim, experts, grid, 16 if quick else 500, (bar, 0.3))
    return rows + on_digits(quick)
