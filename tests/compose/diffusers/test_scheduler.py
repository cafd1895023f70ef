"""Schedulers as read: clean predictions and trajectories are those of diffusers' own steps, for every prediction type."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from popflow.compose import feynman_kac, sample, scores
from popflow.compose.diffusers import from_pipe, read, tiny
from popflow.compose.probability_flow import flow_below
from popflow.core import PopflowWarning, Streams

diffusers = pytest.importorskip("diffusers")

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
RAW = {"clip_sample": False}
KINDS = {
    "DDPM epsilon": lambda: diffusers.DDPMScheduler(**RAW),
    "DDPM v": lambda: diffusers.DDPMScheduler(prediction_type="v_prediction", **RAW),
    "DDPM sample": lambda: diffusers.DDPMScheduler(prediction_type="sample", **RAW),
    "DDIM epsilon, cosine": lambda: diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", **RAW),
    "DDIM v": lambda: diffusers.DDIMScheduler(**TABLE, prediction_type="v_prediction", **RAW),
    "DDIM v, zero terminal signal": lambda: diffusers.DDIMScheduler(
        **TABLE, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", **RAW
    ),
    "DDIM sample": lambda: diffusers.DDIMScheduler(prediction_type="sample", **RAW),
    "Euler epsilon": lambda: diffusers.EulerDiscreteScheduler(**TABLE),
    "Euler epsilon, Karras levels": lambda: diffusers.EulerDiscreteScheduler(**TABLE, use_karras_sigmas=True),
    "Euler v, trailing": lambda: diffusers.EulerDiscreteScheduler(**TABLE, prediction_type="v_prediction", timestep_spacing="trailing"),
    "Euler original_sample": lambda: diffusers.EulerDiscreteScheduler(**TABLE, prediction_type="sample"),
    "Euler ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**TABLE),
    "EDM epsilon": diffusers.EDMEulerScheduler,
    "EDM v": lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=0.7),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler,
    "flow, shifted": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}
EULER = [name for name in KINDS if name.startswith(("Euler epsilon", "Euler v", "EDM", "flow"))]


def expert_of(scheduler):
    return from_pipe(tiny.unconditional(scheduler=scheduler, seed=3))


def points(n: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def clean_of(scheduler, unet, index: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A state in the coordinates ``y`` and what diffusers predicts as its clean sample, by its own calls alone."""
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[index]
    flow = type(scheduler).__name__.startswith("FlowMatch")
    own = {"generator": torch.Generator()}
    if hasattr(scheduler, "sigmas") and not flow:
        y = points(2, dtype) * scheduler.sigmas[index] + 0.3
        out = unet(scheduler.scale_model_input(y, t), t, return_dict=False)[0]
        return y, scheduler.step(out, t, y, **own).pred_original_sample
    if flow:
        sigma = scheduler.sigmas[index]
        x = points(2, dtype) * sigma + 0.3 * (1 - sigma)
        scheduler.sigmas[index + 1] = 0.0  # one step to no noise is the clean prediction
        return x / (1 - sigma), scheduler.step(unet(x, t, return_dict=False)[0], t, x, **own).prev_sample
    alpha = scheduler.alphas_cumprod[t].sqrt()
    x = points(2, dtype) * (1 - alpha**2).sqrt() + 0.3 * alpha
    out = unet(x, t, return_dict=False)[0]
    return x / alpha, scheduler.step(out, t, x, **own).pred_original_sample


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [1, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clean_predictions_are_those_of_the_scheduler(kind: str, index: int, dtype: torch.dtype):
    """To 1e-5. In float32 a state beyond 64 has no such digits: there, two units in its last place. In float64 no such allowance is needed."""
    expert = expert_of(KINDS[kind]())
    expert.source.network.to(dtype)
    sigma = float(expert.sigmas(10)[index])
    with torch.no_grad():
        scheduler = KINDS[kind]()
        if kind == "Euler original_sample":
            scheduler.register_to_config(prediction_type="original_sample")
        if not hasattr(scheduler, "sigmas"):  # its coefficients are computed from the table, in the table's precision
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
        y, wanted = clean_of(scheduler, expert.source.network, index, dtype)
        ours = y + sigma**2 * scores([expert], y, sigma)[0]
    last_place = torch.finfo(torch.float32).eps * 2.0 ** math.floor(math.log2(float(y.abs().max())))
    bar = 1e-5 if dtype == torch.float64 else max(1e-5, 2 * last_place)
    assert float((ours - wanted).abs().max()) <= bar


@pytest.mark.parametrize("kind", EULER)
def test_without_noise_the_trajectory_is_that_of_the_euler_scheduler(kind: str):
    """``flow_below`` takes the scheduler's own steps; both start from the same point."""
    expert = expert_of(KINDS[kind]())
    levels = expert.sigmas(10)
    seen = []
    out = sample(flow_below(feynman_kac(expert, correct=False)), levels, particles=2, rng=Streams(0), record=[seen.append])
    scheduler, unet = KINDS[kind](), expert.source.network
    scheduler.set_timesteps(10)
    first = float(levels[0])
    flow = kind.startswith("flow")
    x = seen[0].pop.x[0] * (1 / (1 + first) if flow else 1.0)
    if flow:  # t = 1 holds no signal: both start at 1 - 1e-3
        scheduler.sigmas[0] = first / (1 + first)
        scheduler.timesteps[0] = 1000 * scheduler.sigmas[0]
    for k, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            prediction = unet(x if flow else scheduler.scale_model_input(x, t), t, return_dict=False)[0]
        x = scheduler.step(prediction, t, x).prev_sample
        sigma = float(levels[k + 1])
        ours = seen[k + 1].pop.x[0] * (1 / (1 + sigma) if flow else 1.0)
        assert float((ours - x).abs().max()) <= 1e-4
    assert torch.equal(out.x, seen[-1].pop.x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusers.DDPMScheduler(**RAW),
        lambda: diffusers.DDIMScheduler(**TABLE, steps_offset=1, **RAW),
        lambda: diffusers.EulerDiscreteScheduler(**TABLE, timestep_spacing="leading", steps_offset=1),
        diffusers.EDMEulerScheduler,
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ],
)
def test_levels_end_in_zero_and_leave_the_users_scheduler_alone(make):
    scheduler = make()
    levels = read(scheduler).levels(7, 256)
    assert len(levels) == 8
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    assert getattr(scheduler, "num_inference_steps", None) is None
    if hasattr(scheduler, "alphas_cumprod"):
        table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
        assert float(levels[0]) <= float(table[-1]) * (1 + 1e-6)


def test_more_tokens_shift_the_levels_of_flow_models_towards_noise():
    levels = read(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)).levels
    small, large = levels(10, 256), levels(10, 4096)
    assert (large[1:-1] > small[1:-1]).all()
    # mu = 0.5 at 256 tokens: t = e^mu / (e^mu + 1/u - 1), the exponential shift of Esser et al. (2024)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(10, mu=0.5)
    t = scheduler.sigmas[1:-1].double()
    assert torch.allclose(small[1:-1], t / (1 - t), rtol=1e-6)


def test_second_order_and_multistep_schedulers_lend_their_levels_only():
    for name in (
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "LMSDiscreteScheduler",
    ):
        with pytest.warns(PopflowWarning, match="with a history of predictions"):
            levels = read(getattr(diffusers, name)(**TABLE)).levels(10, 0)
        assert (levels.diff() < 0).all()
        assert levels[-1] == 0


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_scheduler_that_clips_is_told(option: str):
    scheduler = diffusers.DDPMScheduler(**({"clip_sample": False} | {option: True}))
    with pytest.warns(PopflowWarning, match=rf"DDPMScheduler has {option}=True: a clipped prediction is not a score.*{option}=False"):
        read(scheduler)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match=r"VQDiffusionScheduler has no table of noise levels.*Fix: build the pipeline"):
        read(diffusers.VQDiffusionScheduler(num_vec_classes=4))
    strange = diffusers.DDPMScheduler(**RAW)
    strange.register_to_config(prediction_type="epsilom")
    with pytest.raises(ValueError, match=r"unknown prediction_type 'epsilom': did you mean 'epsilon'"):
        read(strange)


def test_learned_variances_are_dropped():
    """A network with twice the channels predicts variances too: its first half is what counts."""
    pipe = tiny.unconditional(seed=3)
    with torch.random.fork_rng(devices=[]):
        double = torch.nn.Conv2d(4, 2, 3, padding=1)
    with torch.no_grad():
        double.weight[:1], double.bias[:1] = pipe.unet.conv_out.weight, pipe.unet.conv_out.bias
    expert = from_pipe(pipe)
    y = points()
    with torch.no_grad():
        alone = expert.score(y, 1.0)
        pipe.unet.conv_out = double
        assert torch.equal(expert.score(y, 1.0), alone)


def test_v_and_epsilon_of_one_denoiser_are_one_score():
    """Independent of diffusers: ``D = x / 2`` written as each output, at ``sigma = 1.3``."""
    sigma = 1.3
    y = points()
    alpha = 1 / math.sqrt(1 + sigma**2)
    x, s = alpha * y, alpha * sigma
    clean = y / 2
    eps = (y - clean) / sigma
    outputs = {"epsilon": eps, "v_prediction": alpha * eps - s * clean, "sample": clean}
    for kind, out in outputs.items():
        reading = read(diffusers.DDPMScheduler(prediction_type=kind, **RAW))
        assert torch.allclose(reading.output(out, x, alpha, s), eps, atol=1e-6), kind


def test_epsilon_without_a_signal_is_told():
    table = {**TABLE, "rescale_betas_zero_snr": True}
    with pytest.warns(PopflowWarning, match=r"no signal at its last level .* and prediction_type='epsilon'.* Fix: 'v_prediction'"):
        read(diffusers.DDIMScheduler(**table, **RAW))
    with pytest.warns(PopflowWarning, match=r"EulerDiscreteScheduler has no signal"):
        read(diffusers.EulerDiscreteScheduler(**table))
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopflowWarning)
        read(diffusers.EulerDiscreteScheduler(**table, prediction_type="v_prediction"))


def test_given_levels_mean_what_they_mean_in_diffusers():
    given = [10.0, 3.0, 0.5]
    assert read(diffusers.EulerDiscreteScheduler(**TABLE)).levels(3, 0, given).tolist() == [*given, 0.0]
    assert read(diffusers.DDPMScheduler(**RAW)).levels(3, 0, given).tolist() == [*given, 0.0]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1])
    t = scheduler.sigmas.double()
    assert torch.allclose(read(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)).levels(3, 0, [0.9, 0.5, 0.1]), t / (1 - t), rtol=1e-6)
    with pytest.raises(ValueError, match=r"those of a flow are times t in \(0, 1\]"):
        read(diffusers.FlowMatchEulerDiscreteScheduler()).levels(3, 0, given)
