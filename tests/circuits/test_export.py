"""OpenQASM 3: read back by a small reader and by PennyLane, on circuits without symmetry."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from popflow.circuits import Ansatz, all_to_all, born, brick, cx, cz, draw, qasm3, ring
from popflow.core import NonFiniteError, Streams


@pytest.fixture
def qml():
    """Return PennyLane; it draws from numpy's global generator, whose state is put back."""
    state = np.random.get_state()  # noqa: NPY002
    yield pytest.importorskip("pennylane", reason="the extra circuits is not installed")
    np.random.set_state(state)  # noqa: NPY002


def read(text):
    """Return ``(n, gates)`` of the OpenQASM that `qasm3` writes."""
    n, gates = int(re.search(r"qubit\[(\d+)\] q;", text)[1]), []
    for name, angle, where in re.findall(r"^(ry|rz|cx|cz)(?:\(([^)]*)\))? (.*);$", text, re.MULTILINE):
        gates.append((name, float(angle) if angle else None, tuple(map(int, re.findall(r"q\[(\d+)\]", where)))))
    return n, gates


@pytest.mark.parametrize(("entangler", "gate", "phases"), [(brick, cx, True), (ring, cz, True), (all_to_all, cx, False)])
def test_round_trip(reference, entangler, gate, phases):
    ansatz = Ansatz(5, 3, entangler, gate, phases)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    n, gates = read(qasm3(ansatz, angles))
    assert gates == reference.gate_list(ansatz, angles)
    torch.testing.assert_close(reference.simulate(n, gates).abs().square(), born(ansatz, angles), atol=1e-13, rtol=0)


def test_pennylane_reads_it(qml):
    """Its reader knows the gates without the line that includes their definitions."""
    pytest.importorskip("openqasm3", reason="PennyLane reads OpenQASM 3 with the package openqasm3[parser]")
    pytest.importorskip("antlr4", reason="PennyLane reads OpenQASM 3 with the package openqasm3[parser]")
    ansatz = Ansatz(4, 3)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    text = qasm3(ansatz, angles, measure=False).replace('include "stdgates.inc";\n', "")
    loaded = qml.from_qasm3(text)
    wires = [f"q[{j}]" for j in reversed(range(4))]

    @qml.qnode(qml.device("default.qubit", wires=wires))
    def circuit():
        loaded()
        return qml.probs(wires=wires)

    torch.testing.assert_close(torch.as_tensor(circuit()), born(ansatz, angles), atol=1e-12, rtol=0)


def test_pennylane_gates_agree(qml):
    """The same gates called by name, without a reader: conventions of angles and of the order of qubits."""
    ansatz = Ansatz(4, 3)
    angles = ansatz.random(1, Streams(0), torch.float64)[0]
    named = {"ry": qml.RY, "rz": qml.RZ, "cx": qml.CNOT, "cz": qml.CZ}

    @qml.qnode(qml.device("default.qubit", wires=4))
    def circuit():
        for name, angle, qubits in read(qasm3(ansatz, angles))[1]:
            named[name](*([] if angle is None else [angle]), wires=list(qubits))
        return qml.probs(wires=[3, 2, 1, 0])

    torch.testing.assert_close(torch.as_tensor(circuit()), born(ansatz, angles), atol=1e-12, rtol=0)


def test_drawing_shows_every_pair():
    for entangler in (brick, ring, all_to_all):
        ansatz = Ansatz(6, 2, entangler)
        text = draw(ansatz)
        assert len(text.splitlines()) == 11
        assert text.count("X") == sum(len(ansatz.pairs(layer)) for layer in (1, 2))
        assert text.count("R") == 12
    assert draw(Ansatz(6, 9)).splitlines()[0].endswith("... 9 layers")


def test_bad_input():
    with pytest.raises(ValueError, match="Fix: pick a restart"):
        qasm3(Ansatz(2, 1), torch.zeros(3, 1, 2, 2))
    with pytest.raises(NonFiniteError, match="4 of 4 angles are NaN"):
        qasm3(Ansatz(2, 1), torch.full((1, 2, 2), torch.nan))
