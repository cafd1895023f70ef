r"""Inference on packed bits: eight weights per byte, and dot products by counting bits.

With weights ``w = low + (high - low) v`` and two-valued inputs ``x = a + (b - a) u``, for bits ``u, v`` of length m,

    x . w = m a low + a (high - low) |v| + (b - a) low |u| + (b - a) (high - low) |u & v|

where ``|.|`` counts ones; for values of plus and minus one this is ``m - 2 |u xor v|``. Real inputs need a sum instead of a count:

    x . w = low sum_i x_i + (high - low) sum_{i: v_i = 1} x_i
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from popflow.circuits.space import ACTIVATIONS, BinaryNetwork
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.errors import CheckpointError, unknown


@dataclass(frozen=True, slots=True)
class PackedNetwork:
    """A `BinaryNetwork` in packed bits, reduced to the weights in use: ``network(x) -> logits``.

    Attributes:
        layers: Bytes ``[out, ceil((in + 1) / 8)]`` of each layer: the weights of an output, then its bias, the first bit highest.
        skip: Bytes ``[outputs, ceil(in / 8)]`` of the weights past the hidden layers, or None.
        widths: Numbers of inputs in use, of hidden units in each layer, and of outputs.
        inputs: Number of features of x.
        used: The features in use.
        bias: Whether layers have biases.
        alphabet: The two values ``(low, high)`` of weights and biases.
        activation: Name of the activation of the hidden layers.

    Example:
        >>> from popflow.circuits.space import BinaryMLP
        >>> network = BinaryMLP(inputs=16, hidden=(8,)).decode(12345)
        >>> packed, x = pack(network), 2.0 * (torch.arange(64).reshape(4, 16) % 3 == 0) - 1
        >>> packed.bytes, torch.equal(packed(x), network(x))
        (26, True)
    """

    layers: tuple[Tensor, ...]
    skip: Tensor | None
    widths: tuple[int, ...]
    inputs: int
    used: tuple[int, ...]
    bias: bool
    alphabet: tuple[float, float]
    activation: str

    @property
    def bytes(self) -> int:
        """Size of all weights and biases."""
        return sum(layer.numel() for layer in self.layers) + (0 if self.skip is None else self.skip.numel())

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, outputs]`` of inputs ``[N, inputs]``, in the dtype of the inputs.

        Raises:
            ValueError: on another number of features.
        """
        if x.ndim != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [N, {self.inputs}].")
        x = x[:, list(self.used)]
        h = x
        for i, (layer, width) in enumerate(zip(self.layers, self.widths, strict=False)):
            a = dot(h, layer, width, self.alphabet)
            if self.bias:
                a = a + torch.where(_unpack(layer, width + 1)[:, width], self.alphabet[1], self.alphabet[0]).to(x.dtype)
            h = ACTIVATIONS[self.activation](a) if i < len(self.layers) - 1 else a
        return h if self.skip is None else h + dot(x, self.skip, self.widths[0], self.alphabet)

    def save(self, path: str | Path) -> Path:
        """Write bytes and a JSON header as safetensors."""
        about = {name: getattr(self, name) for name in ("widths", "inputs", "used", "bias", "alphabet", "activation")}
        tensors = {f"layer_{i}": layer for i, layer in enumerate(self.layers)} | ({} if self.skip is None else {"skip": self.skip})
        return save_tensors(path, tensors, {"packed": about})

    @staticmethod
    def load(path: str | Path) -> PackedNetwork:
        """Read what `save` wrote.

        Raises:
            CheckpointError: when the file is missing or damaged, or holds something else.
        """
        tensors, about = load_tensors(path)
        header = about.get("packed")
        if header is None:
            raise CheckpointError(f"{path} holds no packed network. Fix: give a file written by PackedNetwork.save.")
        if header["activation"] not in ACTIVATIONS:
            raise CheckpointError(f"{path}: " + unknown("activation", header["activation"], ACTIVATIONS))
        tuples = {name: tuple(header[name]) for name in ("widths", "used", "alphabet")}
        layers = tuple(tensors[f"layer_{i}"] for i in range(len(tuples["widths"]) - 1))
        return PackedNetwork(layers, tensors.get("skip"), **{**header, **tuples})


def pack(network: BinaryNetwork) -> PackedNetwork:
    """Return a network in packed bits.

    Raises:
        ValueError: when the activation of its hidden layers has no name in `ACTIVATIONS`.
    """
    space, (_, high) = network.space, network.alphabet
    names = [name for name, function in ACTIVATIONS.items() if function is network.activation]
    if network.widths and not names:
        shown = getattr(network.activation, "__name__", repr(network.activation))
        raise ValueError(f"the activation {shown} cannot be stored, wanted one of {', '.join(ACTIVATIONS)}.")
    used = tuple(i for i in range(space.inputs) if i not in network.off)
    widths, layers = (len(used), *network.widths, space.outputs), []
    for i, (above, below) in enumerate(itertools.pairwise(widths), 1):
        weight = network.get_buffer(f"W{i}")
        rows = (weight[list(used)] if i == 1 else weight[:above])[:, :below].T
        rows = torch.cat((rows, network.get_buffer(f"b{i}")[:below].unsqueeze(1)), 1) if space.bias else rows
        layers.append(_pack(rows == high))
    past = network.get_buffer("Wskip")[list(used)].T if network.skips else None
    skip = None if past is None else _pack(past == high)
    return PackedNetwork(tuple(layers), skip, widths, space.inputs, used, space.bias, network.alphabet, (*names, "relu")[0])


def dot(x: Tensor, packed: Tensor, m: int, alphabet: tuple[float, float]) -> Tensor:
    """Return the product ``[N, out]`` of ``x [N, m]`` and the first m bits of the weights ``[out, bytes]``; exact for integers.

    >>> dot(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[0b10000000]], dtype=torch.uint8), 3, (-1.0, 1.0)).tolist()
    [[1.0]]
    """
    (low, high), values = alphabet, x.unique()
    if not 0 < len(values) <= 2 or not bool(values.isfinite().all()):
        return low * x.sum(1, keepdim=True) + (high - low) * (x @ _unpack(packed, m).to(x.dtype).T)
    a, b = values[0], values[-1]
    inputs = _pack(x == b) if b > a else _pack(torch.zeros_like(x, dtype=torch.bool))
    both = _ones(inputs.unsqueeze(1) & packed[:, : inputs.shape[1]]).to(x.dtype)
    u, v = _ones(inputs).to(x.dtype).unsqueeze(1), _unpack(packed, m).sum(1).to(x.dtype)
    return m * a * low + a * (high - low) * v + (b - a) * low * u + (b - a) * (high - low) * both


def _pack(bits: Tensor) -> Tensor:
    """Return rows of bits as bytes, the first bit highest, padded with zeros."""
    filled = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8)).unflatten(1, (-(-bits.shape[1] // 8), 8))
    return (filled << torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def _unpack(packed: Tensor, m: int) -> Tensor:
    return ((packed.unsqueeze(-1) >> torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)) & 1).flatten(1)[:, :m].bool()


def _ones(packed: Tensor) -> Tensor:
    """Count the ones along the last axis of bytes."""
    table = torch.tensor([byte.bit_count() for byte in range(256)], device=packed.device)
    return table[packed.long()].sum(-1)
