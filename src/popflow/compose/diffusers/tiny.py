"""Tiny pipelines of every kind with random weights: real classes, real folders, kilobytes in size.

They draw noise, not pictures: use them to try out a command, a script or an integration without a download or a GPU.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from popflow.compose.diffusers.extra import extra

WORDS = ("a", "an", "the", "of", "cat", "dog", "photo", "painting", "red", "blue")
_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


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


def stable_diffusion(*, scheduler: Any = None, seed: int = 0, prediction_type: str = "epsilon") -> Any:
    """``StableDiffusionPipeline`` for images of 32 x 32, latents of 16 x 16."""
    diffusers = extra("diffusers")

    with _seeded(seed):
        unet = diffusers.UNet2DConditionModel(**_unet(), cross_attention_dim=8)
        text_encoder = _clip()
        vae = autoencoder(4)
    scheduler = scheduler or diffusers.EulerDiscreteScheduler(**_TABLE, prediction_type=prediction_type)
    return diffusers.StableDiffusionPipeline(
        vae, text_encoder, _clip_tokenizer(), unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def stable_diffusion_xl(*, scheduler: Any = None, seed: int = 0) -> Any:
    """``StableDiffusionXLPipeline`` with its two text encoders."""
    diffusers = extra("diffusers")

    with _seeded(seed):
        unet = diffusers.UNet2DConditionModel(
            **_unet(),
            cross_attention_dim=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
        )
        encoders = _clip(), _clip(projected=True)
        vae = autoencoder(4, scaling_factor=0.13025)
    scheduler = scheduler or diffusers.EulerDiscreteScheduler(**_TABLE)
    return diffusers.StableDiffusionXLPipeline(vae, *encoders, _clip_tokenizer(), _clip_tokenizer(), unet, scheduler, add_watermarker=False)


def stable_diffusion_3(*, seed: int = 0) -> Any:
    """``StableDiffusion3Pipeline``, a flow transformer with two CLIP encoders and T5."""
    diffusers = extra("diffusers")

    with _seeded(seed):
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=16,
        )
        encoders = _clip(projected=True), _clip(projected=True), _t5(16)
        vae = autoencoder(4, scaling_factor=1.5305, shift_factor=0.0609)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(
        transformer, scheduler, vae, encoders[0], _clip_tokenizer(), encoders[1], _clip_tokenizer(), encoders[2], _t5_tokenizer()
    )


def flux(*, guidance_embeds: bool = False, seed: int = 0) -> Any:
    """``FluxPipeline``, a flow transformer on tokens of 2 x 2 latents, with CLIP and T5 encoders."""
    diffusers = extra("diffusers")

    with _seeded(seed):
        transformer = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        )
        clip, t5, vae = _clip(), _t5(8), autoencoder(4, scaling_factor=0.3611, shift_factor=0.1159)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(scheduler, vae, clip, _clip_tokenizer(), t5, _t5_tokenizer(), transformer)


_TABLE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _unet() -> dict[str, Any]:
    return {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "down_block_types": _DOWN,
        "up_block_types": _UP,
        "attention_head_dim": 2,
    }


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


def _clip(projected: bool = False) -> Any:
    transformers = extra("transformers")

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
    return transformers.CLIPTextModelWithProjection(config) if projected else transformers.CLIPTextModel(config)


def _clip_tokenizer() -> Any:
    """Byte-pair tokenizer of the words `WORDS`, built up letter by letter."""
    transformers = extra("transformers")

    tokens, merges = ["<|startoftext|>", "<|endoftext|>"], []
    tokens += [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    for word in WORDS[4:6]:
        left = word[0]
        for i in range(1, len(word)):
            right = word[i] + ("</w>" if i == len(word) - 1 else "")
            merges.append((left, right))
            left += right
            tokens.append(left)
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def _t5(width: int) -> Any:
    transformers = extra("transformers")

    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=64, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def _t5_tokenizer() -> Any:
    """Pieces: the words of `WORDS`, and letters."""
    transformers = extra("transformers")

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
    return transformers.T5Tokenizer(vocab=[*pieces, *((letter, -4.0) for letter in "▁" + string.ascii_lowercase)], extra_ids=0)


class _seeded:
    """Seed the global generator, from which layers draw their parameters, and restore it afterwards."""

    def __init__(self, seed: int):
        self.fork, self.seed = torch.random.fork_rng(devices=[]), seed

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
