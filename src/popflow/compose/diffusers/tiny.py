"""Tiny pipelines with random weights: real classes, real folders, kilobytes in size.

They draw noise, not pictures: use them to try out a command, a script or an integration without a download or a GPU.
"""

from __future__ import annotations

import math
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


def stable_diffusion_xl(*, seed: int = 0) -> Any:
    """``StableDiffusionXLPipeline`` with its two text encoders."""
    diffusers, transformers = extra("diffusers"), extra("transformers")
    base = stable_diffusion(seed=seed)
    clip = base.text_encoder.config
    config = {name: value for name, value in base.unet.config.items() if not name.startswith("_")}
    config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    config |= {"cross_attention_dim": 16, "projection_class_embeddings_input_dim": 8 + 6 * 4}
    with _seeded(seed):
        unet = diffusers.UNet2DConditionModel.from_config(config)
        first, second = transformers.CLIPTextModel(clip), transformers.CLIPTextModelWithProjection(clip)
        vae = autoencoder(scaling_factor=0.13025)
    parts = vae, first, second, base.tokenizer, base.tokenizer, unet, base.scheduler
    return diffusers.StableDiffusionXLPipeline(*parts, add_watermarker=False)


def stable_diffusion_3(*, seed: int = 0) -> Any:
    """``StableDiffusion3Pipeline``, a flow transformer with two CLIP encoders and T5."""
    diffusers, transformers = extra("diffusers"), extra("transformers")
    base = stable_diffusion(seed=seed)
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
        first, second = (transformers.CLIPTextModelWithProjection(base.text_encoder.config) for _ in range(2))
        t5, vae = _t5_encoder(16), autoencoder(scaling_factor=1.5305, shift_factor=0.0609)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    encoders = first, base.tokenizer, second, base.tokenizer, t5, _t5_tokenizer()
    return diffusers.StableDiffusion3Pipeline(transformer, scheduler, vae, *encoders)


def flux(*, guidance_embeds: bool = False, seed: int = 0) -> Any:
    """``FluxPipeline``, a flow transformer on tokens of 2 x 2 latents, with CLIP and T5 encoders."""
    diffusers, transformers = extra("diffusers"), extra("transformers")
    base = stable_diffusion(seed=seed)
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
        clip, t5 = transformers.CLIPTextModel(base.text_encoder.config), _t5_encoder(8)
        vae = autoencoder(scaling_factor=0.3611, shift_factor=0.1159)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(scheduler, vae, clip, base.tokenizer, t5, _t5_tokenizer(), transformer)


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


def standard_normal(pipe: Any, look: Callable[[float, int], None] = lambda size, rows: None) -> Any:
    """Give a pipeline a network that knows its data to be standard normal, and return it: what is right is then known at every step.

    Args:
        pipe: One of the above, under any scheduler that `popflow.compose.diffusers.read` reads.
        look: Called with the standard deviation of each input of the network, divided by what it has to be, and its rows.
    """
    network, scheduler = getattr(pipe, "unet", None) or pipe.transformer, pipe.scheduler
    flow, edm, unit = (
        hasattr(pipe, "transformer"),
        type(scheduler).__name__.startswith("EDM"),
        1.0 if hasattr(network, "x_embedder") else 1000.0,
    )

    def forward(
        x: Any = None, time: Any = None, *, hidden_states: Any = None, timestep: Any = None, **_: Any
    ) -> tuple[torch.Tensor]:  # U-Nets, transformers
        x, t = (x, float(time[0])) if hidden_states is None else (hidden_states, float(timestep[0]))
        if edm:
            sigma = math.exp(4 * t)
            size = math.sqrt((1 + sigma**2) / (0.25 + sigma**2))
            skip, outer = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / math.sqrt(sigma**2 + 0.25)
            out = x * math.sqrt(sigma**2 + 0.25) * (1 / (1 + sigma**2) - skip) / outer
        elif flow:
            s = t / unit
            size = math.hypot(1 - s, s)
            out = (2 * s - 1) / size**2 * x
        else:
            table = scheduler.alphas_cumprod.double()
            table = table[table > 0]
            low = min(int(t), len(table) - 2)
            below, above = (((1 - one) / one).log() / 2 for one in table[low : low + 2])
            log_sigma = torch.lerp(below, above, min(t, len(table) - 1) - low)
            size, s = 1.0, float((1 + (-2 * log_sigma).exp()) ** -0.5)
            out = x * {"epsilon": s, "v_prediction": 0.0, "sample": math.sqrt(1 - s**2)}[scheduler.config.prediction_type]
        look(float(x.std()) / size, len(x))
        return (out,)

    network.forward = forward
    return pipe


_WORDS = ("a", "an", "the", "of", "cat", "dog", "photo", "painting", "red", "blue")


def _t5_encoder(width: int) -> Any:
    transformers = extra("transformers")
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=64, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def _t5_tokenizer() -> Any:
    """Pieces: words, and letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in _WORDS)]
    letters = [(letter, -4.0) for letter in "\u2581" + string.ascii_lowercase]
    return extra("transformers").T5Tokenizer(vocab=[*pieces, *letters], extra_ids=0)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
