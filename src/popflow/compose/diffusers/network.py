"""Networks of diffusers: how each family is called, and what conditions it takes.

A family is a pair of functions: ``call(network, x, time, conditions) -> output`` for rows, and ``encode(pipe, text, size) -> conditions`` for one
prompt (or class number). Conditions are tensors by name; a `Conditions` table encodes each prompt once and hands out rows by number, so that an
expert carries one integer and hundreds of particles share one embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core.errors import unknown

Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
Encode = Callable[[Any, Any, tuple[int, int]], dict[str, Tensor]]


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
        """Return the number of a prompt, encoding it if it is new."""
        if prompt not in self.numbers:
            with torch.no_grad():
                row = self.encode(prompt)
            for name, value in row.items():
                old = self.tables.get(name)
                self.tables[name] = value.unsqueeze(0) if old is None else torch.cat([old, value.unsqueeze(0)])
            self.numbers[prompt] = len(self.numbers)
        return self.numbers[prompt]

    def rows(self, number: Tensor) -> dict[str, Tensor]:
        """Return the conditions of numbered prompts, one row each."""
        return {name: table.index_select(0, number) for name, table in self.tables.items()}


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


def _label(pipe: Any, label: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    count = pipe.unet.config.num_class_embeds
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < count:
        raise ValueError(f"prompt {label!r}: this network takes a class number from 0 to {count - 1}.")
    return {"label": torch.tensor(label, device=_device(pipe))}


def _conditional_unet(network: Any, x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    return network(x, time, encoder_hidden_states=given["prompt"], added_cond_kwargs=added or None, return_dict=False)[0]


def _stable_diffusion(pipe: Any, text: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    """Stable Diffusion 1 and 2: one text encoder; SDXL, recognised by its second one, adds a pooled embedding and the image size."""
    if not hasattr(pipe, "text_encoder_2"):
        prompt, *_ = pipe.encode_prompt(_text(text), _device(pipe), 1, False)
        return {"prompt": prompt[0]}
    if "negative_original_size" in inspect.signature(pipe._get_add_time_ids).parameters:
        raise ValueError(
            f"pipeline {type(pipe).__name__}, wanted StableDiffusionXLPipeline, the one from text to image: image= and mask_image= do the rest. Fix: "
            "diffusers.StableDiffusionXLPipeline.from_pipe(pipe). (Refiners take other conditions and are not supported.)"
        )
    prompt, _, pooled, _ = pipe.encode_prompt(_text(text), device=_device(pipe), do_classifier_free_guidance=False)
    if text == "" and pipe.config.get("force_zeros_for_empty_prompt"):
        prompt, pooled = torch.zeros_like(prompt), torch.zeros_like(pooled)
    width = int(pooled.shape[-1]) if pipe.text_encoder_2 is None else pipe.text_encoder_2.config.projection_dim
    time_ids = pipe._get_add_time_ids(size, (0, 0), size, prompt.dtype, width)
    return {"prompt": prompt[0], "text_embeds": pooled[0], "time_ids": time_ids[0].to(_device(pipe))}


def _sd3(network: Any, x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    return network(
        hidden_states=x, timestep=time, encoder_hidden_states=given["prompt"], pooled_projections=given["pooled"], return_dict=False
    )[0]


def _sd3_prompt(pipe: Any, text: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    prompt, _, pooled, _ = pipe.encode_prompt(_text(text), None, None, device=_device(pipe), do_classifier_free_guidance=False)
    return {"prompt": prompt[0], "pooled": pooled[0]}


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


def _flux_prompt(pipe: Any, text: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    scale = 3.5
    if isinstance(text, tuple):
        text, scale = text
    prompt, pooled, _ = pipe.encode_prompt(_text(text), None, device=_device(pipe))
    conditions = {"prompt": prompt[0], "pooled": pooled[0]}
    if pipe.transformer.config.guidance_embeds:
        conditions["guidance"] = torch.tensor(float(scale), device=_device(pipe))
    return conditions


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"prompt {text!r} is not text: this pipeline takes text prompts.")
    return text


def _device(pipe: Any) -> torch.device:
    return pipe._execution_device


FAMILIES = {
    "UNet2DConditionModel": Family(_conditional_unet, _stable_diffusion),
    "SD3Transformer2DModel": Family(_sd3, _sd3_prompt, 2),
    "FluxTransformer2DModel": Family(_flux, _flux_prompt, 2),
}
