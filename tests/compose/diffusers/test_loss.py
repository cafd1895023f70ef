"""Steps of any length: what the networks of every kind of pipeline are given, when they know the law of the data exactly."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

from popflow.compose.diffusers import ComposedPipeline, tiny

ZERO = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
ZERO |= {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}


def with_scheduler(make, scheduler, **options):
    pipe = make()
    pipe.scheduler = scheduler(**options)
    return pipe


KINDS = {
    "SD 1, epsilon": tiny.stable_diffusion,
    "SD 2, v": partial(tiny.stable_diffusion, prediction_type="v_prediction"),
    "SD, no signal, Euler": partial(with_scheduler, tiny.stable_diffusion, diffusers.EulerDiscreteScheduler, **ZERO),
    "SD, no signal, DDIM": partial(with_scheduler, tiny.stable_diffusion, diffusers.DDIMScheduler, clip_sample=False, **ZERO),
    "SDXL": tiny.stable_diffusion_xl,
    "SD3": tiny.stable_diffusion_3,
    "Flux": tiny.flux,
    "unconditional": tiny.unconditional,
    "EDM": partial(tiny.unconditional, scheduler=diffusers.EDMEulerScheduler()),
}


def of_the_scheduler(levels: list[float], noise_above: float = 0.3) -> list[float]:
    """Size of the inputs beside the right one: 1, but for what Euler's own steps without noise shrink the last ones by."""
    size, found = 1.0, []
    for sigma, after in pairwise(levels):
        found.append(size)
        if sigma <= noise_above:
            step = 1 - (1 - after / sigma) * sigma**2 / (1 + sigma**2)
            size *= step / math.sqrt((1 + after**2) / (1 + sigma**2))
    return found


def inputs(kind: str, steps: int, **options) -> tuple[list[float], list[float]]:
    """Sizes of the network's inputs, and noise levels."""
    seen: list[float] = []
    composed = ComposedPipeline((tiny.standard_normal(KINDS[kind](), seen.append),))
    composed.set_progress_bar_config(disable=True)
    texts = None if kind in ("unconditional", "EDM") else "a cat"
    images, side = (512, 8) if texts is None else (32, 32)  # 32768 numbers: a standard deviation to 0.4 per cent
    generator = torch.Generator().manual_seed(0)
    options |= {"height": side, "width": side}
    options = {"num_inference_steps": steps, "num_images_per_prompt": images, "output_type": "latent", "generator": generator} | options
    expert = composed.experts(side, side)[0]
    expert.loss(1.0)
    seen.clear()
    composed(texts, guidance_scale=1.0, **options)
    assert len(seen) == steps
    return seen, expert.sigmas(steps).tolist()


@pytest.mark.parametrize("steps", [10, 28, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_see_inputs_of_the_right_size_at_every_step(kind, steps):
    """With Euler-Maruyama those of SD3 are 12.7, 6.4, 4.3, ... times too large at 28 steps, and 71 times without a signal at the last level."""
    seen, levels = inputs(kind, steps)
    right = of_the_scheduler(levels)
    assert all(abs(one - other) <= 0.02 for one, other in zip(seen, right, strict=True)), [round(one, 3) for one in seen]
    assert all(abs(one - 1) <= 0.02 for one in right)  # Euler's own error is small there
