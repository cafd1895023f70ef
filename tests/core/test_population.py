"""Weighted populations: weights, evidence, gathering, and what bad input says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from popflow.core import Population, ZeroWeightsError
from popflow.core.population import add

SHAPES = [((), 1), ((), 5), ((2, 3), 1), ((2, 3), 4)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(batch: tuple[int, ...], n: int, event: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64) -> Population:
    x = torch.randn(*batch, n, *event, generator=seeded(), dtype=dtype)
    label = torch.arange(math.prod(batch) * n).reshape(*batch, n)
    pop = Population.of(x, batch=len(batch), label=label, matrix=x.sum(-1)[..., None, None].expand(*batch, n, 2, 3))
    return pop.reweight(torch.randn(*batch, n, generator=seeded(1), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "n"), SHAPES)
def test_shapes_and_dtypes_follow_x(batch: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
    pop = some(batch, n, dtype=dtype)
    assert (tuple(pop.batch), tuple(pop.event), len(pop)) == (batch, (2,), n)
    assert pop.log_w.dtype == pop.log_z.dtype == pop.weights().dtype == dtype
    assert tuple(pop.ess().shape) == tuple(pop.log_normalizer().shape) == batch
    assert tuple(pop.mean().shape) == (*batch, 2)
    assert torch.allclose(pop.weights().sum(-1), torch.ones(batch, dtype=dtype))


def test_an_event_may_be_empty_and_integers_get_floating_weights() -> None:
    assert tuple(Population.of(torch.zeros(4)).event) == ()
    assert Population.of(torch.zeros(4)).mean().shape == ()
    bits = Population.of(torch.ones(4, 3, dtype=torch.long))
    assert bits.log_w.dtype == torch.get_default_dtype()
    assert bits.mean().tolist() == [1.0, 1.0, 1.0]


def test_mean_and_ess_are_the_weighted_ones() -> None:
    pop = Population.of(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)).reweight(
        torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log()
    )
    assert pop.mean().item() == pytest.approx((2 + 20) / 8)
    assert pop.mean(torch.square).item() == pytest.approx((2 + 80) / 8)
    assert pop.ess().item() == pytest.approx(64 / 30)


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=20), st.floats(-500, 500))
@settings(max_examples=60, deadline=None)
def test_weights_forget_a_constant_and_the_normalizer_keeps_it(log_w: list[float], shift: float) -> None:
    pop = Population.of(torch.zeros(len(log_w), dtype=torch.float64)).reweight(torch.tensor(log_w, dtype=torch.float64))
    shifted = pop.reweight(torch.tensor(shift, dtype=torch.float64))
    assert torch.allclose(pop.weights(), shifted.weights(), atol=1e-9)
    assert shifted.log_normalizer().item() == pytest.approx(pop.log_normalizer().item() + shift, abs=1e-9)
    assert 1 - 1e-9 <= pop.ess().item() <= len(log_w) * (1 + 1e-9)


def test_log_normalizer_of_equal_weights_is_their_log_and_adds_closed_blocks() -> None:
    pop = Population.of(torch.zeros(7, 1)).reweight(torch.full((7,), 0.25))
    assert pop.log_normalizer().item() == pytest.approx(0.25, abs=1e-6)
    assert pop.replace(log_z=torch.tensor(2.0)).log_normalizer().item() == pytest.approx(2.25, abs=1e-6)


def test_huge_log_weights_neither_overflow_nor_vanish() -> None:
    pop = Population.of(torch.arange(3.0)).reweight(torch.tensor([1e4, 1e4, -1e4]))
    assert pop.mean().item() == pytest.approx(0.5)
    assert pop.reweight(torch.tensor(-1e30)).ess().item() >= 1


# --- no weight left ---


@pytest.mark.parametrize("use", [Population.weights, Population.ess, Population.mean])
def test_no_weight_left_is_named_and_never_a_silent_uniform(use) -> None:
    pop = Population.of(torch.zeros(3, 1)).reweight(torch.full((3,), -math.inf))
    with pytest.raises(ZeroWeightsError, match=r"all log weights are -inf.*Fix: "):
        use(pop)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_counted(value: float) -> None:
    log_w = torch.zeros(2, 3, 4)
    log_w[1, 2, 0] = value
    with pytest.raises(ZeroWeightsError, match="population 5 of 6 1 of 4 log weights are NaN or"):
        Population.of(torch.zeros(2, 3, 4), batch=2).reweight(log_w).weights()


def test_single_weights_of_minus_infinity_are_allowed() -> None:
    pop = Population.of(torch.arange(3.0)).reweight(torch.tensor([-math.inf, 0.0, -math.inf]))
    assert pop.weights().tolist() == [0.0, 1.0, 0.0]
    assert pop.log_normalizer().item() == pytest.approx(-math.log(3))


# --- gathering ---


@pytest.mark.parametrize(("batch", "n"), SHAPES)
def test_take_gathers_every_companion_from_its_own_population(batch: tuple[int, ...], n: int) -> None:
    pop = some(batch, n)
    idx = torch.randint(0, n, (*batch, 6), generator=seeded(2))
    got = pop.take(idx)
    assert tuple(got.log_w.shape) == (*batch, 6)
    assert torch.equal(got.aux["label"], pop.aux["label"].gather(-1, idx))
    assert torch.equal(got.log_w, pop.log_w.gather(-1, idx))
    assert torch.equal(got.log_z, pop.log_z)
    own = pop.x.reshape(-1, 2)[got.aux["label"].reshape(-1)].reshape(got.x.shape)
    assert torch.equal(got.x, own)
    assert torch.equal(got.aux["matrix"][..., 1, 2], got.x.sum(-1))


def test_sequences_are_gathered_in_order_with_their_companions() -> None:
    pop = Population.of(["C", "N", "O"], score=torch.tensor([1.0, 2.0, 3.0])).take(torch.tensor([2, 0, 0, 2]))
    assert pop.x == ["O", "C", "C", "O"]
    assert pop.aux["score"].tolist() == [3.0, 1.0, 1.0, 3.0]
    assert len(pop) == 4


@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_flow_through_weights_and_gathering(batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 4, 1, generator=seeded(), dtype=torch.float64, requires_grad=True)
    pop = Population.of(x, batch=len(batch)).reweight(x[..., 0])
    idx = torch.zeros(*batch, 4, dtype=torch.long)
    (grad,) = torch.autograd.grad(pop.take(idx).x.sum() + pop.mean().sum(), x)
    assert grad[..., 0, 0].min() > 3.9


def test_populations_do_not_change() -> None:
    pop = Population.of(torch.zeros(2, 1))
    with pytest.raises(AttributeError):
        pop.x = torch.ones(2, 1)  # type: ignore[misc]
    pop.reweight(torch.ones(2))
    assert pop.log_w.tolist() == [0.0, 0.0]


def test_to_casts_floats_and_leaves_labels() -> None:
    pop = some((2,), 3, dtype=torch.float32).to(torch.float64)
    assert pop.x.dtype == pop.log_w.dtype == pop.log_z.dtype == pop.aux["matrix"].dtype == torch.float64
    assert pop.aux["label"].dtype == torch.long
    large, phase = torch.tensor([0, 2**24 + 1, 2**53 + 1]), torch.tensor([1j, 2 + 1j, 0])
    half = Population.of(torch.zeros(3, 1, dtype=torch.float64), ancestor=large, phase=phase).to(torch.float16)
    assert half.x.dtype == torch.float16
    assert torch.equal(half.aux["ancestor"], large)
    assert torch.equal(half.aux["phase"], phase)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_samples_are_in_float32(dtype: torch.dtype) -> None:
    made = Population.of(torch.ones(100_000, 1, dtype=dtype))
    for pop in (made, Population.of(torch.ones(100_000, 1)).to(dtype)):
        assert (pop.x.dtype, pop.log_w.dtype, pop.log_z.dtype) == (dtype, torch.float32, torch.float32)
        assert float(pop.ess()) == pytest.approx(100_000, rel=1e-5)
        assert float(pop.mean()) == pytest.approx(1.0, rel=1e-5)
    assert Population.of(["a"]).to(torch.float64).x == ["a"]


# --- bad input ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Population.of(torch.zeros(3), batch=1), ValueError, r"x has shape \(3,\), wanted .* 1 batch"),
        (lambda: Population.of(torch.zeros(())), ValueError, r"x has shape \(\)"),
        (lambda: Population.of(torch.zeros(0, 2)), ValueError, "holds no particle"),
        (lambda: Population.of([]), ValueError, "holds no particle"),
        (lambda: Population.of(["a"], batch=1), ValueError, "batch=1 with a plain sequence"),
        (lambda: Population.of("CCO"), TypeError, "got str"),
        (lambda: Population.of({1, 2}), TypeError, "got set"),
        (lambda: Population.of(torch.zeros(3, 1), a=torch.zeros(2)), ValueError, r"aux 'a' has shape \(2,\), wanted \[3\]"),
        (lambda: Population.of(torch.zeros(3, 1)).reweight(torch.zeros(3, 1)), ValueError, r"delta has shape \(3, 1\), wanted \(3,\)"),
    ],
)
def test_bad_input_is_named(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_one_number_may_be_added_to_every_weight() -> None:
    assert Population.of(torch.zeros(2, 3, 1), batch=1).reweight(torch.tensor([[1.0], [2.0]])).log_w.tolist() == [[1.0] * 3, [2.0] * 3]


def test_x_is_left_alone_by_weights_of_each_population() -> None:
    x: Tensor = torch.arange(6.0).reshape(2, 3)
    pop = Population.of(x, batch=1).reweight(torch.tensor([[0.0, -math.inf, -math.inf], [-math.inf, -math.inf, 0.0]]))
    assert pop.mean().tolist() == [0.0, 5.0]


def test_adding_keeps_the_dtype_and_refuses_to_change_its_kind() -> None:
    pop = Population.of(torch.zeros(3, 1))
    assert pop.reweight(torch.ones(3, dtype=torch.float64)).log_w.dtype == torch.float32
    with pytest.raises(ValueError, match=r"growth turns torch.float32 into torch.complex64"):
        add("growth", pop.log_w, torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"drift turns torch.int64 into torch.float32"):
        add("drift", torch.zeros(3, dtype=torch.long), torch.ones(3))


def test_a_mean_of_a_function_that_works_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="f changed its input in place"):
        Population.of(torch.ones(3, 1)).mean(lambda x: x.mul_(2))
