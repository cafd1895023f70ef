"""A circuit simulator that applies one gate at a time to a tensor with one axis per qubit (slow, obvious, the reference), and published angles."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch


def gate_list(ansatz, angles):
    """Return the circuit of angles ``[depth, n, r]`` as ``(name, angle or None, qubits)`` in order."""
    gates = []
    for layer in range(1, ansatz.depth + 1):
        gates += [(ansatz.gate.name, None, pair) for pair in ansatz.pairs(layer)]
        for k, name in enumerate(("ry", "rz")[: angles.shape[-1]]):
            gates += [(name, float(angles[layer - 1, j, k]), (j,)) for j in range(ansatz.n)]
    return gates


def matrix(name, angle):
    if name == "ry":
        c, s = math.cos(angle / 2), math.sin(angle / 2)
        return torch.tensor([[c, -s], [s, c]], dtype=torch.complex128)
    if name == "rz":
        phase = complex(math.cos(angle / 2), math.sin(angle / 2))
        return torch.diag(torch.tensor([phase.conjugate(), phase], dtype=torch.complex128))
    out = torch.eye(4, dtype=torch.complex128)
    return out[[0, 1, 3, 2]] if name == "cx" else out @ torch.diag(torch.tensor([1, 1, 1, -1], dtype=torch.complex128))


def apply(state, gate, qubits):
    """Apply a matrix on qubits (the first is the most significant of the matrix) to ``[2] * n``, axis n-1-j for qubit j."""
    n, k = state.ndim, len(qubits)
    axes = [n - 1 - q for q in qubits]
    out = torch.tensordot(gate.reshape([2] * 2 * k), state, dims=(list(range(k, 2 * k)), axes))
    return out.movedim(list(range(k)), axes)


def simulate(n, gates):
    state = torch.zeros([2] * n, dtype=torch.complex128)
    state[(0,) * n] = 1
    for name, angle, qubits in gates:
        state = apply(state, matrix(name, angle), qubits)
    return state.flatten()


@pytest.fixture
def reference():
    """Return the gate-by-gate simulator: ``gate_list(ansatz, angles)``, ``simulate(n, gates)``, ``matrix``, ``apply``."""
    return SimpleNamespace(gate_list=gate_list, simulate=simulate, matrix=matrix, apply=apply)


@pytest.fixture
def fixture_angles():
    """Return the angles of the published fixture: ``theta = .3d + .7j + .05dj``, ``phi = .2d - .4j + .1dj``, d and j from 1."""

    def make(n, depth, phases=True):
        d = torch.arange(1, depth + 1, dtype=torch.float64)[:, None]
        j = torch.arange(1, n + 1, dtype=torch.float64)
        theta, phi = 0.3 * d + 0.7 * j + 0.05 * d * j, 0.2 * d - 0.4 * j + 0.1 * d * j
        return torch.stack((theta, phi), -1) if phases else theta.unsqueeze(-1)

    return make


@pytest.fixture
def fixture_cost():
    """Return ``C(i) = sin(0.37 i)^2``."""
    return lambda n: (0.37 * torch.arange(2**n, dtype=torch.float64)).sin().square()
