"""What a pipeline has and is not used is refused by name; a network must leave its input as it is."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

from popflow.compose.diffusers import from_pipe, tiny


def with_part(kind: str):
    base = tiny.stable_diffusion()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "ControlNet":
            controlnet = diffusers.ControlNetModel.from_unet(base.unet)
            return diffusers.StableDiffusionControlNetPipeline(**base.components, controlnet=controlnet, requires_safety_checker=False)
        if kind == "T2I-adapter":
            adapter = diffusers.T2IAdapter(channels=[4, 8], num_res_blocks=1, downscale_factor=2)
            parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
            return diffusers.StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
        if kind == "IP-adapter":
            base.unet.encoder_hid_proj = torch.nn.Identity()
        if kind == "noise level":
            base.unet.register_to_config(num_class_embeds=10)
        if kind == "image embeddings":
            base.unet.register_to_config(addition_embed_type="image")
    return base


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "ControlNet",
            r"StableDiffusionControlNetPipeline has component 'controlnet', which is not used here.*StableDiffusionPipeline.from_pipe",
        ),
        ("T2I-adapter", r"has component 'adapter', which is not used here"),
        ("IP-adapter", r"has an IP-adapter in its network, .* after pipe.unload_ip_adapter\(\)"),
        ("noise level", r"has num_class_embeds=10, which is not used"),
        ("image embeddings", r"has addition_embed_type='image', which is not used"),
    ],
)
def test_what_would_be_ignored_is_refused(kind, says):
    with pytest.raises(ValueError, match=says):
        from_pipe(with_part(kind))


def test_a_network_that_works_in_place_is_named():
    pipe = tiny.unconditional()
    forward = pipe.unet.forward
    pipe.unet.forward = lambda x, *rest, **more: forward(x.mul_(2), *rest, **more)
    with pytest.raises(ValueError, match=r"the network changed its input in place, wanted it left as it is"):
        from_pipe(pipe).score(torch.ones(1, 1, 8, 8), 1.0)
