"""Size of what the networks of pipelines are given at every step, by default and with steps of Euler-Maruyama.

Tiny pipelines whose networks know their data to be standard normal, so that the right standard deviation of every input is known; below ``noise_above``
the scheduler's own steps are taken, and what they shrink it by is counted as right. The value is the largest deviation over all steps of 10, 28 and 50,
as a share; Euler-Maruyama stands beside it.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from itertools import pairwise

import torch
from harness import Row, run

CLAIM = 0.02
NOISE_ABOVE = 0.3


def kinds() -> dict:
    """Makers of pipelines of every kind."""
    import diffusers

    from popflow.compose.diffusers import tiny

    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    table |= {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}

    def without_signal():
        pipe = tiny.stable_diffusion(prediction_type="v_prediction")
        pipe.scheduler = diffusers.EulerDiscreteScheduler(**table)
        return pipe

    return {
        "Stable Diffusion 1, epsilon": tiny.stable_diffusion,
        "Stable Diffusion 2, v": partial(tiny.stable_diffusion, prediction_type="v_prediction"),
        "zero terminal SNR, v": without_signal,
        "Stable Diffusion XL": tiny.stable_diffusion_xl,
        "Stable Diffusion 3": tiny.stable_diffusion_3,
        "Flux": tiny.flux,
        "unconditional DDPM": tiny.unconditional,
        "EDM": partial(tiny.unconditional, scheduler=diffusers.EDMEulerScheduler()),
    }


def right(levels: list[float]) -> list[float]:
    """Size of the inputs over that of the data's own: 1, but for Euler's own error where no noise is added."""
    size, found = 1.0, []
    for sigma, after in pairwise(levels):
        found.append(size)
        if sigma <= NOISE_ABOVE:
            size *= (1 - (1 - after / sigma) * sigma**2 / (1 + sigma**2)) / math.sqrt((1 + after**2) / (1 + sigma**2))
    return found


def deviation(make, steps: int, variance: str, seed: int, images: int) -> float:
    """Largest deviation of the standard deviation of an input from the right one."""
    from popflow.compose.diffusers import ComposedPipeline, tiny

    sizes: list[tuple[float, int]] = []
    composed = ComposedPipeline((tiny.standard_normal(make(), lambda size, rows: sizes.append((size, rows))),))
    composed.set_progress_bar_config(disable=True)
    pixels = not hasattr(composed.pipes[0], "vae")
    side = 8 if pixels else 32
    expert = composed.experts(side, side)[0]
    expert.loss(1.0)
    sizes.clear()
    given = {"num_inference_steps": steps, "num_images_per_prompt": images * (16 if pixels else 1), "output_type": "latent"}
    given |= {"height": side, "width": side, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(seed)}
    composed(None if pixels else "a cat", variance=variance, noise_above=NOISE_ABOVE, **given)
    return max(
        abs(one - other)
        for one, other in zip(
            (size for size, rows in sizes if rows == given["num_images_per_prompt"]), right(expert.sigmas(steps).tolist()), strict=True
        )
    )


def main(options: argparse.Namespace) -> list[Row]:
    """Largest deviation of the size of a network's inputs from the right one."""
    try:
        made = kinds()
    except ImportError as error:
        return [Row("diffusers", float("nan"), None, "", None, "<=", {"diffusers": f"absent: {error}"})]
    rows = []
    for name, make in list(made.items())[: 2 if options.quick else None]:
        begin, largest = time.perf_counter(), {}
        for variance in ("optimal", "euler"):
            each = [
                deviation(make, steps, variance, seed, 4 if options.quick else 64)
                for steps in ((10,) if options.quick else (10, 28, 50))
                for seed in range(1 if options.quick else options.seeds)
            ]
            largest[variance] = max(each)
        claim = f"{name}: largest deviation of the standard deviation of an input, 10, 28 and 50 steps"
        target = None if options.quick else CLAIM
        peers = {"Euler-Maruyama": largest["euler"]}
        rows.append(Row(claim, largest["optimal"], None, "", target, "<=", peers, time.perf_counter() - begin))
    return rows


if __name__ == "__main__":
    run("diffusers_steps", main)
