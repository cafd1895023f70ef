"""Guidance paid for at sampling time: Feynman-Kac corrected guidance of K particles against plain guidance and guidance with Langevin steps.

The target is ``q_c^w q_u^{1-w}``, q_c a class of digits and q_u all of them, at noise level 0 (blurred by the last level). Of the exact experts (kernel
mixtures) it is drawn without error by rejection (`popflow.compose.zoo.exact.guided_draws`); the networks have learned the same images with the same
blur, and are held against the same draws. One image comes back from each run: of K particles one is drawn by its weights. Calls are evaluations of the
pair (conditional, unconditional) per image that comes back.

===================== =====================================================================
plain                 calls levels, one particle
with Langevin         32 levels, ``calls/32 - 1`` Langevin steps at each
FKC                   32 levels, K = calls/32 particles, weighed and resampled
FKC with Langevin     32 levels, one Langevin step at each, K = calls/64 particles
growing scale, plain  calls levels, w grows from 1 as the noise falls
growing scale, FKC    32 levels, K = calls/32, the same: another path to the same target
===================== =====================================================================

MMD squared: unbiased, Gaussian kernel as wide as the median distance of exact draws, class by class, then averaged; errors are standard errors over
classes and seeds. Variety: Vendi score of the images of a class under the same kernel. Agreement: share of images that the classifier takes for the
class asked for.

At the kernel width 0.3 of the shipped experts an image belongs to its class with a probability of nearly one and ``q_c^w q_u^{1-w}`` is nearly q_c,
whatever w: what plain guidance changes is error. *Wide kernels* (width 1) overlap: there guidance changes the target too. *Growth* is the log
weight that exact draws gain, of networks and of exact experts; *remedies* tries what the library offers where few particles cannot carry it.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from harness import Row, run
from torch import Tensor

from popflow.compose import Expert, cfg, feynman_kac, karras, kernel_mixture, sample, scores, zoo
from popflow.compose.backward_kernel import Variance, denoising_loss
from popflow.compose.zoo import classifier, digits
from popflow.compose.zoo.exact import guided_draws
from popflow.core import PopflowWarning, Streams
from popflow.core.metrics import vendi_score
from popflow.runs import Measured

LAST, FIRST = 0.1, 15.0
WIDE = 1.0
"""Width of kernels at which classes overlap."""
PLAIN, LANGEVIN, FKC, KERNEL = "plain", "with Langevin", "FKC", "FKC with Langevin"
GROWN, GROWN_FKC = "growing scale, plain", "growing scale, FKC"
SCALES = (1.5, 3.0, 6.0)
PARTICLES = (1, 2, 4, 8, 16)


def every_class(experts: Sequence[Expert]) -> Expert:
    """One expert of images whose first tenth is conditioned on the first class, and so on: all classes in one call."""
    first, count = experts[0], len(experts)
    given = [e.cond for e in experts if e.cond is not None]

    def model(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        if len(given) == count:
            return first.model(y, sigma, torch.stack(given).repeat_interleave(len(y) // count))
        return torch.cat([e.model(part, sigma, None) for e, part in zip(experts, y.chunk(count), strict=True)])

    def loss(sigma: float) -> float:
        return sum(denoising_loss(e, sigma) for e in experts) / count

    return Expert(model, first.event, name="class", loss=loss)


@cache
def exact_pair(width: float) -> tuple[Expert, Expert]:
    data = digits.training()
    parts = [kernel_mixture(data.of((c,)).images, width) for c in digits.ALL]
    return kernel_mixture(data.images, width, name="any"), every_class(parts)


@cache
def networks(width: float) -> tuple[Expert, Expert]:
    anything = zoo.load("digits-class")
    one_model = Expert(
        lambda y, sigma, cond: anything.model(y, sigma, torch.tensor(zoo.NO_CLASS).expand(len(y))),
        digits.EVENT,
        name="any",
        loss=anything.loss,
    )
    return one_model, every_class([anything.given(torch.tensor(c)) for c in digits.ALL])


@dataclass(frozen=True, eq=False)
class Truth:
    """Exact draws of the target of each class, and how wide the kernel is under which samples are held against them."""

    draws: Tensor  # [classes, n, 64]
    widths: Tensor  # [classes, 1, 1]
    own: Tensor  # [classes]: E k(y, y') of the draws

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Gaussian kernel of each class, ``[classes, n, m]``."""
        return (-torch.cdist(x.double(), y.double()).square() / (2 * self.widths**2)).exp()

    def mmd2(self, x: Tensor) -> Tensor:
        """`popflow.core.metrics.mmd2`, unbiased, of ``x [classes, n, 64]``, with the truth's own term computed once; ``[classes]``."""
        return self.own + pairs(self.kernel(x, x)) - 2 * self.kernel(x, self.draws).mean((1, 2))

    def variety(self, x: Tensor) -> Tensor:
        """Vendi score of the images of each class."""
        return torch.stack([vendi_score(k) for k in self.kernel(x, x)])


def pairs(kernel: Tensor) -> Tensor:
    """Mean over pairs of unlike samples."""
    n = kernel.shape[-1]
    return (kernel.sum((-2, -1)) - n) / (n * (n - 1))


def exact(width: float, w: float, n: int, seed: int) -> Tensor:
    """Exact draws ``[classes, n, 64]``."""
    data, blur = digits.training(), math.hypot(width, LAST)
    each = [guided_draws(data.images, data.of((c,)).images, blur, w, n, Streams(100 * seed + c)) for c in digits.ALL]
    return torch.stack(each).flatten(2)


@cache
def truth(width: float, w: float, n: int) -> Truth:
    draws = exact(width, w, n, 99)
    widths = torch.stack([torch.pdist(one[:400].double()).median() for one in draws]).reshape(-1, 1, 1)
    empty = Truth(draws, widths, torch.zeros(len(draws)))
    return Truth(draws, widths, pairs(empty.kernel(draws, draws)))


@dataclass(frozen=True)
class Setting:
    """How many levels, particles and Langevin steps a method takes, and other settings of `feynman_kac`."""

    levels: int
    particles: int = 1
    kernel_steps: int = 0
    correct: bool = False
    ramp: bool = False
    zeta: float = 1.0
    ess_below: float = 0.5
    window: tuple[float, float] = (0.0, math.inf)
    clip: float | None = None
    variance: Variance = "optimal"

    @property
    def calls(self) -> int:
        """Evaluations of the pair per image."""
        return self.levels * self.particles * (1 + self.kernel_steps)


def at_calls(calls: int, levels: int) -> dict[str, Setting]:
    """Every method at this many calls of the pair per image; weights need two particles."""
    out, many = {PLAIN: Setting(calls), GROWN: Setting(calls, ramp=True)}, calls // levels
    if many > 1:
        out[LANGEVIN] = Setting(levels, 1, many - 1)
        out[FKC] = Setting(levels, many, correct=True)
        out[GROWN_FKC] = Setting(levels, many, correct=True, ramp=True)
    if many > 2:
        out[KERNEL] = Setting(levels, many // 2, 1, correct=True)
    assert all(one.calls == calls for one in out.values())
    return out


def grown(w: float) -> Callable[[float], float]:
    """Scale that is 1 while the noise hides the images and w where it does not: ``1 + (w - 1) / (1 + sigma^4)``."""
    return lambda sigma: 1 + (w - 1) / (1 + sigma**4)


@dataclass(frozen=True)
class Seen:
    """Figures of each class and seed ``[seeds * classes]``, and over all runs."""

    mmd2: Tensor
    agreement: Tensor
    variety: Tensor
    ess: float
    ancestors: float


def joined(found: Sequence[dict[str, Tensor]], ess: float, ancestors: float) -> Seen:
    mmd2, agreement, variety = (torch.cat([one[key] for one in found]) for key in ("mmd2", "agreement", "variety"))
    return Seen(mmd2, agreement, variety, ess, ancestors)


def judged(x: Tensor, known: Truth) -> dict[str, Tensor]:
    with torch.no_grad():
        said = classifier.load()(x.reshape(-1, *digits.EVENT).float()).argmax(1).reshape(x.shape[:2])
    agreement = (said == torch.arange(len(x)).unsqueeze(1)).double().mean(1)
    return {"mmd2": known.mmd2(x), "agreement": agreement, "variety": known.variety(x)}


def measure(pair: tuple[Expert, Expert], w: float, setting: Setting, known: Truth, images: int, seeds: int, width: float) -> Seen:
    """Sample ``images`` of each class and seed, and judge them."""
    unconditional, conditional = pair
    sampler = feynman_kac(
        cfg(unconditional, conditional, grown(w) if setting.ramp else w),
        correct=setting.correct,
        kernel_steps=setting.kernel_steps,
        step_size=lambda sigma: 0.1 * (sigma**2 + width**2),
        zeta=setting.zeta,
        ess_below=setting.ess_below,
        window=setting.window,
        clip=setting.clip,
        variance=setting.variance,
    )
    sampler = replace(sampler, variance=None)  # a look at few rows would mix up the classes, which lie in equal parts of all of them
    found: list[dict[str, Tensor]] = []
    ess, ancestors = [], []
    for seed in range(seeds):
        rng, runs = Streams(seed), images * len(digits.ALL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PopflowWarning)  # effective sample sizes below two are part of what is measured
            out = sample(sampler, karras(setting.levels, LAST, FIRST), particles=setting.particles, runs=runs, rng=rng)
        found.append(judged(out.pick(rng).reshape(len(digits.ALL), images, -1), known))
        ess.append(float(out.trace["ess"].mean()) / setting.particles)
        ancestors.append(float(out.trace["ancestors"][-1].double().mean()))
    return joined(found, sum(ess) / seeds, sum(ancestors) / seeds)


def exact_seen(known: Truth, width: float, w: float, images: int, seeds: int) -> Seen:
    """As many exact draws: the floor."""
    return joined([judged(exact(width, w, images, seed), known) for seed in range(seeds)], 1.0, 1.0)


def measured(values: Tensor, scale: float = 1.0) -> Measured:
    """Mean and standard error over classes and seeds."""
    return Measured(float(values.mean()) * scale, float(values.std() / math.sqrt(len(values))) * scale)


@dataclass(frozen=True)
class Sizes:
    """How much is sampled."""

    images: int
    seeds: int
    reference: int
    particles: tuple[int, ...]
    levels: int = 32


def curve(kind: str, pair: tuple[Expert, Expert], width: float, w: float, sizes: Sizes) -> list[Row]:
    """Every method at every number of calls: the bars where w is at least 3, and the curve."""
    begin, known = time.perf_counter(), truth(width, w, sizes.reference)
    floor = exact_seen(known, width, w, sizes.images, sizes.seeds)
    seen: dict[str, dict[int, Seen]] = {}
    for calls in (k * sizes.levels for k in sizes.particles):
        for name, setting in at_calls(calls, sizes.levels).items():
            seen.setdefault(name, {})[calls] = measure(pair, w, setting, known, sizes.images, sizes.seeds, width)
    where, most, rows = f"{kind}, w = {w:g}", sizes.levels * max(sizes.particles), []
    for name in (FKC, KERNEL, GROWN_FKC) if w >= 3 else ():
        gaps = {peer: torch.stack([one.mmd2 - seen[peer][c].mmd2 for c, one in seen[name].items()]) for peer in (PLAIN, LANGEVIN)}
        worst = max(gaps, key=lambda peer: float(gaps[peer].mean()))
        value = measured(gaps[worst].mean(0), 1e3)
        beside: dict[str, float | str] = {f"less that of guidance {peer}": str(measured(gap.mean(0), 1e3)) for peer, gap in gaps.items()}
        beside |= {f"{worst}, {c} calls": str(measured(one, 1e3)) for c, one in zip(seen[name], gaps[worst], strict=True)}
        claim = f"{where}: MMD² of {name} less that of guidance {worst} (the better peer), mean over equal calls"
        rows.append(Row(claim, value.value, value.error, "1e-3", 0.0, "<=", beside))
    some = sizes.levels * sizes.particles[len(sizes.particles) // 2]
    shown = [("mmd2", "MMD²", 1e3, "1e-3", at) for at in sorted({some, most})]
    shown += [("agreement", "class agreement", 1.0, "", most), ("variety", "variety", 1.0, "unlike images", most)]
    for key, claim, scale, unit, at in shown:
        every = {name: measured(getattr(row[at], key), scale) for name, row in seen.items() if at in row}
        peers: dict[str, float | str] = {name: str(value) for name, value in every.items()}
        peers["exact draws"] = str(measured(getattr(floor, key), scale))
        one, direction = every[KERNEL], "<=" if key == "mmd2" else ">="
        rows.append(Row(f"{where}: {claim} at {at} calls, {KERNEL} (shown)", one.value, one.error, unit, None, direction, peers))
    last = {name: row[most] for name, row in seen.items()}
    weighted = {f"{name}, {what}": getattr(last[name], what) for name in (FKC, KERNEL, GROWN_FKC) for what in ("ess", "ancestors")}
    rows.append(Row(f"{where}: ancestors left at {most} calls, {KERNEL} (shown)", last[KERNEL].ancestors, None, "", None, ">=", weighted))
    rows[0].seconds = time.perf_counter() - begin
    rows[0].notes = {
        "images of each class and seed": sizes.images,
        "seeds": sizes.seeds,
        "curves": {name: {c: figures(one) for c, one in row.items()} for name, row in seen.items()},
        "exact draws": figures(floor),
    }
    return rows


def figures(one: Seen) -> dict[str, float]:
    """What the figure of the documentation is drawn from."""
    mmd2, agreement, variety = (measured(value) for value in (one.mmd2, one.agreement, one.variety))
    return {
        "mmd2": mmd2.value,
        "error": mmd2.error or 0.0,
        "agreement": agreement.value,
        "variety": variety.value,
        "ess": one.ess,
        "ancestors": one.ancestors,
    }


def growth(sizes: Sizes) -> list[Row]:
    """Log weight that exact draws of the classes gain at w = 6 as the noise falls, ``int w (w-1)/2 |s_c - s_u|^2 dv``, median over images.

    Below sigma = 1 a digit shows its class, ``s_c = s_u`` and weights should stand still: what networks add there is error.
    """
    w, images = SCALES[-1], 2 * sizes.images
    clean = exact(digits.BANDWIDTH, w, images, 99).reshape(-1, *digits.EVENT)
    gained: dict[str, Tensor] = {}
    levels = karras(sizes.levels, LAST, FIRST)
    for kind, pair in (("exact experts", exact_pair(digits.BANDWIDTH)), ("networks", networks(digits.BANDWIDTH))):
        rng, steps = Streams(5), []
        for sigma, lower in pairwise(levels.tolist()):
            s_u, s_c = scores(pair, clean + math.sqrt(sigma**2 - LAST**2) * rng.normal("noise", clean), sigma)
            steps.append(w * (w - 1) / 2 * (sigma**2 - lower**2) * (s_c - s_u).square().flatten(1).sum(1))
        gained[kind] = torch.stack(steps)
    rows = []
    for where, inside in (("above sigma = 1", levels[:-1] > 1), ("below sigma = 1", levels[:-1] <= 1)):
        median = {kind: float(one[inside].sum(0).median()) for kind, one in gained.items()}
        claim = f"log weight gained {where} by networks, w = {w:g} (shown)"
        rows.append(Row(claim, median["networks"], None, "nats", None, "<=", {"exact experts": median["exact experts"]}))
    return rows


def remedies(sizes: Sizes) -> list[Row]:
    """What else can be done with the most calls at the largest scale, by exact experts and by networks."""
    w, width, calls = SCALES[-1], digits.BANDWIDTH, sizes.levels * max(sizes.particles)
    known, base, few = truth(width, w, sizes.reference), at_calls(calls, sizes.levels), calls // sizes.levels // 2
    tried = {
        **base,
        "weights above sigma = 1, with Langevin": replace(base[KERNEL], window=(1.0, math.inf)),
        "weights above sigma = 2, with Langevin": replace(base[KERNEL], window=(2.0, math.inf)),
        "clipped to 0.3 nats a step, with Langevin": replace(base[KERNEL], clip=0.3),
        "resampled at every level, with Langevin": replace(base[KERNEL], ess_below=1.0),
        "zeta = 2": replace(base[FKC], zeta=2.0),
        "half of the particles and three Langevin steps": Setting(sizes.levels, few // 2, 3, correct=True),
        "twice the levels, with Langevin": Setting(2 * sizes.levels, few // 2, 1, correct=True),
    }
    rows = []
    for kind, pair in (("exact experts", exact_pair(width)), ("networks", networks(width))):
        for name, setting in tried.items():
            one = measure(pair, w, setting, known, sizes.images, sizes.seeds, width)
            mmd2, agreement, variety = measured(one.mmd2, 1e3), measured(one.agreement), measured(one.variety)
            peers = {"class agreement": str(agreement), "variety": str(variety), "ess": one.ess, "ancestors": one.ancestors}
            rows.append(Row(f"{kind}, w = {w:g}, {calls} calls: MMD² of {name} (shown)", mmd2.value, mmd2.error, "1e-3", None, "<=", peers))
    return rows


KINDS = {"exact experts": (exact_pair, digits.BANDWIDTH), "networks": (networks, digits.BANDWIDTH), "wide kernels": (exact_pair, WIDE)}
OTHERS = {"growth": growth, "remedies": remedies}
PARTS = {f"{kind}, w={w:g}": (kind, w) for kind in KINDS for w in SCALES}


def main(options: argparse.Namespace) -> list[Row]:
    """Guidance by weighted particles against plain guidance and Langevin steps, at equal network calls."""
    sizes = Sizes(2, 1, 20, (4,), levels=4) if options.quick else Sizes(16, options.seeds, 2000, PARTICLES)
    rows = []
    for part in options.only:
        if options.quick and part in PARTS and PARTS[part][1] != 3:
            continue
        if part in OTHERS:
            rows += OTHERS[part](sizes)
        else:
            kind, w = PARTS[part]
            make, width = KINDS[kind]
            rows += curve(kind, make(width), width, w, sizes)
    return rows


if __name__ == "__main__":
    run("guidance", main, seeds=3, parts=(*PARTS, *OTHERS))
