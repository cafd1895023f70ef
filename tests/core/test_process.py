"""Rates and the one function that follows them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from popflow.core import Ito, Population, Rates, advance
from popflow.core.process import integrate

LAYOUTS = [((), 1, ()), ((), 4, (2,)), ((2, 3), 4, (3, 2)), ((2, 3), 1, ())]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("h", [0.3, -0.3])
@pytest.mark.parametrize(("batch", "n", "event"), LAYOUTS)
def test_one_displacement_moves_x_weights_and_companions(batch: tuple[int, ...], n: int, event: tuple[int, ...], h: float) -> None:
    shape = (*batch, n, *event)
    pop = Population.of(normal(*shape), batch=len(batch), one=torch.zeros(*batch, n, dtype=torch.float64), two=normal(*batch, n, 2, seed=9))
    drift, z, coefficient, pair = (
        normal(*shape, seed=1),
        normal(*shape, seed=2),
        normal(*shape, seed=3),
        normal(*batch, n, 2, *event, seed=4),
    )
    rate = normal(*batch, n, seed=5)
    rates = Rates(drift, 0.7, Ito(rate, coefficient), {"one": Ito(2.0), "two": Ito(rate[..., None], pair)})
    moved = advance(pop, rates, h, z)
    displacement = h * drift + 0.7 * math.sqrt(0.3) * z
    flat, flat_pair = displacement.reshape(*batch, n, -1), pair.reshape(*batch, n, 2, -1)
    assert torch.allclose(moved.x, pop.x + displacement)
    assert torch.allclose(moved.log_w, h * rate + (coefficient.reshape(*batch, n, -1) * flat).sum(-1))
    assert torch.allclose(moved.aux["one"], torch.full((*batch, n), 2 * h, dtype=torch.float64))
    assert torch.allclose(moved.aux["two"], pop.aux["two"] + h * rate[..., None] + (flat_pair * flat[..., None, :]).sum(-1))
    assert torch.equal(moved.log_z, pop.log_z)


def test_without_growth_and_diffusion_nothing_else_changes() -> None:
    pop = Population.of(normal(3, 2), kept=normal(3))
    moved = advance(pop, Rates(drift=torch.zeros_like(pop.x)), 1.0, noise=normal(3, 2))
    assert torch.equal(moved.x, pop.x)
    assert moved.log_w is pop.log_w
    assert moved.aux is pop.aux


def test_the_left_point_integral_of_2x_is_x_squared_less_the_quadratic_variation() -> None:
    # x_T^2 - x_0^2 = sum 2 x dX + sum dX^2, exactly, whatever the path
    pop = Population.of(normal(50, 1), square=torch.zeros(50, dtype=torch.float64))
    start, variation = pop.x.square().sum(-1), torch.zeros(50, dtype=torch.float64)
    for k in range(20):
        new = advance(pop, Rates(-pop.x, 1.3, track={"square": Ito(dx=2 * pop.x)}), 0.05, normal(50, 1, seed=k))
        variation, pop = variation + (new.x - pop.x).square().sum(-1), new
    assert torch.allclose(pop.aux["square"], pop.x.square().sum(-1) - start - variation, atol=1e-12)


def test_diffusion_may_differ_from_particle_to_particle() -> None:
    pop = Population.of(torch.zeros(3, 2))
    sigma = torch.tensor([[0.0], [1.0], [2.0]])
    moved = advance(pop, Rates(torch.zeros(3, 2), sigma), 4.0, torch.ones(3, 2))
    assert moved.x.tolist() == [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]


def test_dtype_follows_the_population() -> None:
    pop = Population.of(torch.ones(3, 2), a=torch.zeros(3))
    moved = advance(pop, Rates(pop.x, 0.5, Ito(0.1, pop.x), {"a": Ito(0.2)}), 0.1, torch.ones(3, 2))
    assert moved.x.dtype == moved.log_w.dtype == moved.aux["a"].dtype == torch.float32


def test_integrate_of_numbers_alone_is_a_number() -> None:
    assert integrate(Ito(3.0), 0.5, torch.zeros(2, 1), 1) == 1.5


def test_the_displacement_is_differentiable_in_the_rates() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    pop = Population.of(torch.ones(3, 1, dtype=torch.float64))
    moved = advance(pop, Rates(scale * pop.x, growth=Ito(dx=pop.x)), 0.5)
    (grad,) = torch.autograd.grad(moved.log_w.sum(), scale)
    assert grad.item() == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (lambda x: Rates(x, 1.0), "noise is None but rates.diffusion is given"),
        (lambda x: Rates(x, track={"log_q": Ito(1.0)}), r"track names \['log_q'\] are absent .* \['a'\]"),
        (lambda x: Rates(torch.zeros(5, 4, 2)), r"drift has shape \(5, 4, 2\), wanted \(4, 2\)"),
        (lambda x: Rates(x, growth=Ito(torch.zeros(4, 1))), r"growth has shape \(4, 1\), wanted \(4,\)"),
        (lambda x: Rates(x, track={"a": Ito(torch.zeros(4, 1))}), r"track 'a' has shape \(4, 1\), wanted \(4,\)"),
    ],
)
def test_rates_that_do_not_fit_are_named(rates, message: str) -> None:
    pop = Population.of(torch.zeros(4, 2), a=torch.zeros(4))
    with pytest.raises(ValueError, match=message):
        advance(pop, rates(pop.x), 0.1)


def test_a_growth_that_is_no_integral_is_refused() -> None:
    pop = Population.of(torch.zeros(3, 1))
    with pytest.raises(TypeError, match="growth"):
        Rates(drift=pop.x, growth=pop.x[..., 0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="track"):
        Rates(drift=pop.x, track={"a": 1.0})  # pyright: ignore[reportArgumentType]
