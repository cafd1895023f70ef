"""Train a class-conditional U-Net of diffusers on digits with its own training loop, save it as a folder, and compose two of its labels.

    python examples/train_digits_diffusers.py                                 # a short run, to see that it goes
    python examples/train_digits_diffusers.py --steps 3500 --out digits-unet --runs 5 --particles 256 --levels 150

The labels are "even" (0), "prime" (1) and "any" (2). The product of the first two is a model of 2, the only even prime. The exact answer is known
(see `popflow demo`) for images blurred by the width h of the exact experts: at sigma the network is asked at ``sqrt(sigma^2 + h^2)``. Needs ``pip install 'popflow[diffusers]'``.
"""

import argparse
import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from popflow.compose import Expert, Sampler, average, both, feynman_kac, karras, sample
from popflow.compose.zoo import digits
from popflow.compose.zoo.even_prime import Truth, exact_experts, gap, judge, step_size, truth
from popflow.core import PopflowWarning, Streams

EVEN, PRIME, ANY = 0, 1, 2
BATCH, SIGMA_MIN = 128, 0.1


def train(steps: int, out: Path) -> None:
    """The loop of the training tutorial of diffusers: add_noise, predict, squared error, AdamW, cosine schedule, EMA, save_pretrained."""
    import diffusers
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 48),
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )
    noise_scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=min(100, steps // 10), num_training_steps=steps)
    ema = EMAModel(
        unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75, model_cls=diffusers.UNet2DModel, model_config=unet.config
    )
    data = digits.training()
    rows = [torch.isin(data.labels, torch.tensor(classes)).nonzero().flatten() for classes in (digits.EVEN, digits.PRIME, digits.ALL)]
    running = 1.0
    for step in range(steps):
        labels = torch.multinomial(torch.tensor([0.45, 0.45, 0.1]), BATCH, replacement=True)  # a tenth without a label, for guidance
        drawn = torch.stack([one[torch.randint(len(one), (BATCH,))] for one in rows])
        clean = data.images[drawn[labels, torch.arange(BATCH)]]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (BATCH,))
        predicted = unet(noise_scheduler.add_noise(clean, noise, timesteps), timesteps, class_labels=labels).sample
        loss = torch.nn.functional.mse_loss(predicted, noise_scheduler.get_velocity(clean, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(unet.parameters())
        running += 0.02 * (float(loss.detach()) - running)
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"step {step + 1}/{steps}  loss {running:.3f}", flush=True)
    ema.copy_to(unet.parameters())
    diffusers.DDPMPipeline(unet, noise_scheduler).save_pretrained(out)


def blurred(*experts: Expert) -> list[Expert]:
    """Experts of one network, of its images blurred by noise of the width h: ``q(y, sigma)`` becomes ``q(y, sqrt(sigma^2 + h^2))``."""
    network = experts[0].model

    def model(y: torch.Tensor, sigma: float, number: torch.Tensor | None) -> torch.Tensor:
        tau = math.hypot(sigma, digits.BANDWIDTH)
        return sigma / tau * network(y, tau, number)  # epsilon is -sigma times the score

    return [replace(expert, model=model) for expert in experts]


def samplers(even: Expert, prime: Expert) -> dict[str, Sampler]:
    """Product and AND, each with what is usually done in its place."""
    return {
        "sum of scores": feynman_kac(even * prime, correct=False),
        "FKC + Langevin": feynman_kac(even * prime, kernel_steps=5, step_size=step_size),
        "equal shares": average([even, prime]),
        "AND": both([even, prime]),
    }


def draw(sampler: Sampler, particles: int, levels: int, seed: int) -> torch.Tensor:
    """Samples of one run without weights, ``[1, particles, 1, 8, 8]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopflowWarning)  # few ancestors are left, as always where corrections are large
        out = sample(sampler, karras(levels, SIGMA_MIN, 10.0), particles=particles, rng=Streams(seed))
    return out.draw(particles, Streams(seed))


def measure(folder: Path, runs: int, particles: int, levels: int) -> None:
    """Product and AND of the labels "even" and "prime", judged as in the demo, with exact experts beside the network."""
    from popflow.compose.diffusers import from_pretrained

    model = from_pretrained(folder)
    pairs = {"network": blurred(model.prompt(EVEN, "even"), model.prompt(PRIME, "prime")), "exact experts": exact_experts()}
    known = truth(runs, particles, SIGMA_MIN, Streams(0))
    print(f"{'':30} {'share of 2s':>14} {'MMD^2':>16} {f'distinct of {len(known.twos)}':>15} {'|log q - log q| (nats)':>23}")
    _print("exact draws of the product", known.product, known)
    for kind, pair in pairs.items():
        for name, sampler in samplers(*pair).items():
            _print(f"{name}, {kind}", torch.cat([draw(sampler, particles, levels, seed) for seed in range(runs)]), known)


def _print(name: str, x: torch.Tensor, known: Truth) -> None:
    """Print means over runs and their standard errors."""
    seen = judge(x, known)
    cells = [(seen.share, 3, 14), (seen.mmd2, 4, 16), (seen.distinct, 1, 15), (gap(x, SIGMA_MIN), 1, 23)]
    row = [f"{f'{float(v.mean()):.{k}f} ± {float(v.std() / len(v) ** 0.5):.{k}f}':>{width}}" for v, k, width in cells]
    print(f"{name:30} " + " ".join(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="training steps; 0 measures a folder that is there")
    parser.add_argument("--out", type=Path, default=Path("digits-unet"))
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--levels", type=int, default=4)
    options = parser.parse_args()
    try:
        import diffusers  # noqa: F401
    except ImportError:
        print("this example needs diffusers: pip install 'popflow[diffusers]'")
        return
    if options.steps:
        train(options.steps, options.out)
    measure(options.out, options.runs, options.particles, options.levels)


if __name__ == "__main__":
    main()
