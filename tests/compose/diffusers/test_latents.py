"""Autoencoders in half precision: upcast where diffusers upcasts them, and tried before the steps are paid for where it does not."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from popflow.compose.diffusers import ComposedPipeline, from_pipe, tiny
from popflow.core import NonFiniteError

QUICK = {"num_inference_steps": 2, "guidance_scale": 1.0}


def overflowing(pipe):
    """Activations beyond what float16 holds, which the next normalisation brings back."""
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(1e5)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float16)


def test_the_autoencoder_of_sdxl_is_upcast_and_put_back():
    pipe = overflowing(tiny.stable_diffusion_xl())
    composed = ComposedPipeline((pipe,))
    out = composed("a cat", output_type="pt", **QUICK)
    assert out.images.isfinite().all()
    assert pipe.vae.dtype == torch.float16
    latents = composed.experts()[0].latents
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert latents.encode(image).isfinite().all()
    assert pipe.vae.dtype == torch.float16
    guided = composed("a cat", reward=lambda x: x.mean((1, 2, 3)), reward_gradient=True, particles=2, output_type="pt", **QUICK)
    assert guided.images.isfinite().all()
    pipe.vae.register_to_config(force_upcast=False)
    with pytest.raises(NonFiniteError, match=r"decoded images: .* an autoencoder in half precision overflows"):
        ComposedPipeline((pipe,))("a cat", **QUICK)


def test_a_gradient_through_an_upcast_autoencoder_is_that_of_single_precision():
    pipe = overflowing(tiny.stable_diffusion_xl())
    latents = from_pipe(pipe).latents
    z = torch.randn(1, *latents.event, generator=torch.Generator().manual_seed(0))

    def slope() -> torch.Tensor:
        point = z.clone().requires_grad_()
        return torch.autograd.grad(latents.decode(point).sum(), point)[0]

    half = slope()  # outside of `single`: the parameters stay as the backward pass needs them
    pipe.vae.to(torch.float32)
    assert torch.equal(half, slope())


def test_what_overflows_is_found_before_the_steps(monkeypatch):
    pipe = overflowing(tiny.stable_diffusion())
    calls = []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda *given, **more: calls.append(1) or forward(*given, **more))
    with pytest.raises(NonFiniteError, match=r"decoded images: .* pipe.vae.to\(torch.float32\)"):
        ComposedPipeline((pipe,))("a cat", **QUICK)
    assert not calls
