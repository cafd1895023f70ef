"""Even and prime digits: a composition whose answer is known, and how its samples are judged.

2 is the only even prime. For the exact experts (kernel mixtures of training images), exact draws from the product and from the mixture are
available too. Samples are compared with them by class, by distance (MMD) and by variety.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from popflow.compose.feynman_kac import feynman_kac
from popflow.compose.sampler import Sampler
from popflow.compose.target import Expert, scores
from popflow.compose.zoo import digits
from popflow.compose.zoo.classifier import share
from popflow.compose.zoo.exact import mixture_draws, product_draws
from popflow.core import Streams
from popflow.core.metrics import mmd2

EXACT, TRAINED = "exact experts", "trained networks"
NAIVE, LANGEVIN, BEST, AND, OR = "sum of scores", "Langevin alone", "FKC + Langevin", "SuperDiff AND", "SuperDiff OR"
DRAWS = 512
"""Number of exact draws that distances are measured from."""
SHOWN = 16
"""Number of images of a sampler in a figure."""


@dataclass(frozen=True)
class Outcome:
    """What a sampler made: ``x [runs, particles, 1, 8, 8]`` without weights, and traces ``[steps + 1, runs]``."""

    x: Tensor
    evaluations: int
    sigma: Tensor
    ess: Tensor
    log_z: Tensor
    ancestors: Tensor


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known in advance.

    Attributes:
        product: Exact draws from the product of the exact experts, ``[runs, particles, 1, 8, 8]``.
        mixture: Exact draws from their mixture in equal shares, of the same shape.
        reference: Further exact draws of the product, ``[512, 64]``, that distances are measured from.
        twos: Training images of the answer, ``[n, 1, 8, 8]``.
    """

    product: Tensor
    mixture: Tensor
    reference: Tensor
    twos: Tensor


@dataclass(frozen=True)
class Judgement:
    """Measurements of each run ``[runs]``.

    Attributes:
        share: Fraction of samples that the classifier takes for a 2.
        mmd2: Squared maximum mean discrepancy from exact draws of the product (unbiased; Gaussian kernel as wide as their median distance).
        distinct: Number of training 2s that are the nearest one to some sample.
    """

    share: Tensor
    mmd2: Tensor
    distinct: Tensor


def exact_experts() -> list[Expert]:
    """Kernel mixtures of the even and of the prime training digits."""
    return [digits.kernel_expert(digits.EVEN, name="even"), digits.kernel_expert(digits.PRIME, name="prime")]


def step_size(sigma: float) -> float:
    """Langevin step size for digits: a tenth of the variance of the exact experts around one image."""
    return 0.1 * (sigma**2 + digits.BANDWIDTH**2)


def product_samplers(pair: Sequence[Expert], kernel_steps: int = 5) -> dict[str, Sampler]:
    """Ways to sample the product of two experts, from the sum of their scores to Feynman-Kac correctors with Langevin steps."""
    even, prime = pair
    make = partial(feynman_kac, even * prime)
    kernel = partial(make, kernel_steps=kernel_steps, step_size=step_size)
    return {
        NAIVE: make(correct=False),
        LANGEVIN: kernel(correct=False),
        "FKC alone": make(),
        BEST: kernel(),
    }


def truth(runs: int, particles: int, sigma_min: float, rng: Streams) -> Truth:
    """Draw exactly from product and mixture, at the last noise level."""
    even, prime = (digits.training().of(classes).images for classes in (digits.EVEN, digits.PRIME))
    width, n, shape = math.hypot(digits.BANDWIDTH, sigma_min), runs * particles, (runs, particles, *digits.EVENT)
    product, mixture = product_draws(even, prime, width, n + DRAWS, rng), mixture_draws([even, prime], width, n, rng)
    return Truth(product[:n].reshape(shape), mixture.reshape(shape), product[n:].flatten(1), digits.training().of((2,)).images)


def judge(x: Tensor, known: Truth) -> Judgement:
    """Measure samples of the product ``[runs, n, 1, 8, 8]`` run by run."""
    width = float(torch.pdist(known.reference).median())
    far = [mmd2(one.flatten(1), known.reference, [width], unbiased=True) for one in x]
    nearest = [torch.cdist(one.flatten(1), known.twos.flatten(1)).argmin(1) for one in x]
    return Judgement(share(x, 2).double(), torch.stack(far), torch.tensor([len(index.unique()) for index in nearest]).double())


def class_shares(x: Tensor) -> Tensor:
    """Share of each digit among samples ``[runs, n, 1, 8, 8]``, as the classifier says, ``[runs, 10]``."""
    return torch.stack([share(x, digit) for digit in digits.ALL], -1).double()


def gap(x: Tensor, sigma: float) -> Tensor:
    """Median of ``|log q_even - log q_prime|`` over each run of samples ``[runs, n, 1, 8, 8]``, by the exact experts, in nats, ``[runs]``."""
    log_q = [e.log_prob(x.flatten(0, 1).double(), sigma) for e in exact_experts() if e.log_prob is not None]
    return (log_q[0] - log_q[1]).abs().reshape(x.shape[:2]).median(1).values


def log_normalizer(sigma: Tensor) -> Tensor:
    """``log int q_even q_prime dy`` of the exact experts at each noise level: the mean over pairs of ``N(m; n, 2 (h^2 + sigma^2))``."""
    even, prime = (digits.training().of(classes).images.flatten(1).double() for classes in (digits.EVEN, digits.PRIME))
    square, dim = torch.cdist(even, prime).square().flatten(), even.shape[1]
    variance = 2 * (digits.BANDWIDTH**2 + sigma.double().square())
    each = [(-square / (2 * v)).logsumexp(0) - math.log(len(square)) - dim / 2 * math.log(2 * math.pi * v) for v in variance.tolist()]
    return torch.stack(each)


def shown(x: Tensor, pair: Sequence[Expert], sigma: float) -> Tensor:
    """`SHOWN` evenly spaced images of the first run, denoised by the expert with the smaller score."""
    y = x[0, :: max(1, x.shape[1] // SHOWN)][:SHOWN]
    s = scores(pair, y, sigma)
    clean = y + (digits.BANDWIDTH**2 + sigma**2) * s
    return torch.where(s[0].square().sum((1, 2, 3), keepdim=True) < s[1].square().sum((1, 2, 3), keepdim=True), clean[0], clean[1])
