r"""Search spaces of binary networks: a declaration under which every bit string is a complete network.

Bits are in the following order, weights and biases as in the paper. Parameter 0 is the most significant bit of a code, so that
``code = sum_p bit_p 2^(n-1-p)``, and parameter p is qubit n-1-p of a circuit::

    W1 ... WL   weights, row-major [in, out]        skip        weights [inputs, outputs]
    bL ... b1   biases, the last layer first        choices     activation, alphabet, widths, skip, switches

The bit of a weight or a bias selects one of the two values of the alphabet, ``w = low + (high - low) bit``.

Source: Carrasquilla et al., *Quantum HyperNetworks*, arXiv 2301.08292.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one, function

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
"""Activations by the names used in files and on the command line."""


@dataclass(frozen=True)
class Choice:
    """One of K options, in ``ceil(log2 K)`` bits with the most significant first; a code beyond the last option stands for ``code mod K``.

    Raises:
        ValueError: on fewer than two options, or one that is listed twice.

    Example:
        >>> width = Choice("width", (2, 3, 4))
        >>> width.bits, [width.option(code) for code in range(4)]
        (2, [2, 3, 4, 2])
    """

    name: str
    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise ValueError(f"choice {self.name!r} has {len(self.options)} options, wanted at least 2. Fix: pass the one value itself.")
        if len(set(self.options)) < len(self.options):
            listed = ", ".join(str(getattr(option, "__name__", option)) for option in self.options)
            raise ValueError(f"choice {self.name!r} lists an option twice: {listed}. Fix: leave one of them out.")

    @property
    def bits(self) -> int:
        """Bits of its code."""
        return math.ceil(math.log2(len(self.options)))

    def option(self, code: int) -> Any:
        """Return the option of a code."""
        return self.options[code % len(self.options)]


@dataclass(frozen=True)
class Switch:
    """A bit that turns connections on (1) or off (0): those from some inputs or, as ``skip``, those past the hidden layers."""

    name: str
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class BinaryMLP:
    """A family of networks ``x -> z`` with two-valued weights and biases; ``z`` are the logits.

    Attributes:
        inputs: Number of features.
        hidden: Width of each hidden layer, a number or a `Choice` of numbers (the bits include all weights of the widest).
        outputs: Number of logits, 1 for two classes.
        bias: Whether layers have biases.
        activation: Activation of the hidden layers, a function or a `Choice` of functions.
        alphabet: The two values ``(low, high)`` of weights and biases, or a `Choice` of such pairs.
        skip: A switch for additional weights from the inputs to the outputs.
        switches: Switches for the connections from groups of inputs.

    Raises:
        ValueError: on sizes below 1, a name used twice, an alphabet of equal or infinite values, or a switch on inputs that do not exist.
        TypeError: on sizes that are not whole numbers, or the name of an activation.

    Example:
        >>> space = BinaryMLP(inputs=2, hidden=(4,), activation=Choice("activation", (torch.relu, torch.sigmoid)))
        >>> space.n, space.names[:2], space.names[-2:]
        (18, ('W1[0,0]', 'W1[0,1]'), ('b1[3]', 'activation'))
        >>> found = space.describe("001101010111111010")
        >>> found["activation"], found["W2"], found["b2"]
        ('relu', [[-1.0], [1.0], [1.0], [1.0]], [1.0])
    """

    inputs: int
    hidden: tuple[int | Choice, ...] = ()
    outputs: int = 1
    bias: bool = True
    activation: Activation | Choice = torch.relu
    alphabet: tuple[float, float] | Choice = (-1.0, 1.0)
    skip: Switch | None = None
    switches: tuple[Switch, ...] = ()

    def __post_init__(self) -> None:
        at_least_one(inputs=self.inputs, outputs=self.outputs, hidden=min(self.widths, default=1))
        for one in self.activation.options if isinstance(self.activation, Choice) else (self.activation,):
            function("activation", one, "torch.relu")
        named = [choice.name for choice in self.choices]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(
                f"the name {twice[0]!r} is used by {named.count(twice[0])} choices or switches: wanted one each. Fix: rename one."
            )
        if self.skip is not None and not self.hidden:
            raise ValueError("skip: a network without hidden layers has nothing to skip. Fix: leave skip out.")
        for switch in self.switches:
            if not switch.inputs or not all(0 <= i < self.inputs for i in switch.inputs):
                raise ValueError(f"switch {switch.name!r} acts on the inputs {switch.inputs}, wanted some of 0..{self.inputs - 1}.")
        for low, high in self.alphabets:
            if low == high or not math.isfinite(low) or not math.isfinite(high):
                raise ValueError(f"alphabet ({low}, {high}): wanted two different values, both finite.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Widest width of each hidden layer."""
        return tuple(max(width.options) if isinstance(width, Choice) else width for width in self.hidden)

    @property
    def alphabets(self) -> tuple[tuple[float, float], ...]:
        """Alphabets, in the order of their codes."""
        return self.alphabet.options if isinstance(self.alphabet, Choice) else (self.alphabet,)

    @cached_property
    def choices(self) -> tuple[Choice | Switch, ...]:
        """All choices and switches, in order."""
        listed = (self.activation, self.alphabet, *self.hidden, *([] if self.skip is None else [self.skip]), *self.switches)
        return tuple(item for item in listed if isinstance(item, Choice | Switch))

    @cached_property
    def fields(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Name -> (bits, shape) of each weight matrix, bias and choice."""
        sizes = [self.inputs, *self.widths, self.outputs]
        shapes: list[tuple[str, tuple[int, ...]]] = [(f"W{i + 1}", (sizes[i], sizes[i + 1])) for i in range(len(sizes) - 1)]
        if self.skip is not None:
            shapes.append(("Wskip", (self.inputs, self.outputs)))
        if self.bias:
            shapes += [(f"b{i}", (sizes[i],)) for i in reversed(range(1, len(sizes)))]
        shapes += [(choice.name, (choice.bits if isinstance(choice, Choice) else 1,)) for choice in self.choices]
        clash = {name for name, _ in shapes[: len(shapes) - len(self.choices)]} & {choice.name for choice in self.choices}
        if clash:
            raise ValueError(f"the name {min(clash)!r} is that of a weight or a bias. Fix: rename the choice or switch.")
        out, start = {}, 0
        for name, shape in shapes:
            out[name] = (slice(start, start + math.prod(shape)), shape)
            start += math.prod(shape)
        return out

    @property
    def n(self) -> int:
        """Bits of a network."""
        return max(bits.stop for bits, _ in self.fields.values())

    @property
    def parameters(self) -> int:
        """Bits that are weights or biases; they come first."""
        return self.n - sum(choice.bits if isinstance(choice, Choice) else 1 for choice in self.choices)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every bit."""
        out = []
        for name, (bits, shape) in self.fields.items():
            single = bits.start >= self.parameters and shape == (1,)
            indices = itertools.product(*map(range, shape))
            out += [name if single else f"{name}[{','.join(map(str, index))}]" for index in indices]
        return tuple(out)

    def bits(self, network: str | int | Sequence[int] | Tensor) -> Tensor:
        """Return the bits ``[n]`` (uint8, parameter 0 first) of a bit string, a code or a sequence.

        Raises:
            ValueError: on another length, values that are not bits, or a code beyond the space.
        """
        if isinstance(network, int) or getattr(network, "ndim", None) == 0:
            code = operator.index(network)  # type: ignore[arg-type]
            if not 0 <= code < 2**self.n:
                raise ValueError(f"network {code}: wanted the code of one of 2^{self.n} networks, 0..2^{self.n} - 1.")
            return torch.tensor([(code >> (self.n - 1 - p)) & 1 for p in range(self.n)], dtype=torch.uint8)
        known: dict[Any, int] = {"0": 0, "1": 1} if isinstance(network, str) else {0: 0, 1: 1}
        values = [known.get(v, 2) for v in (network.tolist() if isinstance(network, Tensor) else network)]
        if len(values) != self.n or 2 in values:
            raise ValueError(f"{network!r} has {len(values)} characters, wanted {self.n} of 0 and 1, parameter 0 first.")
        return torch.tensor(values, dtype=torch.uint8)

    def code_of(self, name: str, bits: Tensor) -> Tensor:
        """Return the code of a choice in networks ``[*batch, n]``, most significant bit first, reduced to a known option."""
        where = self.fields[name][0]
        width = where.stop - where.start
        code = (bits[..., where].long() << torch.arange(width - 1, -1, -1, device=bits.device)).sum(-1)
        options = next((len(c.options) for c in self.choices if c.name == name and isinstance(c, Choice)), 2)
        return code % options

    def chosen(self, item: Any, bits: Tensor) -> Any:
        """Return the option of a `Choice` that one network ``[n]`` selects; anything that is not a choice is returned as it is."""
        return item.option(int(self.code_of(item.name, bits))) if isinstance(item, Choice) else item

    def switched_off(self, bits: Tensor) -> list[int]:
        """Return the inputs whose connections one network ``[n]`` turns off."""
        return sorted({i for switch in self.switches if not int(self.code_of(switch.name, bits)) for i in switch.inputs})

    def describe(self, network: str | int | Sequence[int] | Tensor) -> dict[str, Any]:
        """Return a network in readable form: the option of each choice, and weights and biases as nested lists."""
        bits = self.bits(network)
        out: dict[str, Any] = {}
        for choice in self.choices:
            chosen = self.chosen(choice, bits) if isinstance(choice, Choice) else ("off", "on")[int(self.code_of(choice.name, bits))]
            out[choice.name] = getattr(chosen, "__name__", chosen)
        low, high = self.chosen(self.alphabet, bits)
        for name, (where, shape) in self.fields.items():
            if where.stop <= self.parameters:
                out[name] = (low + (high - low) * bits[where].double()).reshape(shape).tolist()
        return out

    def decode(self, network: str | int | Sequence[int] | Tensor) -> BinaryNetwork:
        """Return a network as a module."""
        return BinaryNetwork(self, self.bits(network))

    def logits(self, bits: Tensor, x: Tensor) -> Tensor:
        """Return the logits ``[S, N, outputs]`` of ``S`` networks ``[S, n]`` at once on inputs ``[N, inputs]``.

        Floating-point bits of weights and biases are differentiable (straight-through training uses it); choices are read off.
        """
        alphabet = torch.tensor(self.alphabets, dtype=x.dtype, device=x.device)
        pick = self.code_of(self.alphabet.name, bits) if isinstance(self.alphabet, Choice) else bits.new_zeros(len(bits), dtype=torch.long)
        low, high = alphabet[pick].unsqueeze(-1).unbind(1)
        values = low + (high - low) * bits[:, : self.parameters].to(x.dtype)

        def field(name: str) -> Tensor:
            where, shape = self.fields[name]
            return values[:, where].reshape(len(bits), *shape)

        def layer(h: Tensor, i: int) -> Tensor:
            a = h @ field(f"W{i}")
            return a + field(f"b{i}").unsqueeze(1) if self.bias else a

        h = x.unsqueeze(0)
        for switch in self.switches:
            mask = torch.zeros(self.inputs, dtype=x.dtype, device=x.device).index_fill(0, torch.tensor(switch.inputs, device=x.device), 1)
            h = h * (1 - mask * (1 - self.code_of(switch.name, bits).to(x.dtype)).reshape(-1, 1, 1))
        first = h
        for i, width in enumerate(self.hidden, 1):
            h = self._activate(layer(h, i), bits)
            if isinstance(width, Choice):
                used = torch.tensor(width.options, device=x.device)[self.code_of(width.name, bits)]
                h = h * (torch.arange(h.shape[-1], device=x.device) < used.unsqueeze(-1)).unsqueeze(1)
        z = layer(h, len(self.hidden) + 1)
        if self.skip is not None:
            z = z + self.code_of(self.skip.name, bits).to(x.dtype).reshape(-1, 1, 1) * (first @ field("Wskip"))
        return z

    def _activate(self, a: Tensor, bits: Tensor) -> Tensor:
        if not isinstance(self.activation, Choice):
            return self.activation(a)
        code = self.code_of(self.activation.name, bits).reshape(-1, 1, 1)
        out = self.activation.options[0](a)
        for k, activation in enumerate(self.activation.options[1:], 1):
            out = torch.where(code == k, activation(a), out)
        return out


class BinaryNetwork(nn.Module):
    """One network of a `BinaryMLP`: buffers ``W1, b1, ...`` with their true values, and ``forward(x) -> logits``.

    It shares no arithmetic with `BinaryMLP.logits`, which evaluates many networks at once: each is the test of the other.
    """

    def __init__(self, space: BinaryMLP, bits: Tensor):
        super().__init__()
        self.space = space
        self.alphabet = low, high = space.chosen(space.alphabet, bits)
        self.activation = space.chosen(space.activation, bits)
        self.widths = [space.chosen(width, bits) for width in space.hidden]
        self.skips = space.skip is not None and bool(space.code_of(space.skip.name, bits))
        self.off = space.switched_off(bits)
        for name, (where, shape) in space.fields.items():
            if where.stop <= space.parameters:
                self.register_buffer(name, torch.where(bits[where] == 1, high, low).double().reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[N, outputs]`` of inputs ``[N, inputs]``, in the dtype of the inputs."""
        x = x.clone()
        x[:, self.off] = 0
        h = x
        for i, width in enumerate([*self.widths, self.space.outputs], 1):
            h = h @ self.get_buffer(f"W{i}")[: h.shape[1], :width].to(x.dtype)
            h = h + self.get_buffer(f"b{i}")[:width].to(x.dtype) if self.space.bias else h
            h = self.activation(h) if i <= len(self.widths) else h
        return h + x @ self.get_buffer("Wskip").to(x.dtype) if self.skips else h


def bits_of(codes: Tensor, n: int) -> Tensor:
    """Return the bits ``[*batch, n]`` (uint8, parameter 0 first) of codes ``[*batch]``.

    >>> bits_of(torch.tensor([1, 4]), 3).tolist()
    [[0, 0, 1], [1, 0, 0]]
    """
    return ((codes.unsqueeze(-1) >> torch.arange(n - 1, -1, -1, device=codes.device)) & 1).to(torch.uint8)


def check_bits(bits: Tensor, n: int, *, relaxed: bool = False) -> None:
    """Check that bits are networks ``[S, n]`` of values 0 and 1 (spins, for example, are not); relaxed, floating-point values are free.

    Raises:
        ValueError: naming the shape, or the values.
    """
    if bits.ndim != 2 or bits.shape[1] != n:
        raise ValueError(f"bits have shape {tuple(bits.shape)}, wanted [S, {n}].")
    beyond = bits[(bits != 0) & (bits != 1)]
    if len(beyond) and not (relaxed and bits.is_floating_point()):
        shown = ", ".join(f"{v:g}" for v in beyond.unique()[:6].tolist())
        raise ValueError(f"bits hold {shown}, wanted only 0 and 1. Fix: (spins + 1) // 2 makes bits of spins -1 and 1.")


def size_of(item: int, n: int) -> str:
    """Return the size of ``2^n`` items in bytes as text: digits while they are readable, a power of two beyond.

    >>> size_of(8, 30), size_of(8, 6001)
    ('8,589,934,592 bytes', '2^6004 bytes')
    """
    return f"{item << n:,} bytes" if n < 200 else f"2^{n + item.bit_length() - 1} bytes"


def codes_of(bits: Tensor) -> Tensor:
    """Return the codes ``[*batch]`` of bits ``[*batch, n]``, n at most 63: the inverse of `bits_of`."""
    n = bits.shape[-1]
    if n > 63:
        raise ValueError(f"codes of {n} bits do not fit 64-bit integers: wanted at most 63. Fix: keep the bits.")
    return (bits.long() << torch.arange(n - 1, -1, -1, device=bits.device)).sum(-1)
