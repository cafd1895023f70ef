"""From prompts, an image to edit and a reward to the arguments of `popflow.compose.sample`: the parts of `ComposedPipeline.plan`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from popflow.compose.diffusers.expert import PipelineExpert
from popflow.compose.diffusers.latents import Latents
from popflow.compose.diffusers.options import adapters_of, negatives_of, prompts_of
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
        begun: Number of images that given noise is for; likewise.
    """

    sampler: Sampler
    levels: Tensor
    around: Tensor | None
    latents: Latents
    experts: tuple[PipelineExpert, ...]
    given: int = 1
    begun: int = 1

    def log_densities(self, pop: Population) -> Tensor | None:
        """Tracked log-densities under the prompts (not under what is guided away from), ``[runs, particles, prompts]``; None if not tracked."""
        order = [id(expert) for expert in self.sampler.experts]
        if "log_q" not in pop.aux or any(id(expert) not in order for expert in self.experts):
            return None
        return pop.aux["log_q"][..., [order.index(id(expert)) for expert in self.experts]]


@dataclass(frozen=True, eq=False)
class Wording:
    """What the networks are conditioned on.

    Attributes:
        prompts: Texts or class numbers, or None.
        negative: One for all, one for each, or None.
        adapters: LoRAs of each prompt.
        guidance: Weight of guidance; None for the pipeline's own.
        rescale: ``guidance_rescale``.
        clip_skip: Layers of CLIP skipped for prompts (not for what is guided away from, as in diffusers).
        embeds: ``prompt_embeds`` and ``pooled_prompt_embeds`` in place of prompts.
        negative_embeds: Likewise in place of ``negative``.
    """

    prompts: Any = None
    negative: Any = None
    adapters: Sequence[Sequence[str | tuple[str, float]]] | None = None
    guidance: float | None = None
    rescale: float = 0.0
    clip_skip: int | None = None
    embeds: tuple[Tensor | None, Tensor | None] = (None, None)
    negative_embeds: tuple[Tensor | None, Tensor | None] = (None, None)

    def given(self) -> list[dict[str, Any]] | None:
        """Prompts as the arguments of `PipelineExpert.prompt`; None for none."""
        return _worded(prompts_of(self.prompts), "prompts", "", *self.embeds)

    def away(self, count: int) -> list[dict[str, Any]] | None:
        """What each of ``count`` prompts is guided away from; None for no prompt."""
        found = _worded(negatives_of(self.negative), "negative_prompt", "negative_", *self.negative_embeds)
        if found is not None and len(found) not in (1, count):
            raise ValueError(f"negative_prompt holds {len(found)} for {count} prompts, wanted one for each, or one for all.")
        return found if found is None or len(found) == count else found * count


def prompted(bases: Sequence[PipelineExpert], wording: Wording) -> tuple[list[PipelineExpert], list[PipelineExpert], float]:
    """Return the experts of the prompts, the unconditional one of each (none without guidance), and the weight of guidance."""
    given = wording.given()
    count = len(bases) if given is None else max(len(bases), len(given))
    if given is not None and len(given) == 1:
        given = given * count
    if len(bases) > 1 and given is not None and len(given) != len(bases):
        raise ValueError(f"prompts holds {len(given)} for {len(bases)} pipelines, wanted one for each, or one for all.")
    adapters_of(wording.adapters, count)
    away = wording.away(count)
    w, told = _guidance(bases[0], wording.guidance)
    _refuse_unguided(bases, given, away, w, wording)
    experts, empty = [], []
    guides: dict[Any, PipelineExpert] = {}  # what several prompts of a network are guided away from is evaluated once
    for i in range(count):
        base = bases[i % len(bases)]
        if wording.adapters is not None:
            base = base.lora(*wording.adapters[i])
        said: dict[str, Any] = {"text": None, "guidance": told, "clip_skip": wording.clip_skip} | ({} if given is None else given[i])
        experts.append(base.prompt(**said) if any(value is not None for value in said.values()) else base)
        if w != 1:
            off = {} if away is None else away[i]
            network = i % len(bases), base.adapters, *off.values()
            if network not in guides:
                guides[network] = base.prompt(**off) if off else base
            empty.append(guides[network])
    if w == 1 and away is not None:
        why = "without guidance: guidance_scale is 1, wanted another, 7.5 is usual."
        warn(
            f"negative_prompt={wording.negative!r} has no effect {why if told is None else 'on a network with distilled guidance: leave it out.'}"
        )
    reasons = {expert.name: expert.source.distilled for expert in experts if expert.source.distilled}
    if reasons and (len(experts) > 1 or w != 1):
        warn(
            f"distilled models are composed or guided: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}. Their predictions are not scores "
            "of a noised density, so weights and log-densities mean little. Sampled alone with guidance_scale=1, such a model works as usual."
        )
    if wording.rescale and w == 1:
        warn(f"guidance_rescale={wording.rescale} has no effect without guidance: guidance_scale is 1.")
    if not wording.rescale or w == 1:
        return experts, empty, w
    return [one.guided(off, w, wording.rescale) for one, off in zip(experts, empty, strict=True)], [], 1.0


def _refuse_unguided(bases: Sequence[PipelineExpert], given: Any, away: Any, w: float, wording: Wording) -> None:
    """Refuse guidance that has nothing to go away from, and class-conditional networks without a class."""
    if bases[0].source.conditions is None and (w != 1 or away is not None):
        raise ValueError(
            f"guidance_scale={w}, negative_prompt={wording.negative!r} for unconditional networks: there is nothing to guide away from."
        )
    if any(base.numbered for base in bases) and (given is None or (w != 1 and away is None)):
        count = next(base.source.network.config.num_class_embeds for base in bases if base.numbered)
        what = "prompts is None" if given is None else f"guidance_scale={w} without negative_prompt"
        raise ValueError(
            f"{what} for a class-conditional network: its files do not tell which of its {count} classes means 'any', if one does. Fix: "
            + (
                f"prompts=[0], a class from 0 to {count - 1}."
                if given is None
                else f"negative_prompt={count - 1} if that one was trained as 'any'."
            )
        )


def _worded(words: list[Any] | None, name: str, prefix: str, each: Tensor | None, sums: Tensor | None) -> list[dict[str, Any]] | None:
    embeds, pooled = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
    if each is None:
        if sums is not None:
            raise ValueError(f"{pooled} without {embeds}, wanted both: pipe.encode_prompt returns both.")
        return None if words is None else [{"text": one} for one in words]
    if words is not None:
        raise ValueError(f"{name} and {embeds} are both given, wanted one of them.")
    for label, value, dims in ((embeds, each, 3), (pooled, sums, 2)):
        if value is not None and (not isinstance(value, Tensor) or value.ndim != dims or len(value) != len(each)):
            seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{label} is {seen}, wanted a tensor [prompts, {'tokens, ' * (dims == 3)}width] as pipe.encode_prompt returns it."
            )
    rows = [{"text": None, "embeds": one, "name": f"{embeds}[{i}]"} for i, one in enumerate(each)]
    return rows if sums is None else [row | {"pooled": one} for row, one in zip(rows, sums, strict=True)]


def edited(
    sampler: Sampler, expert: PipelineExpert, levels: Tensor, image: Any, strength: float, mask: Any
) -> tuple[Sampler, Tensor, Tensor | None, int]:
    """Return sampler, levels, latents to start from (or None), and the number of images, for editing an image, or none."""
    steps = len(levels) - 1
    if image is None:
        if mask is not None or strength != 1:
            seen = f"strength={strength}" if mask is None else f"mask_image is a {type(mask).__name__}"
            raise ValueError(f"{seen} without an image to edit: pass image=, or leave strength and mask_image out.")
        return sampler, levels, None, 1
    taken = min(int(steps * strength), steps) if 0 < strength <= 1 else 0
    if not taken:
        raise ValueError(f"strength={strength} takes none of {steps} steps, wanted a fraction in (0, 1] that is at least one step.")
    z = expert.latents.encode(image).unsqueeze(1).to(expert.device)
    if mask is not None:
        sampler = keep(sampler, z, expert.latents.mask(mask).to(z))
    return sampler, levels[steps - taken :], z if strength < 1 else None, len(z)


def begun(sampler: Sampler, noise: Any, around: Tensor | None, event: tuple[int, ...]) -> tuple[Sampler, int]:
    """Return a sampler that starts from given standard noise ``[images, (particles,) *event]``, and the number of images that it is for."""
    if noise is None:
        return sampler, 1
    if not isinstance(noise, Tensor) or noise.ndim not in (4, 5) or tuple(noise.shape[-3:]) != tuple(event):
        seen = tuple(noise.shape) if isinstance(noise, Tensor) else f"a {type(noise).__name__}"
        raise ValueError(
            f"latents is {seen}, wanted a tensor [images, {', '.join(map(str, event))}] of standard normal noise, or "
            f"[images, particles, {', '.join(map(str, event))}]; those of Flux are not packed here."
        )
    if not bool(noise.isfinite().all()):
        raise ValueError("latents holds values that are not finite, wanted standard normal noise.")
    each = noise if noise.ndim == 5 else noise.unsqueeze(1)

    def start(y: Tensor, sigma: float) -> Population:
        if each.shape[1] not in (1, y.shape[1]) or len(each) not in (1, len(y)):
            raise ValueError(
                f"latents is {tuple(noise.shape)} for {len(y)} images of {y.shape[1]} particles, wanted one for each, or one for all."
            )
        first = each.to(y) * (sigma / sampler.precision(sigma) ** 0.5)
        return sampler.start((first if around is None else first + around.to(y)).expand_as(y).contiguous(), sigma)

    return replace(sampler, start=start), len(noise)


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
    pipe, config = expert.source.pipe, expert.source.network.config
    own = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    usual = float(own.default) if own is not None and own.default is not inspect.Parameter.empty else 1.0
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim"):
        return 1.0, usual if asked is None else asked
    if asked is None:
        return (1.0 if expert.source.conditions is None or expert.source.distilled else usual), None
    return asked, None


def warn(text: str) -> None:
    """Warn of an option, from the line that called the pipeline."""
    warnings.warn(text, PopflowWarning, stacklevel=5)
