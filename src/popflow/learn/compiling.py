"""How a step is compiled: as one graph whose only guard is its batch, rewritten on CPUs where the compiler is slow.

On one core of an AMD processor with AVX-512 the rewrites and options of this file take the step of `benchmarks/inner_loop.py` from 1.5 to
1.1 times that of JAX 0.10 at batch 512, width 256, and from 2.2 to 1.7 times at batch 128, width 64. What is left there is mostly MKL,
which multiplies matrices of that size at 84 GFLOP/s on this processor, without AVX-512; JAX reaches 150.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.types import GuardFilterEntry
from torch._inductor.custom_graph_pass import CustomGraphPass

aten = torch.ops.aten
LARGE = 2**20


@cache
def register_product() -> torch.library.Library:
    """Register ``torch.ops.popflow.product``, ``bias + a @ b`` by oneDNN, for as long as the returned library object is alive; this module keeps it."""
    library = torch.library.Library("popflow", "DEF")
    library.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")
    library.impl("product", lambda a, b, bias: torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], ""), "CPU")
    torch.library.register_fake("popflow::product", lambda a, b, bias: a.new_empty(a.shape[0], b.shape[1]), lib=library)
    return library


def compile_graph(f: FunctionType, device: torch.device) -> Callable:
    """Compile a function as one graph that is guarded by its argument ``batch`` alone; everything else it reads is treated as constant.

    Guards on the parameters, the optimiser and all that the loss closes over would cost a tenth of a small step at every call.
    """
    # A code object of its own: the compiler looks up what it has compiled by code, and would find the graph of another learner.
    f = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    options: dict[str, Any] = {"guard_filter_fn": _of_the_batch}
    if device.type == "cpu":  # calls between kernels in C++, not in Python; temporaries in one block, not scattered over the cache
        options |= {"cpp_wrapper": True, "memory_planning": True, "post_grad_custom_post_pass": Rewrite(onednn=onednn_is_faster())}
    return torch.compile(f, fullgraph=True, dynamic=False, options=options)


def _of_the_batch(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    return [g.name == "batch" or g.name.startswith(("batch[", "batch.")) for g in guards]


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies large matrices faster than MKL: twice on AMD with AVX-512, which MKL does not use there."""
    described = Path("/proc/cpuinfo")
    amd = described.exists() and "AuthenticAMD" in described.read_text()
    return amd and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


class Rewrite(CustomGraphPass):
    """Two rewrites of a graph of tensor operations, each exact up to rounding.

    Large products of float32 matrices go to oneDNN (`onednn_is_faster`). A number that is computed on the way (a bias correction
    ``1 - beta^t``) is computed once and stored; otherwise the compiler writes its powers and roots into the loop over the array that uses it.
    """

    def __init__(self, onednn: bool):
        self.onednn = onednn
        if onednn:
            register_product()

    def uuid(self) -> str:
        """Identify compiled graphs in the cache on disk."""
        return f"popflow 2 {self.onednn} {LARGE}"

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite in place."""
        for node in list(graph.nodes):
            value = node.meta.get("val")
            if node.op != "call_function" or not isinstance(value, Tensor) or value.device.type != "cpu":
                continue
            if node.target in (aten.mm.default, aten.addmm.default):
                if self.onednn:
                    large_product(graph, node)
            elif value.ndim == 0 and value.is_floating_point() and node.target is not aten.full.default:
                store_number(graph, node)
        graph.eliminate_dead_code()


def large_product(graph: fx.Graph, node: fx.Node) -> None:
    """Hand one ``a @ b`` or ``bias + a @ b`` to oneDNN if it is large."""
    arguments: Any = node.args
    bias, a, b = (None, *arguments) if node.target is aten.mm.default else arguments
    left, right = a.meta["val"], b.meta["val"]
    if node.kwargs or left.dtype != torch.float32 or left.numel() * right.shape[1] < LARGE or (bias and bias.meta["val"].ndim != 1):
        return
    with graph.inserting_before(node):
        new = _emit(graph, torch.ops.popflow.product.default, a, b, bias)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def store_number(graph: fx.Graph, node: fx.Node) -> None:
    """Store a scalar in memory where arrays use it, because `as_strided` needs its storage."""
    arrays = [user for user in node.users if isinstance(user.meta.get("val"), Tensor) and user.meta["val"].ndim]
    if arrays:
        with graph.inserting_after(node):
            stored = _emit(graph, aten.as_strided.default, node, [], [])
        for user in arrays:
            user.replace_input_with(node, stored)


def _emit(graph: fx.Graph, op: Any, *args: Any) -> fx.Node:
    """Add a call to the graph, with the value that the compiler expects to find on it."""
    node = graph.call_function(op, args)
    node.meta["val"] = op(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args))
    return node
