"""The local energy: zero variance of exact states, its gradient against central differences, closed-form parameter gradients of both geometries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from popflow.core import Streams
from popflow.electrons import (
    Decay,
    LocalEnergy,
    Molecule,
    Objective,
    PsiFormer,
    SlaterJastrow,
    System,
    Trap,
    WaveFunction,
    clip,
    exact_state,
    hookes_atom,
    oscillator,
    pull,
    quantum_dot,
    surrogate,
)  # fmt: skip
from popflow.electrons.energy import Local, chains_error, highest_precision, typical
from popflow.electrons.objective import Pull, after

SOLVED: dict[str, Trap | Molecule] = {
    "oscillator": oscillator(omega=1.7),
    "hooke": hookes_atom(),
    "dot": quantum_dot(),
    "H": Molecule.of("H"),
    "He+": Molecule.of("He", charge=1),
}
LITHIUM = Molecule.of("Li")
EXACT = {"oscillator": 2.55, "hooke": 2.0, "dot": 3.0, "H": -0.5, "He+": -2.0}


@pytest.mark.parametrize("name", SOLVED)
def test_an_exact_state_has_no_variance_and_no_gradient(name: str, points) -> None:
    system = SOLVED[name]
    psi, x = exact_state(system), points(system, 64)
    local = LocalEnergy(psi, system)(x, gradient=True)
    assert local.gradient is not None
    assert (local.energy - EXACT[name]).abs().max() < 1e-10
    assert local.gradient.abs().max() < 1e-8
    for objective in (Objective.fisher_rao(), Objective.wasserstein(), Objective.mixed()):
        value, _ = surrogate(psi, x, pull(objective, local, 0.0))
        assert all(part.abs().max() < 1e-8 for part in torch.autograd.grad(value, list(psi.parameters())))


def test_the_gradient_agrees_with_central_differences(psi: WaveFunction, system: System, x: Tensor) -> None:
    local, h = LocalEnergy(psi, system), 1e-4
    found = local(x, gradient=True).gradient
    assert found is not None
    for k in range(system.electrons * system.dim):
        step = torch.zeros(system.electrons * system.dim, dtype=x.dtype)
        step[k] = h
        step = step.reshape(system.electrons, system.dim)
        near = local(x + step).energy - local(x - step).energy
        far = local(x + 2 * step).energy - local(x - 2 * step).energy
        assert torch.allclose(found[:, k], (8 * near - far) / (12 * h), rtol=1e-6, atol=1e-6 * float(found.abs().max()))


def test_chunks_change_nothing(points, psiformer) -> None:
    lithium = Molecule.of("Li")
    psi, x = psiformer(lithium), points(lithium, 7)
    whole, parts = (LocalEnergy(psi, lithium, chunk=chunk)(x, gradient=True) for chunk in (7, 3))
    for a, b in zip(whole, parts, strict=True):
        assert a is not None and b is not None  # noqa: PT018
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert all(parameter.requires_grad for parameter in psi.parameters())


def test_tf32_is_off_for_derivatives_alone() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with highest_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# -- parameter gradients: E[...] over exact samples ---------------------------------------------------------------------------------

SAMPLES = 200_000


def oscillator_samples(a: float) -> Tensor:
    """Draw from ``exp(-a x^2)``."""
    return Streams(0).normal("x", torch.zeros(SAMPLES, 1, 1, dtype=torch.float64)) / math.sqrt(2 * a)


def hydrogen_samples(a: float) -> Tensor:
    """Draw from ``exp(-2 a r)``: r is a sum of three exponential variables."""
    rng = Streams(0)
    r = -rng.uniform("r", (SAMPLES, 3)).log().sum(1) / (2 * a)
    direction = rng.normal("direction", torch.zeros(SAMPLES, 3, dtype=torch.float64))
    return (r.unsqueeze(1) * direction / direction.norm(dim=1, keepdim=True)).unsqueeze(1)


@pytest.mark.parametrize(
    ("psi", "system", "x", "energy", "growth", "transport"),
    [
        (Decay(1.6, 2, dim=1), oscillator(dim=1), oscillator_samples(1.6), (1.6 + 1 / 1.6) / 4, (1 - 1 / 1.6**2) / 4, 1.6 - 1 / 1.6),
        (Decay(1.3, 1), Molecule.of("H"), hydrogen_samples(1.3), 1.3**2 / 2 - 1.3, 0.3, 4 * 1.3**2 * 0.3),
    ],
    ids=["oscillator", "hydrogen"],
)
def test_parameter_gradients_are_the_closed_forms(
    psi: Decay, system: System, x: Tensor, energy: float, growth: float, transport: float
) -> None:
    local = LocalEnergy(psi, system, chunk=SAMPLES)(x, gradient=True)
    assert local.gradient is not None
    assert abs(local.energy.mean() - energy) < 4 * local.energy.std() / SAMPLES**0.5
    mean = local.energy.mean()
    with torch.no_grad():
        slope = -x.square().sum((1, 2)) if psi.power == 2 else -2 * x.norm(dim=2)[:, 0]  # d log q / da
        score_slope = -2 * x.flatten(1) if psi.power == 2 else -2 * (x / x.norm(dim=2, keepdim=True)).flatten(1)
    each = ((local.energy - mean) * slope, (local.gradient * score_slope).sum(1))
    towards = (Pull(local.energy - mean, None), Pull(torch.zeros_like(local.energy), local.gradient))
    for terms, pulled, exact in zip(each, towards, (growth, transport), strict=True):
        (found,) = torch.autograd.grad(surrogate(psi, x, pulled)[0], psi.rate)
        assert torch.allclose(found, terms.mean(), rtol=1e-9)
        # the raw Wasserstein velocity of hydrogen goes as 1/r^2: its terms have infinite variance, the error is the sample's
        assert abs(found - exact) < 4 * terms.std() / SAMPLES**0.5


def test_the_transport_gradient_is_the_weak_form_of_the_continuity_equation() -> None:
    """``E[u d_theta grad log q] = int div(q u) d_theta log q ... = -int d_t q d_theta log q`` with ``d_t q = div(q u)``, by quadrature."""
    a, x = 1.4, torch.linspace(-8, 8, 4001, dtype=torch.float64)
    psi, system = Decay(a, 2, dim=1), oscillator(dim=1)
    q = torch.exp(-a * x * x) * math.sqrt(a / math.pi)
    local = LocalEnergy(psi, system, chunk=5000)(x.reshape(-1, 1, 1), gradient=True)
    assert local.gradient is not None
    u = torch.tanh(local.gradient[:, 0])
    dx = x[1] - x[0]
    flux_slope = torch.gradient(q * u, spacing=float(dx), edge_order=2)[0]
    fisher = 1 / (2 * a)  # d_a log q = 1 / (2 a) - x^2
    weak = -(flux_slope * (fisher - x * x)).sum() * dx
    strong = (q * u * -2 * x).sum() * dx
    assert abs(weak - strong) < 1e-4 * abs(strong)  # torch.gradient is of second order
    value, _ = surrogate(psi, x.reshape(-1, 1, 1), Pull(torch.zeros_like(u), (u * q * dx * len(x)).unsqueeze(1)))
    assert torch.allclose(torch.autograd.grad(value, psi.rate)[0], strong, rtol=1e-6)


# -- cusps, symmetry ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", [0, 2])
def test_the_energy_is_finite_where_electrons_meet(spin: int, psiformer) -> None:
    helium = Molecule.of("He", spin=spin)
    psi = psiformer(helium)
    for direction in (0, 1):
        energies = []
        for gap in (1e-3, 1e-4):
            x = torch.tensor([[[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]], dtype=torch.float64)
            x[0, 1, direction] += gap
            energies.append(float(LocalEnergy(psi, helium)(x).energy))
        assert (
            abs(energies[1] - energies[0]) < 20
        )  # 9000 Hartree without the cusp; of the smooth part of an untrained network several remain


def test_electrons_that_do_not_repel_have_no_cusp(psiformer) -> None:
    x = torch.tensor([[[0.5, 0.3], [0.5, 0.3]], [[0.5, 0.3], [0.5, 0.3 + 1e-4]]], dtype=torch.float64)
    free, dot = Trap(1.0, 2, 1, 1, interacting=False), quantum_dot()
    assert float(LocalEnergy(psiformer(free), free)(x[1:]).energy.abs()) < 20
    slopes = [(psiformer(system)(x).diff() / 1e-4).item() for system in (free, dot)]
    assert abs(slopes[1] - slopes[0] - 1) < 1e-3  # 1 / (d - 1)


def test_equal_spins_change_the_sign_and_nothing_else(points, psiformer, slater_jastrow) -> None:
    nitrogen = Molecule.of("B")  # three up, two down
    x = points(nitrogen, 6)
    swaps = [(0, 1), (0, 2), (1, 2), (3, 4)]
    for psi in (psiformer(nitrogen), slater_jastrow(nitrogen)):
        energy = LocalEnergy(psi, nitrogen)(x).energy
        for i, j in swaps:
            order = list(range(5))
            order[i], order[j] = j, i
            assert torch.equal(psi.sign(x[:, order]), -psi.sign(x))
            assert torch.allclose(psi(x[:, order]), psi(x), rtol=1e-12, atol=1e-12)
            assert torch.allclose(LocalEnergy(psi, nitrogen)(x[:, order]).energy, energy, rtol=1e-9)
        order = [3, 1, 2, 0, 4]  # opposite spins: another function
        assert not torch.allclose(psi(x[:, order]), psi(x))


def test_half_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"wanted torch\.float32"):
        PsiFormer(Molecule.of("H"), dtype=torch.float16)


# -- heavy tails, objectives --------------------------------------------------------------------------------------------------------


def test_outliers_are_clipped_about_the_median() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert clip(values, 1.0).max() == 3 + (2 + 1 + 0 + 1 + 997) / 5
    assert typical(torch.full((4,), 2.0)).all()  # all alike, as in the hydrogen atom
    assert typical(torch.cat([torch.linspace(1, 2, 99), torch.tensor([500.0])])).tolist() == [True] * 99 + [False]


def test_velocities_at_nodes_are_left_out_and_others_take_their_share() -> None:
    score = torch.ones(100, 3)
    score[7] = 1e4
    gradient = torch.full((100, 3), 0.5)
    gradient[7] = torch.nan
    energy = torch.linspace(-1, 1, 100)
    u = pull(Objective.wasserstein(), Local(energy, score, gradient), 0.0).velocity
    assert u is not None
    others = torch.cat([u[:7], u[8:]])
    assert not u[7].any()
    assert torch.allclose(others, torch.full_like(others, math.tanh(0.5) * 100 / 99))
    everywhere = pull(Objective.wasserstein(), Local(energy, torch.ones(100, 3), torch.full((100, 3), 0.5)), 0.0).velocity
    assert everywhere is not None
    assert torch.allclose(everywhere, torch.full_like(everywhere, math.tanh(0.5)))


@pytest.mark.parametrize("sweeps", [1, 24, 400])
def test_the_error_bar_of_few_sweeps_knows_their_memory(sweeps: int) -> None:
    """Walkers that are AR(1) chains: ``Var = (1 + 2 sum_k (1 - k/T) rho^k) / (T B)``."""
    rho, count, rng = 0.8, 100, Streams(0)
    lags = torch.arange(1, sweeps, dtype=torch.float64)
    exact = ((1 + 2 * ((1 - lags / sweeps) * rho**lags).sum()) / (sweeps * count)) ** 0.5
    errors = []
    for _ in range(30):
        steps = rng.normal("chain", torch.zeros(sweeps, count, dtype=torch.float64))
        x = [steps[0]]
        for step in steps[1:]:
            x.append(rho * x[-1] + (1 - rho**2) ** 0.5 * step)
        values = torch.stack(x)
        errors.append(chains_error(values.mean(1), values.mean(0)))
    assert 0.95 < sum(errors) / 30 / exact < 1.25  # the larger of two estimates


@pytest.mark.parametrize(("cost", "bound"), [("tanh", 1.0), ("sign", 1.0), ("clip", 2**0.5)])
def test_velocities_are_bounded_and_point_along_the_gradient(cost, bound: float) -> None:
    gradient = torch.tensor([[3.0, -4.0, 0.0, 0.0, 0.0, 1e6], [1e-3, 0.0, 0.0, 0.0, 0.0, 0.0]])
    u = Objective.wasserstein(cost).velocity(gradient)
    assert (u * gradient >= 0).all()
    assert (u.norm(dim=1) if cost == "clip" else u.abs()).max() <= bound * (1 + 1e-6)
    if cost != "sign":
        assert torch.allclose(u[1], gradient[1], rtol=1e-5)


def test_weights_follow_a_schedule_and_bad_ones_are_refused() -> None:
    warm = Objective(after(0.3, 1.0), 1.0)
    assert warm.weights(0.29) == (0.0, 1.0)
    assert warm.weights(0.3) == (1.0, 1.0)
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        Objective(cost="tan")
    with pytest.raises(ValueError, match="growth=-1"):
        Objective(growth=-1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "psi",
    [
        PsiFormer(LITHIUM, width=8, layers=1, heads=2, determinants=2, dtype=torch.float64),
        SlaterJastrow(LITHIUM, width=4, dtype=torch.float64),
    ],
)
def test_a_compiled_local_energy_is_the_eager_one(psi: WaveFunction) -> None:
    x = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eager = LocalEnergy(psi, LITHIUM, chunk=4)(x, gradient=True)
    compiled = LocalEnergy(psi, LITHIUM, chunk=4, compile=True)(x, gradient=True)
    torch.testing.assert_close(compiled.energy, eager.energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compiled.gradient, eager.gradient, rtol=1e-8, atol=1e-8)
