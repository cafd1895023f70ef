"""What ``popflow sample`` and the demos of composition take. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from popflow import citations
from popflow.compose.expert_spec import ExpertSpec
from popflow.runs.config import Flag, check

_PRODUCT, _SUPERPOSED = ("product",), ("or", "and", "average")
_OPERATIONS = {
    **dict.fromkeys(("beta", "temperature", "zeta", "correct", "kernel_steps", "kernel_width", "ess_below", "clip"), _PRODUCT),
    "sharpness": ("or",),
    "bias": ("or", "and"),
    **dict.fromkeys(("ridge", "feedback"), ("and",)),
    "deterministic": _SUPERPOSED,
}
"""Settings that only some operations read."""
_SOURCES: dict[str, str] = {
    **dict.fromkeys(("temperature", "unconditional", "sigma_min", "sigma_max", "grid", "correct", "kernel_width", "clip"), "experts"),
    **dict.fromkeys(("sharpness", "bias", "ridge", "feedback", "deterministic"), "experts"),
    **dict.fromkeys(("prompts", "negative_prompt", "height", "width", "image", "strength", "mask_image"), "diffusers"),
    **dict.fromkeys(("noise_above", "precision", "chunk"), "diffusers"),
}
"""Settings that only one source of models reads."""


@dataclass(frozen=True)
class SampleConfig:
    """What to sample: experts or diffusers pipelines, and how they are composed.

    Sizes left at None are chosen to suit the experts: those of their zoo entry, or 50 steps, 4 particles and 2 runs for pipelines.

    Attributes:
        experts: Model to compose: zoo:NAME, zoo:NAME:LABEL, kernel:FILE:WIDTH or python:MODULE:NAME. A kernel file (.npy, .npz, .csv) holds one sample
            in each row, whose kernel density is the model; in Python, an `Expert` of yours.
        diffusers: Folder (or hub name) of a diffusers pipeline to compose, together with --prompt.
        prompts: Text to compose, or class number for a class-conditional network.
        op: How to compose the models: a product (Feynman-Kac correctors), or a superposition by OR, AND or average (SuperDiff).
        beta: Exponent in the product; give one per model, or one for all. If None: 1 for each.
        temperature: Temperature of the product; below 1 sharpens, above 1 flattens. If None: 1, or the training temperature (2) for particle systems. For
            zoo:lj13 and zoo:dw4 it is the physical temperature: the exponent is the training temperature over this one.
        unconditional: Unconditional model to guide away from. If None: no guidance.
        negative_prompt: Prompt to guide away from. If None: the empty prompt.
        guidance: Guidance weight; 1 means no guidance. If None: 1, or a pipeline's own default.
        steps: Number of steps from the first noise level to the last. If None: 300; 500 for particle systems, 50 for pipelines.
        sigma_min: Last noise level, in units of the data. If None: 0.02; 0.005 for zoo:lj13, 0.01 for zoo:dw4.
        sigma_max: First noise level, in units of the data. If None: 15; 8 for zoo:lj13, 16 for zoo:dw4.
        grid: Spacing of the noise levels; auto places them where the steps of these models are least accurate. If None: karras; geometric for particle
            systems.
        particles: Particles per run, which are weighted and resampled together. If None: 64; 1000 for particle systems, 4 for pipelines.
        runs: Number of independent runs; each yields one sample. All particles are kept with their weights. If None: 8; 1 for particle systems, 2 for
            pipelines.
        zeta: Noise scale; 1 is the reverse diffusion. If None: 1, or 1.4 for annealing (exponents that sum to more than the number of experts), or
            ``B^{-1/2}`` for particle systems, with B the sum of exponents.
        variance: Width of the steps: optimal, from each model's denoising loss; local, from its curvature at each particle, for one more derivative; euler, as
            published, right for short steps only; posterior, that of DDPM.
        correct: Weight and resample particles, or follow the combined score uncorrected.
        kernel_steps: Langevin steps at each noise level. If None: 0, or 1 for particle systems below their training temperature, whose particles would
            otherwise descend from a few ancestors.
        kernel_width: Smallest standard deviation of the data density, which sets the Langevin step size. The step is
            ``min(sigma^2 + width^2, 1) / 10``. If None: 0.3, or the step of the model for particle systems.
        ess_below: Resample when the effective sample size falls below this fraction.
        clip: Bound on each weight increment, in nats. If None: no bound. A bound is biased; the report counts how often it acted.
        sharpness: For OR, the exponent of the mixture weights; 1 is exact, 1e6 follows the likeliest model alone.
        bias: For OR a model's log weight, for AND its log-density offset; give one per model. If None: 0 for each.
        ridge: Relative ridge of the AND system; 0 is exact.
        feedback: For AND, the fraction of the gap between log-densities that each step closes.
        deterministic: For OR, AND and average: integrate the probability-flow ODE, or the SDE.
        height: Image height in pixels. If None: that of the image, or the pipeline's own.
        width: Image width in pixels. If None: that of the image, or the pipeline's own.
        image: Image to edit. If None: start from pure noise.
        strength: Fraction of the steps applied to the image; 1 starts from pure noise.
        mask_image: Mask for the image; white is repainted, black is kept. If None: the whole image is repainted.
        noise_above: Add noise only above this sigma; below it sampling is deterministic.
        precision: Floating-point precision of the pipeline's networks.
        chunk: Maximum rows in one network call. If None: all at once.
        checkpoint_every: Steps between checkpoints.
        seed: Random seed.

    Raises:
        ValueError: for values out of range, and settings that do not belong together.
    """

    experts: Annotated[tuple[str, ...], Flag("--expert", metavar="MODEL")] = ()
    diffusers: Annotated[tuple[str, ...], Flag("--diffusers", metavar="DIR")] = ()
    prompts: Annotated[tuple[str, ...], Flag("--prompt")] = ()
    op: Literal["product", "or", "and", "average"] = "product"
    beta: tuple[float, ...] = ()
    temperature: Annotated[float | None, Flag(gt=0)] = None
    unconditional: Annotated[str | None, Flag(metavar="MODEL")] = None
    negative_prompt: str | None = None
    guidance: Annotated[float | None, Flag("--guidance", "--cfg")] = None
    steps: Annotated[int | None, Flag(ge=1)] = None
    sigma_min: Annotated[float | None, Flag(gt=0)] = None
    sigma_max: Annotated[float | None, Flag(gt=0)] = None
    grid: Literal["karras", "linear", "geometric", "auto"] | None = None
    particles: Annotated[int | None, Flag(ge=1)] = None
    runs: Annotated[int | None, Flag(ge=1)] = None
    zeta: Annotated[float | None, Flag(ge=0)] = None
    variance: Literal["optimal", "local", "euler", "posterior"] = "optimal"
    correct: Annotated[bool, Flag("--correct/--naive")] = True
    kernel_steps: Annotated[int | None, Flag(ge=0)] = None
    kernel_width: Annotated[float | None, Flag(ge=0)] = None
    ess_below: Annotated[float, Flag(gt=0, le=1)] = 0.5
    clip: Annotated[float | None, Flag(gt=0)] = None
    sharpness: Annotated[float, Flag(gt=0)] = 1.0
    bias: tuple[float, ...] = ()
    ridge: Annotated[float, Flag(ge=0)] = 1e-6
    feedback: Annotated[float, Flag(ge=0, le=1)] = 0.1
    deterministic: Annotated[bool, Flag("--ode/--sde")] = False
    height: Annotated[int | None, Flag(ge=1)] = None
    width: Annotated[int | None, Flag(ge=1)] = None
    image: Annotated[Path | None, Flag(metavar="FILE")] = None
    strength: Annotated[float, Flag(gt=0, le=1)] = 1.0
    mask_image: Annotated[Path | None, Flag(metavar="FILE")] = None
    noise_above: Annotated[float, Flag(ge=0, le=math.inf)] = 0.3
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    chunk: Annotated[int | None, Flag(ge=1)] = None
    checkpoint_every: Annotated[int, Flag(ge=1)] = 25
    seed: Annotated[int, Flag(ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        if not self.models:
            raise ValueError("experts is empty, wanted at least one: for example --expert zoo:digits-even, or a pipeline: --diffusers DIR.")
        if self.experts and self.diffusers:
            raise ValueError("experts and diffusers are both given, wanted one kind of model.")
        source = "experts" if self.experts else "diffusers"
        for field in fields(self):
            value, ops = getattr(self, field.name), _OPERATIONS.get(field.name, (self.op,))
            if value == field.default:
                continue
            if _SOURCES.get(field.name, source) != source:
                raise ValueError(f"{field.name}={value!r} has no effect with {source}: it belongs to {_SOURCES[field.name]}.")
            if self.op not in ops:
                raise ValueError(f"{field.name}={value!r} has no effect with op={self.op!r}: it belongs to {' and '.join(map(repr, ops))}.")
            if not self.correct and field.name in ("clip", "ess_below"):
                raise ValueError(f"{field.name}={value!r} has no effect with correct=False (--naive), which neither weights nor resamples.")
            if self.particles == 1 and field.name == "ess_below":
                raise ValueError(f"ess_below={value!r} has no effect with particles=1: a single particle has nothing to compete with.")
        if self.deterministic and self.variance != "optimal":
            raise ValueError(f"variance={self.variance!r} has no effect with deterministic=True (--ode), whose steps have no width.")
        count = len(self.experts) or max(len(self.diffusers), len(self.prompts))
        for name in ("beta", "bias"):
            given = len(getattr(self, name))
            if given not in (0, 1 if name == "beta" else count, count):
                raise ValueError(
                    f"{name} has {given} values for {count} models, wanted one for each{', or one for all' * (name == 'beta')}."
                )
        if self.op in _SUPERPOSED and count < 2:
            raise ValueError(f"op={self.op!r} with one model, wanted at least two to superpose.")
        if self.experts:
            self._check_experts()
        else:
            self._check_pipelines()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the experts, with the unconditional one last, or of the pipelines."""
        return (*(self.experts or self.diffusers), *(() if self.unconditional is None else (self.unconditional,)))

    def inputs(self) -> Iterator[Path]:
        """Yield the files and folders that the names of models stand for."""
        if self.diffusers:
            yield from (Path(folder) for folder in self.diffusers if Path(folder).is_dir())
        else:
            yield from (file for text in self.models if (file := ExpertSpec.of(text).file()) is not None)

    def _check_experts(self) -> None:
        for text in self.models:
            ExpertSpec.of(text)
        if self.guidance not in (None, 1) and self.unconditional is None:
            raise ValueError(f"guidance={self.guidance} without an unconditional expert: give one, e.g. --unconditional zoo:digits-all.")

    def _check_pipelines(self) -> None:
        if self.image is None and (self.mask_image is not None or self.strength != 1):
            seen = f"strength={self.strength}" if self.mask_image is None else f"mask_image={str(self.mask_image)!r}"
            raise ValueError(f"{seen} without an image to edit: give one (--image FILE), or leave strength and mask_image out.")
        for name in ("image", "mask_image"):
            file = getattr(self, name)
            if file is not None and not file.is_file():
                raise ValueError(f"{name}={str(file)!r}: no such file.")


def cite(config: SampleConfig) -> tuple[str, ...]:
    """Return the BibTeX entry of the method that a configuration uses."""
    return (citations.FEYNMAN_KAC_CORRECTORS if config.op == "product" else citations.SUPERDIFF,)


D = TypeVar("D", bound="SuperDiffDemoConfig")


@dataclass(frozen=True)
class SuperDiffDemoConfig:
    """Settings of ``popflow demo superdiff``.

    Attributes:
        seed: Random seed.
        quick: Run a smaller version in seconds: at most 2 runs of 256 particles over 60 levels.
        runs: Number of independent populations. Errors are standard errors over them.
        particles: Particles per run.
        steps: Number of steps from the first noise level to the last.
        sigma_max: First noise level.
        sigma_min: Last noise level.
    """

    seed: Annotated[int, Flag(ge=0)] = 0
    quick: bool = False
    runs: Annotated[int, Flag(ge=2)] = 5
    particles: Annotated[int, Flag(ge=16)] = 512
    steps: Annotated[int, Flag(ge=1)] = 150
    sigma_max: Annotated[float, Flag(gt=0)] = 10.0
    sigma_min: Annotated[float, Flag(gt=0)] = 0.1

    def __post_init__(self) -> None:
        check(self)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, wanted sigma_min < sigma_max.")

    @property
    def sizes(self: D) -> D:
        """The same settings, reduced when quick."""
        return replace(self, runs=2, particles=min(256, self.particles), steps=min(60, self.steps)) if self.quick else self


@dataclass(frozen=True)
class DemoConfig(SuperDiffDemoConfig):
    """Settings of ``popflow demo fkc``: those of ``popflow demo superdiff``, and the Langevin steps of correctors.

    Attributes:
        kernel_steps: Langevin steps at each noise level, for samplers that use them.
    """

    kernel_steps: Annotated[int, Flag(ge=0)] = 5
