"""A pretrained diffusers pipeline as an expert: read from an object or a folder, given prompts, composed like any other.

The pipeline is neither forked nor modified: its network, text encoders and autoencoder are called, its scheduler is read. Networks may run in half
precision; their predictions are turned into epsilon, and weighted, in the precision of the particles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popflow.compose.diffusers.latents import Latents, latents_of
from popflow.compose.diffusers.network import Call, Conditions, family_of
from popflow.compose.diffusers.scheduler import Reading, read
from popflow.compose.target import Expert
from popflow.core import MissingExtraError
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
    """

    pipe: Any
    network: Any
    reading: Reading
    latents: Latents
    call: Call
    conditions: Conditions | None
    distilled: str
    adapters: tuple[tuple[str, float], ...] | None = AS_IT_STANDS

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


class Denoiser:
    """The model of the experts of one pipeline under one choice of adapters: ``(y, sigma, numbers of prompts) -> epsilon``."""

    def __init__(self, source: Source, adapters: tuple[tuple[str, float], ...] | None = AS_IT_STANDS):
        self.source, self.adapters = source, adapters

    def __call__(self, y: Tensor, sigma: float, number: Tensor | None) -> Tensor:
        """Noise prediction of rows ``[rows, *event]``."""
        source = self.source
        source.select(self.adapters)
        schedule = source.reading.schedule
        alpha = schedule.alpha(sigma)
        x = alpha * y
        dtype = _parameter(source.network).dtype
        clock = torch.promote_types(dtype, torch.float32)  # half precision would confuse neighbouring levels
        time = torch.full((len(y),), schedule.time(sigma), dtype=clock, device=y.device)
        given = {} if source.conditions is None or number is None else source.conditions.rows(number)
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
        out = source.call(source.network, x.to(dtype), time, given).to(y.dtype)
        if out.shape[1] == 2 * y.shape[1]:  # learned variances come second
            out = out[:, : y.shape[1]]
        return source.reading.output(out, x, alpha, alpha * sigma)


@dataclass(frozen=True, eq=False)
class PipelineExpert(Expert):
    """An expert that knows the pipeline it was read from."""

    model: Denoiser  # pyright: ignore[reportIncompatibleMethodOverride]

    def prompt(self, text: Any, name: str | None = None) -> PipelineExpert:
        """Return the same model with another prompt (text, or a class number); all prompts of a pipeline are evaluated in one call."""
        source = self.source
        if source.conditions is None:
            raise ValueError(f"prompt {text!r}: {self.name!r} takes no prompts, it is an unconditional model.")
        source.select(self.adapters)
        number = source.conditions.number((self.adapters, text))
        cond = torch.tensor(number, device=_parameter(source.network).device)
        shown = text[0] if isinstance(text, tuple) else text
        return replace(self, cond=cond, name=name or str(shown) or "no prompt")

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
        return bare if source.conditions is None else bare.prompt(_nothing(source.network), label)

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels of the pipeline's own scheduler for a number of steps, ending in 0."""
        latents = self.latents
        length = latents.event[1] * latents.event[2] // family_of(self.source.network).patch ** 2
        return self.source.reading.levels(steps, length)

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
    """Read a diffusers pipeline as an expert, at first without a prompt: see `PipelineExpert.prompt`.

    Args:
        pipe: Any pipeline whose network is a ``UNet2DModel``, ``UNet2DConditionModel`` (Stable Diffusion 1, 2, XL), ``SD3Transformer2DModel``
            or ``FluxTransformer2DModel``.
        height: Image height in pixels; None takes the network's own size.
        width: Image width in pixels.
        chunk: Maximum rows in one network call.
        name: Name in errors and reports.

    Raises:
        ValueError: for a network or scheduler that cannot be read, a missing component, or an autoencoder that does not fit.

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
    return expert if conditions is None else expert.prompt(_nothing(network), name)


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


def extra(name: str) -> Any:
    """Import ``diffusers`` or ``transformers``.

    Raises:
        MissingExtraError: when it is absent, naming the extra that brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"pretrained pipelines need {name}, which cannot be imported ({error}): pip install 'popflow[diffusers]'."
        ) from error


def load_pipe(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Any:
    """Load the pipeline itself; see `from_pretrained`."""
    diffusers = extra("diffusers")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r}, wanted a torch.dtype such as torch.float16, or None for that of the folder.")
    if not isinstance(folder, str | Path):
        raise TypeError(f"folder={folder!r}, wanted a path, or the name of a repository on the hub; pass several as separate arguments.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}), wanted 'cpu', or a device that torch sees."
        ) from error
    there = Path(folder).is_dir()
    if there and not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"folder={str(folder)!r} holds no model_index.json, wanted a folder written by pipe.save_pretrained(folder).")
    if not there and (
        Path(folder).is_absolute() or str(folder).count("/") != 1 or str(folder).startswith(".") or str(folder).endswith("/")
    ):
        raise ValueError(
            f"folder={str(folder)!r}: no such folder, nor a name on the hub (owner/name). Fix: give the path of a folder written by "
            "pipe.save_pretrained(folder)."
        )
    try:
        options = {} if dtype is None else {"dtype": dtype}
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **options)
    except Exception as error:
        chain = _chain(error)
        said = "; first cause: ".join(dict.fromkeys(f"{type(one).__name__}: {str(one).strip()}" for one in (error, chain[-1])))
        if any(isinstance(one, ImportError) for one in chain):
            raise ValueError(
                f"{folder} cannot be loaded, a library that it needs cannot be imported: {said} Fix: reinstall that library, "
                "pip install --force-reinstall NAME, or remove it if nothing needs it; the folder itself may be fine."
            ) from error
        if there:
            raise ValueError(
                f"{folder} cannot be loaded, a component is missing or damaged: {said} Fix: save it again with pipe.save_pretrained(folder); weights "
                "must be safetensors."
            ) from error
        raise ValueError(
            f"{folder} is not a folder here, and the hub cannot be reached or does not have it ({type(chain[-1]).__name__}: {chain[-1]}). Fix: on a machine "
            f"with network access, `hf download {folder} --local-dir FOLDER`, copy FOLDER here and give its path."
        ) from error
    return pipe.to(device)


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and its chain of causes, the first cause last."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [error] if before is None else [error, *_chain(before)]


def _nothing(network: Any) -> Any:
    """The unconditional prompt: the empty text, or the last class number, which models with label dropout use for "any"."""
    return network.config.num_class_embeds - 1 if type(network).__name__ == "UNet2DModel" else ""


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
