"""`ComposedPipeline` end to end on real folders of tiny pipelines of every kind: text to image, editing, inpainting, rewards, LoRAs, bad input."""

from __future__ import annotations

import math
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

from popflow.compose import sample
from popflow.compose.diffusers import ComposedOutput, ComposedPipeline, from_pipe, from_pretrained, tiny
from popflow.compose.schedule import DDPM
from popflow.core import MissingExtraError, NonFiniteError, PopflowWarning, Streams
from popflow.core.checks import put_off

SAMPLING = sys.modules["popflow.compose.sampler"]
"""The module: the package has a function of that name."""
KINDS = {
    "unconditional": tiny.unconditional,
    "classes": partial(tiny.unconditional, classes=4),
    "EDM": partial(tiny.unconditional, scheduler=diffusers.EDMEulerScheduler()),
    "SD": tiny.stable_diffusion,
    "SD v": partial(tiny.stable_diffusion, prediction_type="v_prediction"),
    "SDXL": tiny.stable_diffusion_xl,
    "SD3": tiny.stable_diffusion_3,
    "Flux": tiny.flux,
}
PROMPTS = {"classes": [0, 2], "unconditional": None, "EDM": None}
SIZE = {"unconditional": 8, "classes": 8, "EDM": 8}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    return {kind: tiny.save(make, tmp_path_factory.mktemp("pipe")) for kind, make in KINDS.items()}


@pytest.fixture(scope="session")
def pipes(folders) -> dict[str, ComposedPipeline]:
    """Each loaded once from its folder."""
    return {kind: ComposedPipeline.from_pretrained(folder) for kind, folder in folders.items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: ComposedPipeline, prompts, **options):
    defaults = {"num_inference_steps": 4, "generator": seeded(), "guidance_scale": 1.0, "output_type": "latent"}
    options = defaults | options
    side = 8 if pipe.pipes[0].__class__.__name__ == "DDPMPipeline" else 32
    return pipe(prompts, **({"height": side, "width": side} | options))


def assert_equal_to_rounding(one: torch.Tensor, other: torch.Tensor) -> None:
    assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_out_of_every_kind_of_folder(pipes, kind):
    prompts = PROMPTS.get(kind, ["a cat", "a dog"])
    ops = ("product",) if prompts is None else ("product", "and", "or", "average") if kind == "SD" else ("product", "and")
    for op in ops:
        out = draw(pipes[kind], prompts, op=op, particles=4, num_images_per_prompt=2, output_type="pil")
        side = SIZE.get(kind, 32)
        assert [image.size for image in out.images] == [(side, side)] * 2
        assert out.weights.shape == (2, 4)
        assert torch.allclose(out.weights.sum(1), torch.ones(2))
        assert out.ess.shape == (5, 2)
        count = len(prompts or [0])
        assert out.log_densities.shape == (2, 4, count)
        assert out.log_densities.isfinite().all()
        if op == "product":
            assert out.kappa is None
        else:
            assert out.kappa.shape == (2, 4, count)
            assert torch.allclose(out.kappa.sum(-1), torch.ones(2, 4), atol=1e-4)


@pytest.mark.parametrize("kind", ["classes", "SD v", "Flux"])
def test_two_equal_prompts_give_equal_results_whatever_the_operation(pipes, kind):
    prompt = 1 if kind == "classes" else "a cat"
    results = {op: draw(pipes[kind], [prompt, prompt], op=op, noise_above=0).latents for op in ("and", "or", "average")}
    scale = float(results["average"].abs().max())
    assert torch.allclose(results["and"], results["average"], atol=1e-5 * scale)
    assert torch.allclose(results["or"], results["average"], atol=1e-4 * scale)  # a mixture of equal kernels, in other arithmetic


@pytest.mark.parametrize("op", ["product", "and", "or", "average"])
def test_the_order_of_prompts_does_not_matter(pipes, op):
    one = draw(pipes["SD"], ["a cat", "a dog", "the red"], op=op, particles=2, guidance_scale=2.0)
    other = draw(pipes["SD"], ["the red", "a cat", "a dog"], op=op, particles=2, guidance_scale=2.0)
    scale = float(one.latents.abs().max())
    assert torch.allclose(one.latents, other.latents, atol=1e-4 * scale)
    assert torch.allclose(one.weights, other.weights, atol=1e-3)


@pytest.mark.parametrize("kind", ["classes", "SDXL"])
def test_the_same_generator_gives_the_same_bytes(pipes, kind):
    prompts = PROMPTS.get(kind, ["a cat", "a dog"])
    first, again, other = (draw(pipes[kind], prompts, op="and", particles=2, generator=seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.latents, other.latents)


def test_a_list_of_generators_makes_each_image_its_own(pipes):
    prompts = ["a cat", "a dog"]
    both = draw(pipes["SD"], prompts, op="or", num_images_per_prompt=2, generator=[seeded(3), seeded(4)])
    for i, seed in enumerate((3, 4)):
        alone = draw(pipes["SD"], prompts, op="or", generator=seeded(seed))
        assert_equal_to_rounding(both.latents[i], alone.latents[0])  # of batches of one row and of two
    with pytest.raises(ValueError, match=r"list of 1, wanted one for each of 2 images"):
        draw(pipes["SD"], prompts, op="or", num_images_per_prompt=2, generator=[seeded(3)])


@pytest.mark.parametrize("kind", ["SD", "SD v", "SDXL"])
def test_one_prompt_without_noise_is_the_pipeline_itself(folders, kind):
    """Guided text to image against ``pipe(...)`` of diffusers with its Euler scheduler, from the same first latents."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders[kind])
    pipe.set_progress_bar_config(disable=True)
    expert = from_pipe(pipe)
    start = torch.randn(1, *expert.event, generator=seeded())
    composed = ComposedPipeline((pipe,))
    plan = composed.plan("a cat", guidance_scale=3.0, num_inference_steps=6, noise_above=math.inf, correct=False)
    seen = []
    sample(plan.sampler, plan.levels, particles=1, rng=Streams(0), record=[seen.append], around=None)
    start = seen[0].pop.x[0]
    assert torch.equal(plan.levels.float(), torch.as_tensor(_scheduler_of(pipe, 6).sigmas))
    given = start / _scheduler_of(pipe, 6).init_noise_sigma
    theirs = pipe("a cat", guidance_scale=3.0, num_inference_steps=6, latents=given, output_type="latent", height=32, width=32).images
    # diffusers starts at init_noise_sigma, which for leading spacing is sqrt(sigma^2 + 1): scaled above so that both start from one point
    assert torch.allclose(seen[-1].pop.x[0], theirs, atol=1e-4 * float(theirs.abs().max()))


def _scheduler_of(pipe, steps):
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler


def picture(seed: int = 0, side: int = 32) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), generator=seeded(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("kind", ["SD", "SD3", "Flux"])
def test_editing_at_strength_one_is_text_to_image(pipes, kind):
    prompts = ["a cat", "a dog"]
    fresh = draw(pipes[kind], prompts, op="and", particles=2)
    edited = draw(pipes[kind], prompts, op="and", particles=2, image=picture(), strength=1.0)
    assert torch.equal(fresh.latents, edited.latents)
    assert torch.equal(fresh.log_densities, edited.log_densities)
    assert not torch.equal(fresh.latents, draw(pipes[kind], prompts, op="and", particles=2, image=picture(), strength=0.5).latents)


def test_editing_starts_from_the_image_noised_to_the_entry_level_with_equal_densities(pipes):
    plan = pipes["SD"].plan(["a cat", "a dog"], op="or", image=picture(), strength=0.5, num_inference_steps=10, guidance_scale=1.0)
    whole = pipes["SD"].experts()[0].sigmas(10)
    assert torch.equal(plan.levels, whole[5:])
    seen = []
    sample(plan.sampler, plan.levels, particles=200, rng=Streams(0), record=[seen.append], around=plan.around)
    first = seen[0].pop
    z = plan.latents.encode(picture())[0]
    noise = (first.x[0] - z) / whole[5]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert torch.equal(first.aux["log_q"][..., 0], first.aux["log_q"][..., 1])
    assert torch.equal(first.aux["kappa"], torch.full_like(first.aux["kappa"], 0.5))


def test_less_strength_stays_nearer_to_the_image(pipes):
    z = pipes["SD"].experts()[0].latents.encode(picture())
    far = [
        float((draw(pipes["SD"], "a cat", image=picture(), strength=s, num_inference_steps=10).latents - z).norm()) for s in (0.1, 0.4, 0.9)
    ]
    assert far[0] < far[1] < far[2]


def test_inpainting_keeps_what_is_black_and_a_white_mask_keeps_nothing(pipes):
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))  # the left half is painted anew
    z = pipes["SD"].experts()[0].latents.encode(picture())[0]
    out = draw(pipes["SD"], ["a cat", "a dog"], op="and", particles=2, image=picture(), mask_image=mask)
    assert torch.equal(out.latents[0, :, :, 8:], z[:, :, 8:])
    assert not torch.allclose(out.latents[0, :, :, :8], z[:, :, :8], atol=0.1)
    white = draw(pipes["SD"], ["a cat", "a dog"], op="and", image=picture(), mask_image=Image.new("L", (32, 32), 255))
    assert torch.equal(white.latents, draw(pipes["SD"], ["a cat", "a dog"], op="and").latents)


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("op", ["product", "and"])
def test_a_reward_without_gradient_steers_every_operation(pipes, op):
    options = {"op": op, "particles": 16, "num_images_per_prompt": 4, "output_type": "pt", "num_inference_steps": 6}
    plain = draw(pipes["SD"], ["a cat", "a dog"], **options, ess_below=1e-6).images
    liked = draw(pipes["SD"], ["a cat", "a dog"], **options, reward=brightness, reward_scale=3000.0, reward_every=2).images
    assert float(brightness(liked).mean()) > float(brightness(plain).mean())


def test_a_reward_with_gradient_guides_a_product(pipes):
    def first_channel(z: torch.Tensor) -> torch.Tensor:
        return z[:, 0].mean((1, 2))

    options = {"num_images_per_prompt": 4, "num_inference_steps": 6, "noise_above": 0.0}
    plain = draw(pipes["SD"], "a cat", **options).latents
    pushed = draw(
        pipes["SD"], "a cat", **options, particles=4, reward=first_channel, reward_on="latents", reward_gradient=True, reward_scale=2000.0
    ).latents
    assert float(first_channel(pushed).mean()) > float(first_channel(plain).mean()) + 1
    bright = draw(pipes["SD"], "a cat", particles=2, reward=brightness, reward_gradient=True, reward_scale=10.0)
    assert bright.latents.isfinite().all()  # through the decoder
    with pytest.raises(ValueError, match=r"gradients belong to op='product'"):
        draw(pipes["SD"], ["a cat", "a dog"], op="and", reward=brightness, reward_gradient=True)


def test_prompts_are_encoded_once(folders):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    calls = []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda prompt, *rest, **more: calls.append(prompt) or encode(prompt, *rest, **more)
    composed = ComposedPipeline((pipe,))
    for _ in range(2):
        draw(composed, ["a cat", "a dog"], op="and", guidance_scale=2.0, negative_prompt="red")
    assert sorted(calls) == ["", "a cat", "a dog", "red"]


def test_log_densities_of_a_guided_product_are_those_of_the_prompts(pipes):
    """The unconditional model is tracked too, but not shown; order of columns is that of the prompts."""
    one, other = (
        draw(pipes["SD"], prompts, guidance_scale=2.0, particles=2).log_densities for prompts in (["a cat", "a dog"], ["a dog", "a cat"])
    )
    assert one.shape == (1, 2, 2)
    assert torch.allclose(one, other.flip(-1), rtol=1e-3)
    assert not torch.equal(one[..., 0], one[..., 1])


def test_chunks_change_nothing_but_rounding(folders):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    whole, parts = (
        draw(ComposedPipeline((pipe,), chunk), ["a cat", "a dog"], op="and", particles=3, noise_above=0).latents for chunk in (None, 2)
    )
    assert torch.allclose(whole, parts, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_are_weighed_in_single(folders, dtype):
    pipe = ComposedPipeline.from_pretrained(folders["SD"], dtype=dtype)
    assert pipe.pipes[0].unet.dtype == dtype
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append(tensors["log_densities"].dtype)

    out = draw(pipe, ["a cat", "a dog"], op="and", particles=2, callback_on_step_end=look)
    assert out.latents.dtype == torch.float32
    assert set(seen) == {torch.float32}
    full = from_pretrained(folders["SD"])
    half = from_pipe(pipe.pipes[0])
    y = torch.randn(2, *full.event, generator=seeded())
    exact, rough = (expert.prompt("a cat").score(y, 1.0) for expert in (full, half))
    assert float((rough - exact).norm() / exact.norm()) < (5e-3 if dtype == torch.float16 else 4e-2)
    assert half.space == full.space


def test_the_callback_sees_the_population_and_may_change_it(pipes):
    seen = []

    def look(pipeline, step, timestep, tensors):
        assert pipeline is pipes["SD"]
        seen.append((step, timestep, tensors["ess"].shape))
        assert tensors["kappa"].shape == tensors["log_densities"].shape == (2, 3, 2)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else None

    out = draw(pipes["SD"], ["a cat", "a dog"], op="or", particles=3, num_images_per_prompt=2, callback_on_step_end=look)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert all(shape == (2,) for _, _, shape in seen)
    times = [timestep for _, timestep, _ in seen]
    assert times == pytest.approx([float(t) for t in _scheduler_of(pipes["SD"].pipes[0], 4).timesteps], abs=1e-3)
    assert (out.latents == 0).all()


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for an accelerator, whatever the values; not what LAPACK reads inside of one operation on a CPU."""

    names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "op"), [("SD", "product"), ("SDXL", "and"), ("Flux", "or"), ("SD", "tilted")])
def test_nothing_in_the_loop_waits_for_an_accelerator(pipes, kind, op, monkeypatch):
    """Twice the steps read no more values, with checks put off as they are on an accelerator; the bytes are the same as on a CPU."""
    options = {"op": op, "particles": 4, "num_images_per_prompt": 2, "guidance_scale": 1.0 if kind == "Flux" else 2.0, "ess_below": 0.9}
    if op == "tilted":
        options |= {"op": "product", "reward": brightness, "reward_gradient": True}

    def counted(steps: int) -> tuple[int, ComposedOutput]:
        with Reads() as reads:
            out = draw(pipes[kind], ["a cat", "a dog"], num_inference_steps=steps, noise_above=0.0, **options)
        return reads.count, out

    times = {}  # the table of a scheduler lies on the CPU, and looking up a level there makes nobody wait
    look_up = DDPM.time
    monkeypatch.setattr(DDPM, "time", lambda self, sigma: times[sigma] if sigma in times else times.setdefault(sigma, look_up(self, sigma)))
    draw(pipes[kind], ["a cat", "a dog"], num_inference_steps=2, **options)  # prompts are encoded, and the loss measured, once for all
    at_once = [counted(steps) for steps in (2, 4)]
    assert at_once[0][0] < at_once[1][0]  # a CPU is asked at every step
    monkeypatch.setattr(SAMPLING, "put_off", lambda on: put_off())
    reads = [counted(steps) for steps in (2, 4)]
    assert reads[0][0] == reads[1][0]
    for (_, later), (_, now) in zip(reads, at_once, strict=True):
        assert torch.equal(later.latents, now.latents)
        assert torch.equal(later.weights, now.weights)


def test_what_is_not_finite_is_named_after_the_loop_too(folders, monkeypatch):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    levels = from_pipe(pipe).sigmas(4)
    monkeypatch.setattr(SAMPLING, "put_off", lambda on: put_off())
    first = rf"expert 'a cat' returned values that are not finite for 2 of 2 samples at sigma={float(levels[0]):g}: check the model"
    for op in ("product", "and"):
        with pytest.raises(NonFiniteError, match=first):
            draw(ComposedPipeline((pipe,)), ["a cat", "a dog"], op=op, particles=2)


def test_two_pipelines_of_one_latent_space_compose_and_others_are_refused(folders):
    first = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    second = tiny.stable_diffusion(seed=1, prediction_type="v_prediction")
    with pytest.raises(ValueError, match=r"spaces 'AutoencoderKL, 4 channels, scale 0.18215, .* latents of different encoders"):
        ComposedPipeline((first, second))(["a cat", "a dog"], num_inference_steps=2)
    second.register_modules(vae=first.vae)
    for op in ("product", "and", "or"):
        out = draw(ComposedPipeline((first, second)), ["a cat", "a dog"], op=op, particles=2, guidance_scale=2.0)
        assert out.latents.isfinite().all()
    with pytest.raises(ValueError, match=r"scale 0.18215.* and 'AutoencoderKL, 4 channels, scale 0.13025"):
        ComposedPipeline((first, tiny.stable_diffusion_xl()))(["a cat"], num_inference_steps=2)
    with pytest.raises(ValueError, match=r"samples of shape \(4, 16, 16\) and \(1, 8, 8\)"):
        ComposedPipeline((first, tiny.unconditional()))(num_inference_steps=2)
    with pytest.raises(ValueError, match="prompts holds 3 for 2 pipelines"):
        ComposedPipeline((first, first))(["a", "a", "a"])


def test_several_loras_of_one_network_are_several_experts(folders):
    peft = pytest.importorskip("peft")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    bare = from_pipe(pipe)
    y = torch.randn(2, *bare.event, generator=seeded())
    before = bare.prompt("a cat").score(y, 1.0)
    with torch.random.fork_rng(devices=[]):
        for name in ("red", "blue"):
            pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name=name)
    base = from_pipe(pipe)
    red, blue, none = (base.lora(*choice).prompt("a cat") for choice in (("red",), (("blue", 0.5),), ()))
    pipe.enable_lora()
    pipe.set_adapters(["red"], [1.0])
    alone = from_pipe(pipe).prompt("a cat").score(y, 1.0)
    base.source.adapters = (("?", 0.0),)  # what is on was changed behind its back
    assert torch.allclose(red.score(y, 1.0), alone, atol=1e-6)
    assert torch.allclose(none.score(y, 1.0), before, atol=1e-6)
    assert not torch.allclose(blue.score(y, 1.0), red.score(y, 1.0), atol=1e-4)
    assert torch.equal(red.score(y, 1.0), red.score(y, 1.0))  # switching back and forth
    out = draw(ComposedPipeline((pipe,)), ["a cat", "a cat"], op="and", adapters=[["red"], [("blue", 0.5)]], guidance_scale=2.0)
    assert out.latents.isfinite().all()
    with pytest.raises(ValueError, match=r"have been switched by expert.lora.* expert.lora\(\) for the bare network"):
        base.prompt("a cat").score(y, 1.0)
    with pytest.raises(ValueError, match="unknown adapter 'rad': did you mean 'red'"):
        base.lora("rad")


def test_a_distilled_model_alone_is_sampled_and_told_its_guidance(pipes):
    told = []
    pipe = ComposedPipeline((tiny.flux(guidance_embeds=True),))
    forward = pipe.pipes[0].transformer.forward
    pipe.pipes[0].transformer.forward = lambda **given: told.append(given["guidance"]) or forward(**given)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopflowWarning)
        draw(pipe, "a cat", guidance_scale=2.5)
    assert all(bool((one == 2.5).all()) for one in told)
    with pytest.warns(PopflowWarning, match=r"distilled models are composed.*guidance_embeds.*not scores"):
        draw(pipe, ["a cat", "a dog"], op="and")


def test_the_pipelines_own_safety_checker_is_asked(pipes, monkeypatch):
    pipe = pipes["SD"].pipes[0]
    monkeypatch.setattr(pipe, "safety_checker", object())
    monkeypatch.setattr(pipe, "run_safety_checker", lambda images, device, dtype: (torch.zeros_like(images), [True]))
    image = draw(pipes["SD"], "a cat", output_type="np").images
    assert (image == 0).all()  # what diffusers does with flagged images: black, not denormalised


def cut(pipeline, step, timestep, tensors):
    return {"latents": tensors["latents"][:, :, :1]}


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        (["a cat", "a dog"], {"op": "nand"}, "unknown op 'nand': did you mean 'and'"),
        (["a cat"], {"op": "and"}, "wanted at least two to superpose"),
        (["a cat"], {"particles": 0}, "particles=0, wanted an integer of at least 1"),
        (["a cat"], {"num_images_per_prompt": 0}, "num_images_per_prompt=0, wanted"),
        (["a cat"], {"num_inference_steps": 0}, "num_inference_steps=0, wanted"),
        (["a cat"], {"reward": brightness, "reward_every": 0}, "reward_every=0, wanted"),
        (["a cat"], {"output_type": "jpg"}, "unknown output_type 'jpg'.* Known: latent, np, pil, pt"),
        (["a cat"], {"exponents": [math.nan]}, r"exponents=\[nan\], wanted finite numbers"),
        (["a cat"], {"image": np.full((32, 32, 3), 200.0)}, r"image holds values up to 200, wanted \[0, 1\]"),
        (["a cat"], {"adapters": [["red"]]}, "unknown adapter 'red': Known: none. Fix: pipe.load_lora_weights"),
        (
            ["a cat"],
            {"callback_on_step_end": cut},
            r"callback_on_step_end returned latents of shape \(1, 1, 1, 16, 16\), wanted \(1, 1, 4, 16, 16\)",
        ),
        (["a cat"], {"noise_above": -1.0}, "noise_above=-1.0, wanted a noise level >= 0"),
        (["a cat"], {"guidance_scale": math.nan}, "guidance_scale=nan, wanted a finite number"),
        ([], {}, "prompts is empty"),
        (["a cat", "a dog"], {"exponents": [1.0] * 3}, "exponents holds 3 numbers for 2 experts"),
        (["a cat", "a dog"], {"op": "or", "kernel_steps": 2}, "kernel_steps=2 has no effect with op='or': it belongs to 'product'"),
        (["a cat"], {"image": picture(side=30)}, "height=30, width=30, wanted multiples of 2|wanted 32 x 32"),
        (["a cat"], {"image": picture(side=64)}, r"image is 64 x 64 \(height x width\), wanted 32 x 32. Fix: image.resize"),
        (["a cat"], {"image": picture(), "mask_image": Image.new("L", (8, 8))}, "mask_image is 8 x 8"),
        (["a cat"], {"image": picture(), "mask_image": "mask.png"}, "mask_image is a str"),
        (["a cat"], {"image": picture(), "mask_image": [Image.new("L", (32, 32))] * 2}, "mask_image holds 2 masks, wanted one"),
        (["a cat"], {"mask_image": Image.new("L", (32, 32))}, "mask_image is a Image without an image to edit"),
        (["a cat"], {"image": [picture(), picture(side=64)]}, "list of images of 32 x 32, 64 x 64, wanted at least one, all of one size"),
        (["a cat"], {"image": [], "strength": 0.5}, "list of none, wanted at least one"),
        (["a cat"], {"image": torch.rand(4, 32, 32)}, r"image has 4 channels, wanted 3: .* not of latents"),
        (["a cat"], {"image": [picture()] * 2}, "image holds 2 images, wanted 1, or num_images_per_prompt=1: pass num_images_per_prompt=2"),
        (["a cat"], {"kernel_steps": -1}, "kernel_steps=-1, wanted an integer of at least 0"),
        (["a cat"], {"height": 0}, "height=0, wanted an integer of at least 1"),
        (["a cat"], {"image": "picture.png"}, "image is a str"),
        (["a cat"], {"strength": 0.5}, "without an image"),
        (["a cat"], {"image": picture(), "strength": 0.0}, "strength=0.0 takes none of 4 steps"),
        (["a cat"], {"image": picture(), "strength": 1.5}, r"wanted a fraction in \(0, 1\]"),
        (["a cat"], {"height": 33}, "height=33, width=32, wanted multiples of 2: 32 x 32 is nearest|34 x 32"),
        (["a cat"], {"reward": brightness, "reward_on": "pixels"}, "wanted 'images' or 'latents'"),
        (["a cat"], {"reward": lambda images: images, "particles": 2}, "wanted one value per sample"),
        ([3], {}, "prompt 3 is not text"),
    ],
)
def test_bad_input_is_named(pipes, prompts, options, says):
    with pytest.raises(ValueError, match=says):
        draw(pipes["SD"], prompts, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        (3.5, {}, "prompts holds 3.5, a float, wanted text"),
        ([["a cat"]], {}, r"prompts holds \['a cat'\], a list, wanted text.* flat list"),
        (
            ["a cat", "a dog"],
            {"negative_prompt": [["red"]], "guidance_scale": 2.0},
            "negative_prompt holds .* one for all prompts, or a flat list",
        ),
        ("a cat", {"strength": "0.5"}, "strength='0.5' is a str, wanted a number: 0.6 is usual"),
        ("a cat", {"guidance_scale": "7.5"}, "guidance_scale='7.5' is a str, wanted a number: 1 for no guidance"),
        ("a cat", {"exponents": 2.0}, "exponents=2.0, wanted a list of numbers"),
        ("a cat", {"adapters": ["red"]}, r"adapters=\['red'\], wanted a list of lists"),
        ("a cat", {"generator": 3}, "generator holds 3, wanted a torch.Generator"),
        ("a cat", {"callback_on_step_end": "print"}, "callback_on_step_end='print', wanted a function"),
        ("a cat", {"callback_on_step_end": lambda *_: 5}, "callback_on_step_end returned a int, wanted a dictionary"),
        ("a cat", {"steps": 3}, "unknown option 'steps': it is called 'num_inference_steps' here"),
        ("a cat", {"negative_promt": "red"}, "unknown option 'negative_promt': did you mean 'negative_prompt'"),
    ],
)
def test_what_is_of_the_wrong_type_is_named(pipes, prompts, options, says):
    with pytest.raises(TypeError, match=says):
        draw(pipes["SD"], prompts, **options)


@pytest.mark.usefixtures("unchecked")
def test_pipelines_and_folders_of_the_wrong_type_are_named(pipes, folders):
    with pytest.raises(TypeError, match=r"pipes is a StableDiffusionPipeline, wanted a tuple .*ComposedPipeline\(\(pipe,\)\)"):
        ComposedPipeline(pipes["SD"].pipes[0])
    with pytest.raises(ValueError, match="chunk=0, wanted an integer"):
        ComposedPipeline(pipes["SD"].pipes, 0)
    with pytest.raises(TypeError, match=r"folder=\['a', 'b'\], wanted a path"):
        ComposedPipeline.from_pretrained(["a", "b"])
    with pytest.raises(ValueError, match="device='gpu' cannot be used here"):
        ComposedPipeline.from_pretrained(folders["SD"], device="gpu")
    with pytest.raises(ValueError, match="of a DDPMPipeline, which takes none"):
        draw(pipes["unconditional"], None, adapters=[["red"]])


def test_pictures_and_masks_of_any_mode_are_read(pipes):
    latents = pipes["SD"].experts()[0].latents
    assert torch.equal(latents.encode(picture().convert("RGBA")), latents.encode(picture()))
    grey = picture().convert("L")
    assert torch.equal(latents.encode(grey), latents.encode(grey.convert("RGB")))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    bits = np.asarray(mask) > 0
    for other in (mask.convert("1"), mask.convert("RGB"), bits, torch.from_numpy(bits), bits.astype(np.uint8) * 255):
        assert torch.equal(latents.mask(other), latents.mask(mask))
    with pytest.raises(NonFiniteError, match="mask_image: 1 of 1 hold values that are not finite"):
        latents.mask(np.full((32, 32), np.nan, np.float32))


def test_several_images_are_painted_each_with_its_generator(pipes):
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    two = [picture(1), picture(2)]
    options = {"mask_image": mask, "strength": 0.75}
    both = draw(pipes["SD"], "a cat", image=two, num_images_per_prompt=2, generator=[seeded(3), seeded(4)], **options).latents
    for i, seed in enumerate((3, 4)):
        alone = draw(pipes["SD"], "a cat", image=two[i], generator=seeded(seed), **options).latents
        assert_equal_to_rounding(both[i : i + 1], alone)


def test_a_part_that_is_replaced_is_read_anew():
    pipe = tiny.stable_diffusion()
    composed = ComposedPipeline((pipe,))
    before = draw(composed, "a cat").latents
    experts = composed.experts(32, 32)
    assert composed.experts(32, 32) is experts
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    after = draw(composed, "a cat").latents
    assert not torch.equal(after, before)
    assert torch.equal(after, draw(ComposedPipeline((pipe,)), "a cat").latents)


def test_what_is_guided_away_from_is_evaluated_once(pipes):
    for op in ("product", "and"):
        plan = pipes["SD"].plan(["a cat", "a dog"], op=op, negative_prompt="red", guidance_scale=2.0)
        assert plan.sampler.evaluations == 3
    with pytest.warns(PopflowWarning, match="negative_prompt='red' has no effect without guidance: guidance_scale is 1"):
        pipes["SD"].plan("a cat", negative_prompt="red", guidance_scale=1.0)


def test_a_composition_of_no_pipelines_is_named():
    with pytest.raises(ValueError, match=r"pipes is empty"):
        ComposedPipeline.from_pretrained()("a cat")


def test_more_prompts_than_degrees_of_freedom_have_no_and():
    pipe = tiny.unconditional(classes=8)
    pipe.unet.register_to_config(sample_size=2)
    composed = ComposedPipeline((pipe,))
    composed(list(range(5)), op="and", num_inference_steps=2, guidance_scale=1.0, generator=seeded())
    with pytest.raises(ValueError, match=r"op='and' of 6 prompts in 4 dimensions: .* wanted at most 5 prompts"):
        composed(list(range(6)), op="and", num_inference_steps=2, guidance_scale=1.0)


def test_latents_that_are_not_finite_are_named(folders, pipes):
    with pytest.raises(NonFiniteError, match=r"image: 1 of 1 hold values that are not finite"):
        draw(pipes["SD"], "a cat", image=torch.full((1, 3, 32, 32), float("nan")), strength=0.5)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"expert 'a cat' returned values that are not finite for 1 of 1 samples at sigma="):
        draw(ComposedPipeline((pipe,)), "a cat")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders["SD"])
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"decoded images: .* an autoencoder in half precision overflows"):
        draw(ComposedPipeline((pipe,)), "a cat", output_type="pil")


def test_labels_and_unconditional_networks(pipes):
    with pytest.raises(ValueError, match="it is an unconditional model"):
        draw(pipes["unconditional"], "a cat")
    with pytest.raises(ValueError, match="nothing to guide away from"):
        draw(pipes["unconditional"], None, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"prompt 4: this network takes a class number from 0 to 3"):
        draw(pipes["classes"], [4])


def test_folders_that_cannot_be_loaded_say_what_to_do(tmp_path, folders, monkeypatch):
    with pytest.raises(ValueError, match=r"no such folder, nor a name on the hub \(owner/name\)"):
        from_pretrained(tmp_path / "absent")
    with pytest.raises(ValueError, match="folder='absent/': no such folder"):
        from_pretrained("absent/")
    with pytest.raises(ValueError, match=r"holds no model_index.json, wanted a folder written by pipe.save_pretrained"):
        from_pretrained(tmp_path)
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(tmp_path / "broken")
    (tmp_path / "broken/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"a component is missing or damaged.*weights\s+must be safetensors"):
        from_pretrained(tmp_path / "broken")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", _unreachable)
    with pytest.raises(ValueError, match=r"hub cannot be reached .*ConnectionError.* Fix: .*hf download owner/model --local-dir FOLDER"):
        from_pretrained("owner/model")


def _unreachable(*_, **__):
    raise ConnectionError("Max retries exceeded")


def test_a_broken_library_is_not_blamed_on_the_folder(folders, monkeypatch):
    def broken(*_, **__):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'CLIPTextModel'.") from error

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", broken)
    with pytest.raises(
        ValueError, match=r"a library that it needs cannot be imported: .*first cause: RuntimeError: operator torchvision::nms"
    ):
        from_pretrained(folders["SD"])


def test_missing_or_mismatched_parts_are_named():
    pipe = tiny.stable_diffusion()
    pipe.tokenizer = None
    with pytest.raises(ValueError, match="StableDiffusionPipeline lacks tokenizer: missing component"):
        from_pipe(pipe)
    other = tiny.stable_diffusion()
    with torch.random.fork_rng(devices=[]):
        deep, network = tiny.autoencoder(8), tiny.autoencoder()
    other.register_modules(vae=deep)
    with pytest.raises(ValueError, match="takes 4 channels and the autoencoder has 8, wanted the same"):
        from_pipe(other)
    other.unet = network
    with pytest.raises(ValueError, match=r"network unknown class 'AutoencoderKL'.*wrap the network yourself"):
        from_pipe(other)
    xl = tiny.stable_diffusion_xl().components
    editing = diffusers.StableDiffusionXLImg2ImgPipeline(**xl, add_watermarker=False)
    with pytest.raises(ValueError, match=r"pipeline StableDiffusionXLImg2ImgPipeline, wanted StableDiffusionXLPipeline.*from_pipe"):
        from_pipe(editing)
    other.unet = None
    with pytest.raises(ValueError, match=r"has no network \(unet or transformer\): missing component"):
        from_pipe(other)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'popflow\[diffusers\]'"):
        from_pretrained("folder")


def test_arrays_and_tensors_are_images_too(pipes):
    latents = pipes["SD"].experts()[0].latents
    image = picture()
    array = np.asarray(image).astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for other in (array, tensor, [image], tensor.unsqueeze(0)):
        assert torch.allclose(latents.encode(image), latents.encode(other), atol=1e-5)
