"""Derivatives against closed forms, and the eager form against the `torch.func` form."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value

from popflow.core.calculus import value_and_grad, value_grad_and_laplacian, values_and_divergences
from popflow.core.streams import Streams


@pytest.fixture
def x():
    return Streams(3).normal("x", torch.zeros(7, 4, dtype=torch.float64))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def potential(net):
    params = dict(net.named_parameters())
    return params, lambda params: lambda x, t: functional_call(net, params, (torch.cat([x, t[:, None]], 1),))[:, 0]


def test_gaussian_score_and_time_derivative(x):
    t = torch.linspace(0.5, 2, 7, dtype=torch.float64)
    log_p = lambda x, t: -0.5 * x.square().sum(-1) / t - 2 * torch.log(2 * math.pi * t)  # noqa: E731
    value, (score, dt) = value_and_grad(log_p, x, t)
    torch.testing.assert_close(score, -x / t[:, None])
    torch.testing.assert_close(dt, 0.5 * x.square().sum(-1) / t**2 - 2 / t)
    torch.testing.assert_close(value, log_p(x, t))
    # heat equation d_t p = 1/2 lap p, for log p: d_t log p = 1/2 (lap log p + |grad log p|^2)
    _, gradient, laplacian = value_grad_and_laplacian(lambda x: log_p(x, t), x)
    torch.testing.assert_close(dt, 0.5 * (laplacian + gradient.square().sum(-1)))


def test_leading_batch_dimensions():
    x = Streams(0).normal("x", torch.zeros(2, 3, 4))
    value, (dx,) = value_and_grad(lambda x: x.square().sum(-1), x)
    assert value.shape == (2, 3)
    torch.testing.assert_close(dx, 2 * x)


def test_divergence_of_a_linear_field_is_its_trace(x):
    a = Streams(1).normal("a", torch.zeros(4, 4, dtype=torch.float64))
    (value,), (divergence,) = values_and_divergences(lambda x: (x @ a.T)[None], x)
    torch.testing.assert_close(value, x @ a.T)
    torch.testing.assert_close(divergence, a.trace().expand(7))


def test_events_of_any_shape():
    x = Streams(0).normal("x", torch.zeros(3, 2, 2, 2))
    _, (divergence,) = values_and_divergences(lambda x: (x**3)[None], x)
    torch.testing.assert_close(divergence, 3 * x.square().flatten(1).sum(1))
    _, _, laplacian = value_grad_and_laplacian(lambda x: (x**3).flatten(1).sum(1), x)
    torch.testing.assert_close(laplacian, 6 * x.flatten(1).sum(1))


def test_hutchinson_is_unbiased_and_has_the_known_variance():
    rng, n = Streams(0), 40_000
    a = rng.normal("a", torch.zeros(3, 3, dtype=torch.float64))
    x = torch.zeros(n, 3, dtype=torch.float64)
    symmetric = (a + a.T) / 2
    rademacher = (rng.uniform("probe", (n, 3)) < 0.5).double() * 2 - 1
    for probe, diagonal in ((rademacher, 0.0), (rng.normal("probe", x), 2 * symmetric.diag().square().sum())):
        _, (estimate,) = values_and_divergences(lambda x: (x @ a.T)[None], x, [probe])
        variance = 2 * (symmetric.square().sum() - symmetric.diag().square().sum()) + diagonal
        assert abs(float(estimate.mean() - a.trace())) < 4 * math.sqrt(float(variance) / n)
        assert float(estimate.var()) == pytest.approx(float(variance), rel=0.05)


def test_hutchinson_laplacian_along_one_direction():
    x, probe = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    _, _, laplacian = value_grad_and_laplacian(lambda x: x[:, 0] ** 2 * x[:, 1], x, probe)
    # Hessian [[2 x1, 2 x0], [2 x0, 0]] = [[4, 2], [2, 0]], its sum 8
    assert laplacian.item() == pytest.approx(8.0)


def test_eager_and_func_forms_agree_with_their_parameter_gradients(net, x):
    params, f = potential(net)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)

    def loss(params):
        value, (dx, dt) = value_and_grad(f(params), x, t)
        _, _, laplacian = value_grad_and_laplacian(lambda x: f(params)(x, t), x)
        _, _, estimate = value_grad_and_laplacian(lambda x: f(params)(x, t), x, torch.ones_like(x))
        return (dt + 0.5 * dx.square().sum(1)).mean() + value.mean() + laplacian.square().mean() + estimate.mean()

    eager = loss(params)
    eager_grads = torch.autograd.grad(eager, list(params.values()))
    grads, value = grad_and_value(loss)({name: p.detach() for name, p in params.items()})
    torch.testing.assert_close(value, eager)
    for a, b in zip(grads.values(), eager_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_differentiable_in_the_inputs_they_came_with(net, x):
    """A point that depends on a parameter (a reparametrised path) keeps that dependence; both forms agree."""
    params, f = potential(net)
    frozen = {name: p.detach() for name, p in params.items()}

    def loss(mean):
        t = mean.sum().expand(7)
        _, (dx, dt) = value_and_grad(f(frozen), x + mean, t)
        return (dx.square().sum(1) + dt).sum()

    mean = torch.full((4,), 0.1, dtype=torch.float64, requires_grad=True)
    (eager,) = torch.autograd.grad(loss(mean), mean)
    torch.testing.assert_close(grad(loss)(mean.detach()), eager)


def test_partial_even_where_one_input_was_computed_from_another():
    t = torch.tensor([2.0, 3.0], requires_grad=True)
    _, (dx, dt) = value_and_grad(lambda x, t: (x[:, 0]) * t, t[:, None] ** 2, t)
    assert dt.tolist() == [4.0, 9.0]
    assert dx.flatten().tolist() == [2.0, 3.0]


def test_no_graph_is_kept_under_no_grad(net, x):
    params, f = potential(net)
    with torch.no_grad():
        value, (dx, _) = value_and_grad(f(params), x, torch.zeros(7, dtype=torch.float64))
        laplacian = value_grad_and_laplacian(lambda x: f(params)(x, torch.zeros(7, dtype=torch.float64)), x)
    assert not value.requires_grad
    assert not dx.requires_grad
    assert not any(part.requires_grad for part in laplacian)


def test_constant_and_linear_functions_have_zero_derivatives(x):
    assert value_and_grad(lambda x: torch.ones(7), x)[1][0].abs().max() == 0
    assert value_grad_and_laplacian(lambda x: x.sum(1), x)[2].abs().max() == 0


def test_the_sum_trick_is_wrong_for_coupled_rows(x):
    """Centring the population couples the rows: the true row derivative is 2 c (1 - 1/n), the sum trick gives 2 (c - mean c) = 2 c."""

    def coupled(x):
        return (x - x.mean(0)).square().sum(1)

    _, (got,) = value_and_grad(coupled, x)
    true = torch.stack([torch.func.jacrev(coupled)(x)[i, i] for i in range(7)])
    centred = x - x.mean(0)
    torch.testing.assert_close(true, 2 * centred * (1 - 1 / 7))
    torch.testing.assert_close(got, 2 * centred)


def test_bad_shapes_are_named(x):
    with pytest.raises(ValueError, match="one value per row"):
        value_and_grad(lambda x, t: x.sum(1) * t, x, torch.tensor(0.5))
    with pytest.raises(ValueError, match="one value per row"):
        value_and_grad(lambda x: x[:, :1], x[:, :2].T)
    with pytest.raises(ValueError, match="probe has shape"):
        value_grad_and_laplacian(lambda x: x.sum(1), x, torch.ones(7))


def test_inference_mode_gives_the_same_derivatives():
    x = Streams(5).normal("x", torch.zeros(6, 3, dtype=torch.float64))
    with torch.inference_mode():
        for point in (x, 2 * x):  # a plain tensor and one that was made in inference mode
            _, (gradient,) = value_and_grad(lambda x: (x**3).sum(-1), point)
            _, slope, laplacian = value_grad_and_laplacian(lambda x: (x**3).sum(-1), point)
            _, divergences = values_and_divergences(lambda x: (x**3)[None], point)
            for found, true in (
                (gradient, 3 * point**2),
                (slope, 3 * point**2),
                (laplacian, 6 * point.sum(-1)),
                (divergences[0], 3 * point.square().sum(-1)),
            ):
                torch.testing.assert_close(found, true)


def test_an_event_may_be_empty():
    x = Streams(5).normal("x", torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(value_grad_and_laplacian(lambda x: x**3, x)[2], 6 * x)
    torch.testing.assert_close(value_grad_and_laplacian(lambda x: x**3, x, torch.ones_like(x))[2], 6 * x)
    torch.testing.assert_close(values_and_divergences(lambda x: torch.stack([x**3, x]), x)[1], torch.stack([3 * x**2, torch.ones_like(x)]))


def test_bad_shapes_of_several_fields_are_named():
    x = torch.zeros(4, 2, 3)
    with pytest.raises(ValueError, match=r"f\(x\) has shape \[4, 2, 3\], wanted \[M, \*x.shape\] with x.shape \[4, 2, 3\]"):
        values_and_divergences(lambda x: 2 * x, x)
    with pytest.raises(ValueError, match=r"probe has shape \[2, 3\], wanted that of x, \[4, 2, 3\]"):
        values_and_divergences(lambda x: x[None], x, [torch.ones(2, 3)])
