"""Feynman-Kac correctors on one page, without the library: the product of two mixtures, wrong by adding scores, right by weights.

    python examples/feynman_kac_standalone.py           # seconds

The same in five lines with popflow is at the end.
"""

import math

import torch

torch.manual_seed(0)
MEANS = {"a": torch.tensor([-1.0, 2.0]), "b": torch.tensor([0.0, 2.5])}
STDS = {"a": torch.tensor([1.0, 0.7]), "b": torch.tensor([0.6, 0.8])}
ZETA2 = 3.0  # noise scale squared: free, the weights do not depend on it; more than 1 lets particles mix
SHARES = {"a": torch.tensor([0.5, 0.5]), "b": torch.tensor([0.3, 0.7])}


def log_q(model: str, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """Log-density of a mixture after noise of standard deviation sigma; a trained network would give its gradient."""
    variance = STDS[model] ** 2 + sigma**2
    parts = SHARES[model].log() - (y[:, None] - MEANS[model]) ** 2 / (2 * variance) - variance.log() / 2
    return parts.logsumexp(1) - math.log(2 * math.pi) / 2


def score(model: str, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gradient of `log_q`: minus the noise prediction over sigma."""
    y = y.detach().requires_grad_()
    return torch.autograd.grad(log_q(model, y, sigma).sum(), y)[0]


def product(particles: int, sigmas: torch.Tensor, correct: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Particles and log weights after the reverse diffusion driven by the sum of the scores."""
    y = torch.randn(particles) * sigmas[0] / math.sqrt(2)  # the product of two N(0, sigma^2)
    log_w = torch.zeros(particles)
    for sigma, lower in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        weights = log_w.softmax(0)
        if correct and 1 / weights.square().sum() < particles / 2:  # systematic resampling
            points = (torch.arange(particles) + torch.rand(1)) / particles
            y, log_w = y[torch.searchsorted(weights.cumsum(0), points).clamp(max=particles - 1)], torch.zeros(particles)
        s2 = sigma**2 - lower**2
        s_a, s_b = score("a", y, sigma), score("b", y, sigma)
        log_w = log_w + s2 * s_a * s_b  # 1/2 S^2 (|s_a + s_b|^2 - |s_a|^2 - |s_b|^2)
        y = y + (1 + ZETA2) / 2 * s2 * (s_a + s_b) + math.sqrt(ZETA2 * s2) * torch.randn(particles)
    return y, log_w if correct else torch.zeros(particles)


def exact_mean() -> float:
    """Mean of the product by quadrature."""
    x = torch.linspace(-10, 10, 20001)
    p = (log_q("a", x, 0.0) + log_q("b", x, 0.0)).exp()
    return float((x * p).sum() / p.sum())


def main() -> None:
    """Print the mean of the product three ways."""
    ramp = torch.linspace(20.0 ** (1 / 7), 0.01 ** (1 / 7), 301) ** 7
    print(f"exact                  {exact_mean():.3f}")
    for correct in (False, True):
        y, log_w = product(8192, ramp, correct)
        print(f"{'corrected' if correct else 'sum of scores':22s} {float((log_w.softmax(0) * y).sum()):.3f}")

    from popflow.compose import feynman_kac, gaussian_mixture, karras, sample
    from popflow.core import Streams

    a, b = (gaussian_mixture(MEANS[m].unsqueeze(1), STDS[m], SHARES[m]) for m in "ab")
    out = sample(feynman_kac(a * b, zeta=math.sqrt(ZETA2)), karras(300, 0.01, 20.0), particles=8192, rng=Streams(0))
    print(f"{'popflow':22s} {float(out.population.mean()):.3f}")


if __name__ == "__main__":
    main()
