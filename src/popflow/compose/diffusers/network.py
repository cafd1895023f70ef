"""Networks of diffusers: how each family is called, and what conditions it takes.

A family is a pair of functions: ``call(network, x, time, conditions) -> output`` for rows, and ``encode(pipe, prompt, size) -> conditions`` for one
`Prompt`. Conditions are tensors by name; a `Conditions` table encodes each prompt once and hands out rows by number, so that an
expert carries one integer and hundreds of particles share one embedding.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core import PopflowWarning
from popflow.core.errors import unknown


@dataclass(frozen=True)
class Prompt:
    """What one expert is conditioned on.

    Attributes:
        text: Text, or a class number; None for no prompt, which is not always the empty text (SDXL has zeros for it).
        guidance: Guidance scale, for networks that it was distilled into.
        clip_skip: Layers of CLIP that are skipped, counted from its end.
        embeds: Embedding ``[tokens, width]`` in place of a text.
        pooled: Pooled embedding ``[width]`` beside it.
    """

    text: str | int | None = None
    guidance: float | None = None
    clip_skip: int | None = None
    embeds: Tensor | None = None
    pooled: Tensor | None = None


Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
Encode = Callable[[Any, Prompt, tuple[int, int]], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Family:
    """How a class of networks is called.

    Attributes:
        call: Evaluates rows.
        encode: Turns one prompt into conditions; None for networks that take none.
        patch: Latent pixels along the side of one token.
    """

    call: Call
    encode: Encode | None
    patch: int = 1


class Conditions:
    """Conditions of the prompts used so far, each encoded once.

    Warns:
        PopflowWarning: when two prompts have the same conditions: to the network they are one.

    >>> table = Conditions(lambda text: {"length": torch.tensor(float(len(text)))})
    >>> table.number("cat"), table.number("horse"), table.number("cat")
    (0, 1, 0)
    >>> table.rows(torch.tensor([1, 0]))["length"].tolist()
    [5.0, 3.0]
    """

    def __init__(self, encode: Callable[[Any], dict[str, Tensor]]):
        self.encode = encode
        self.numbers: dict[Any, int] = {}
        self.tables: dict[str, Tensor] = {}

    def number(self, prompt: Any) -> int:
        """Return the number of a prompt, encoding it if it is new.

        Raises:
            ValueError: for conditions shaped unlike those of earlier prompts.
        """
        if prompt not in self.numbers:
            with torch.no_grad():
                row = self.encode(prompt)
            for name, value in row.items() if self.tables else ():
                if value.shape != self.tables[name].shape[1:]:
                    raise ValueError(
                        f"conditions {name!r} have shape {tuple(value.shape)}, wanted {tuple(self.tables[name].shape[1:])} like those of other prompts: "
                        "embeddings of as many tokens as the pipeline's own encoder gives."
                    )
            self._tell_apart(prompt, row)
            for name, value in row.items():
                old = self.tables.get(name)
                self.tables[name] = value.unsqueeze(0) if old is None else torch.cat([old, value.unsqueeze(0)])
            self.numbers[prompt] = len(self.numbers)
        return self.numbers[prompt]

    def rows(self, number: Tensor) -> dict[str, Tensor]:
        """Return the conditions of numbered prompts, one row each."""
        return {name: table.index_select(0, number) for name, table in self.tables.items()}

    def _tell_apart(self, prompt: Any, row: Mapping[str, Tensor]) -> None:
        texts = {key[1].text: number for key, number in self.numbers.items() if _is_text(key) and key[0] == prompt[0]}
        new = prompt[1].text if _is_text(prompt) else None
        if new is None:
            return
        for old, number in texts.items():
            if old != new and all(torch.equal(self.tables[name][number], value) for name, value in row.items()):
                warnings.warn(
                    f"prompts {_short(old)} and {_short(new)} have the same conditions, so they are one prompt to the network: an encoder reads only so "
                    "many tokens (CLIP 77) and drops the rest. Fix: shorten them, or put first what differs.",
                    PopflowWarning,
                    stacklevel=6,
                )


def _is_text(key: Any) -> bool:
    return isinstance(key, tuple) and isinstance(key[1], Prompt) and isinstance(key[1].text, str) and bool(key[1].text.strip())


def _short(text: str) -> str:
    return repr(text if len(text) < 60 else f"{text[:28]} ... {text[-28:]}")


def family_of(network: Any) -> Family:
    """Return the family of a network.

    Raises:
        ValueError: for an unknown class of network.
    """
    name = type(network).__name__
    if name == "UNet2DModel":
        return Family(_unet, _label if network.config.num_class_embeds else None)
    if name not in FAMILIES:
        raise ValueError(
            f"network {unknown('class', name, [*FAMILIES, 'UNet2DModel'])} Fix: wrap the network yourself with popflow.compose.from_network."
        )
    return FAMILIES[name]


def _unet(network: Any, x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    return network(x, time, class_labels=given.get("label"), return_dict=False)[0]


def _label(pipe: Any, prompt: Prompt, size: tuple[int, int]) -> dict[str, Tensor]:
    count, label = pipe.unet.config.num_class_embeds, prompt.text
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < count:
        raise ValueError(f"prompt {label!r}: this network takes a class number from 0 to {count - 1}.")
    return {"label": torch.tensor(label, device=_device(pipe))}


def _conditional_unet(network: Any, x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    return network(
        x,
        time,
        encoder_hidden_states=given["prompt"],
        timestep_cond=given.get("guidance"),
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]


def _stable_diffusion(pipe: Any, prompt: Prompt, size: tuple[int, int]) -> dict[str, Tensor]:
    """Stable Diffusion 1 and 2: one text encoder; SDXL, recognised by its second one, adds a pooled embedding and the image size."""
    if width := pipe.unet.config.get("time_cond_proj_dim"):
        scale = torch.tensor([(prompt.guidance or 1.0) - 1.0])
        told = {"guidance": pipe.get_guidance_scale_embedding(scale, width)[0].to(_device(pipe))}
    else:
        told = {}
    if not hasattr(pipe, "text_encoder_2"):
        embeds = prompt.embeds
        if embeds is None:
            if prompt.clip_skip is not None and not hasattr(pipe.text_encoder, "text_model"):
                raise ValueError(
                    f"clip_skip={prompt.clip_skip}: the installed diffusers looks for text_encoder.text_model, which the installed transformers does not "
                    "have. Fix: transformers < 5, or encode the prompt yourself and pass prompt_embeds=."
                )
            embeds = pipe.encode_prompt(_text(prompt), _device(pipe), 1, False, clip_skip=prompt.clip_skip)[0][0]
        return {"prompt": embeds.to(_device(pipe)), **told}
    if "negative_original_size" in inspect.signature(pipe._get_add_time_ids).parameters:
        raise ValueError(
            f"pipeline {type(pipe).__name__}, wanted StableDiffusionXLPipeline, the one from text to image: image= and mask_image= do the rest. Fix: "
            "diffusers.StableDiffusionXLPipeline.from_pipe(pipe). (Refiners take other conditions and are not supported.)"
        )
    embeds, pooled = prompt.embeds, prompt.pooled
    if embeds is None:
        wanted = {"device": _device(pipe), "do_classifier_free_guidance": False, "clip_skip": prompt.clip_skip}
        found, _, found_pooled, _ = pipe.encode_prompt(_text(prompt), **wanted)
        embeds, pooled = found[0], found_pooled[0]
        if prompt.text is None and pipe.config.get("force_zeros_for_empty_prompt"):
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    pooled = _pooled(pooled)
    width = int(pooled.shape[-1]) if pipe.text_encoder_2 is None else pipe.text_encoder_2.config.projection_dim
    time_ids = pipe._get_add_time_ids(size, (0, 0), size, embeds.dtype, width)
    given = {"prompt": embeds, "text_embeds": pooled, "time_ids": time_ids[0]}
    return {name: value.to(_device(pipe)) for name, value in given.items()} | told


def _sd3(network: Any, x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    return network(
        hidden_states=x, timestep=time, encoder_hidden_states=given["prompt"], pooled_projections=given["pooled"], return_dict=False
    )[0]


def _sd3_prompt(pipe: Any, prompt: Prompt, size: tuple[int, int]) -> dict[str, Tensor]:
    embeds, pooled = prompt.embeds, prompt.pooled
    if embeds is None:
        wanted = {"device": _device(pipe), "do_classifier_free_guidance": False, "clip_skip": prompt.clip_skip}
        found, _, found_pooled, _ = pipe.encode_prompt(_text(prompt), None, None, **wanted)
        embeds, pooled = found[0], found_pooled[0]
    return {"prompt": embeds.to(_device(pipe)), "pooled": _pooled(pooled).to(_device(pipe))}


def _flux(network: Any, x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Latents in tokens of 2 x 2 pixels, time in [0, 1]; guidance-distilled networks take the guidance scale as one more condition."""
    rows, channels, tall, wide = x.shape
    tokens = x.reshape(rows, channels, tall // 2, 2, wide // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * 4)
    place = torch.zeros(tall // 2, wide // 2, 3, dtype=x.dtype, device=x.device)
    place[..., 1] += torch.arange(tall // 2, dtype=x.dtype, device=x.device)[:, None]
    place[..., 2] += torch.arange(wide // 2, dtype=x.dtype, device=x.device)
    out = network(
        hidden_states=tokens,
        timestep=time / 1000,
        guidance=given.get("guidance"),
        encoder_hidden_states=given["prompt"],
        pooled_projections=given["pooled"],
        txt_ids=torch.zeros(given["prompt"].shape[1], 3, dtype=x.dtype, device=x.device),
        img_ids=place.flatten(0, 1),
        return_dict=False,
    )[0]
    return out.reshape(rows, tall // 2, wide // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _flux_prompt(pipe: Any, prompt: Prompt, size: tuple[int, int]) -> dict[str, Tensor]:
    if prompt.clip_skip is not None:
        raise ValueError(f"clip_skip={prompt.clip_skip}: Flux takes only the pooled output of CLIP, no layer can be skipped. Leave it out.")
    embeds, pooled = prompt.embeds, prompt.pooled
    if embeds is None:
        found, found_pooled, _ = pipe.encode_prompt(_text(prompt), None, device=_device(pipe))
        embeds, pooled = found[0], found_pooled[0]
    conditions = {"prompt": embeds.to(_device(pipe)), "pooled": _pooled(pooled).to(_device(pipe))}
    if pipe.transformer.config.guidance_embeds:
        scale = 3.5 if prompt.guidance is None else prompt.guidance
        conditions["guidance"] = torch.tensor(float(scale), device=_device(pipe))
    return conditions


def _text(prompt: Prompt) -> str:
    if prompt.text is None:
        return ""
    if not isinstance(prompt.text, str):
        raise ValueError(f"prompt {prompt.text!r} is not text: this pipeline takes text prompts.")
    return prompt.text


def _pooled(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("prompt_embeds without pooled_prompt_embeds, wanted both for this pipeline: encode_prompt returns both.")
    return value


def _device(pipe: Any) -> torch.device:
    return pipe._execution_device


FAMILIES = {
    "UNet2DConditionModel": Family(_conditional_unet, _stable_diffusion),
    "SD3Transformer2DModel": Family(_sd3, _sd3_prompt, 2),
    "FluxTransformer2DModel": Family(_flux, _flux_prompt, 2),
}
