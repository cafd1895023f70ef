"""Checks of the options of `ComposedPipeline`, before anything is sampled."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from popflow.core.errors import unknown

_OTHER_NAMES = {
    "prompt": "prompts",
    "num_images": "num_images_per_prompt",
    "runs": "num_images_per_prompt",
    "steps": "num_inference_steps",
    "seed": "generator",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "beta": "exponents",
    "eta": "noise_above",
    "true_cfg_scale": "guidance_scale",
    "cross_attention_kwargs": "adapters",
    "joint_attention_kwargs": "adapters",
}
"""Names that users of diffusers or of the command line may try first."""

_USUAL = {
    "strength": "0.6 is usual, 1 starts from pure noise",
    "reward_scale": "1 multiplies the law by exp(reward)",
    "guidance_rescale": "0 for none, 0.7 is usual for networks without signal at their last level",
    "guidance_scale": "1 for no guidance, 7.5 is usual for Stable Diffusion",
}


def check_numbers(given: Mapping[str, Any]) -> None:
    """Refuse numbers among the options of a plan, by name, that are of the wrong kind or out of range."""
    whole(num_inference_steps=given["num_inference_steps"], reward_every=given["reward_every"])
    whole(0, kernel_steps=given["kernel_steps"])
    whole(**{name: given[name] for name in ("height", "width") if given[name] is not None})
    finite(_USUAL, **{name: given[name] for name in _USUAL if given[name] is not None})
    if not 0 <= given["guidance_rescale"] <= 1:
        raise ValueError(f"guidance_rescale={given['guidance_rescale']}, wanted a share in [0, 1]: {_USUAL['guidance_rescale']}.")
    if given["clip_skip"] is not None:
        whole(0, clip_skip=given["clip_skip"])
    exponents_of(given["exponents"])
    level = given["noise_above"]
    if not isinstance(level, int | float) or not level >= 0:
        raise ValueError(f"noise_above={level!r}, wanted a noise level >= 0: 0 adds noise down to the last level, math.inf adds none.")


def whole(least: int = 1, **numbers: Any) -> None:
    """Refuse anything but an integer of at least ``least``.

    >>> whole(particles=0)
    Traceback (most recent call last):
    ValueError: particles=0, wanted an integer of at least 1.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r}, wanted an integer of at least {least}.")


def finite(fixes: Mapping[str, str], **numbers: Any) -> None:
    """Refuse anything but a finite number.

    >>> finite({"strength": "0.6 is usual"}, strength="0.6")
    Traceback (most recent call last):
    TypeError: strength='0.6' is a str, wanted a number: 0.6 is usual.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}, wanted a number: {fixes[name]}.")
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}, wanted a finite number: {fixes[name]}.")


def known_options(options: Mapping[str, Any], *functions: Callable) -> None:
    """Refuse options that none of the functions takes, suggesting the closest one.

    >>> known_options({"step": 3}, lambda steps: None)
    Traceback (most recent call last):
    TypeError: unknown option 'step': did you mean 'steps'? Known: steps.
    """
    known = {name for one in functions for name, p in inspect.signature(one).parameters.items() if p.kind is not p.VAR_KEYWORD} - {"self"}
    for name in options:
        if name not in known:
            other = _OTHER_NAMES.get(name)
            hint = f"unknown option {name!r}: it is called {other!r} here." if other in known else unknown("option", name, known)
            raise TypeError(hint)


def prompts_of(prompts: Any) -> list[Any] | None:
    """Return prompts as a list, or None.

    >>> prompts_of("a cat")
    ['a cat']
    """
    if prompts is None:
        return None
    given = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
    if not given:
        raise ValueError("prompts is empty, wanted at least one: prompts=['a cat', 'a dog'].")
    for one in given:
        prompt_of("prompts", one)
    return given


def prompt_of(name: str, value: Any) -> None:
    """Refuse anything but text or a class number."""
    if not isinstance(value, str | int):
        raise TypeError(
            f"{name} holds {value!r}, a {type(value).__name__}, wanted text, or a class number of a class-conditional network"
            f"{': prompts=[...] is a flat list' if name == 'prompts' else ', one for all prompts, or a flat list with one for each'}."
        )


def negatives_of(negative: Any) -> list[Any] | None:
    """Return what is guided away from as a list, or None.

    >>> negatives_of(["blurred", "grey"])
    ['blurred', 'grey']
    """
    if negative is None:
        return None
    given = list(negative) if isinstance(negative, list | tuple) else [negative]
    for one in given:
        prompt_of("negative_prompt", one)
    return given


def adapters_of(adapters: Any, count: int) -> None:
    """Refuse anything but one list of adapters for each prompt."""
    if adapters is None:
        return
    example = "adapters=[['pixel'], [('water', 0.8)], []]"
    if not isinstance(adapters, list | tuple) or any(not isinstance(one, list | tuple) for one in adapters):
        raise TypeError(f"adapters={adapters!r}, wanted a list of lists, one for each prompt: {example}.")
    if len(adapters) != count:
        raise ValueError(f"adapters holds {len(adapters)} lists for {count} prompts, wanted one for each: {example}.")


def exponents_of(exponents: Any) -> None:
    """Refuse anything but a list of finite numbers."""
    if exponents is None:
        return
    if not isinstance(exponents, list | tuple) or any(isinstance(one, bool) or not isinstance(one, Real) for one in exponents):
        raise TypeError(f"exponents={exponents!r}, wanted a list of numbers, one for each prompt: exponents=[1.0, -0.5].")
    if not all(map(math.isfinite, exponents)):
        raise ValueError(f"exponents={exponents}, wanted finite numbers, one for each prompt.")
