"""Operations by name: each is its own sampler bit for bit, guided products have the exponents of their formula, foreign settings are refused."""

from __future__ import annotations

import pytest
import torch

from popflow.compose import (
    Expert,
    Guidance,
    Reward,
    Sampler,
    Target,
    average,
    both,
    composition,
    either,
    feynman_kac,
    gaussian_mixture,
    karras,
    sample,
)
from popflow.compose.composition import guided_product, settings_of
from popflow.core import Streams

A, B, U, V = (gaussian_mixture(torch.tensor([[m, 0.0]]), 1.0, name=n) for m, n in ((-1.0, "a"), (1.0, "b"), (0.0, "u"), (0.5, "v")))
REWARD = Reward(lambda y: y[:, 0], 1.0)


def exponents(target: Target) -> dict[str, float]:
    return {expert.name: pytest.approx(beta) for expert, beta in zip(target.experts, target.exponents(1.0), strict=True)}


@pytest.mark.parametrize(
    ("named", "direct"),
    [
        (composition([A, B]), feynman_kac(A * B)),
        (
            composition([A, B], exponents=[2.0, 0.5], power=0.5, zeta=1.4, kernel_steps=1, clip=None),
            feynman_kac((A**2 * B**0.5) ** 0.5, zeta=1.4, kernel_steps=1),
        ),
        (composition([A], reward=REWARD), feynman_kac(Target(((A, 1.0),), (REWARD,)))),
        (composition([A, B], unconditional=[U], guidance=3.0), feynman_kac(U * (A / U) ** 3.0 * (B / U) ** 3.0)),
        (composition([A, B], "or", temperature=2.0, bias=(0.1, 0.2)), either([A, B], temperature=2.0, bias=(0.1, 0.2))),
        (
            composition([A, B], "and", ridge=1e-3, feedback=0.5, unconditional=[U, V], guidance=2.0),
            both([A, B], ridge=1e-3, feedback=0.5, guidance=Guidance(U, 2.0)),
        ),
        (composition([A, B], "average", deterministic=True), average([A, B], deterministic=True)),
    ],
    ids=["product", "powers", "reward", "guided", "or", "and", "average"],
)
def test_an_operation_is_its_sampler_bit_for_bit(named: Sampler, direct: Sampler):
    one, other = (sample(it, karras(6, 0.1, 5.0), particles=8, runs=2, rng=Streams(0)).population for it in (named, direct))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.log_w, other.log_w)
    assert torch.equal(one.log_z, other.log_z)
    assert named.resamples == direct.resamples


def test_guided_products_have_the_exponents_of_their_formula():
    """One unconditional model: ``u^{1 - w sum beta} prod q_i^{w beta_i}``; one each: ``prod u_i^{1/M - w beta_i} q_i^{w beta_i}``; all to the power."""
    assert exponents(guided_product([A, B], [2.0])) == {"a": 2, "b": 2}
    assert exponents(guided_product([A, B], [0.5, 2.0], unconditional=[U], guidance=3.0)) == {"u": 1 - 7.5, "a": 1.5, "b": 6}
    assert exponents(guided_product([A, B], [0.5, 2.0], unconditional=[U, V], guidance=3.0)) == {"u": -1, "a": 1.5, "v": -5.5, "b": 6}
    assert exponents(guided_product([A, B], unconditional=[U, U], guidance=3.0, power=0.5)) == {"u": -2.5, "a": 1.5, "b": 1.5}


def test_settings_are_the_arguments_of_the_sampler():
    assert settings_of("average") == ("deterministic", "probes", "variance")
    assert {"exponents", "power", "reward", "zeta", "kernel_steps"} < set(settings_of("product"))
    composition([A, B], "or", zeta=None)  # None is the default of any


@pytest.mark.parametrize(
    ("experts", "op", "settings", "says"),
    [
        ([A, B], "xor", {}, r"unknown op 'xor': did you mean 'or'\? Known: and, average, or, product"),
        ([A, B], "and", {"zeta": 1.4}, "zeta=1.4 has no effect with op='and': it belongs to 'product'"),
        ([A, B], "product", {"bias": (0.0, 1.0)}, r"bias=\(0.0, 1.0\) has no effect with op='product': it belongs to 'or' and 'and'"),
        ([A, B], "product", {"exponents": [1.0, 2.0, 3.0]}, "exponents holds 3 numbers for 2 experts, wanted one for each"),
        ([A, B, U], "product", {"unconditional": [U, V]}, "unconditional holds 2 models for 3 experts"),
        ([A, gaussian_mixture(torch.zeros(1, 3), 1.0)], "or", {}, "only models of one space compose"),
        ([A], "or", {}, "experts holds 1 model"),
    ],
)
def test_bad_operations_are_named(experts: list[Expert], op: str, settings: dict, says: str):
    with pytest.raises(ValueError, match=says):
        composition(experts, op, **settings)


def test_a_setting_of_no_operation_is_named():
    with pytest.raises(TypeError, match="unknown setting 'zet': did you mean 'zeta'"):
        composition([A, B], zet=1.0)
