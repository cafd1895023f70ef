"""Options of a composed pipeline mean what they mean in diffusers; what would be left out without a word is refused or told."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

from popflow.compose.diffusers import ComposedPipeline, from_pipe, tiny
from popflow.core import PopflowWarning

MAKERS = {"SD": tiny.stable_diffusion, "SDXL": tiny.stable_diffusion_xl}
QUICK = {"num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipes() -> dict[str, ComposedPipeline]:
    made = {kind: ComposedPipeline((make(),)) for kind, make in MAKERS.items()}
    for one in made.values():
        one.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embedded(pipe, text: str) -> dict[str, torch.Tensor]:
    found = pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return {"prompt_embeds": found[0]} | ({"pooled_prompt_embeds": found[2]} if len(found) == 4 else {})


OPTIONS = {
    "an empty negative prompt": {"negative_prompt": ""},
    "no negative prompt": {},
    "a list of negative prompts": {"negative_prompt": ["the red"]},
    "clip_skip": {"clip_skip": 1},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "guidance_rescale, a negative prompt": {"guidance_rescale": 0.3, "negative_prompt": "the red"},
    "sigmas": {"sigmas": [12.0, 4.0, 1.0, 0.2, 0.0]},
}


@pytest.mark.parametrize("option", [*OPTIONS, "prompt_embeds"])
@pytest.mark.parametrize("kind", MAKERS)
def test_options_do_what_they_do_in_diffusers(pipes, kind, option):
    """One prompt, no noise, the same first latents: the last latents of ``pipe(...)`` of diffusers, to 1e-4."""
    if kind == "SD" and option == "clip_skip" and not hasattr(pipes[kind].pipes[0].text_encoder, "text_model"):
        with pytest.raises(ValueError, match=r"clip_skip=1: the installed diffusers looks for text_encoder.text_model"):
            pipes[kind]("a cat", clip_skip=1, **QUICK)
        return
    composed, noise = pipes[kind], torch.randn(1, 4, 16, 16, generator=seeded())
    (pipe,) = composed.pipes
    given = OPTIONS[option] if option in OPTIONS else embedded(pipe, "a cat")
    words = {} if "prompt_embeds" in given else {"prompts": "a cat"}
    ours = composed(**words, **given, latents=noise, guidance_scale=3.0, noise_above=math.inf, **QUICK)
    pipe.scheduler.set_timesteps(**({"sigmas": given["sigmas"]} if "sigmas" in given else {"num_inference_steps": 4}))
    ratio = float(pipe.scheduler.sigmas[0] / pipe.scheduler.init_noise_sigma)  # diffusers may start at sqrt(sigma^2 + 1)
    words = {} if "prompt_embeds" in given else {"prompt": ["a cat"] if isinstance(given.get("negative_prompt"), list) else "a cat"}
    theirs = pipe(**words, **given, latents=ratio * noise, guidance_scale=3.0, height=32, width=32, **QUICK).images
    assert float((ours.latents - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def test_an_absent_prompt_of_sdxl_is_zeros_and_an_empty_one_is_not(pipes):
    (pipe,) = pipes["SDXL"].pipes
    absent = from_pipe(pipe)
    table = absent.source.conditions
    empty = table.rows(absent.prompt("").cond.reshape(1))["prompt"]
    assert not bool(table.rows(absent.cond.reshape(1))["prompt"].any())
    assert torch.equal(empty, pipe.encode_prompt("", device="cpu", do_classifier_free_guidance=False)[0])


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("op", ["product", "or"])
def test_the_first_image_does_not_depend_on_how_many_are_asked_for(pipes, op, particles):
    """To the rounding of larger batches. Resampling, Langevin steps and the choice of a particle have streams of their own as well."""
    options = {"op": op, "particles": particles, "guidance_scale": 2.0, "ess_below": 0.9, **QUICK}
    options |= {"kernel_steps": 1} if op == "product" else {}
    one, three = (pipes["SD"](["a cat", "a dog"], num_images_per_prompt=n, generator=seeded(), **options) for n in (1, 3))
    assert float((one.latents[0] - three.latents[0]).abs().max()) <= 1e-5 * float(one.latents.abs().max())
    assert torch.allclose(one.weights[0], three.weights[0], atol=1e-3)
    assert torch.equal(one.ancestor[0], three.ancestor[0])


def test_each_prompt_has_a_negative_prompt_of_its_own(pipes):
    plan = pipes["SD"].plan(["a cat", "a dog"], negative_prompt=["red", "blue"], guidance_scale=2.0)
    assert [expert.name for expert in plan.sampler.experts] == ["red", "a cat", "blue", "a dog"]
    with pytest.raises(ValueError, match=r"negative_prompt holds 3 for 2 prompts, wanted one for each"):
        pipes["SD"].plan(["a cat", "a dog"], negative_prompt=["a", "b", "c"], guidance_scale=2.0)


def test_guided_and_rescaled_prompts_share_a_call_and_cost_two_rows_each(pipes):
    plan = pipes["SD"].plan(["a cat", "a dog"], op="average", guidance_scale=3.0, guidance_rescale=0.7)
    first, second = plan.sampler.experts
    assert first.model is second.model
    with pytest.warns(PopflowWarning, match=r"guidance_rescale=0.7 has no effect without guidance"):
        pipes["SD"].plan("a cat", guidance_scale=1.0, guidance_rescale=0.7)


def test_copies_that_could_not_part_are_not_made(pipes):
    """Without noise a reward weighs particles and never copies them; the effective sample size is then a true one."""

    def first_channel(z: torch.Tensor) -> torch.Tensor:
        return z[:, 0].mean((1, 2))

    reward = {"reward": first_channel, "reward_on": "latents", "reward_scale": 1.0}
    out = pipes["SD"]("a cat", particles=8, guidance_scale=1.0, noise_above=math.inf, generator=seeded(), **reward, **QUICK)
    assert len(out.particles[0].flatten(1).unique(dim=0)) == 8
    assert torch.equal(out.ancestors, torch.full((5, 1), 8))
    assert float(out.ess[-1]) < 7.9
    late = pipes["SD"]("a cat", particles=8, guidance_scale=1.0, noise_above=1.0, generator=seeded(), **reward, **QUICK)
    assert len(late.particles[0].flatten(1).unique(dim=0)) == 8  # copies made above sigma = 1 part there, none are made below
    assert int(late.ancestors[-1]) == len(late.ancestor.unique())


def test_particles_that_do_not_compete_are_told(pipes):
    with pytest.warns(
        PopflowWarning, match=r"noise_above=inf, where the first level is 14.6.*: products are weighed only where noise is added"
    ):
        pipes["SD"]("a cat", particles=8, noise_above=math.inf, **QUICK)


@pytest.mark.parametrize("options", [{"latents": torch.zeros(4, 16, 16)}, {"latents": torch.zeros(1, 16, 64)}])
def test_latents_of_another_shape_are_named(pipes, options):
    with pytest.raises(ValueError, match=r"latents is .*, wanted a tensor \[images, 4, 16, 16\] of standard normal noise"):
        pipes["SD"]("a cat", **options, **QUICK)


def test_latents_are_for_so_many_images_and_particles(pipes):
    with pytest.raises(ValueError, match=r"latents holds 2 images, wanted 1, or num_images_per_prompt=1"):
        pipes["SD"]("a cat", latents=torch.randn(2, 4, 16, 16, generator=seeded()), **QUICK)
    with pytest.raises(ValueError, match=r"for 1 images of 2 particles, wanted one for each"):
        pipes["SD"]("a cat", latents=torch.randn(1, 3, 4, 16, 16, generator=seeded()), particles=2, **QUICK)
    with pytest.raises(ValueError, match="values that are not finite"):
        pipes["SD"]("a cat", latents=torch.full((1, 4, 16, 16), math.nan), **QUICK)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": "a cat", "prompt_embeds": torch.zeros(1, 77, 8)}, "prompts and prompt_embeds are both given"),
        ({"prompt_embeds": torch.zeros(77, 8)}, r"prompt_embeds is \(77, 8\), wanted a tensor \[prompts, tokens, width\]"),
        ({"pooled_prompt_embeds": torch.zeros(1, 8)}, "pooled_prompt_embeds without prompt_embeds, wanted both"),
        (
            {"prompt_embeds": torch.zeros(1, 60, 8)},
            r"conditions 'prompt' have shape \(60, 8\), wanted \(77, 8\) like those of other prompts",
        ),
        ({"prompts": "a cat", "sigmas": [1.0, 3.0]}, r"sigmas=\[1.0, 3.0\], wanted decreasing noise levels"),
        ({"prompts": "a cat", "guidance_rescale": 2.0}, r"guidance_rescale=2.0, wanted a share in \[0, 1\]"),
        ({"prompts": "a cat", "clip_skip": -1}, "clip_skip=-1, wanted an integer of at least 0"),
        ({"prompts": "a cat", "variance": "local"}, "variance='local' for pipelines, wanted 'optimal'"),
    ],
)
def test_options_that_do_not_fit_are_named(pipes, options, says):
    with pytest.raises(ValueError, match=says):
        pipes["SD"](**options, guidance_scale=3.0, **QUICK)


def test_pooled_embeddings_are_asked_for_where_they_are_needed(pipes):
    with pytest.raises(ValueError, match=r"prompt_embeds without pooled_prompt_embeds, wanted both for this pipeline"):
        pipes["SDXL"](prompt_embeds=torch.zeros(1, 77, 16), **QUICK)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("seed", r"it is called 'generator' here"),
        ("eta", r"it is called 'noise_above' here"),
        ("prompt", r"it is called 'prompts' here"),
        ("ip_adapter_image", r"unknown option 'ip_adapter_image': Known"),
        ("controlnet_conditioning_scale", r"unknown option 'controlnet_conditioning_scale': Known"),
        ("negative_promt", "did you mean 'negative_prompt'"),
    ],
)
def test_hints_do_not_mislead(pipes, name, hint):
    with pytest.raises(TypeError, match=hint):
        pipes["SD"]("a cat", **{name: 1}, **QUICK)


def test_levels_too_low_for_latents_are_told(pipes):
    with pytest.warns(PopflowWarning, match=r"sigmas begin at 1, too low for the data of expert 'a cat'"):
        pipes["SD"]("a cat", sigmas=[1.0, 0.5, 0.1], guidance_scale=1.0, output_type="latent")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopflowWarning)
        pipes["SD"]("a cat", guidance_scale=1.0, **QUICK)


def test_a_progress_bar_moves_once_a_step_and_can_be_switched_off(pipes, monkeypatch):
    (pipe,) = pipes["SD"].pipes
    moved = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            moved.append("closed")

        def update(self):
            moved.append(1)

    monkeypatch.setattr(pipe, "progress_bar", lambda total: moved.append(total) or Bar())
    pipes["SD"]("a cat", guidance_scale=1.0, num_images_per_prompt=2, **QUICK)
    assert moved == [4, 1, 1, 1, 1, "closed"]
    monkeypatch.undo()
    pipes["SD"].set_progress_bar_config(disable=True)
    assert pipe.progress_bar(total=4).disable


def test_pipelines_are_moved_and_offloaded_together(monkeypatch):
    pipe = tiny.stable_diffusion()
    composed = ComposedPipeline((pipe,))
    composed.set_progress_bar_config(disable=True)
    assert composed.to(torch.float64) is composed
    assert pipe.unet.dtype == torch.float64
    assert composed("a cat", **QUICK).latents.isfinite().all()
    asked = []
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda **options: asked.append(options))
    composed.enable_model_cpu_offload(device="cuda")
    assert asked == [{"device": "cuda"}]


def test_guidance_of_a_class_conditional_network_needs_a_class_to_go_away_from():
    composed = ComposedPipeline((tiny.unconditional(classes=4),))
    with pytest.raises(
        ValueError, match=r"guidance_scale=2.0 without negative_prompt for a class-conditional .* negative_prompt=3 if that one"
    ):
        composed([1], guidance_scale=2.0, **QUICK)
    with pytest.raises(ValueError, match=r"prompts is None for a class-conditional network: .*prompts=\[0\], a class from 0 to 3"):
        composed(**QUICK)
    plan = composed.plan([1], negative_prompt=3, guidance_scale=2.0)
    assert [expert.name for expert in plan.sampler.experts] == ["3", "1"]
    with pytest.raises(ValueError, match=r"a class-conditional network without a class, wanted expert.prompt\(0\)"):
        from_pipe(composed.pipes[0]).score(torch.zeros(1, 1, 8, 8), 1.0)


def test_a_guidance_distilled_unet_is_told_its_guidance(monkeypatch):
    """Latent consistency models: the scale minus one is embedded and given beside the time, as diffusers does."""
    base = tiny.stable_diffusion()
    config = {name: value for name, value in base.unet.config.items() if not name.startswith("_")} | {"time_cond_proj_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base.register_modules(unet=diffusers.UNet2DConditionModel.from_config(config))
    composed, told = ComposedPipeline((base,)), []
    composed.set_progress_bar_config(disable=True)
    forward = base.unet.forward
    monkeypatch.setattr(base.unet, "forward", lambda *rows, **given: told.append(given["timestep_cond"]) or forward(*rows, **given))
    composed("a cat", guidance_scale=5.0, noise_above=math.inf, **QUICK)
    wanted = base.get_guidance_scale_embedding(torch.tensor([4.0]), 8)
    assert torch.equal(told[0], wanted)
