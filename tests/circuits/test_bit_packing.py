"""Packed inference against the module: bit for bit on integers, to rounding on real ones, after a file too."""

from __future__ import annotations

import pytest
import torch

from popflow.circuits import BinaryMLP, Choice, PackedNetwork, Switch, onnx_file, pack
from popflow.core.checkpoint import save_tensors
from popflow.core.errors import CheckpointError

SPACES = [
    BinaryMLP(19),
    BinaryMLP(8, (5, 9), outputs=3, bias=False, alphabet=(-3.0, 1.0)),
    BinaryMLP(
        11,
        (Choice("width", (2, 3, 4)),),
        outputs=2,
        activation=Choice("activation", (torch.relu, torch.sigmoid, torch.tanh)),
        alphabet=Choice("alphabet", ((0.0, 1.0), (-1.0, 1.0), (-2.0, 1.0), (-3.0, 1.0))),
        skip=Switch("skip"),
        switches=(Switch("left", (0, 1, 2, 3)), Switch("right", (7, 8, 9, 10))),
    ),
]
INPUTS = {
    "spins": lambda u: 2.0 * (u > 0.5) - 1,
    "bits": lambda u: 1.0 * (u > 0.5),
    "threes": lambda u: 1.0 + 2 * (u > 0.5),
    "one value": lambda u: torch.full_like(u, -1.0),
    "whole": lambda u: (10 * u).floor(),
    "real": lambda u: u,
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("space", SPACES)
def test_equals_the_module(space, kind, tmp_path):
    rng = torch.Generator().manual_seed(0)
    x = INPUTS[kind](torch.rand(13, space.inputs, generator=rng)).double()
    for _ in range(12):
        network = space.decode(torch.randint(2, (space.n,), generator=rng))
        packed = pack(network)
        exact = kind != "real" and network.activation is torch.relu
        torch.testing.assert_close(packed(x), network(x), atol=0 if exact else 1e-12, rtol=0)
    again = PackedNetwork.load(packed.save(tmp_path / "network.safetensors"))
    assert torch.equal(again(x), packed(x))


def test_inputs_switched_off_empty_data_and_rows_that_are_not_finite():
    space = BinaryMLP(3, (2,), skip=Switch("skip"), switches=(Switch("all", (0, 1, 2)),), bias=False)
    network = space.decode("1" * (space.n - 1) + "0")
    x = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
    assert torch.equal(pack(network)(x), network(x))
    network = BinaryMLP(3).decode("1011")
    assert pack(network)(x[:0]).shape == (0, 1)
    x[0, 0] = torch.nan
    assert torch.equal(pack(network)(x)[1], network(x)[1])
    assert pack(network)(x)[0].isnan()


def test_eight_weights_are_a_byte():
    """64 x 32 and 32 x 1 weights with biases: 32 rows of 9 bytes and one of 5."""
    space = BinaryMLP(64, (32,))
    assert pack(space.decode(torch.ones(space.n))).bytes == 32 * 9 + 5


def test_spins_are_a_count_of_differences():
    rng = torch.Generator().manual_seed(1)
    x, w = (2.0 * torch.randint(2, (100,), generator=rng) - 1 for _ in range(2))
    space = BinaryMLP(100, bias=False)
    assert float(pack(space.decode((w > 0).long()))(x[None])) == 100 - 2 * int((x != w).sum()) == float(x @ w)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 3\), wanted \[N, 4\]"):
        pack(BinaryMLP(4).decode(0))(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="activation gelu cannot be stored, wanted one of relu"):
        pack(BinaryMLP(2, (2,), activation=torch.nn.functional.gelu).decode(0))
    with pytest.raises(CheckpointError, match="holds no packed network"):
        PackedNetwork.load(save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}))


@pytest.mark.parametrize("space", [*SPACES, BinaryMLP(3, switches=(Switch("all", (0, 1, 2)),))])
def test_onnx_equals_the_module(space, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(13, space.inputs, generator=rng)
    for _ in range(6):
        network = space.decode(torch.randint(2, (space.n,), generator=rng))
        file = onnx_file(pack(network), tmp_path / "network.onnx")
        (y,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
        logits = network(x.double())
        assert (torch.from_numpy(y) - logits).abs().max() < 1e-6 * max(1.0, float(logits.abs().max()))


def test_onnx_keeps_a_weight_in_a_bit(tmp_path):
    """65 536 weights are 8 kB; in float32 they would be 262 kB."""
    space = BinaryMLP(256, (256,))
    packed = pack(space.decode(torch.ones(space.n)))
    assert packed.bytes < onnx_file(packed, tmp_path / "network.onnx").stat().st_size < packed.bytes + 4000
