"""Speed and memory of exact circuit simulation: value and gradient of an energy, one thread, the same circuit as the peers.

Times are processor seconds, the least of several, with peers and this library run in turn. The circuit has 6 layers of CNOT, R_y and R_z, and
a diagonal cost of ``2^n`` entries. The adjoint method of lightning.qubit takes the cost as a sparse Hamiltonian; default.qubit differentiates
probabilities. Circuits of 24 layers, where cutting no longer pays, are shown without a target. ``--only`` selects parts.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from harness import Row, run

from popflow.circuits.ansatz import Ansatz, brick
from popflow.circuits.statevector import born
from popflow.core import Streams

DEPTH, DEEP = 6, 24


def least(functions: dict[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Return the least processor milliseconds of each function, run in turn for about a budget of seconds each."""
    best, spent = dict.fromkeys(functions, math.inf), dict.fromkeys(functions, 0.0)
    for function in functions.values():
        function()
    while any(seconds < budget for seconds in spent.values()):
        for name, function in functions.items():
            if spent[name] >= budget:
                continue
            begin, wall = time.process_time(), time.perf_counter()
            function()
            best[name] = min(best[name], time.process_time() - begin)
            spent[name] += time.perf_counter() - wall
    return {name: 1e3 * value for name, value in best.items()}


def problem(n: int, device: str = "cpu", depth: int = DEPTH) -> tuple[torch.Tensor, torch.Tensor]:
    cost = torch.arange(2**n, dtype=torch.float64, device=device).mul_(0.37).sin_().square_()
    return cost, Ansatz(n, depth).random(1, Streams(0), torch.float64)[0].to(device)


def ours(
    n: int, restarts: int = 1, phases: bool = True, device: str = "cpu", dtype: torch.dtype = torch.float32, depth: int = DEPTH
) -> Callable[[], torch.Tensor]:
    ansatz, cost = Ansatz(n, depth, phases=phases), problem(n, device)[0].to(dtype)
    angles = ansatz.random(restarts, Streams(0), dtype).to(device).requires_grad_()

    def gradient() -> torch.Tensor:
        (out,) = torch.autograd.grad((born(ansatz, angles) @ cost).sum(), angles)
        if device != "cpu":
            torch.cuda.synchronize()
        return out

    return gradient


def pennylane_circuit(qml, n: int, angles) -> None:
    """The same circuit, wire j for qubit j; ``angles`` is ``[depth, n, 2]``."""
    for layer in range(1, len(angles) + 1):
        for c, t in brick(n, layer):
            qml.CNOT(wires=[c, t])
        for j in range(n):
            qml.RY(angles[layer - 1, j, 0], wires=j)
            qml.RZ(angles[layer - 1, j, 1], wires=j)


def peers(n: int, depth: int = DEPTH) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, str]]:
    """Return what can run, and why the rest cannot."""
    try:
        import numpy as np
        import pennylane as qml
        from scipy.sparse import csr_matrix, diags
    except ImportError as error:
        return {}, {"pennylane": f"absent: {error}. Fix: pip install popflow[circuits]"}
    cost, start = problem(n, depth=depth)
    # wire 0 is the most significant bit there and the least here
    reverse = sum(((torch.arange(2**n) >> k) & 1) << (n - 1 - k) for k in range(n))
    turned = cost[reverse]
    wires = list(range(n))
    found: dict[str, Callable[[], torch.Tensor]] = {}
    missing: dict[str, str] = {}

    def add(name: str, make: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> None:
        try:
            circuit = make()

            def gradient() -> torch.Tensor:
                angles = start.clone().requires_grad_()
                (out,) = torch.autograd.grad(circuit(angles), angles)
                return out

            if n <= 14:
                mine = ours_at(n, start)
                if not torch.allclose(gradient().double(), mine, atol=1e-5):
                    raise ArithmeticError("its gradient differs")
            found[name] = gradient
        except Exception as error:
            missing[name] = f"absent: {type(error).__name__}: {str(error)[:120]}"

    def lightning(dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        hamiltonian = qml.SparseHamiltonian(csr_matrix(diags(turned.numpy())), wires=wires)

        @qml.qnode(qml.device("lightning.qubit", wires=n, c_dtype=dtype), interface="torch", diff_method="adjoint")
        def circuit(angles):
            pennylane_circuit(qml, n, angles)
            return qml.expval(hamiltonian)

        return circuit

    def default() -> Callable[[torch.Tensor], torch.Tensor]:
        @qml.qnode(qml.device("default.qubit", wires=n), interface="torch", diff_method="backprop")
        def circuit(angles):
            pennylane_circuit(qml, n, angles)
            return qml.probs(wires=wires)

        return lambda angles: circuit(angles) @ turned

    add("lightning.qubit complex64", lambda: lightning(np.complex64))
    add("lightning.qubit complex128", lambda: lightning(np.complex128))
    if depth > DEPTH:
        missing["default.qubit"] = "absent: not run on deep circuits"
    elif n <= 18:
        add("default.qubit", default)
    else:
        missing["default.qubit"] = "absent: autograd through 2 n gates a layer keeps every state, gigabytes beyond n = 18"
    return found, missing


def ours_at(n: int, start: torch.Tensor) -> torch.Tensor:
    angles = start.clone().requires_grad_()
    return torch.autograd.grad(born(Ansatz(n, len(start)), angles) @ problem(n)[0], angles)[0]


def peak(n: int, depth: int) -> float:
    """Return the peak resident bytes that one gradient on n qubits adds to a process that has computed a small one (Linux)."""
    code = f"""
import pathlib, sys
sys.path[:0] = {sys.path!r}
import torch, circuits_speed as b
torch.set_num_threads(1)
def read(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split(name + ":")[1].split()[0])
b.ours(12, depth={depth})()
before = read("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
b.ours({n}, depth={depth})()
print(read("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def speed_rows(options: argparse.Namespace) -> list[Row]:
    rows, ratios = [], []
    for n in (8, 10) if options.quick else (10, 12, 14, 16, 18, 20):
        begin = time.perf_counter()
        theirs, missing = peers(n)
        mine = {"complex64": ours(n), "complex128": ours(n, dtype=torch.float64), "real": ours(n, phases=False)}
        times = least(mine | theirs, 0.1 if options.quick else 3.0)
        own = times["complex64"]
        shown = {name: value for name, value in times.items() if name != "complex64"} | missing
        rows.append(Row(f"n={n}: value and gradient, depth {DEPTH}", own, None, "ms", None, "<=", shown, time.perf_counter() - begin))
        fastest = [times[name] for name in theirs if name.startswith("lightning")]
        if fastest:
            ratio = min(fastest) / own
            ratios.append(ratio)
            same = times["lightning.qubit complex128"] / times["complex128"] if "lightning.qubit complex128" in times else math.nan
            target = None if options.quick else 1.0
            rows.append(
                Row(
                    f"n={n}: lightning.qubit adjoint (faster precision) over this",
                    ratio,
                    None,
                    "x",
                    target,
                    ">=",
                    {"both complex128": same},
                )
            )
        if "default.qubit" in times:
            rows.append(
                Row(
                    f"n={n}: default.qubit backprop over this",
                    times["default.qubit"] / own,
                    None,
                    "x",
                    None if options.quick else 7.0,
                    ">=",
                )
            )
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        rows.append(Row("lightning.qubit adjoint over this, geometric mean", mean, None, "x", None if options.quick else 3.0, ">="))
    return rows


def batch_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for n in (10,) if options.quick else (10, 12, 14, 16):
        times = least({str(b): ours(n, b) for b in (1, 8, 32)}, 0.1 if options.quick else 2.0)
        peers = {f"{b} restarts, ms each": times[str(b)] / b for b in (1, 8, 32)}
        rows.append(Row(f"n={n}: gain per restart of 32 in a batch", 32 * times["1"] / times["32"], None, "x", None, ">=", peers))
    return rows


def deep_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for n in (8,) if options.quick else (12, 16, 18):
        begin = time.perf_counter()
        theirs, missing = peers(n, DEEP)
        times = least({"this": ours(n, depth=DEEP)} | theirs, 0.1 if options.quick else 3.0)
        own = times.pop("this")
        rows.append(
            Row(f"n={n}: value and gradient, depth {DEEP}", own, None, "ms", None, "<=", times | missing, time.perf_counter() - begin)
        )
        if times:
            rows.append(
                Row(
                    f"n={n}: lightning.qubit adjoint (faster precision) over this, depth {DEEP}",
                    min(times.values()) / own,
                    None,
                    "x",
                    None,
                    ">=",
                )
            )
    return rows


def memory_rows(options: argparse.Namespace) -> list[Row]:
    n = 18 if options.quick else 20
    state, rows = 8 * 2**n, []
    for depth in (DEPTH,) if options.quick else (DEPTH, DEEP):
        target = None if options.quick or depth > DEPTH else 6.0
        claim = f"n={n}, depth {depth}: peak memory beyond the interpreter, in states of {state >> 20} MiB"
        rows.append(Row(claim, peak(n, depth) / state, None, "states", target))
    return rows


def main(options: argparse.Namespace) -> list[Row]:
    """Speed and memory of exact circuit simulation against PennyLane."""
    torch.set_num_threads(1)
    return [row for name in options.only for row in PARTS[name](options)]


PARTS = {"speed": speed_rows, "deep": deep_rows, "batch": batch_rows, "memory": memory_rows}

if __name__ == "__main__":
    run("circuits_speed", main, parts=tuple(PARTS))
