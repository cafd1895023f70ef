"""The forward Laplacian against second reverse derivatives; the log-determinant in every composition; what torch does wrong."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, vmap

from popflow.electrons import Molecule, System, WaveFunction, forward_laplacian as fl, oscillator


def by_reverse(psi: WaveFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient and Laplacian by reverse over reverse, which is right through the log-determinant of this package and of torch."""
    gradients, laplacians = [], []
    for point in x:
        gradients.append(torch.autograd.functional.jacobian(lambda y: psi(y.unsqueeze(0))[0], point).flatten())
        square = torch.autograd.functional.hessian(lambda y: psi(y.unsqueeze(0))[0], point).reshape(point.numel(), -1)  # pyright: ignore
        laplacians.append(square.trace())
    return torch.stack(gradients), torch.stack(laplacians)


def test_jets_are_the_derivatives_of_every_network(psi: WaveFunction, x: Tensor) -> None:
    jet = psi.forward_laplacian(x)
    gradient, laplacian = by_reverse(psi, x)
    assert torch.allclose(jet.value, psi(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose(jet.jacobian, gradient, rtol=1e-10, atol=1e-12)
    assert torch.allclose(jet.laplacian, laplacian, rtol=1e-10, atol=1e-12)


def test_it_agrees_with_the_hessian_of_torch_func_where_that_is_right(psiformer, points) -> None:
    lithium = Molecule.of("Li")
    psi, x = psiformer(lithium), points(lithium, 2)
    trace = torch.stack([hessian(lambda y: psi(y.unsqueeze(0))[0])(point).reshape(9, 9).trace() for point in x])
    assert torch.allclose(psi.forward_laplacian(x).laplacian, trace, rtol=1e-10)


def test_central_differences_agree(psiformer, points) -> None:
    lithium = Molecule.of("Li")
    psi, x, h = psiformer(lithium), points(lithium, 3), 1e-3
    steps = h * torch.eye(9, dtype=x.dtype).reshape(9, 1, 3, 3)
    # the five-point formula: the error is of order h^4
    near = psi((x + steps).flatten(0, 1)).reshape(9, 3) + psi((x - steps).flatten(0, 1)).reshape(9, 3)
    far = psi((x + 2 * steps).flatten(0, 1)).reshape(9, 3) + psi((x - 2 * steps).flatten(0, 1)).reshape(9, 3)
    differences = ((16 * near - far - 30 * psi(x)) / (12 * h * h)).sum(0)
    assert torch.allclose(psi.forward_laplacian(x).laplacian, differences, rtol=1e-5)


def test_single_precision_loses_at_most_a_thousandth(psiformer, points) -> None:
    lithium = Molecule.of("Li")
    exact, single = psiformer(lithium), psiformer(lithium, dtype=torch.float32)
    single.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in exact.state_dict().items()})
    x = points(lithium, 64)
    a, b = exact.forward_laplacian(x).laplacian, single.forward_laplacian(x.float()).laplacian.double()
    assert (a - b).abs().max() < 1e-3 * a.abs().max()


@pytest.mark.parametrize("local", [True, False])
def test_attention_of_jets_is_that_of_tensors(local: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(3, 2, 8, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator)

    def qkv(h: fl.Quantity) -> list[fl.Quantity]:
        layers = [torch.nn.Linear(2, 8, bias=False, dtype=torch.float64, device="meta") for _ in range(3)]
        return [fl.shaped(fl.tanh(_apply(layer, weight, h)), 3, 2, 4) for layer, weight in zip(layers, w, strict=True)]

    jet = fl.seed(x) if local else fl.spread(fl.seed(x))
    found = fl.attend(*qkv(jet), local=local)

    def value(y: Tensor) -> Tensor:
        return fl.attend(*qkv(y.reshape(1, 3, 2)), local=local)[0]

    for k, point in enumerate(x):
        flat = point.flatten()
        assert torch.allclose(found.value[k], value(flat))
        assert torch.allclose(found.jacobian[k].movedim(0, -1), torch.autograd.functional.jacobian(value, flat))
        second = torch.stack(
            [torch.autograd.functional.hessian(lambda y, i=i: value(y).flatten()[i], flat).trace() for i in range(found.value[0].numel())]  # pyright: ignore
        )
        assert torch.allclose(found.laplacian[k].flatten(), second, rtol=1e-10, atol=1e-12)


def _apply(layer: torch.nn.Linear, weight: Tensor, h: fl.Quantity) -> fl.Quantity:
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(weight.T)
    return fl.linear(layer, h)


# -- the log-determinant ------------------------------------------------------------------------------------------------------------

MODES = list(itertools.product(("rev", "fwd"), repeat=3))


def derivative(f, mode: str):
    """Return the derivative of a function of one number, by reverse or by forward mode."""
    return grad(f) if mode == "rev" else lambda t: jvp(f, (t,), (torch.ones_like(t),))[1]


def curve() -> tuple[Tensor, Tensor]:
    """Return ``A`` and ``B`` of the matrices ``A + t B``."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 4, dtype=torch.float64, generator=generator) + 3 * torch.eye(4, dtype=torch.float64)
    return a, torch.randn(4, 4, dtype=torch.float64, generator=generator)


def third(f, modes: tuple[str, ...]) -> Tensor:
    """Return the third derivative at 0, the first of the modes outermost."""
    for mode in reversed(modes):
        f = derivative(f, mode)
    return f(torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("modes", MODES, ids="-".join)
@pytest.mark.parametrize("batched", [False, True])
def test_the_log_determinant_is_exact_in_every_composition(modes: tuple[str, ...], batched: bool) -> None:
    a, b = curve()
    x = torch.linalg.solve(a, b)
    exact = 2 * (x @ x @ x).trace()  # d^3 log det(A + t B) = 2 tr X^3

    def f(t: Tensor) -> Tensor:
        return fl.sign_log_det(a + t * b)[1]

    if not batched:
        assert torch.allclose(third(f, modes), exact, rtol=1e-10)
        return
    for mode in reversed(modes):
        f = derivative(f, mode)
    assert torch.allclose(vmap(f)(torch.zeros(3, dtype=torch.float64)), exact.expand(3), rtol=1e-10)


def test_torch_is_still_wrong_to_differentiate_a_forward_derivative_of_slogdet() -> None:
    """The day this fails torch has mended it, and the warning in the documentation may go."""
    a, b = curve()
    x = torch.linalg.solve(a, b)
    exact = 2 * (x @ x @ x).trace()

    def f(t: Tensor) -> Tensor:
        return torch.linalg.slogdet(a + t * b).logabsdet

    assert torch.allclose(third(f, ("rev", "rev", "rev")), exact, rtol=1e-10)
    assert not torch.allclose(third(f, ("rev", "rev", "fwd")), exact, rtol=1e-3)
    assert not torch.allclose(third(f, ("fwd", "fwd", "fwd")), exact, rtol=1e-3)


def test_a_batched_laplacian_of_forward_derivatives_is_right_through_this_log_determinant(slater_jastrow, points) -> None:
    lithium = Molecule.of("Li")
    psi, x = slater_jastrow(lithium), points(lithium, 3)
    params = {name: value.detach() for name, value in psi.named_parameters()}

    def laplacian(point: Tensor) -> Tensor:
        def f(y: Tensor) -> Tensor:
            return functional_call(psi, params, (y.reshape(1, 3, 3),))[0]

        return vmap(lambda v: jvp(grad(f), (point,), (v,))[1] @ v)(torch.eye(9, dtype=point.dtype)).sum()

    assert torch.allclose(vmap(laplacian)(x.flatten(1)), psi.forward_laplacian(x).laplacian, rtol=1e-10)


def test_a_singular_matrix_has_minus_infinity_and_harms_no_other() -> None:
    m = torch.stack([torch.zeros(2, 2), torch.eye(2)]).double().reshape(2, 2, 1, 2)
    sign, log = fl.log_sum_det(m)
    assert log.tolist() == [-float("inf"), 0.0]
    assert sign.tolist() == [0.0, 1.0]


def test_determinants_of_opposite_sign_are_subtracted(x: Tensor, system: System) -> None:
    n = system.electrons
    generator = torch.Generator().manual_seed(2)
    m = torch.randn(3, n, 4, n, dtype=torch.float64, generator=generator)
    sign, log = fl.log_sum_det(m)
    assert torch.allclose(sign * log.exp(), torch.linalg.det(m.transpose(1, 2)).sum(1))


def test_the_middle_of_a_trap_is_as_smooth_as_any_other_place(psiformer, slater_jastrow) -> None:
    trap = oscillator(dim=2)
    x = torch.zeros(1, 1, 2, dtype=torch.float64)
    for make in (psiformer, slater_jastrow):
        jet, near = make(trap).forward_laplacian(x), make(trap).forward_laplacian(x + 1e-7)
        assert torch.allclose(jet.parts, near.parts, atol=1e-5)


def test_no_step_turns_decay_into_growth_or_a_cusp_into_a_pole(psiformer, points) -> None:
    lithium = Molecule.of("Li")
    psi, x = psiformer(lithium), points(lithium, 3)
    before = psi.forward_laplacian(x).parts
    with torch.no_grad():
        for parameter in (psi.jastrow.length, *(one.decay for one in psi.envelope)):
            parameter.neg_()
    assert torch.equal(psi.forward_laplacian(x).parts, before)
