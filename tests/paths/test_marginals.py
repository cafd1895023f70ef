"""The drifts carry the laws they are said to carry: Fokker-Planck and continuity residuals at random points, boundaries, mixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.paths import DiagonalPath, FlowPath, FullPath, KinematicPath, bridge, log_linear

A, B = torch.tensor([-0.6, 1.4], dtype=torch.float64), torch.tensor([0.6, 0.1], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"noise": torch.tensor([0.9, 0.9], dtype=torch.float64), "sigma0": (0.2, 0.3), "width": 16}


def _loud(path: Any) -> Any:
    """Networks with outputs of order one, so that nothing cancels by being zero."""
    rng = Streams(7)
    with torch.no_grad():
        for value in path.parameters():
            value.add_(0.3 * rng.normal("loud", value))
    return path.requires_grad_(False)


PATHS = {
    "diagonal": lambda: _loud(DiagonalPath(A, B, 0.7, rng=Streams(0), **OPTIONS)),
    "diagonal, log-linear": lambda: _loud(DiagonalPath(A, B, 0.7, rng=Streams(0), widths=log_linear, **OPTIONS)),
    "full": lambda: _loud(FullPath(A, B, 0.7, rng=Streams(0), **OPTIONS)),
    "three full": lambda: _loud(FullPath(A, B, 0.7, rng=Streams(0), components=3, learn_weights=True, **OPTIONS)),
    "flow": lambda: _loud(FlowPath(A, B, 0.7, rng=Streams(0), layers=3, hidden=8, **OPTIONS)),
}


def _residual(density: Callable[[float, Tensor], Tensor], field: Callable[[Tensor], Tensor], t: float, x: Tensor, spread: Tensor) -> Tensor:
    """``d/dt log q + div(q u) / q - sum xi^2 d_i d_i q / (2 q)`` at rows x: differences in time, automatic derivatives in space."""
    h = 1e-5
    log_rate = (density(t + h, x) - density(t - h, x)) / (2 * h)
    x = x.clone().requires_grad_()
    score = torch.autograd.grad(density(t, x).sum(), x, create_graph=True)[0]
    u = field(x)
    divergence = sum(torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1]))
    second = torch.stack([torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])], 1)
    return (log_rate + divergence + (u * score).sum(1) - (spread**2 / 2 * (second + score.square())).sum(1)).detach()


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.05, 0.4])
def test_drift_and_flow_solve_their_equations(name: str, t: float) -> None:
    path = PATHS[name]()
    x = path.sample(t, 6, Streams(3))
    still = torch.zeros(2, dtype=torch.float64)
    assert _residual(path.log_prob, lambda x: path.velocity(t, x), t, x, still).abs().max() < 1e-5
    assert _residual(path.log_prob, lambda x: path.drift(t, x), t, x, path.noise).abs().max() < 1e-5


@pytest.mark.parametrize("name", PATHS)
def test_both_end_laws_are_exact(name: str) -> None:
    path = PATHS[name]()
    x = torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    for t, state, sd in ((0.0, A, 0.2), (0.7, B, 0.3)):
        wanted = torch.distributions.Normal(state, sd).log_prob(x).sum(1)
        torch.testing.assert_close(path.log_prob(t, x), wanted, rtol=1e-9, atol=1e-9)


def test_points_and_drifts_of_training_are_those_of_sampling() -> None:
    z = Streams(1).normal("z", torch.empty(4, 2, dtype=torch.float64))
    for name, make in PATHS.items():
        path = make()
        x, drift, _, weights = path(torch.full((4,), 0.3, dtype=torch.float64), z)
        assert torch.isclose(weights.sum(), torch.ones((), dtype=torch.float64))
        for points, drifts in zip(x, drift, strict=True):
            torch.testing.assert_close(path.drift(0.3, points), drifts, rtol=1e-8, atol=1e-8, msg=name)


def test_equal_components_are_one() -> None:
    one, many = (FullPath(A, B, 0.7, rng=Streams(0), components=k, bend=0.0, **OPTIONS) for k in (1, 3))
    weight, bias = (value for name, value in one.named_parameters() if name.startswith("network.4"))
    state = {name: value.clone() for name, value in one.state_dict().items()}
    state |= {"network.4.weight": weight.repeat(3, 1), "network.4.bias": bias.repeat(3), "logits": torch.zeros(3, dtype=torch.float64)}
    many.load_state_dict(state)
    x = torch.randn(5, 2, generator=Streams(0)("x"), dtype=torch.float64)
    torch.testing.assert_close(many.drift(0.2, x), one.drift(0.2, x))
    torch.testing.assert_close(many.log_prob(0.2, x), one.log_prob(0.2, x))


def test_kinematic_drift_solves_the_underdamped_equation() -> None:
    path = _loud(KinematicPath(A, B, 0.7, rng=Streams(0), thermal=0.5, components=2, **OPTIONS))
    x = path.sample(0.3, 5, Streams(3))

    def field(x: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], path.drift(0.3, x)], 1)

    spread = torch.cat([torch.zeros(2, dtype=torch.float64), path.noise])
    assert _residual(path.log_prob, field, 0.3, x, spread).abs().max() < 2e-5
    still = torch.zeros(4, dtype=torch.float64)
    assert _residual(path.log_prob, lambda x: path.velocity(0.3, x), 0.3, x, still).abs().max() < 2e-5
    wanted = (
        torch.distributions.Normal(torch.cat([A, torch.zeros_like(A)]), torch.tensor([0.2, 0.2, 0.5, 0.5], dtype=torch.float64))
        .log_prob(x)
        .sum(1)
    )
    torch.testing.assert_close(path.log_prob(0.0, x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"sigma0": 0.0}, "sigma0"),
        ({"components": 0}, "components"),
        ({"initial": lambda s: torch.lerp(A, B + 1, s[:, None])}, "initial"),
        ({"widths": "bridge"}, "widths"),
    ],
)
def test_bad_input_is_named(change: dict, names: str) -> None:
    with pytest.raises((ValueError, TypeError), match=names):
        DiagonalPath(A, B, 0.7, rng=Streams(0), **(OPTIONS | change))


def test_bridge_form_is_the_brownian_bridge() -> None:
    s = torch.linspace(0, 1, 5, dtype=torch.float64)
    got = bridge(s, torch.zeros(5, dtype=torch.float64), (0.0, 0.0), torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(got, 2 * (s * (1 - s)).sqrt())


def test_a_kinematic_path_has_its_own_widths() -> None:
    with pytest.raises(TypeError, match="widths"):
        KinematicPath(A, B, 0.7, rng=Streams(0), thermal=0.5, widths=bridge, **OPTIONS)
