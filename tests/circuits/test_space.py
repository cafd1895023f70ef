"""Bits are networks: round trips, order, and the vectorised evaluation against modules."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.circuits.cost import Cost, cross_entropy
from popflow.circuits.space import BinaryMLP, Choice, Switch, bits_of, check_bits, codes_of

ACTIVATION = Choice("activation", (torch.relu, torch.sigmoid))
ALPHABET = Choice("alphabet", ((0.0, 1.0), (-1.0, 1.0), (-2.0, 1.0), (-3.0, 1.0)))
SPACES = {
    "logistic": BinaryMLP(4),
    "encoding": BinaryMLP(3, alphabet=ALPHABET),
    "hidden": BinaryMLP(2, (2,), activation=ACTIVATION),
    "width": BinaryMLP(1, (Choice("width", (1, 2, 3)),), bias=False, activation=ACTIVATION),
    "skip": BinaryMLP(2, (1,), skip=Switch("skip"), switches=(Switch("first", (0,)), Switch("second", (1,)))),
    "deep": BinaryMLP(1, (2, Choice("width", (1, 2))), activation=ACTIVATION),
    "classes": BinaryMLP(2, outputs=3),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_network_reads_back(name):
    """The weights that are told are those of the module, in the order of the bits; codes, bits and strings are the same network."""
    space = SPACES[name]
    codes = torch.arange(2**space.n) if space.n <= 8 else torch.randint(2**space.n, (256,), generator=torch.Generator().manual_seed(0))
    fields = [field for field, (where, _) in space.fields.items() if where.stop <= space.parameters]
    for code, bits in zip(codes.tolist(), bits_of(codes, space.n), strict=True):
        network, told = space.decode(bits), space.describe(f"{code:0{space.n}b}")
        assert [told[field] for field in fields] == [network.get_buffer(field).tolist() for field in fields]
        high = torch.cat([torch.tensor(told[field]).flatten() for field in fields]) == network.alphabet[1]
        assert torch.equal(high, bits[: space.parameters].bool())
        assert torch.equal(space.bits(code), bits)
    assert codes_of(bits_of(codes, space.n)).tolist() == codes.tolist()
    assert len(set(space.names)) == space.n


@pytest.mark.parametrize("name", SPACES)
def test_many_at_once_equal_modules(name):
    space = SPACES[name]
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (256, space.n), generator=generator, dtype=torch.uint8)
    x = torch.randn(5, space.inputs, generator=generator, dtype=torch.float64)
    together = space.logits(bits, x)
    for row, one in zip(bits, together, strict=True):
        torch.testing.assert_close(space.decode(row)(x), one, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", SPACES)
def test_every_table_equals_every_module(name):
    space = SPACES[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, space.inputs, generator=generator, dtype=torch.float64)
    y = torch.arange(12) % max(2, space.outputs)
    table = Cost(space, x, y).table()
    for code in torch.randint(len(table), (64,), generator=generator).tolist():
        assert float(table[code]) == pytest.approx(float(cross_entropy(space.decode(code)(x), y).mean()), rel=1e-10)


def test_order_of_the_paper():
    space = BinaryMLP(2, (4,), activation=ACTIVATION)
    assert space.n == 18
    assert [space.fields[name][0].start for name in ("W1", "W2", "b2", "b1", "activation")] == [0, 8, 12, 13, 17]
    network = space.decode("10" + "0" * 16)
    assert network.W1[0, 0] == 1
    assert network.W1[0, 1] == -1
    assert network.activation is torch.relu
    assert space.decode("0" * 17 + "1").activation is torch.sigmoid
    encoding = BinaryMLP(16, alphabet=ALPHABET)
    assert encoding.n == 19
    assert [encoding.decode("1" + "0" * 16 + e).W1.unique().tolist() for e in ("00", "01", "10", "11")] == [
        [0, 1],
        [-1, 1],
        [-2, 1],
        [-3, 1],
    ]


def test_codes_beyond_a_choice_wrap():
    space = SPACES["width"]
    network = space.bits("1" * (space.n - 2) + "11")
    assert space.describe(network)["width"] == 1
    assert space.decode(network).widths == [1]


def test_switches_turn_off_inputs_and_skips():
    space = SPACES["skip"]
    off, on = space.decode("1" * (space.n - 3) + "000"), space.decode("1" * (space.n - 3) + "111")
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert off(x).unique().numel() == 1
    assert space.describe("1" * space.n)["skip"] == "on"
    hidden = torch.relu(x.sum(1, keepdim=True) + 1)
    torch.testing.assert_close(on(x), hidden + 1 + x.sum(1, keepdim=True))


def test_bad_input():
    with pytest.raises(ValueError, match="'width' has 1 options"):
        Choice("width", (2,))
    with pytest.raises(ValueError, match="lists an option twice"):
        Choice("width", (2, 2))
    with pytest.raises(ValueError, match="'twin' is used by 2"):
        BinaryMLP(2, switches=(Switch("twin", (0,)), Switch("twin", (1,))))
    with pytest.raises(ValueError, match="'b1' is that of a weight"):
        BinaryMLP(2, switches=(Switch("b1", (0,)),)).n
    with pytest.raises(ValueError, match="inputs=0"):
        BinaryMLP(0)
    with pytest.raises(ValueError, match=r"'far' acts on the inputs \(2,\)"):
        BinaryMLP(2, switches=(Switch("far", (2,)),))
    with pytest.raises(ValueError, match="nothing to skip"):
        BinaryMLP(2, skip=Switch("skip"))
    with pytest.raises(ValueError, match="two different values, both"):
        BinaryMLP(2, alphabet=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"alphabet \(nan, 1\.0\): wanted two different values, both finite"):
        BinaryMLP(2, alphabet=(math.nan, 1.0))
    with pytest.raises(ValueError, match=r"4 characters, wanted 5"):
        SPACES["logistic"].decode("0101")
    with pytest.raises(ValueError, match="of 0 and 1"):
        SPACES["logistic"].decode("0101x")
    with pytest.raises(ValueError, match=r"network 32: wanted the code of one of 2\^5 networks, 0\.\.2\^5 - 1"):
        SPACES["logistic"].decode(32)
    with pytest.raises(ValueError, match="wanted 5 of 0 and 1"):
        SPACES["logistic"].decode(torch.tensor([0.9, 0, 1, 1, 0]))
    with pytest.raises(ValueError, match=r"bits hold -1, wanted only 0 and 1. Fix: \(spins"):
        check_bits(torch.tensor([[-1, 1, 1]]), 3)
    with pytest.raises(ValueError, match="lists an option twice: relu, relu"):
        Choice("activation", (torch.relu, torch.relu))


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_named():
    for activation in ("relu", Choice("activation", (torch.relu, "sigmoid"))):
        with pytest.raises(TypeError, match=r"activation='(relu|sigmoid)', wanted a function such as torch\.relu"):
            BinaryMLP(2, (2,), activation=activation)
    with pytest.raises(TypeError, match=r"inputs=2\.5, wanted a whole number"):
        BinaryMLP(2.5)
