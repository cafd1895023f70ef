"""Read a diffusers scheduler: the model's noise schedule, what its network predicts, and the noise levels.

A scheduler combines three things: the table of noise levels that a network was trained with, the meaning of its output, and a stepper. The first two
belong to the model and are read here. The stepper is never used: particles are moved by `popflow.compose.sample`, which keeps no history of
predictions, since resampling would mix it up.

=============================  ==========================================  ==========================================
schedulers                     schedule                                    levels of N steps
=============================  ==========================================  ==========================================
with ``alphas_cumprod``        `DDPM` table (DDPM, DDIM, Euler, DPM++...)  their sigmas, or those of their timesteps
``FlowMatch...``               `RectifiedFlow`, ``t = sigma/(1+sigma)``    their sigmas, ``t = 1`` taken as ``1 - 1e-3``
``EDM...``                     `Preconditioned` (Karras et al. 2022)       their sigmas
=============================  ==========================================  ==========================================
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from popflow.compose.experts import Output, epsilon_output, flow_output, v_output, x0_output
from popflow.compose.schedule import DDPM, EDM, Level, RectifiedFlow, Schedule, check_levels
from popflow.core import PopflowWarning
from popflow.core.errors import unknown

_NO_SIGNAL = 1e-6
"""``alphas_cumprod`` below this holds no signal."""
NEAR_ONE = 1e-3
"""A flow starts at ``t = 1 - NEAR_ONE``: at ``t = 1`` the signal is gone and ``sigma`` infinite."""
_OUTPUTS: dict[str, Output] = {"epsilon": epsilon_output, "v_prediction": v_output, "sample": x0_output, "original_sample": x0_output}


@dataclass(frozen=True)
class Preconditioned(EDM):
    """Schedule of a raw EDM network: it sees ``x = y / sqrt(sigma^2 + sigma_data^2)`` and ``log(sigma) / 4``.

    >>> round(Preconditioned().sigma(Preconditioned().time(0.7)), 9)
    0.7
    """

    sigma_data: float = 0.5

    def alpha(self, sigma: Level) -> Level:
        """Return ``c_in``."""
        return (sigma**2 + self.sigma_data**2) ** -0.5


def preconditioned_output(out: Tensor, x: Tensor, alpha: float, s: float, sigma_data: float = 0.5, sign: float = 1.0) -> Tensor:
    """Return epsilon of ``D = c_skip y + c_out F`` (Karras et al. 2022, table 1): ``s x - sign sigma_data alpha F``."""
    return s * x - sign * sigma_data * alpha * out


@runtime_checkable
class Levels(Protocol):
    """``levels(steps, length, given)``, see `Reading`."""

    def __call__(self, steps: int, length: int, given: Sequence[float] | None = None) -> Tensor:
        """Return noise levels, decreasing to 0."""
        ...


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read from a scheduler.

    Attributes:
        schedule: Scale and clock of the network's input.
        output: Turns its output into epsilon.
        levels: ``levels(steps, length, given=None)``: noise levels of that many steps, ending in 0; ``length`` is the number of tokens of one
            image, by which some flow models shift their levels; ``given`` are levels in place of the scheduler's own choice.
    """

    schedule: Schedule
    output: Output
    levels: Levels


def read(scheduler: Any) -> Reading:
    """Read a scheduler of diffusers.

    Warns:
        PopflowWarning: when it clips or thresholds predictions, or keeps a history of them; neither is done here.

    Raises:
        ValueError: for a kind that has no noise schedule of the above, or an unknown prediction type.
    """
    config, name = scheduler.config, type(scheduler).__name__
    prediction = config.get("prediction_type", "epsilon")
    _tell_what_is_left_out(scheduler, name)
    if name.startswith("FlowMatch") or prediction == "flow_prediction" or config.get("use_flow_sigmas"):
        schedule = RectifiedFlow(float(config.get("num_train_timesteps", 1000)))
        return Reading(schedule, flow_output, partial(_flow_levels, scheduler))
    if prediction not in _OUTPUTS:
        raise ValueError(f"scheduler {name}: {unknown('prediction_type', str(prediction), [*_OUTPUTS, 'flow_prediction'])}")
    if name.startswith("EDM"):
        sigma_data = float(config.get("sigma_data", 0.5))
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"scheduler {name} with prediction_type={prediction!r}, wanted 'epsilon' or 'v_prediction'.")
        sign = 1.0 if prediction == "epsilon" else -1.0
        output = partial(preconditioned_output, sigma_data=sigma_data, sign=sign)
        return Reading(Preconditioned(sigma_data), output, partial(_sigma_levels, scheduler, math.inf))
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"scheduler {name} has no table of noise levels, wanted one with alphas_cumprod, a FlowMatch or an EDM scheduler. Fix: build the "
            "pipeline with the scheduler its network was trained under, e.g. DDPMScheduler or FlowMatchEulerDiscreteScheduler."
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"scheduler {name} with timestep_type={config['timestep_type']!r}, wanted 'discrete'.")
    table = scheduler.alphas_cumprod.double()
    if prediction == "epsilon" and float(table[-1]) < _NO_SIGNAL:
        warnings.warn(
            f"scheduler {name} has no signal at its last level (rescale_betas_zero_snr) and prediction_type='epsilon': from pure noise the noise says "
            "nothing about the sample, and its errors are multiplied by sigma there. Fix: 'v_prediction' if the network was trained so, or "
            f"{name}.from_config(pipe.scheduler.config, rescale_betas_zero_snr=False).",
            PopflowWarning,
            stacklevel=3,
        )
    schedule = DDPM(table[table > 0])  # zero terminal signal-to-noise: its last level is infinite
    highest = schedule.sigma(len(schedule.alphas_cumprod) - 1.0)
    levels = partial(_sigma_levels, scheduler, highest) if hasattr(scheduler, "sigmas") else partial(_table_levels, scheduler, schedule)
    return Reading(schedule, _OUTPUTS[prediction], levels)


def _fresh(scheduler: Any, steps: int | None, **options: Any) -> Any:
    """Return a copy of a scheduler set to a number of steps; the user's own is left alone."""
    copy = type(scheduler).from_config(scheduler.config)
    copy.set_timesteps(steps, **options)
    return copy


def _sigma_levels(scheduler: Any, highest: float, steps: int, length: int, given: Sequence[float] | None = None) -> Tensor:
    """Levels of a scheduler that keeps them as sigmas of ``y``; those of second order hold each twice."""
    if given is not None:
        return _ending_in_zero(_numbers(given))
    return _ending_in_zero(_fresh(scheduler, steps).sigmas.double().clamp(max=highest))


def _table_levels(scheduler: Any, schedule: DDPM, steps: int, length: int, given: Sequence[float] | None = None) -> Tensor:
    if given is not None:
        return _ending_in_zero(_numbers(given))
    times = torch.as_tensor(_fresh(scheduler, steps).timesteps, dtype=torch.float64)
    return _ending_in_zero(schedule.sigma(times))


def _flow_levels(scheduler: Any, steps: int, length: int, given: Sequence[float] | None = None) -> Tensor:
    shift: dict[str, Any] = {}
    if given is not None:
        if float(_numbers(given).max()) > 1:
            raise ValueError(f"sigmas={list(given)}: those of a flow are times t in (0, 1], from 1 (noise) to 0 (data).")
        if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(f"scheduler {type(scheduler).__name__} takes no sigmas: use FlowMatchEulerDiscreteScheduler.")
        shift["sigmas"] = [float(one) for one in given if one > 0]
    if scheduler.config.get("use_dynamic_shifting"):
        get = scheduler.config.get
        (x0, y0), (x1, y1) = (
            (get("base_image_seq_len", 256), get("base_shift", 0.5)),
            (get("max_image_seq_len", 4096), get("max_shift", 1.15)),
        )
        shift["mu"] = y0 + (y1 - y0) * (length - x0) / (x1 - x0)
        if "mu" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(f"scheduler {type(scheduler).__name__} takes no mu, which use_dynamic_shifting=True needs: set it to False.")
    times = _fresh(scheduler, None if given is not None else steps, **shift).sigmas.double().clamp(max=1 - NEAR_ONE)
    return _ending_in_zero(times / (1 - times))


def _numbers(given: Sequence[float]) -> Tensor:
    levels = torch.as_tensor([float(one) for one in given], dtype=torch.float64)
    if not len(levels) or not bool(levels.isfinite().all()) or float(levels.min()) < 0 or not bool((levels.diff() < 0).all()):
        raise ValueError(f"sigmas={list(given)}, wanted decreasing noise levels above 0, such as [14.6, 5.0, 1.0, 0.2].")
    return levels


def _ending_in_zero(sigmas: Tensor) -> Tensor:
    """Sorted, without duplicates, down to 0."""
    return check_levels(torch.cat([sigmas[sigmas > 0].unique().flip(0), sigmas.new_zeros(1)]))


def _tell_what_is_left_out(scheduler: Any, name: str) -> None:
    clips = [key for key in ("clip_sample", "thresholding") if scheduler.config.get(key)]
    if clips:
        warnings.warn(
            f"scheduler {name} has {' and '.join(f'{key}=True' for key in clips)}: a clipped prediction is not a score, so predictions are used "
            f"unclipped. Samples may differ from the pipeline's own. To silence this: {name}.from_config(pipe.scheduler.config, "
            f"{', '.join(f'{key}=False' for key in clips)}).",
            PopflowWarning,
            stacklevel=4,
        )
    if any(hasattr(scheduler, history) for history in ("model_outputs", "ets", "derivatives", "prev_derivative")):
        warnings.warn(
            f"scheduler {name} steps with a history of predictions, which resampling would mix up: its noise levels are used, its steps are not. "
            "To silence this: pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config) (for flows FlowMatchEulerDiscreteScheduler).",
            PopflowWarning,
            stacklevel=4,
        )
