"""The space a pipeline samples in: pixels in [-1, 1], or the latents of its autoencoder; images in and out of it.

Latents are ``(z - shift) * scale`` of the encoder's mean z, as the network was trained on them. Two pipelines have compatible latents when their
encoders are the same: class, channels, scale, shift, and weights. Weights are compared by the norms of their tensors to two digits, which half
precision does not change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core import NonFiniteError
from popflow.core.checks import refuse


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoder and decoder of one pipeline.

    Attributes:
        event: Shape of one latent (or pixel image) ``[C, H, W]``.
        factor: Image pixels along the side of one latent pixel.
        space: Label of the space; experts of different spaces do not compose.
        vae: The autoencoder, None for pipelines in pixel space.
        processor: The image processor of diffusers.
        device: Where the autoencoder computes, which may not be where it is kept.
        upcasts: Whether the pipeline runs it in single precision when it is stored in half (SDXL, ``vae.config.force_upcast``).
    """

    event: tuple[int, int, int]
    factor: int
    space: str
    vae: Any
    processor: Any
    device: torch.device | str = "cpu"
    upcasts: bool = False

    @contextmanager
    def single(self) -> Iterator[None]:
        """Run the autoencoder in single precision where its pipeline does: float16 overflows in that of SDXL. Inside, rewards may be differentiated."""
        wide = self.upcasts and self.vae.dtype == torch.float16
        if wide:
            self.vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            if wide:
                self.vae.to(dtype=torch.float16)

    def check_decoder(self) -> None:
        """Decode one latent of noise if the autoencoder runs in float16, so that what overflows is found before the steps are paid for.

        Raises:
            NonFiniteError: when it overflows.
        """
        with self.single(), torch.no_grad():
            if self.vae is not None and self.vae.dtype == torch.float16:
                self.decode(torch.randn(1, *self.event, generator=torch.Generator().manual_seed(0)).to(self.device))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.event[1] * self.factor, self.event[2] * self.factor

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.event[0] if self.vae is None else int(self.vae.config.in_channels)

    def decode(self, z: Tensor) -> Tensor:
        """Turn latents ``[n, *event]`` into images ``[n, C, H, W]`` in [-1, 1], differentiably.

        Raises:
            NonFiniteError: when latents or images are not finite.
        """
        _refuse_non_finite(z, "latents to decode", "sampling diverged earlier: take more steps or less guidance")
        if self.vae is None:
            return z
        if self.upcasts and self.vae.dtype == torch.float16:
            if z.requires_grad:  # a backward pass may follow, which needs the parameters as they are now
                self.vae.to(dtype=torch.float32)
            with self.single():
                return self.decode(z)
        mean, spread = self._moments(z)
        images = self.vae.decode((z * spread + mean).to(self.vae.dtype), return_dict=False)[0].to(z.dtype)
        _refuse_non_finite(images, "decoded images", _OVERFLOW)
        return images

    def encode(self, image: Any) -> Tensor:
        """Turn images (PIL, numpy, torch in [0, 1]; one or a list) into latents ``[n, *event]``; the mean of the encoder, no noise.

        Raises:
            ValueError: for an image of another size.
            NonFiniteError: for an image or latents that are not finite.
        """
        pixels = self.pixels(image)
        if self.vae is None:
            return pixels
        with torch.no_grad(), self.single():
            z = self.vae.encode(pixels.to(self.device, self.vae.dtype), return_dict=True).latent_dist.mode().to(pixels.dtype)
            mean, spread = self._moments(z)
            z = (z - mean) / spread
        _refuse_non_finite(z, "latents of the image", _OVERFLOW)
        return z

    def pixels(self, image: Any) -> Tensor:
        """Images of any kind as ``[n, C, H, W]`` in [-1, 1], of the right size."""
        image = _coloured(image, "L" if self.channels == 1 else "RGB")
        seen, wanted = size_of(image), self.size
        if seen != wanted:
            raise ValueError(
                f"image is {seen[0]} x {seen[1]} (height x width), wanted {wanted[0]} x {wanted[1]}. Fix: image.resize(({wanted[1]}, {wanted[0]})), "
                f"or pass height={seen[0]}, width={seen[1]} where those are multiples of {self.factor}."
            )
        pixels = self.processor.preprocess(image, height=wanted[0], width=wanted[1]).float()
        if self.vae is None and pixels.shape[1] != self.event[0] and self.event[0] == 1:
            pixels = pixels.mean(1, keepdim=True)
        if pixels.shape[1] != self.channels:
            raise ValueError(
                f"image has {pixels.shape[1]} channels, wanted {self.channels}: a PIL image of any mode, an array [H, W, {self.channels}] or a tensor "
                f"[{self.channels}, H, W] of pixels, not of latents."
            )
        _refuse_non_finite(pixels, "image", "load it again")
        if float(pixels.abs().max()) > 1 + 1e-3:
            raise ValueError(
                f"image holds values up to {float(pixels.abs().max()) / 2 + 0.5:g}, wanted [0, 1] in arrays and tensors: divide by 255, or pass a PIL image."
            )
        return pixels

    def images(self, z: Tensor, output_type: str = "pil") -> Any:
        """Decode latents into what diffusers calls ``pil``, ``np``, ``pt`` or ``latent``."""
        if output_type == "latent":
            return z
        with torch.no_grad():
            return self.processor.postprocess(self.decode(z), output_type=output_type)

    def mask(self, mask: Any) -> Tensor:
        """Mask of an image, white where it is repainted, as ``[1, h, w]`` of zeros and ones in latent pixels."""
        import numpy

        mask = _coloured(mask, "L")
        mask = mask.astype(numpy.float32) if isinstance(mask, numpy.ndarray) else mask.float() if isinstance(mask, Tensor) else mask
        seen, wanted = size_of(mask, "mask_image"), self.size
        if seen != wanted:
            raise ValueError(
                f"mask_image is {seen[0]} x {seen[1]} (height x width), wanted {wanted[0]} x {wanted[1]} like the image: resize it."
            )
        if isinstance(mask, Tensor) and mask.ndim == 2:
            mask = mask.unsqueeze(0)
        pixels = self.processor.preprocess(mask, height=wanted[0], width=wanted[1]).float()  # in [-1, 1]
        if len(pixels) > 1:
            raise ValueError(f"mask_image holds {len(pixels)} masks, wanted one for all images: call once for each mask.")
        _refuse_non_finite(pixels, "mask_image", "load it again")
        grey = pixels.mean((0, 1))
        cells = grey.reshape(self.event[1], self.factor, self.event[2], self.factor).amax((1, 3))
        return (cells > 0).to(grey).unsqueeze(0)

    def _moments(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.vae.config
        means, stds = config.get("latents_mean"), config.get("latents_std")
        if means is None or stds is None:
            return config.get("shift_factor") or 0.0, 1 / config.scaling_factor
        return z.new_tensor(means).reshape(-1, 1, 1), z.new_tensor(stds).reshape(-1, 1, 1) / config.scaling_factor


def latents_of(pipe: Any, network: Any, patch: int, height: int | None = None, width: int | None = None) -> Latents:
    """Return the space of a pipeline at an image size; the network's own size when none is given.

    Raises:
        ValueError: for a size that is not a multiple of the factor, or an autoencoder that does not fit the network.
    """
    from diffusers.image_processor import VaeImageProcessor

    vae = getattr(pipe, "vae", None)
    channels = network.config.in_channels
    if patch == 2 and type(network).__name__ == "FluxTransformer2DModel":
        channels //= 4
    factor, space = 1, "pixels"
    if vae is not None:
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.latent_channels != channels:
            inpainting = " (an inpainting network: use the text-to-image one, mask_image does the rest)" if channels == 9 else ""
            raise ValueError(
                f"the network takes {channels} channels{inpainting} and the autoencoder has {vae.config.latent_channels}, wanted the same: the "
                "folder mixes parts of different models."
            )
        space = _fingerprint(vae)
    side = getattr(pipe, "default_sample_size", None) or network.config.get("sample_size") or 64
    sides = side if isinstance(side, Sequence) else (side, side)
    step = factor * patch
    sizes = [given if given is not None else own * factor for given, own in zip((height, width), sides, strict=True)]
    if any(one % step or one < step for one in sizes):
        near = [max(step, round(one / step) * step) for one in sizes]
        raise ValueError(f"height={sizes[0]}, width={sizes[1]}, wanted multiples of {step}: {near[0]} x {near[1]} is nearest.")
    return Latents(
        (channels, sizes[0] // factor, sizes[1] // factor),
        factor,
        space,
        vae,
        VaeImageProcessor(vae_scale_factor=factor * patch),
        pipe._execution_device,
        vae is not None and bool(vae.config.get("force_upcast")) and hasattr(pipe, "unet") and hasattr(pipe, "text_encoder_2"),
    )


def size_of(image: Any, name: str = "image") -> tuple[int, int]:
    """Height and width of an image, or of several of one size."""
    from PIL import Image

    if isinstance(image, list | tuple):
        sizes = list(dict.fromkeys(size_of(one, name) for one in image))
        if len(sizes) != 1:
            seen = ", ".join(f"{tall} x {wide}" for tall, wide in sizes)
            raise ValueError(
                f"{name} is a list of {f'images of {seen}' if seen else 'none'}, wanted at least one, all of one size: resize them."
            )
        return sizes[0]
    if isinstance(image, Image.Image):
        return image.height, image.width
    shape = list(getattr(image, "shape", ()))
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{name} is a {type(image).__name__} of shape {tuple(shape)}, wanted a PIL image, an array [H, W, C] or a tensor [C, H, W]."
        )
    if isinstance(image, Tensor):
        return image.shape[-2], image.shape[-1]
    start = len(shape) - 3 if len(shape) > 3 else 0
    return shape[start], shape[start + 1]


def _coloured(image: Any, mode: str) -> Any:
    """PIL images, one or a list, in a mode (``RGB``, ``L``); anything else as it is."""
    from PIL import Image

    if isinstance(image, list | tuple):
        return [_coloured(one, mode) for one in image]
    return image.convert(mode) if isinstance(image, Image.Image) else image


def _fingerprint(vae: Any) -> str:
    """Label of an encoder."""
    weights = [p for name, p in vae.named_parameters() if name.startswith("encoder") and p.ndim > 1]
    norms = " ".join(f"{p.detach().double().norm().item():.1e}" for p in weights[:: max(1, len(weights) // 8)])
    config = vae.config
    return (
        f"{type(vae).__name__}, {config.latent_channels} channels, scale {config.get('scaling_factor')}, shift {config.get('shift_factor') or 0}, "
        f"encoder {hashlib.sha256(norms.encode()).hexdigest()[:8]}"
    )


_OVERFLOW = "an autoencoder in half precision overflows (that of SDXL is known to): pipe.vae.to(torch.float32)"


def _refuse_non_finite(value: Tensor, what: str, fix: str) -> None:
    total = len(value)

    def error(bad: int) -> NonFiniteError:
        return NonFiniteError(f"{what}: {bad} of {total} hold values that are not finite (NaN or infinite). Fix: {fix}.")

    refuse((~value.isfinite()).flatten(1).any(1).sum(), error)
