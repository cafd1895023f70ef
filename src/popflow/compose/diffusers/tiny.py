"""Tiny pipelines with random weights: real classes, real folders, kilobytes in size.

They draw noise, not pictures: use them to try out a command, a script or an integration without a download or a GPU.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from popflow.compose.diffusers.loading import extra


def save(make: Callable[[], Any], folder: str | Path) -> str:
    """Save what one of the functions below makes to a folder, and return its path.

    >>> import tempfile
    >>> _ = __import__("pytest").importorskip("diffusers")
    >>> sorted(path.name for path in Path(save(unconditional, tempfile.mkdtemp())).iterdir())
    ['model_index.json', 'scheduler', 'unet']
    """
    make().save_pretrained(folder)
    return str(folder)


def unconditional(*, classes: int | None = None, scheduler: Any = None, seed: int = 0) -> Any:
    """``DDPMPipeline`` of a U-Net on 8 x 8 grey images, class-conditional when there are classes."""
    diffusers = extra("diffusers")

    with _seeded(seed):
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        )
    return diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler(clip_sample=False))


def stable_diffusion(*, seed: int = 0, prediction_type: str = "epsilon") -> Any:
    """``StableDiffusionPipeline`` for images of 32 x 32, latents of 16 x 16."""
    diffusers, transformers = extra("diffusers"), extra("transformers")

    with _seeded(seed):
        unet = diffusers.UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=8,
        )
        config = transformers.CLIPTextConfig(
            vocab_size=64,
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            projection_dim=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        text_encoder = transformers.CLIPTextModel(config)
        vae = autoencoder()
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, prediction_type=prediction_type
    )
    return diffusers.StableDiffusionPipeline(
        vae, text_encoder, _tokenizer(), unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def autoencoder(channels: int = 4, **scale: float) -> Any:
    """``AutoencoderKL`` for images of 32 x 32."""
    diffusers = extra("diffusers")

    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=32,
        **scale,
    )


def _tokenizer() -> Any:
    """Byte-pair tokenizer of cat and dog, built up letter by letter."""
    transformers = extra("transformers")

    tokens, merges = ["<|startoftext|>", "<|endoftext|>"], []
    tokens += [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    for word in ("cat", "dog"):
        left = word[0]
        for i in range(1, len(word)):
            right = word[i] + ("</w>" if i == len(word) - 1 else "")
            merges.append((left, right))
            left += right
            tokens.append(left)
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
