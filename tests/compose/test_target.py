"""The algebra of targets: exponents, merging, rewards, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import CentredParticles, Expert, Target, cfg, feynman_kac, gaussian_mixture, igso3_mixture, scores, tilt
from popflow.core import NonFiniteError, PopflowWarning

A, B, C = (gaussian_mixture(torch.tensor([[m, 0.0]]), 1.0, name=n) for m, n in ((0.0, "a"), (1.0, "b"), (2.0, "c")))


def exponents(target: Target, sigma: float = 1.0) -> dict[str, float]:
    return {e.name: b for e, b in zip(target.experts, target.exponents(sigma), strict=True)}


def test_products_powers_and_quotients():
    assert exponents(A * B) == {"a": 1, "b": 1}
    assert exponents((A * B) ** 2 / C**0.5) == {"a": 2, "b": 2, "c": -0.5}
    assert exponents(A * A * B) == {"a": 2, "b": 1}
    assert exponents(A**2 * B / A) == {"a": 1, "b": 1}
    assert exponents(cfg(A, B, 3.0)) == {"a": -2, "b": 3}
    assert exponents(cfg(A, B * C, 2.0)) == {"a": -1, "b": 2, "c": 2}
    assert exponents((A**2) ** 3) == {"a": 6}


def test_an_exponent_of_zero_drops_the_expert():
    assert (A * B**0).experts == (A,)
    assert cfg(A, B, 1.0).experts == (B,)
    assert (A * B / B).experts == (A,)
    assert cfg(A, B, 0.0).experts == (A,)
    with pytest.raises(ValueError, match="every exponent is zero, nothing is left to sample from"):
        feynman_kac(A / A)


def test_exponents_may_follow_the_noise():
    ramp = lambda sigma: 1 + 2 / (1 + sigma)  # noqa: E731
    target = A**ramp * B**0.5
    assert target.varies
    assert not (A * B).varies
    assert exponents(target, 1.0) == {"a": 2, "b": 0.5}
    assert exponents(target**2, 0.0) == {"a": 6, "b": 1}
    assert exponents(target / A, 3.0) == {"a": 0.5, "b": 0.5}
    guided = cfg(A, B, lambda sigma: 1 + sigma)
    assert exponents(guided, 2.0) == {"a": -2, "b": 3}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_exponent_that_is_not_finite_is_named(value: float):
    with pytest.raises(ValueError, match=r"an exponent is (nan|inf) at sigma=0.5, wanted a finite number"):
        (A ** (lambda sigma: value)).exponents(0.5)


def test_rewards_travel_with_products_and_powers():
    reward = tilt(A, lambda y: y[:, 0], 2.0, name="first")
    assert reward.describe() == "a^1 * exp(2 first)"
    assert (reward**3 * B).describe() == "a^3 * b^1 * exp(6 first)"
    assert reward.rewards[0].gamma(3.0) == pytest.approx(0.2)  # 2 / (1 + sigma^2)
    assert tilt(A, lambda y: y[:, 0], lambda sigma: 7.0).rewards[0].gamma(3.0) == 7


def test_a_number_is_no_target():
    with pytest.raises(TypeError, match=r"a number leaves a density as it is\. Fix: an exponent is a power, target\*\*2\.0"):
        A * 2.0  # pyright: ignore[reportOperatorIssue]


def test_experts_of_different_spaces_do_not_compose():
    other = gaussian_mixture(torch.zeros(1, 3), 1.0, name="wide")
    with pytest.raises(ValueError, match=r"'a' and 'wide' have samples of shape \(2,\) and \(3,\)"):
        A * other
    latent = replace(A, space="vae-4", name="latent")
    with pytest.raises(ValueError, match="'a' and 'latent' live in the spaces 'data' and 'vae-4'"):
        cfg(A, latent, 2.0)


def test_an_expert_that_fails_is_named_with_the_noise_level():
    def model(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        return torch.where(y[:, :1] > 0, math.nan, y)

    bad = Expert(model, (2,), name="broken")
    y = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    with pytest.raises(NonFiniteError, match=r"expert 'broken' returned .* not finite for 2 of 3 samples at sigma=0.25: check the model"):
        scores([A, bad], y, 0.25)
    with pytest.raises(
        NonFiniteError, match=r"expert 'a' .* for 1 of 2 samples at sigma=0.5: 1 of the samples it was given were not finite"
    ):
        scores([A], torch.tensor([[0.0, math.inf], [0.0, 0.0]]), 0.5)


@pytest.mark.parametrize("shape", [(3, 4), (3,), (2, 2)])
def test_an_expert_of_the_wrong_shape_is_named(shape: tuple[int, ...]):
    bad = Expert(lambda y, sigma, cond: torch.zeros(shape), (2,), name="wide")
    with pytest.raises(ValueError, match=r"expert 'wide' returned shape .* for samples \(3, 2\)"):
        scores([bad], torch.zeros(3, 2), 1.0)


@pytest.mark.parametrize("returned", [torch.zeros(5, 1), torch.zeros(()), torch.zeros(4), 1.0])
def test_a_reward_of_the_wrong_shape_is_named(returned: Tensor | float):
    reward = tilt(A, lambda y: returned, name="pretty").rewards[0]
    with pytest.raises(ValueError, match=r"reward 'pretty' returned .* for 5 samples, wanted one value per sample: shape \(5,\)"):
        reward(torch.zeros(5, 2))


def test_half_precision_output_is_taken_in_the_samples_precision():
    half = Expert(lambda y, sigma, cond: (y / 2).half(), (2,))
    assert half.score(torch.ones(3, 2, dtype=torch.float64), 1.0).dtype == torch.float64


def test_scores_of_batches_keep_their_shape():
    y = torch.randn(2, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    every = scores([A, B], y, 0.5)
    assert every.shape == (2, 2, 3, 5, 2)
    assert torch.allclose(every[0, 1, 2, 3], A.score(y[1, 2, 3:4], 0.5)[0])
    assert torch.allclose(A.score(y, 0.5), -y / 1.25)


def test_scores_are_of_points_of_the_space():
    turned = igso3_mixture(torch.eye(3).unsqueeze(0), 0.3, name="turned")
    with pytest.raises(ValueError, match="matrices that are not orthonormal"):
        turned.score(torch.ones(2, 3, 3), 1.0)
    with pytest.raises(ValueError, match=r"expert 'turned': y has shape \(2, 3\), wanted \[..., 3, 3\]"):
        turned.score(torch.zeros(2, 3), 1.0)
    pair = Expert(lambda x, sigma, cond: x, (2, 1), name="pair", space=CentredParticles(2, 1))
    with pytest.warns(PopflowWarning, match="centre of mass"):
        assert pair.score(torch.tensor([[4.0], [6.0]]), 1.0).flatten().tolist() == [1.0, -1.0]


def test_conditions_of_one_model_have_one_shape():
    cat = Expert(lambda y, sigma, cond: y, (2,), cond=torch.tensor(3), name="cat")
    with pytest.raises(ValueError, match=r"\['cat', 'both'\] .* conditions of shapes \[\(\), \(2,\)\], wanted one shape"):
        scores([cat, cat.given(torch.tensor([3, 4]), name="both")], torch.zeros(3, 2), 1.0)


@pytest.mark.usefixtures("unchecked")
def test_a_condition_is_a_tensor_and_a_chunk_at_least_one_row():
    with pytest.raises(TypeError, match=r"expert 'cat': cond is 3, wanted a tensor, e.g. torch.tensor\(3\)"):
        replace(A, cond=3, name="cat")
    for chunk in (0, -1):
        with pytest.raises(ValueError, match=f"expert 'a': chunk={chunk}, wanted at least 1 row"):
            replace(A, chunk=chunk)


def test_an_error_inside_a_model_says_which_expert_and_where():
    def model(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        return y @ torch.zeros(5, 5)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        scores([A, Expert(model, (2,), name="wide")], torch.zeros(3, 2), 0.5)
    assert caught.value.__notes__ == ["Raised by the model of expert ['wide'] at sigma=0.5 for samples (3, 2) and no condition."]
