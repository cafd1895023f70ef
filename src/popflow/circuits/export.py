"""Circuits for other programs and for the eye: OpenQASM 3 without dependencies, and a drawing in text."""

from __future__ import annotations

from torch import Tensor

from popflow.circuits.ansatz import Ansatz


def qasm3(ansatz: Ansatz, angles: Tensor, *, measure: bool = True) -> str:
    """Return one circuit ``[depth, n, r]`` as OpenQASM 3; angles are written so that they read back to the same bits.

    ``c[j]`` is qubit j. Programs that print qubit 0 rightmost (Qiskit) then print networks with parameter 0 first; see `evaluate_counts`.

    Example:
        >>> import torch
        >>> print(qasm3(Ansatz(n=2, depth=2, phases=False), torch.tensor([[[0.5], [1.0]], [[0.25], [0.1]]], dtype=torch.float64)))
        OPENQASM 3.0;
        include "stdgates.inc";
        qubit[2] q;
        bit[2] c;
        ry(0.5) q[0];
        ry(1.0) q[1];
        cx q[0], q[1];
        ry(0.25) q[0];
        ry(0.1) q[1];
        c = measure q;
    """
    ansatz.check(angles)
    if angles.ndim != 3:
        raise ValueError(f"angles have shape {tuple(angles.shape)}, wanted one circuit {ansatz.shape}. Fix: pick a restart.")
    if not bool(angles.isfinite().all()):
        raise ValueError(f"angles hold {int((~angles.isfinite()).sum())} values that are NaN or infinite, wanted finite ones.")
    lines = ["OPENQASM 3.0;", 'include "stdgates.inc";', f"qubit[{ansatz.n}] q;"]
    lines += [f"bit[{ansatz.n}] c;"] if measure else []
    for layer, rows in enumerate(angles.double().tolist(), 1):
        lines += [f"{ansatz.gate.name} q[{c}], q[{t}];" for c, t in ansatz.pairs(layer)]
        for k, name in enumerate(("ry", "rz")[: angles.shape[-1]]):
            lines += [f"{name}({row[k]!r}) q[{j}];" for j, row in enumerate(rows)]
    return "\n".join([*lines, *(["c = measure q;"] if measure else [])])


def draw(ansatz: Ansatz, layers: int = 4) -> str:
    """Return the first layers as text, one line per qubit; `R` is a rotation with its own angles, a bar between two symbols is a gate.

    >>> print(draw(Ansatz(n=3, depth=2)))
    q0: |0> ---R---*-R--
                   |
    q1: |0> -*-R---X-R--
             |
    q2: |0> -X-R-----R--
    """
    n, target = ansatz.n, {"cx": "X", "cz": "*"}.get(ansatz.gate.name, "T")
    label = len(f"q{n - 1}: |0> ")
    lines = [f"q{j}: |0> ".ljust(label) for j in range(n)]
    between = [" " * label for _ in range(n - 1)]
    shown = min(layers, ansatz.depth)
    for layer in range(1, shown + 1):
        columns: list[list[tuple[int, int]]] = []
        for c, t in ansatz.pairs(layer):
            span = set(range(min(c, t), max(c, t) + 1))
            fits = [i for i, column in enumerate(columns) if any(span & set(range(min(p), max(p) + 1)) for p in column)]
            place = fits[-1] + 1 if fits else 0
            columns += [[]] if place == len(columns) else []
            columns[place].append((c, t))
        for column in columns:
            for j in range(n):
                symbol = next(("*" if j == c else target for c, t in column if j in (c, t)), "-")
                inside = any(min(p) < j < max(p) for p in column)
                lines[j] += "-" + ("+" if inside else symbol)
                if j < n - 1:
                    between[j] += " " + ("|" if any(min(p) <= j < max(p) for p in column) else " ")
        lines = [line + "-R--" for line in lines]
        between = [line + "    " for line in between]
    more = f"  ... {ansatz.depth} layers" if shown < ansatz.depth else ""
    out = [lines[0] + more]
    for j in range(1, n):
        out += [between[j - 1].rstrip(), lines[j]]
    return "\n".join(out)
