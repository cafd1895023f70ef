"""From the configuration of ``popflow sample`` to what its pipelines sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from popflow.compose.config import SampleConfig
from popflow.compose.diffusers.pipeline import ComposedPipeline
from popflow.compose.diffusers.plan import Plan

_SAME_NAMES = ("op", "height", "width", "strength", "noise_above", "ess_below", "variance")
"""Settings that `ComposedPipeline.plan` takes under the names that they have in the configuration."""


def planned(config: SampleConfig, pipe: ComposedPipeline, particles: int) -> Plan:
    """Return the plan that a configuration describes; prompts are class numbers if all networks are class-conditional."""
    numbered = all(type(getattr(one, "unet", None)).__name__ == "UNet2DModel" for one in pipe.pipes)
    prompts = [int(text) if numbered and text.isdigit() else text for text in (*config.prompts, config.negative_prompt or "")]
    return pipe.plan(
        prompts[:-1] or None,
        negative_prompt=None if config.negative_prompt is None else prompts[-1],
        exponents=config.beta or None,
        num_inference_steps=config.steps or 50,
        guidance_scale=config.guidance,
        image=_opened(config.image),
        mask_image=_opened(config.mask_image),
        correct=particles > 1,
        zeta=1.0 if config.zeta is None else config.zeta,
        kernel_steps=config.kernel_steps or 0,
        **{name: getattr(config, name) for name in _SAME_NAMES},
    )


def _opened(file: Path | None) -> Any:
    if file is None:
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}. Fix: give a PNG or JPEG.") from error
