"""The closed forms against the equations they solve: continuity, least action, boundary values. Time derivatives are central differences."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from popflow.core import Streams
from popflow.transport.closed_forms import atom_growth, brenier_map, dirac_growth, gaussian_bridge, gaussian_transport

H = 1e-5


def covariance(seed, dim=3):
    a = Streams(seed).normal("matrix", torch.empty(dim, dim, dtype=torch.float64))
    return a @ a.mT + 0.3 * torch.eye(dim, dtype=torch.float64)


def mean(seed, dim=3):
    return Streams(seed).normal("mean", torch.empty(dim, dtype=torch.float64))


ENDS = mean(0), covariance(1), mean(2), covariance(3)
PULL = mean(4)
FLOWS = {
    "transport": (gaussian_transport(*ENDS), 0.0, 0.0),
    "harmonic": (gaussian_transport(*ENDS, stiffness=3.0), 3.0, 0.0),
    "inverted": (gaussian_transport(*ENDS, stiffness=-3.0), -3.0, 0.0),
    "linear": (gaussian_transport(*ENDS, acceleration=PULL), 0.0, 0.0),
    "bridge": (gaussian_bridge(*ENDS, 0.8), 0.0, 0.8),
}


def linear_part(flow, t):
    """Drift ``f(t, x) = c + A x`` as ``(A, f(t, mean))``."""
    eye = torch.eye(3, dtype=torch.float64)
    zero = flow.drift(t, torch.zeros(1, 3, dtype=torch.float64))
    return (flow.drift(t, eye) - zero).mT, flow.drift(t, flow.mean(t)[None])[0]


@pytest.mark.parametrize("name", FLOWS)
def test_the_drift_moves_the_gaussian_and_is_a_gradient(name):
    flow, _, sigma = FLOWS[name]
    for t in (0.2, 0.5, 0.9):
        a, speed = linear_part(flow, t)
        s = flow.covariance(t)
        torch.testing.assert_close((flow.mean(t + H) - flow.mean(t - H)) / (2 * H), speed, atol=1e-7, rtol=1e-7)
        change = (flow.covariance(t + H) - flow.covariance(t - H)) / (2 * H)
        torch.testing.assert_close(change, a @ s + s @ a.mT + sigma**2 * torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(a, a.mT, atol=1e-10, rtol=1e-10)
    for t, m, s in ((0.0, *ENDS[:2]), (1.0, *ENDS[2:])):
        torch.testing.assert_close(flow.mean(t), m)
        torch.testing.assert_close(flow.covariance(t), s)


@pytest.mark.parametrize("name", FLOWS)
def test_the_action_is_the_integral_of_energy_along_the_path(name):
    flow, k, _ = FLOWS[name]

    def energy(t):
        a, speed = linear_part(flow, t)
        s, m = flow.covariance(t), flow.mean(t)
        potential = k / 2 * (m @ m + s.trace()) - (PULL @ m if name == "linear" else 0.0)
        return float((speed @ speed + (a @ s @ a.mT).trace()) / 2 - potential)

    assert flow.action == pytest.approx(quad(energy, 0, 1)[0], rel=1e-9)


@pytest.mark.parametrize(("name", "force"), [("transport", 0), ("harmonic", 3.0), ("inverted", -3.0), ("linear", 0)])
def test_particles_obey_newton(name, force):
    flow = FLOWS[name][0]
    x, t = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64), 0.4
    ahead, behind = (flow.drift(t + s * H, x + s * H * flow.drift(t, x)) for s in (1, -1))
    wanted = -force * x + (PULL if name == "linear" else 0.0)
    torch.testing.assert_close((ahead - behind) / (2 * H), wanted, atol=1e-5, rtol=1e-5)


def test_the_optimal_map_and_the_known_values():
    move = brenier_map(ENDS[1], ENDS[3])
    torch.testing.assert_close(move @ ENDS[1] @ move, ENDS[3])
    torch.testing.assert_close(move, move.mT)
    small = torch.eye(2, dtype=torch.float64) * 0.01
    toy = gaussian_transport(torch.tensor([-1.0, 0.0]), small, torch.tensor([1.0, 0.0]), small, stiffness=2.0)
    assert toy.action == pytest.approx(1.6308, abs=1e-4)
    assert float(toy.covariance(0.5)[1, 1].sqrt()) == pytest.approx(0.1 / math.cos(math.sqrt(2) / 2), rel=1e-10)


def test_the_bridge_is_optimal_transport_without_noise_and_its_action_is_an_entropy():
    quiet, free = gaussian_bridge(*ENDS, 1e-3), FLOWS["transport"][0]
    assert quiet.action == pytest.approx(free.action, rel=1e-4)
    torch.testing.assert_close(quiet.covariance(0.5), free.covariance(0.5), atol=1e-4, rtol=1e-4)
    # one dimension, unit variances, sigma = 1: the coupling has covariance c = (sqrt 5 - 1) / 2; the reference (1, 1; 1, 2)
    c, one = (math.sqrt(5) - 1) / 2, torch.ones(1)
    joint, reference = np.array([[1, c], [c, 1]]), np.array([[1, 1], [1, 2]])
    entropy = (np.trace(np.linalg.solve(reference, joint)) - 2 + math.log(np.linalg.det(reference) / np.linalg.det(joint))) / 2
    bridge = gaussian_bridge(one, torch.eye(1), one, torch.eye(1), 1.0)
    assert bridge.action == pytest.approx(entropy, rel=1e-9)
    assert float(bridge.covariance(0.5)) == pytest.approx(1.0590, abs=1e-4)


@pytest.mark.parametrize(("h0", "h1", "distance", "lam"), [(1.0, 2.0, 1.0, 1.0), (0.5, 0.3, 0.7, 4.0)])
def test_atoms_under_growth_spend_their_action_evenly(h0, h1, distance, lam):
    a, b = torch.zeros(2), torch.tensor([0.0, distance])
    flow = dirac_growth(a, b, h0, h1, lam)

    def energy(t):
        mass, change = float(flow.mass(t)), float(flow.mass(t + H) - flow.mass(t - H)) / (2 * H)
        speed = float((flow.position(t + H) - flow.position(t - H)).norm()) / (2 * H)
        return mass * speed**2 / 2 + change**2 / (2 * lam * mass)

    assert [energy(t) for t in (0.1, 0.5, 0.9)] == pytest.approx([flow.action] * 3, rel=1e-6)
    torch.testing.assert_close(flow.position(1.0)[0], b.double())
    assert float(flow.mass(1.0)) == pytest.approx(h1)
    # no path through an intermediate atom is cheaper
    for mass, share in ((h0, 0.5), (h1, 0.4), (0.8 * h1, 0.55)):
        middle = share * b
        halves = dirac_growth(a, middle, h0, mass, lam).action + dirac_growth(middle, b, mass, h1, lam).action
        assert 2 * halves >= flow.action


def test_far_atoms_die_and_are_born_at_a_price_that_no_distance_raises():
    near = math.pi - 1e-6
    travelling = dirac_growth(torch.zeros(1), torch.full((1,), near), 1.0, 2.0, 1.0).action
    assert travelling == pytest.approx(6.0, rel=1e-5)
    far = dirac_growth(torch.zeros(1), torch.full((1,), 50.0), 1.0, 2.0, 1.0)
    assert far.action == 6.0
    assert far.mass(0.5).tolist() == [0.25, 0.5]


def test_normalised_growth_moves_on_a_great_circle():
    p, q, lam = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.1, 0.8]), 2.0
    flow = atom_growth(torch.tensor([[0.0], [3.0], [9.0]]), p, q, lam)

    def energy(t):
        w, change = flow.mass(t), (flow.mass(t + H) - flow.mass(t - H)) / (2 * H)
        return float((change.square() / (2 * lam * w)).sum())

    assert float(flow.mass(0.3).sum()) == pytest.approx(1.0)
    torch.testing.assert_close(flow.mass(1.0), q.double())
    assert [energy(t) for t in (0.1, 0.6)] == pytest.approx([flow.action] * 2, rel=1e-6)
    assert atom_growth(torch.zeros(1, 1), torch.ones(1), torch.ones(1), lam).action == 0.0


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match=r"stiffness=9\.9, wanted below pi"):
        gaussian_transport(*ENDS, stiffness=9.9)
    with pytest.raises(ValueError, match="wanted one of them"):
        gaussian_transport(*ENDS, stiffness=1.0, acceleration=PULL)
    with pytest.raises(ValueError, match=r"sigma=0\.0, wanted a number above 0"):
        gaussian_bridge(*ENDS, 0.0)
    with pytest.raises(ValueError, match="eigenvalues"):
        gaussian_transport(ENDS[0], -ENDS[1], *ENDS[2:])
    with pytest.raises(ValueError, match="wanted numbers above 0"):
        dirac_growth(torch.zeros(1), torch.ones(1), 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="wanted at least pi / sqrt"):
        atom_growth(torch.tensor([[0.0], [1.0]]), torch.ones(2), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="lam=0"):
        atom_growth(torch.zeros(1, 1), torch.ones(1), torch.ones(1), 0.0)
