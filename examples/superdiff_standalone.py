"""SuperDiff AND on one page, without the library: stay where two models find the sample equally likely.

    python examples/superdiff_standalone.py           # seconds

The log-densities are tracked along the path by Ito's formula; the share of each model is solved for at every step. For models of one width, as here, the true
densities follow; for others see docs/methods/superdiff.md.
"""

import math

import torch

torch.manual_seed(0)
CENTRES = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])  # one Gaussian model each, standard deviation 1


def score(model: int, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """Score of a Gaussian model after noise of standard deviation sigma."""
    return (CENTRES[model] - y) / (1 + sigma**2)


def log_q(model: int, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """Its log-density, only to check what is tracked."""
    variance = 1 + sigma**2
    return -(y - CENTRES[model]).square().sum(1) / (2 * variance) - math.log(2 * math.pi * variance)


def superdiff_and(particles: int, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples and the tracked log-densities of both models."""
    first = float(sigmas[0])
    y = torch.randn(particles, 2) * first
    log_a, log_b = log_q(0, y, first), log_q(1, y, first)
    for sigma, lower in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        s2 = sigma**2 - lower**2
        s_a, s_b = score(0, y, sigma), score(1, y, sigma)
        difference = s_b - s_a
        base = s2 * s_a + math.sqrt(s2) * torch.randn_like(y)  # the step with all weight on the first model, this step's noise included
        # kappa such that d log q_a = d log q_b, and the present gap closes:  <s_b - s_a, dy> - S^2/2 (|s_b|^2 - |s_a|^2) = log q_a - log q_b
        wanted = log_a - log_b - (difference * base).sum(1) + s2 / 2 * (difference * (s_a + s_b)).sum(1)
        kappa = wanted / (s2 * difference.square().sum(1))
        step = base + s2 * kappa[:, None] * difference
        log_a = log_a + (s_a * step).sum(1) - s2 / 2 * s_a.square().sum(1)
        log_b = log_b + (s_b * step).sum(1) - s2 / 2 * s_b.square().sum(1)
        y = y + step
    return y, log_a, log_b


def main() -> None:
    """Print how equal the densities are, tracked and true, here and with the library."""
    sigmas = torch.linspace(20.0 ** (1 / 7), 0.01 ** (1 / 7), 501) ** 7
    y, log_a, log_b = superdiff_and(1000, sigmas)
    true = (log_q(0, y, 0.01) - log_q(1, y, 0.01)).abs()
    print(f"tracked |log q_a - log q_b|  {float((log_a - log_b).abs().max()):.4f} at most")
    print(f"true    |log q_a - log q_b|  {float(true.median()):.4f} in the median; first coordinate {float(y[:, 0].mean()):.3f}")

    from popflow.compose import both, gaussian_mixture, karras, sample
    from popflow.core import Streams

    a, b = (gaussian_mixture(centre.unsqueeze(0), 1.0) for centre in CENTRES)
    out = sample(both([a, b]), karras(500, 0.01, 20.0), particles=1000, rng=Streams(0), dtype=torch.float64)
    log_q_ab = out.population.aux["log_q"][0]
    print(f"popflow |log q_a - log q_b|  {float((log_q_ab[:, 0] - log_q_ab[:, 1]).abs().max()):.4f} at most")


if __name__ == "__main__":
    main()
