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

from popflow.compose.diffusers import ComposedPipeline, from_pipe, tiny

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
    sizes: list[tuple[float, int]] = []
    composed = ComposedPipeline((tiny.standard_normal(KINDS[kind](), lambda size, rows: sizes.append((size, rows))),))
    composed.set_progress_bar_config(disable=True)
    texts = None if kind in ("unconditional", "EDM") else "a cat"
    images, side = (512, 8) if texts is None else (32, 32)  # 32768 numbers: a standard deviation to 0.4 per cent
    generator = torch.Generator().manual_seed(0)
    options |= {"height": side, "width": side}
    options = {"num_inference_steps": steps, "num_images_per_prompt": images, "output_type": "latent", "generator": generator} | options
    expert = composed.experts(side, side)[0]
    expert.loss(1.0)
    sizes.clear()
    composed(texts if "op" not in options else ["a cat", "a dog"], **({"guidance_scale": 1.0} | options))
    seen = [size for size, rows in sizes if rows >= images]  # not those of a look at the accuracy of a step
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


@pytest.mark.parametrize(
    "options", [{"op": "product", "exponents": [0.5]}, {"op": "and"}, {"op": "or"}, {"op": "average", "guidance_scale": 5.0}]
)
def test_compositions_see_inputs_of_the_right_size_too(options):
    """Two prompts of which one network makes the same, and exponents that sum to one: the composition is that same law, and needs no weights."""
    seen, levels = inputs("SD3", 10, **options)
    assert all(abs(one - other) <= 0.02 for one, other in zip(seen, of_the_scheduler(levels), strict=True)), [round(one, 3) for one in seen]


def test_the_loss_is_measured_once_for_all_prompts_and_runs(monkeypatch):
    """24 rows of the network, whatever the prompts, images and steps; nothing where no noise is added."""
    pipe, rows = tiny.stable_diffusion(), []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *rest, **more: rows.append(len(x)) or forward(x, *rest, **more))
    composed = ComposedPipeline((pipe,))
    composed.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 1.0}
    composed("a cat", noise_above=math.inf, **options)
    assert sum(rows) == 3
    first = composed("a cat", generator=torch.Generator().manual_seed(0), **options)
    assert sum(rows) == 3 + 3 + 24
    again = composed("a cat", generator=torch.Generator().manual_seed(0), **options)
    composed(["a dog", "the red"], op="average", num_images_per_prompt=2, **options)
    assert sum(rows) == 3 + 3 + 24 + 3 + 12
    assert torch.equal(first.latents, again.latents)
    prompts = [expert.loss for expert in composed.plan(["a cat", "a dog"], guidance_scale=2.0).sampler.experts]
    assert all(one is prompts[0] for one in prompts)


def test_the_measured_loss_is_that_of_the_data():
    expert = from_pipe(tiny.standard_normal(tiny.stable_diffusion()))
    for sigma in (0.25, 0.5, 1.0, 2.0, 8.0, 14.0):
        assert expert.loss(sigma) == pytest.approx(1 / (1 + sigma**2), rel=0.02)
