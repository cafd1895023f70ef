"""`ComposedPipeline`: compositions of prompts and pipelines, called the way diffusers pipelines are called.

Strings such as ``op="and"`` live here because this is where users of diffusers come in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.compose.composition import composition
from popflow.compose.diffusers.expert import PipelineExpert, from_pipe
from popflow.compose.diffusers.latents import Latents, size_of
from popflow.compose.diffusers.loading import load_pipe
from popflow.compose.diffusers.options import check_numbers, known_options, whole
from popflow.compose.diffusers.plan import Plan, Wording, begun, edited, prompted, reward_of, warn
from popflow.compose.diffusers.watching import Callback, counted, telling
from popflow.compose.probability_flow import flow_below
from popflow.compose.sampler import sample
from popflow.compose.steering import steer
from popflow.compose.target import check_same_space
from popflow.core import StreamsOfRuns
from popflow.core.errors import unknown

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, eq=False)
class ComposedOutput:
    """What a `ComposedPipeline` returns.

    Attributes:
        images: One image of each run, drawn by weight: independent, so no near-duplicates.
        latents: The same before decoding, ``[runs, *event]``.
        weights: Normalised weights of all particles ``[runs, particles]``.
        ess: Effective sample size at every noise level ``[levels, runs]``.
        log_densities: Tracked log-density of each particle under each prompt ``[runs, particles, prompts]``, up to a constant they share; None
            where it is not tracked (a product with a noise scale other than 1, or Langevin steps).
        kappa: Final shares of the prompts ``[runs, particles, prompts]``; None for a product.
        particles: All particles of each run ``[runs, particles, *event]``, as latents.
        ancestors: Particles of the first level that have descendants left, at every noise level ``[levels, runs]``. The effective sample size speaks
            of the present weights; this says how many beginnings the particles go back to.
        ancestor: Number of the first particle that each goes back to ``[runs, particles]``.
    """

    images: Any
    latents: Tensor
    weights: Tensor
    ess: Tensor
    log_densities: Tensor | None
    kappa: Tensor | None
    particles: Tensor
    ancestors: Tensor
    ancestor: Tensor


@dataclass(frozen=True, eq=False)
class ComposedPipeline:
    """One or several diffusers pipelines whose prompts are composed at sampling time.

    Attributes:
        pipes: The pipelines; all must share one latent space.
        chunk: Maximum rows in one network call; None for no limit.

    Example:
        >>> _ = __import__("pytest").importorskip("diffusers")
        >>> from popflow.compose.diffusers import tiny
        >>> pipe = ComposedPipeline((tiny.stable_diffusion(),))
        >>> out = pipe(["a cat", "a dog"], op="and", num_inference_steps=3, generator=torch.Generator().manual_seed(0))
        >>> out.images[0].size, out.kappa.shape
        ((32, 32), torch.Size([1, 1, 2]))
    """

    pipes: tuple[Any, ...]
    chunk: int | None = None
    _read: dict[Any, list[PipelineExpert]] = field(default_factory=dict, repr=False)
    _parts: list[Any] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if not isinstance(self.pipes, list | tuple):
            raise TypeError(
                f"pipes is a {type(self.pipes).__name__}, wanted a tuple of pipelines: ComposedPipeline((pipe,)), or "
                "ComposedPipeline.from_pretrained(folder)."
            )
        if self.chunk is not None:
            whole(chunk=self.chunk)

    @staticmethod
    def from_pretrained(
        *folders: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", chunk: int | None = None
    ) -> ComposedPipeline:
        """Load pipelines from folders or by their names on the hub; see `popflow.compose.diffusers.from_pretrained`."""
        return ComposedPipeline(tuple(load_pipe(folder, dtype=dtype, device=device) for folder in folders), chunk)

    def __call__(
        self,
        prompts: str | int | Sequence[str | int] | None = None,
        *,
        particles: int = 1,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        **options: Any,
    ) -> ComposedOutput:
        """Sample images of composed prompts.

        Args:
            prompts: Texts, or class numbers of a class-conditional network; with several pipelines one for each, or one for all. None for
                unconditional networks.
            particles: Particles in one run, which compete; 1 switches correction off.
            num_images_per_prompt: Independent runs; each yields one image.
            generator: Source of all randomness; a list gives each image its own.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            callback_on_step_end: Called after each step; see `Callback`.
            **options: ``op``, ``num_inference_steps``, ``guidance_scale``, ``image``, ``strength``, ``mask_image``, ``reward`` and the other arguments of
                `plan`.

        Warns:
            PopflowWarning: when a guidance-distilled or few-step model is composed or guided: its predictions are not scores.

        Raises:
            ValueError: for options that do not fit together, an image of the wrong size, incompatible latent spaces.
            NonFiniteError: for latents that are not finite, naming the expert and the noise level.
        """
        known_options(options, self.__call__, self.plan)
        whole(particles=particles, num_images_per_prompt=num_images_per_prompt)
        if output_type not in _OUTPUT_TYPES:
            raise ValueError(unknown("output_type", str(output_type), _OUTPUT_TYPES))
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(
                f"callback_on_step_end={callback_on_step_end!r}, wanted a function (pipeline, step, timestep, tensors) or None: tensors holds "
                "'latents', 'weights', 'ess', 'log_densities' and 'kappa'."
            )
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        for one in generators:
            if one is not None and not isinstance(one, torch.Generator):
                raise TypeError(f"generator holds {one!r}, wanted a torch.Generator: torch.Generator().manual_seed(0).")
        if isinstance(generator, Sequence) and len(generators) != num_images_per_prompt:
            raise ValueError(
                f"generator is a list of {len(generators)}, wanted one for each of {num_images_per_prompt} images, or one for all."
            )
        seeds = [_seed(one) for one in generators] if len(generators) > 1 else [_seed(generators[0]) for _ in range(num_images_per_prompt)]
        plan = self.plan(prompts, correct=particles > 1, **options)
        for name, count in (("image", plan.given), ("latents", plan.begun)):
            if count not in (1, num_images_per_prompt):
                raise ValueError(
                    f"{name} holds {count} images, wanted 1, or num_images_per_prompt={num_images_per_prompt}: pass num_images_per_prompt={count}."
                )
        sampler = plan.sampler if callback_on_step_end is None else telling(plan, callback_on_step_end, self)
        rng = StreamsOfRuns(seeds, plan.experts[0].device)
        with plan.latents.single(), self.pipes[0].progress_bar(total=len(plan.levels) - 1) as bar:
            if output_type != "latent":
                plan.latents.check_decoder()
            counting = counted(sampler, bar)
            out = sample(counting, plan.levels, particles=particles, runs=len(seeds), rng=rng, around=plan.around)
            picked, pop = out.pick(rng), out.population
            images = self.images(picked, plan.latents, output_type)
        for pipe in self.pipes:
            pipe.maybe_free_model_hooks()
        return ComposedOutput(
            images=images,
            latents=picked,
            weights=pop.weights(),
            ess=out.trace["ess"],
            log_densities=plan.log_densities(pop),
            kappa=pop.aux.get("kappa"),
            particles=pop.x,
            ancestors=out.trace["ancestors"],
            ancestor=pop.aux["ancestor"],
        )

    def to(self, *where: Any, **options: Any) -> ComposedPipeline:
        """Move every pipeline to a device, or to a precision, as ``pipe.to`` of diffusers does."""
        for pipe in self.pipes:
            pipe.to(*where, **options)
        return self

    def enable_model_cpu_offload(self, *where: Any, **options: Any) -> None:
        """Keep networks on the CPU but for the one that computes, as ``pipe.enable_model_cpu_offload`` of diffusers does."""
        for pipe in self.pipes:
            pipe.enable_model_cpu_offload(*where, **options)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set what ``pipe.set_progress_bar_config`` of diffusers takes: ``disable=True`` for no bar."""
        self.pipes[0].set_progress_bar_config(**options)

    def plan(
        self,
        prompts: str | int | Sequence[str | int] | None = None,
        *,
        op: str = "product",
        negative_prompt: str | int | Sequence[str | int] | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        exponents: Sequence[float] | None = None,
        adapters: Sequence[Sequence[str | tuple[str, float]]] | None = None,
        num_inference_steps: int = 50,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        image: Any = None,
        strength: float = 1.0,
        mask_image: Any = None,
        reward: Callable[[Tensor], Tensor] | None = None,
        reward_scale: float = 1.0,
        reward_on: str = "images",
        reward_gradient: bool = False,
        reward_every: int = 5,
        noise_above: float = 0.3,
        correct: bool = True,
        zeta: float = 1.0,
        kernel_steps: int = 0,
        ess_below: float = 0.5,
        variance: str = "optimal",
    ) -> Plan:
        """Read options and encode prompts and image, without sampling.

        Args:
            prompts: As above.
            op: ``product``, ``and``, ``or``, ``average``.
            negative_prompt: Prompt to guide away from, or one for each prompt; None takes no prompt, as diffusers does: the empty text, for SDXL zeros.
                Class-conditional networks need a number.
            prompt_embeds: Embeddings ``[prompts, tokens, width]`` in place of prompts, as ``pipe.encode_prompt`` returns them.
            pooled_prompt_embeds: Pooled ones ``[prompts, width]``, for SDXL, SD3 and Flux.
            negative_prompt_embeds: Likewise, in place of ``negative_prompt``.
            negative_pooled_prompt_embeds: Likewise.
            clip_skip: Layers of CLIP to skip, counted from its end; for prompts alone, as in diffusers.
            exponents: Exponents of a product, one for each prompt or one for all; a negative one removes.
            adapters: LoRAs of each prompt, one list for each; loaded beforehand with ``pipe.load_lora_weights``.
            num_inference_steps: Steps, on the noise levels of the pipeline's own scheduler.
            sigmas: Levels in place of these, with the meaning they have in diffusers (for flows, times in (0, 1]); the last step to 0 is added.
            guidance_scale: Guidance weight; None takes the pipeline's own default, 1 means no guidance. Guidance-distilled networks receive it as input.
            guidance_rescale: Share of the guided prediction that is rescaled to the unguided one's standard deviation. What comes out is the score of
                no density, so weights and log-densities mean little: meant for one prompt, or an average.
            latents: Standard normal noise to start from ``[images, *event]``, or ``[images, particles, *event]``.
            height: Image height in pixels.
            width: Image width in pixels.
            image: Image to edit: sampling starts from it, noised to the level set by ``strength``.
            strength: Fraction of the steps that are taken; 1 starts from pure noise.
            mask_image: White is repainted, black is kept (see `popflow.compose.inpainting` for the approximation).
            reward: Function of a batch ``[rows, ...]`` that returns one number for each; the law is multiplied by ``exp(reward_scale * reward)``.
            reward_scale: Strength of the reward.
            reward_on: ``images`` (decoded, in [0, 1]) or ``latents``.
            reward_gradient: Guide by the reward's gradient as well (product only). The reward is then evaluated on the noised sample at every step,
                with strength ``reward_scale / (1 + sigma^2)``; without gradient it is evaluated on clean predictions (`popflow.compose.steering`).
            reward_every: Steps between evaluations of a reward without gradient.
            noise_above: Noise is added only above this sigma (`popflow.compose.probability_flow`): 0 adds noise to the end, ``math.inf`` none, which
                for one prompt is the Euler scheduler of diffusers.
            correct: Weight and resample a product.
            zeta: Noise scale of a product.
            kernel_steps: Langevin steps at each level of a product.
            ess_below: Resample when the effective sample size falls below this fraction.
            variance: How wide steps with noise are (`popflow.compose.backward_kernel`): ``optimal`` fits steps of any length; ``euler``, as in the
                papers, is right for short ones, not for the first steps of SD3, Flux and models without signal at their last level; ``posterior`` is
                that of DDPM. ``local`` is refused: torch has no forward derivatives of the networks' fused attention.
        """
        check_numbers(locals())
        if reward is not None and reward_gradient and op != "product":
            raise ValueError(
                f"reward_gradient=True with op={op!r}: gradients belong to op='product'. Fix: reward_gradient=False steers any operation."
            )
        if variance == "local":
            raise ValueError(
                "variance='local' for pipelines, wanted 'optimal': torch has no forward derivatives of the fused attention of their networks."
            )
        if image is not None and height is None and width is None:
            height, width = size_of(image)
        bases = self.experts(height, width)
        embeds = (prompt_embeds, pooled_prompt_embeds), (negative_prompt_embeds, negative_pooled_prompt_embeds)
        wording = Wording(prompts, negative_prompt, adapters, guidance_scale, guidance_rescale, clip_skip, *embeds)
        experts, empty, w = prompted(bases, wording)
        dim = math.prod(bases[0].event)
        if op == "and" and len(experts) > dim + 1:
            raise ValueError(
                f"op='and' of {len(experts)} prompts in {dim} dimensions: {len(experts) - 1} equations in {dim} unknowns, wanted at most {dim + 1} "
                "prompts. Fix: fewer prompts, or op='average'."
            )
        potential = reward_of(reward, reward_scale, reward_on, reward_gradient, bases[0].latents)
        if op == "product":
            settings: dict[str, Any] = {"zeta": zeta, "kernel_steps": kernel_steps, "track": zeta == 1 and not kernel_steps}
            settings |= {"correct": correct, "ess_below": ess_below, "reward": potential if reward_gradient else None}
        else:  # refused by name unless they are the defaults
            settings = {"zeta": None if zeta == 1 else zeta, "kernel_steps": kernel_steps or None}
        sampler = composition(experts, op, unconditional=empty, guidance=w, exponents=exponents, variance=variance, **settings)
        whole_grid = bases[0].sigmas(num_inference_steps, sigmas)
        if correct and op == "product" and noise_above >= float(whole_grid[0]) and (reward is None or reward_gradient):
            warn(
                f"noise_above={noise_above:g}, where the first level is {float(whole_grid[0]):g}: products are weighed only where noise is added, so particles do "
                "not compete. Fix: a lower noise_above (0.3 is the default), or particles=1."
            )
        sampler = flow_below(sampler, noise_above)
        sampler, levels, around, given = edited(sampler, bases[0], whole_grid, image, strength, mask_image)
        if potential is not None and not reward_gradient:
            sampler = steer(sampler, potential, every=reward_every, ess_below=ess_below)
        sampler, started = begun(sampler, latents, around, bases[0].event)
        return Plan(sampler, levels, around, bases[0].latents, tuple(experts), given, started)

    def experts(self, height: int | None = None, width: int | None = None) -> list[PipelineExpert]:
        """Return each pipeline as an expert at an image size; read once, so that prompts are encoded once, and again when a part is replaced.

        Raises:
            ValueError: when their latent spaces differ, saying how.
        """
        if not self.pipes:
            raise ValueError("pipes is empty, wanted at least one pipeline, or one folder.")
        parts = [part for pipe in self.pipes for part in _parts_of(pipe)]
        if len(parts) != len(self._parts) or any(one is not other and one != other for one, other in zip(parts, self._parts, strict=True)):
            self._read.clear()
            self._parts[:] = parts
        if (height, width) not in self._read:
            found = [from_pipe(pipe, height=height, width=width, chunk=self.chunk) for pipe in self.pipes]
            check_same_space(found)
            self._read[height, width] = found
        return self._read[height, width]

    def images(self, z: Tensor, latents: Latents, output_type: str = "pil") -> Any:
        """Decode latents as diffusers does, with the pipeline's own safety checker and watermark if it has them."""
        pipe = self.pipes[0]
        if output_type == "latent":
            return z
        check = getattr(pipe, "run_safety_checker", None) if getattr(pipe, "safety_checker", None) is not None else None
        mark, flagged = getattr(pipe, "watermark", None), None
        with torch.no_grad():
            images = latents.decode(z)
            if check is not None:
                images, flagged = check(images, z.device, z.dtype)
            if mark is not None:
                images = mark.apply_watermark(images)
        keep_range = [not one for one in flagged] if flagged is not None else None
        return latents.processor.postprocess(images, output_type=output_type, do_denormalize=keep_range)


def _parts_of(pipe: Any) -> list[Any]:
    """What an expert reads of a pipeline: its components, adapters that are loaded, its device."""
    parts = list(getattr(pipe, "components", {}).values())
    return [*parts, *(tuple(getattr(part, "peft_config", None) or ()) for part in parts), str(getattr(pipe, "device", ""))]


def _seed(generator: torch.Generator | None) -> int:
    if generator is None:
        return int.from_bytes(os.urandom(6), "little")
    return int(torch.randint(2**48, (), generator=generator, device=generator.device))
