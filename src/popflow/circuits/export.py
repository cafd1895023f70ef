"""Circuits as OpenQASM 3 and as a text drawing, without dependencies; networks as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from popflow.circuits.ansatz import Ansatz
from popflow.circuits.bit_packing import PackedNetwork
from popflow.core.checkpoint import write_atomic
from popflow.core.errors import MissingExtraError


def qasm3(ansatz: Ansatz, angles: Tensor, *, measure: bool = True) -> str:
    """Return one circuit ``[depth, n, r]`` as OpenQASM 3, with angles that read back bit for bit.

    ``c[j]`` is qubit j. Programs that print qubit 0 rightmost, such as Qiskit, therefore print networks with parameter 0 first; see
    `evaluate_counts`.

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
    ansatz.check(angles, one=True)
    lines = ["OPENQASM 3.0;", 'include "stdgates.inc";', f"qubit[{ansatz.n}] q;"]
    lines += [f"bit[{ansatz.n}] c;"] if measure else []
    for layer, rows in enumerate(angles.double().tolist(), 1):
        lines += [f"{ansatz.gate.name} q[{c}], q[{t}];" for c, t in ansatz.pairs(layer)]
        for k, name in enumerate(("ry", "rz")[: angles.shape[-1]]):
            lines += [f"{name}({row[k]!r}) q[{j}];" for j, row in enumerate(rows)]
    return "\n".join([*lines, *(["c = measure q;"] if measure else [])])


def draw(ansatz: Ansatz, layers: int = 4) -> str:
    """Draw the first layers as text, one line per qubit: `R` is a rotation with its own angles, two symbols joined by a bar are a gate.

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


def onnx_file(network: PackedNetwork, path: str | Path) -> Path:
    """Write a network as ONNX (operator set 18), ``x [N, inputs] -> logits [N, outputs]`` in float32, with eight weights per byte.

    The file holds the packed bits, and the graph unpacks them, ``w = low + (high - low) ((byte >> k) & 1)``. A runtime folds this into a
    constant when it loads the file, so the file stays as small as the weights are.

    Raises:
        MissingExtraError: without the package onnx.

    Example:
        >>> import onnxruntime, tempfile, torch
        >>> from popflow.circuits import BinaryMLP, pack
        >>> network, x = BinaryMLP(inputs=16, hidden=(8,)).decode(12345), torch.arange(32.0).reshape(2, 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = onnx_file(pack(network), f"{folder}/network.onnx")
        ...     (y,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
        >>> torch.equal(torch.from_numpy(y), network(x))
        True
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise MissingExtraError(f"onnx is not installed and is needed to write {path}. Fix: pip install 'popflow[circuits]'.") from error
    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {
        "shifts": np.arange(7, -1, -1, dtype=np.uint8),
        "one": np.array(1, dtype=np.uint8),
        "low": np.array(network.alphabet[0], dtype=np.float32),
        "step": np.array(network.alphabet[1] - network.alphabet[0], dtype=np.float32),
        "last_axis": np.array([-1]),
        "axis_1": np.array([1]),
        "start": np.array([0]),
        "used": np.array(network.used, dtype=np.int64),
    }

    def apply(operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value
        return name

    def values(name: str, packed: Tensor) -> str:
        """Unpack rows of bits into values of the alphabet."""
        byte = apply("Unsqueeze", constant(name, packed.numpy()), "last_axis", name=f"{name}_bytes")
        bits = apply("BitwiseAnd", apply("BitShift", byte, "shifts", name=f"{name}_shifted", direction="RIGHT"), "one", name=f"{name}_bits")
        rows = apply("Reshape", bits, constant(f"{name}_shape", np.array([len(packed), 8 * packed.shape[1]])), name=f"{name}_rows")
        scaled = apply("Mul", apply("Cast", rows, name=f"{name}_floats", to=TensorProto.FLOAT), "step", name=f"{name}_scaled")
        return apply("Add", scaled, "low", name=f"{name}_values")

    def columns(name: str, rows: str, first: str, last: str) -> str:
        return apply("Slice", rows, first, last, "axis_1", name=name)

    x = apply("Gather", "x", "used", name="x_used", axis=1)
    h = x
    for i, (layer, width) in enumerate(zip(network.layers, network.widths, strict=False)):
        all_of, stop = values(f"layer_{i}", layer), constant(f"width_{i}", np.array([width]))
        h = apply("Gemm", h, columns(f"weights_{i}", all_of, "start", stop), name=f"products_{i}", transB=1)
        if network.bias:
            bias = columns(f"bias_column_{i}", all_of, stop, constant(f"end_{i}", np.array([width + 1])))
            h = apply("Add", h, apply("Squeeze", bias, "axis_1", name=f"bias_{i}"), name=f"sums_{i}")
        if i < len(network.layers) - 1:
            h = apply(network.activation.capitalize(), h, name=f"hidden_{i}")
    if network.skip is not None:
        past = columns("weights_past", values("skip", network.skip), "start", "width_0")
        h = apply("Add", h, apply("Gemm", x, past, name="products_past", transB=1), name="sums_past")
    apply("Identity", h, name="logits")
    graph = helper.make_graph(
        nodes,
        "binary_network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", network.inputs])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", network.widths[-1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, producer_name="popflow", opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model, full_check=True)
    return write_atomic(path, model.SerializeToString())
