"""A pretrained diffusers pipeline as an expert: read from an object or a folder, given prompts, composed like any other.

The pipeline is neither forked nor modified: its network, text encoders and autoencoder are called, its scheduler is read. Networks may run in half
precision; their predictions are turned into epsilon, and weighted, in the precision of the particles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.compose.diffusers.latents import Latents, latents_of
from popflow.compose.diffusers.loading import load_pipe
from popflow.compose.diffusers.loss import MeasuredLoss
from popflow.compose.diffusers.network import Call, Conditions, Prompt, family_of
from popflow.compose.diffusers.scheduler import Reading, read
from popflow.compose.target import Expert
from popflow.core.checks import untouched
from popflow.core.errors import unknown

_DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler", "SCMScheduler")
_DISTILLED_NAMES = ("turbo", "lightning", "lcm", "hyper-sd", "schnell")
AS_IT_STANDS = None
"""No choice of adapters: whatever the pipeline has active."""


@dataclass(eq=False)
class Source:
    """What the experts of one pipeline share.

    Attributes:
        pipe: The pipeline of diffusers.
        network: Its U-Net or transformer.
        reading: What was read from its scheduler.
        latents: The space it samples in.
        call: How its network is called.
        conditions: Prompts encoded so far, by choice of adapters; None for a network without conditions.
        distilled: Why its predictions are not scores of a noised density; empty when they are.
        adapters: Adapters that are active now, with their strengths.
        guided: Models made by `PipelineExpert.guided`.
        losses: Denoising losses, by choice of adapters and guidance told.
    """

    pipe: Any
    network: Any
    reading: Reading
    latents: Latents
    call: Call
    conditions: Conditions | None
    distilled: str
    adapters: tuple[tuple[str, float], ...] | None = AS_IT_STANDS
    guided: dict[Any, Denoiser] = field(default_factory=dict)
    losses: dict[Any, MeasuredLoss] = field(default_factory=dict)

    def select(self, adapters: tuple[tuple[str, float], ...] | None) -> None:
        """Activate adapters (LoRA) of the pipeline, unless they are active already."""
        if adapters == self.adapters:
            return
        if adapters is AS_IT_STANDS:
            raise ValueError(
                "the adapters of this pipeline have been switched by expert.lora(...) since it was read. Fix: name them for every expert: "
                "expert.lora() for the bare network, expert.lora('name') for one."
            )
        if adapters:
            self.pipe.enable_lora()
            self.pipe.set_adapters([name for name, _ in adapters], [strength for _, strength in adapters])
        else:
            self.pipe.disable_lora()
        self.adapters = adapters


@dataclass(frozen=True, eq=False)
class Guide:
    """Guidance inside of a network's own output, rescaled as diffusers does; see `PipelineExpert.guided`."""

    number: Tensor
    weight: float
    rescale: float

    def __call__(self, given: Tensor, empty: Tensor) -> Tensor:
        """``guided = empty + w (given - empty)``, a share of it scaled to the standard deviation of ``given``, image by image."""
        guided, dims = empty + self.weight * (given - empty), tuple(range(1, given.ndim))
        ratio = given.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return self.rescale * ratio * guided + (1 - self.rescale) * guided


class Denoiser:
    """The model of the experts of one pipeline under one choice of adapters: ``(y, sigma, numbers of prompts) -> epsilon``."""

    data_scale = 1.0
    """Latents and pixels of published pipelines have about this size."""

    def __init__(self, source: Source, adapters: tuple[tuple[str, float], ...] | None = AS_IT_STANDS, guide: Guide | None = None):
        self.source, self.adapters, self.guide = source, adapters, guide

    def __call__(self, y: Tensor, sigma: float, number: Tensor | None) -> Tensor:
        """Noise prediction of rows ``[rows, *event]``."""
        source, guide = self.source, self.guide
        source.select(self.adapters)
        alpha = source.reading.schedule.alpha(sigma)
        x = alpha * y
        if guide is None or number is None:
            out = self._output(x, sigma, number)
        else:
            both = torch.cat([number, guide.number.expand_as(number)])
            out = guide(*self._output(torch.cat([x, x]), sigma, both).chunk(2))
        return source.reading.output(out, x, alpha, alpha * sigma)

    def _output(self, x: Tensor, sigma: float, number: Tensor | None) -> Tensor:
        source, dtype = self.source, _parameter(self.source.network).dtype
        if source.conditions is not None and number is None:
            raise ValueError("a class-conditional network without a class, wanted expert.prompt(0), or another class number.")
        clock = torch.promote_types(dtype, torch.float32)  # half precision would confuse neighbouring levels
        time = torch.full((len(x),), source.reading.schedule.time(sigma), dtype=clock, device=x.device)
        given = {} if source.conditions is None or number is None else source.conditions.rows(number)
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
        out = untouched("the network", source.call, source.network, x.to(dtype), time, given).to(x.dtype)
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out  # learned variances come second


@dataclass(frozen=True, eq=False)
class PipelineExpert(Expert):
    """An expert that knows the pipeline it was read from."""

    model: Denoiser  # pyright: ignore[reportIncompatibleMethodOverride]

    def prompt(self, text: Any, name: str | None = None, **more: Any) -> PipelineExpert:
        """Return the same model with another prompt; all prompts of a pipeline are evaluated in one call.

        Args:
            text: Text, or a class number; None for no prompt, as a guided pipeline of diffusers has it without ``negative_prompt``.
            name: Name in errors and reports.
            **more: ``guidance``, ``clip_skip``, ``embeds``, ``pooled``, see `popflow.compose.diffusers.network.Prompt`.
        """
        source, wanted = self.source, Prompt(text, **more)
        if source.conditions is None:
            raise ValueError(f"prompt {text!r}: {self.name!r} takes no prompts, it is an unconditional model.")
        source.select(self.adapters)
        number = source.conditions.number((self.adapters, wanted))
        cond = torch.tensor(number, device=self.device)
        made = replace(self, cond=cond, name=name or ("no prompt" if text in (None, "") else str(text)))
        return replace(made, loss=made.measured(wanted.guidance))

    def measured(self, guidance: float | None = None) -> MeasuredLoss:
        """Denoising loss of the network, one for all prompts; measured without a prompt (of class-conditional ones, for class 0)."""

        def neutral() -> PipelineExpert:
            return self if self.source.conditions is None else self.prompt(0 if self.numbered else None, guidance=guidance)

        return self.source.losses.setdefault((self.adapters, guidance), MeasuredLoss(neutral))

    def guided(self, empty: PipelineExpert, weight: float, rescale: float) -> PipelineExpert:
        """Return a model whose own output is guided away from ``empty`` and rescaled (Lin et al. 2024, arXiv:2305.08891, equation 15).

        What it predicts is the score of no density, so weights and log-densities of its compositions mean little.
        """
        if empty.cond is None:
            raise ValueError(f"guided away from {empty.name!r}, which has no prompt: wanted expert.prompt('').")
        key = self.adapters, int(empty.cond), weight, rescale  # prompts that share it are evaluated in one call
        model = self.source.guided.setdefault(key, Denoiser(self.source, self.adapters, Guide(empty.cond, weight, rescale)))
        return replace(self, model=model)

    def lora(self, *adapters: str | tuple[str, float], name: str | None = None) -> PipelineExpert:
        """Return the pipeline with some of its loaded adapters, by name or ``(name, strength)``; none for the bare network.

        Several such experts of one network compose; each costs a network call of its own and encodes its prompts again.

        Raises:
            ValueError: for an adapter that has not been loaded (``pipe.load_lora_weights(..., adapter_name=...)``).
        """
        source = self.source
        chosen = tuple((one, 1.0) if isinstance(one, str) else (one[0], float(one[1])) for one in adapters)
        if not hasattr(source.pipe, "get_list_adapters"):
            raise ValueError(f"adapters {list(adapters)} of a {type(source.pipe).__name__}, which takes none (LoRA): leave adapters out.")
        there = {one for names in source.pipe.get_list_adapters().values() for one in names}
        for one, _ in chosen:
            if one not in there:
                raise ValueError(unknown("adapter", one, there) + f" Fix: pipe.load_lora_weights(FOLDER, adapter_name={one!r}) first.")
        label = name or " + ".join(f"{one} {strength:g}" for one, strength in chosen) or "no adapter"
        bare = replace(self, model=Denoiser(source, chosen), name=label)
        bare = replace(bare, loss=bare.measured())
        return bare if source.conditions is None or self.numbered else bare.prompt(None, label)

    def sigmas(self, steps: int, given: Sequence[float] | None = None) -> Tensor:
        """Return the noise levels of the pipeline's own scheduler for a number of steps, ending in 0; or those ``given``.

        Given ones mean what they mean in diffusers: for flows times ``t`` in (0, 1], which the scheduler then shifts, for others noise levels.
        """
        latents = self.latents
        length = latents.event[1] * latents.event[2] // family_of(self.source.network).patch ** 2
        return self.source.reading.levels(steps, length, given)

    @property
    def numbered(self) -> bool:
        """Whether prompts are class numbers: no class stands for "any" unless the network was trained so, which its files do not tell."""
        return self.source.conditions is not None and type(self.source.network).__name__ == "UNet2DModel"

    @property
    def source(self) -> Source:
        """The pipeline and what was read from it."""
        return self.model.source

    @property
    def adapters(self) -> tuple[tuple[str, float], ...] | None:
        """Adapters chosen by `lora`, with their strengths; None for those currently active."""
        return self.model.adapters

    @property
    def latents(self) -> Latents:
        """The space that the pipeline samples in: ``latents.decode(x)``, ``latents.encode(image)``, ``latents.images(x)``."""
        return self.source.latents

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.source.pipe._execution_device


def from_pipe(
    pipe: Any, *, height: int | None = None, width: int | None = None, chunk: int | None = None, name: str | None = None
) -> PipelineExpert:
    """Read a diffusers pipeline as an expert, at first without a prompt (class-conditional ones need one): see `PipelineExpert.prompt`.

    Args:
        pipe: Any pipeline whose network is a ``UNet2DModel``, ``UNet2DConditionModel`` (Stable Diffusion 1, 2, XL), ``SD3Transformer2DModel``
            or ``FluxTransformer2DModel``.
        height: Image height in pixels; None takes the network's own size.
        width: Image width in pixels.
        chunk: Maximum rows in one network call.
        name: Name in errors and reports.

    Raises:
        ValueError: for a network or scheduler that cannot be read, a component that is missing or would not be used (ControlNet, IP-adapter, ...),
            or an autoencoder that does not fit.

    Example:
        >>> from popflow.compose import both, sample
        >>> from popflow.core import Streams
        >>> _ = __import__("pytest").importorskip("diffusers")
        >>> from popflow.compose.diffusers import tiny
        >>> model = from_pipe(tiny.unconditional(classes=3))
        >>> out = sample(both([model.prompt(0), model.prompt(1)]), model.sigmas(3), particles=1, runs=2, rng=Streams(0))
        >>> model.latents.images(out.pick(Streams(0)))[0].size
        (8, 8)
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None or getattr(pipe, "scheduler", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} has no {'network (unet or transformer)' if network is None else 'scheduler'}: missing component. Fix: load "
            "the whole pipeline, diffusers.DiffusionPipeline.from_pretrained(folder)."
        )
    family = family_of(network)
    optional = {
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "text_encoder_3",
        "tokenizer_3",
        *getattr(pipe, "_optional_components", ()),
    }
    _refuse_unread(pipe, network)
    missing = [part for part, value in pipe.components.items() if value is None and part not in optional]
    if missing:
        raise ValueError(
            f"{type(pipe).__name__} lacks {', '.join(missing)}: missing component. Fix: load the whole pipeline, or pass it there."
        )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    latents = latents_of(pipe, network, family.patch, height, width)
    encode = family.encode
    conditions = None if encode is None else Conditions(lambda key: encode(pipe, key[1], latents.size))
    source = Source(pipe, network, read(pipe.scheduler), latents, family.call, conditions, _why_distilled(pipe, network))
    name = name or Path(str(pipe.config.get("_name_or_path") or type(pipe).__name__)).name
    expert = PipelineExpert(Denoiser(source), latents.event, None, name, latents.space, None, chunk)
    return replace(expert, loss=expert.measured()) if conditions is None or expert.numbered else expert.prompt(None, name)


def from_pretrained(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", **size: Any
) -> PipelineExpert:
    """Load a pipeline from a folder, or by its name on the hub, and read it as an expert.

    Args:
        folder: A folder written by ``pipe.save_pretrained``, or the name of a repository on the hub. Only safetensors are read.
        dtype: Precision of the networks; ``torch.float16`` or ``torch.bfloat16`` on a GPU.
        device: Device of the networks.
        **size: ``height``, ``width``, ``chunk``, ``name`` of `from_pipe`.

    Raises:
        MissingExtraError: without diffusers.
        ValueError: for a folder that is not a pipeline, and when the hub cannot be reached.
    """
    return from_pipe(load_pipe(folder, dtype=dtype, device=device), **size)


_READ = {"unet", "transformer", "scheduler", "vae", "safety_checker", "feature_extractor"}
_READ |= {f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
_ADDED = {"encoder_hid_proj": "an IP-adapter", "image_proj": "an IP-adapter", "position_net": "grounded boxes (GLIGEN)"}
_CONDITIONED = {"addition_embed_type": (None, "text_time"), "class_embed_type": (None,), "encoder_hid_dim_type": (None,)}


def _refuse_unread(pipe: Any, network: Any) -> None:
    """Refuse whatever a pipeline has that would be left out here without a word."""
    optional = set(getattr(pipe, "_optional_components", ()))
    unread = [
        f"component {part!r}"
        for part, value in pipe.components.items()
        if value is not None and part not in _READ and not (part == "image_encoder" and part in optional)  # used by IP-adapters alone
    ]
    unread += [f"{what} in its network" for part, what in _ADDED.items() if getattr(network, part, None) is not None]
    if type(network).__name__ == "UNet2DConditionModel":
        unread += [f"{key}={network.config[key]!r}" for key, known in _CONDITIONED.items() if network.config.get(key) not in known]
        unread += [f"num_class_embeds={network.config['num_class_embeds']}"] * bool(network.config.get("num_class_embeds"))
    if unread:
        plain = "StableDiffusionXLPipeline" if hasattr(pipe, "text_encoder_2") else "StableDiffusionPipeline"
        raise ValueError(
            f"{type(pipe).__name__} has {' and '.join(unread)}, which is not used here: samples would ignore it. Fix: the text-to-image pipeline "
            f"without it, e.g. diffusers.{plain}.from_pipe(pipe), after pipe.unload_ip_adapter() where there is one."
        )


def _why_distilled(pipe: Any, network: Any) -> str:
    if network.config.get("guidance_embeds"):
        return "guidance was distilled into it (guidance_embeds)"
    if (scheduler := type(pipe.scheduler).__name__) in _DISTILLED_SCHEDULERS:
        return f"{scheduler} belongs to models distilled to few steps"
    if network.config.get("time_cond_proj_dim"):
        return "guidance was distilled into it (time_cond_proj_dim)"
    known = str(pipe.config.get("_name_or_path") or "").lower()
    return next((f"its name says {word}: distilled to few steps" for word in _DISTILLED_NAMES if word in Path(known).name), "")


def _parameter(network: Any) -> Tensor:
    return next(network.parameters())
