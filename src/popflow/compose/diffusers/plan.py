"""From prompts, an image to edit and a reward to the arguments of `popflow.compose.sample`: the parts of `ComposedPipeline.plan`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from popflow.compose.diffusers.expert import PipelineExpert
from popflow.compose.diffusers.latents import Latents
from popflow.compose.diffusers.options import adapters_of, prompt_of, prompts_of
from popflow.compose.inpainting import keep
from popflow.compose.rewards import Reward
from popflow.compose.sampler import Sampler
from popflow.core import PopflowWarning, Population


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be sampled: the arguments of `popflow.compose.sample`.

    Attributes:
        sampler: The composition, edits and rewards included.
        levels: Noise levels from the starting level down to 0.
        around: Latents of the image it starts from, or None for pure noise.
        latents: Encoder and decoder.
        experts: One for each prompt.
        given: Number of images to edit; 1 when one image (or none) serves every run.
    """

    sampler: Sampler
    levels: Tensor
    around: Tensor | None
    latents: Latents
    experts: tuple[PipelineExpert, ...]
    given: int = 1

    def log_densities(self, pop: Population) -> Tensor | None:
        """Tracked log-densities under the prompts (not under what is guided away from), ``[runs, particles, prompts]``; None if not tracked."""
        order = [id(expert) for expert in self.sampler.experts]
        if "log_q" not in pop.aux or any(id(expert) not in order for expert in self.experts):
            return None
        return pop.aux["log_q"][..., [order.index(id(expert)) for expert in self.experts]]


def prompted(
    bases: Sequence[PipelineExpert],
    prompts: Any,
    negative: str | int | None,
    adapters: Sequence[Sequence[str | tuple[str, float]]] | None,
    guidance: float | None,
) -> tuple[list[PipelineExpert], list[PipelineExpert], float]:
    """Return the experts of the prompts, the unconditional one of each (none without guidance), and the weight of guidance."""
    given = prompts_of(prompts)
    if negative is not None:
        prompt_of("negative_prompt", negative)
    count = len(bases) if given is None else max(len(bases), len(given))
    if given is not None and len(given) == 1:
        given = given * count
    if len(bases) > 1 and given is not None and len(given) != len(bases):
        raise ValueError(f"prompts holds {len(given)} for {len(bases)} pipelines, wanted one for each, or one for all.")
    adapters_of(adapters, count)
    w, told = _guidance(bases[0], guidance)
    experts, empty = [], []
    guides: dict[Any, PipelineExpert] = {}  # one for all prompts of a network: it is evaluated once
    for i in range(count):
        base = bases[i % len(bases)]
        if adapters is not None:
            base = base.lora(*adapters[i])
        experts.append(base if given is None else base.prompt(given[i] if told is None else (given[i], told)))
        if w != 1:
            network = i % len(bases), base.adapters
            if network not in guides:
                guides[network] = base if negative is None else base.prompt(negative)
            empty.append(guides[network])
    if bases[0].cond is None and (w != 1 or negative is not None):
        raise ValueError(
            f"guidance_scale={w}, negative_prompt={negative!r} for unconditional networks: there is nothing to guide away from."
        )
    if w == 1 and negative is not None:
        why = "without guidance: guidance_scale is 1, wanted another, 7.5 is usual."
        _warn(
            f"negative_prompt={negative!r} has no effect {why if told is None else 'on a network with distilled guidance: leave it out.'}"
        )
    reasons = {expert.name: expert.source.distilled for expert in experts if expert.source.distilled}
    if reasons and (len(experts) > 1 or w != 1):
        _warn(
            f"distilled models are composed or guided: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}. Their predictions are not scores "
            "of a noised density, so weights and log-densities mean little. Sampled alone with guidance_scale=1, such a model works as usual."
        )
    return experts, empty, w


def edited(
    sampler: Sampler, expert: PipelineExpert, steps: int, image: Any, strength: float, mask: Any
) -> tuple[Sampler, Tensor, Tensor | None, int]:
    """Return sampler, levels, latents to start from (or None), and the number of images, for editing an image, or none."""
    levels = expert.sigmas(steps)
    if image is None:
        if mask is not None or strength != 1:
            seen = f"strength={strength}" if mask is None else f"mask_image is a {type(mask).__name__}"
            raise ValueError(f"{seen} without an image to edit: pass image=, or leave strength and mask_image out.")
        return sampler, levels, None, 1
    taken = min(int(steps * strength), len(levels) - 1) if 0 < strength <= 1 else 0
    if not taken:
        raise ValueError(f"strength={strength} takes none of {steps} steps, wanted a fraction in (0, 1] that is at least one step.")
    z = expert.latents.encode(image).unsqueeze(1).to(expert.device)
    if mask is not None:
        sampler = keep(sampler, z, expert.latents.mask(mask).to(z))
    return sampler, levels[len(levels) - 1 - taken :], z if strength < 1 else None, len(z)


def reward_of(reward: Callable[[Tensor], Tensor] | None, scale: float, on: str, gradient: bool, latents: Latents) -> Reward | None:
    """Return a reward of images or latents as one of latents, or None."""
    if reward is None:
        return None
    if not callable(reward):
        raise TypeError(f"reward={reward!r}, wanted a function of a batch of images or latents that returns one number for each.")
    if on not in ("images", "latents"):
        raise ValueError(f"reward_on={on!r}, wanted 'images' or 'latents'.")

    def of_images(z: Tensor) -> Tensor:
        return reward((latents.decode(z) / 2 + 0.5).clamp(0, 1))

    strength = (lambda sigma: scale / (1 + sigma**2)) if gradient else scale
    return Reward(of_images if on == "images" else reward, strength, gradient, getattr(reward, "__name__", "reward"))


def _guidance(expert: PipelineExpert, asked: float | None) -> tuple[float, float | None]:
    """Weight of guidance, and the scale that a network with distilled guidance is told (None for others)."""
    pipe, network = expert.source.pipe, expert.source.network
    own = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    usual = float(own.default) if own is not None and own.default is not inspect.Parameter.empty else 1.0
    if network.config.get("guidance_embeds"):
        return 1.0, usual if asked is None else asked
    if asked is None:
        return (1.0 if expert.cond is None or expert.source.distilled else usual), None
    return asked, None


def _warn(text: str) -> None:
    warnings.warn(text, PopflowWarning, stacklevel=5)
