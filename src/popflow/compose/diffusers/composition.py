"""What the operations of `ComposedPipeline` mean: from names and prompts to a sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

from popflow.compose.feynman_kac import feynman_kac
from popflow.compose.rewards import Reward
from popflow.compose.sampler import Sampler
from popflow.compose.superpose import Guidance, average, both, either
from popflow.compose.target import Expert, Target, check_same_space
from popflow.core.errors import unknown

OPS = ("product", "and", "or", "average")


def composition(
    experts: Sequence[Expert],
    op: str = "product",
    *,
    unconditional: Sequence[Expert] = (),
    guidance: float = 1.0,
    exponents: Sequence[float] | None = None,
    reward: Reward | None = None,
    correct: bool = True,
    zeta: float = 1.0,
    kernel_steps: int = 0,
    ess_below: float = 0.5,
) -> Sampler:
    """Return the sampler of an operation on experts.

    ``product`` is ``prod q_i^{beta_i}`` by Feynman-Kac correctors, with guidance w ``prod u_i^{1/M} (q_i/u_i)^{w beta_i}`` (u the unconditional model
    of each); ``and``, ``or`` and ``average`` are SuperDiff, guided away from the first unconditional model.

    Args:
        experts: One for each prompt.
        op: One of `OPS`.
        unconditional: The model that each is guided away from; unused when ``guidance`` is 1.
        guidance: Weight w.
        exponents: ``beta_i``, one for each; product only.
        reward: Tilt by its gradient and its value; product only.
        correct: Weigh and resample; product only.
        zeta: Noise scale; product only.
        kernel_steps: Langevin steps at each level; product only.
        ess_below: Resample below this share of effective particles; product only.

    Raises:
        ValueError: for an unknown operation, options that do not belong to it, a superposition of one expert, and AND of more than have a solution.
    """
    if op not in OPS:
        raise ValueError(unknown("op", str(op), OPS))
    check_same_space(experts)
    if op != "product":
        if exponents is not None or zeta != 1 or kernel_steps:
            raise ValueError(f"op={op!r} takes no exponents, zeta or kernel_steps: they belong to op='product'.")
        if len(experts) < 2:
            raise ValueError(f"op={op!r} of one prompt, wanted at least two to superpose: prompts=['a cat', 'a dog'], or op='product'.")
        dim = math.prod(experts[0].event)
        if op == "and" and len(experts) > dim + 1:
            raise ValueError(
                f"op='and' of {len(experts)} prompts in {dim} dimensions: {len(experts) - 1} equations have at most {dim} unknowns, wanted at most "
                f"{dim + 1} prompts. Fix: fewer prompts, or op='average'."
            )
        guide = None if guidance == 1 else Guidance(unconditional[0], guidance)
        return {"and": both, "or": either, "average": average}[op](experts, guidance=guide)
    betas = [1.0] * len(experts) if exponents is None else [float(beta) for beta in exponents]
    if len(betas) != len(experts):
        raise ValueError(f"exponents holds {len(betas)} numbers for {len(experts)} prompts, wanted one for each.")
    if not all(map(math.isfinite, betas)):
        raise ValueError(f"exponents={betas}, wanted finite numbers, one for each prompt.")
    target = Target(())
    for i, (expert, beta) in enumerate(zip(experts, betas, strict=True)):
        if guidance == 1:
            target = target * expert**beta
        else:
            base = unconditional[i]
            target = target * base ** (1 / len(experts) - guidance * beta) * expert ** (guidance * beta)
    if reward is not None:
        target = Target(target.factors, (reward,))
    track = zeta == 1 and not kernel_steps
    return feynman_kac(target, zeta=zeta, correct=correct, ess_below=ess_below, kernel_steps=kernel_steps, track=track)
