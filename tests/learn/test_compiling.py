"""The rewrites of compiled graphs: the same numbers come out, and the rewrite did happen."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from popflow.core.streams import Streams
from popflow.learn.compiling import Rewrite, aten, onednn_is_faster


def normal(*shape, dtype=torch.float32):
    return Streams(0).normal("x", torch.empty(*shape, dtype=dtype))


def rewritten(f, *inputs, onednn=True):
    """``f`` as a graph of tensor operations, rewritten, and the names of its operations."""
    module = make_fx(f, tracing_mode="fake")(*inputs)
    rewrite = Rewrite(onednn)
    rewrite(module.graph)
    module.recompile()
    return module, [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


PRODUCT = "popflow.product.default"


@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False)])
def test_large_products_are_the_same_products(transposed):
    a = normal(160, 96).T.contiguous().T if transposed[0] else normal(160, 96)
    b = normal(128, 96).T if transposed[1] else normal(96, 128)
    module, names = rewritten(lambda a, b: (a @ b).sin(), a, b)
    assert PRODUCT in names
    torch.testing.assert_close(module(a, b), (a @ b).sin(), rtol=1e-4, atol=1e-4)


def test_the_bias_of_a_layer_is_added():
    x, weight, bias = normal(160, 96), normal(128, 96), normal(128)
    module, names = rewritten(lambda x, w, b: torch.addmm(b, x, w.T), x, weight, bias)
    assert PRODUCT in names
    torch.testing.assert_close(module(x, weight, bias), x @ weight.T + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("f", "inputs"),
    [
        (lambda a, b: a @ b, (normal(16, 16), normal(16, 16))),
        (lambda a, b: a @ b, (normal(160, 96, dtype=torch.float64), normal(96, 128, dtype=torch.float64))),
        (lambda a, b: torch.addmm(a @ a, a, b, beta=2.0), (normal(16, 16), normal(16, 16))),
    ],
)
def test_small_double_and_scaled_products_are_left_alone(f, inputs):
    module, names = rewritten(f, *inputs)
    assert PRODUCT not in names
    torch.testing.assert_close(module(*inputs), f(*inputs))


def test_without_onednn_no_product_is_touched():
    _, names = rewritten(lambda a, b: a @ b, normal(160, 96), normal(96, 128), onednn=False)
    assert names == [str(aten.mm.default)]
    assert isinstance(onednn_is_faster(), bool)


def test_numbers_that_arrays_use_are_stored_once():
    def corrected(x, step):
        rate = 1 - 0.9 ** (step + 1)
        return x / rate, rate

    x, step = normal(5), torch.tensor(3.0)
    module, names = rewritten(corrected, x, step)
    assert names.count(str(aten.as_strided.default)) == 1
    torch.testing.assert_close(module(x, step), corrected(x, step))
