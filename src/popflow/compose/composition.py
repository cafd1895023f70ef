"""From the name of an operation and its settings to a sampler, for the command line and for composed pipelines.

========== ========================================================= ==========================================
operation  law                                                       sampler, whose keyword arguments are its settings
========== ========================================================= ==========================================
product    ``(prod_i q_i^{beta_i})^power exp(gamma r)``              `popflow.compose.feynman_kac`
or         ``sum_i w_i q_i``                                         `popflow.compose.either`
and        all ``q_i`` equally likely                                `popflow.compose.both`
average    the mean score                                            `popflow.compose.average`
========== ========================================================= ==========================================
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from popflow.compose.feynman_kac import feynman_kac
from popflow.compose.sampler import Sampler
from popflow.compose.superpose import average, both, either
from popflow.compose.superposition import Guidance
from popflow.compose.target import Expert, Target, check_same_space
from popflow.core.errors import unknown

_SAMPLERS = {"product": feynman_kac, "or": either, "and": both, "average": average}
_PRODUCT_SETTINGS = ("exponents", "power", "reward")
OPERATIONS = tuple(_SAMPLERS)


def composition(
    experts: Sequence[Expert], op: str = "product", *, unconditional: Sequence[Expert] = (), guidance: float = 1.0, **settings: Any
) -> Sampler:
    """Return the sampler of an operation on experts.

    Args:
        experts: The experts to compose.
        op: One of `OPERATIONS`.
        unconditional: Guide away from these: one model for all experts, or one for each; none for no guidance. A superposition is guided away from
            the first.
        guidance: Guidance weight w.
        settings: Those of the operation, see `settings_of`: the keyword arguments of its sampler, and for a product ``exponents`` and ``power`` (see
            `guided_product`) and ``reward`` (a `Reward`). None takes the default.

    Raises:
        ValueError: for an unknown operation, a setting that another operation reads, experts of unlike spaces, and what the sampler refuses.
        TypeError: for a setting that no operation reads.

    Example:
        >>> import torch
        >>> from popflow.compose import gaussian_mixture, karras, sample
        >>> from popflow.core import Streams
        >>> a, b = (gaussian_mixture(torch.tensor([[m]]), 1.0) for m in (-1.0, 1.0))
        >>> out = sample(composition([a, b], exponents=[2.0], zeta=1.4), karras(100, 0.01, 20.0), particles=2048, rng=Streams(0))
        >>> abs(float(out.population.mean())) < 0.1
        True
        >>> composition([a, b], "or", zeta=1.4)
        Traceback (most recent call last):
        ValueError: zeta=1.4 has no effect with op='or': it belongs to 'product'.
    """
    own = settings_of(op)
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given.keys() - set(own):
        others = [repr(other) for other in OPERATIONS if name in settings_of(other)]
        if not others:
            raise TypeError(unknown("setting", name, own))
        raise ValueError(f"{name}={given[name]!r} has no effect with op={op!r}: it belongs to {' and '.join(others)}.")
    check_same_space([*experts, *unconditional])
    if op != "product":
        return _SAMPLERS[op](experts, guidance=Guidance(unconditional[0], guidance) if unconditional else None, **given)
    exponents, power, reward = (given.pop(name, default) for name, default in zip(_PRODUCT_SETTINGS, (None, 1.0, None), strict=True))
    target = guided_product(experts, exponents, unconditional=unconditional, guidance=guidance, power=power)
    return feynman_kac(target if reward is None else Target(target.factors, (reward,)), **given)


def settings_of(op: str) -> tuple[str, ...]:
    """Names of the settings that an operation reads.

    >>> settings_of("or")
    ('temperature', 'bias', 'deterministic', 'probes', 'variance')
    """
    if op not in OPERATIONS:
        raise ValueError(unknown("op", str(op), OPERATIONS))
    parameters = inspect.signature(_SAMPLERS[op]).parameters.values()
    own = tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "guidance")
    return (*_PRODUCT_SETTINGS, *own) if op == "product" else own


def guided_product(
    experts: Sequence[Expert],
    exponents: Sequence[float] | None = None,
    *,
    unconditional: Sequence[Expert] = (),
    guidance: float = 1.0,
    power: float = 1.0,
) -> Target:
    """Return ``(prod_i q_i^{beta_i})^power``, guided with weight w if there is an unconditional model.

    One for all, u, gives ``u prod_i (q_i / u)^{w beta_i}``; one for each gives ``prod_i u_i^{1/M} (q_i / u_i)^{w beta_i}``.

    Args:
        experts: Factors.
        exponents: One for each, or one for all; None for 1.
        unconditional: None, one, or one for each expert.
        guidance: w.
        power: Exponent of the whole product: one over a temperature.
    """
    count = len(experts)
    given = [1.0] if exponents is None else [float(beta) for beta in exponents]
    if len(given) not in (1, count):
        raise ValueError(f"exponents holds {len(given)} numbers for {count} experts, wanted one for each, or one for all.")
    if len(unconditional) not in (0, 1, count):
        raise ValueError(f"unconditional holds {len(unconditional)} models for {count} experts, wanted one for each, one for all, or none.")
    betas = given * count if len(given) == 1 else given
    shared = len(unconditional) == 1
    target = Target.of(unconditional[0]) if shared else Target(())
    for i, (expert, beta) in enumerate(zip(experts, betas, strict=True)):
        if not unconditional:
            target = target * expert**beta
        elif shared:
            target = target * (expert / unconditional[0]) ** (guidance * beta)
        else:
            target = target * (unconditional[i] ** (1 / count) * (expert / unconditional[i]) ** (guidance * beta))
    return target**power
