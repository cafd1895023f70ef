r"""The cost of a binary network, of all networks, and the exact properties of the landscape.

    C(sigma) = 1/N sum_i loss(z_sigma(x_i), y_i)

`Cost.table` enumerates all ``2^n`` networks. Without hidden layers the logits are sums over two halves of the bits. With one hidden layer
a unit has only ``S = 2^(inputs + outputs + 1)`` states and the cost is symmetric in the units, so ``C(S + h - 1, h)`` multisets of units
stand for ``S^h`` hidden layers. Deeper networks are evaluated in chunks. Equal rows of the data are merged first.

Source: Carrasquilla et al., *Quantum HyperNetworks*, arXiv 2301.08292.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from popflow.circuits.space import BinaryMLP, bits_of, check_bits, size_of
from popflow.core.checks import function

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(z [..., N, outputs], y [N]) -> [..., N]``, one value per sample."""

MAX_TABLE = 26
_CHUNK = 2**21
_PARTS = 2**25
"""Numbers that one of the two parts of a shallow table may hold; larger tables take the rows of the data in turns."""


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood: Bernoulli with logit ``z`` for one output, softmax for several.

    >>> cross_entropy(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1])).item()
    0.6931471805599453
    """
    if z.shape[-1] == 1:
        return softplus(z[..., 0]) - y * z[..., 0]
    return z.logsumexp(-1) - z.gather(-1, y.long().expand(z.shape[:-1]).unsqueeze(-1))[..., 0]


def squared_error(z: Tensor, y: Tensor) -> Tensor:
    """Squared error of the probability, ``(sigmoid(z) - y)^2``, the loss of the paper's Gaussian task."""
    return (z[..., 0].sigmoid() - y).square()


@dataclass(frozen=True)
class Cost:
    """The mean loss of networks of a space on a data set: ``cost(bits [S, n]) -> [S]`` in float64.

    Raises:
        ValueError: on data that are empty, have another width, are not finite or hold a single class, and on labels other than 0..K-1.

    Example:
        >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])
        >>> cost = Cost(BinaryMLP(inputs=1), x, y)
        >>> cost(cost.space.bits("11").unsqueeze(0)).round(decimals=6).tolist(), cost.table().argmin().item()
        ([0.410038], 2)
    """

    space: BinaryMLP
    x: Tensor
    y: Tensor
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        x, y, space = self.x, self.y, self.space
        function("loss", self.loss, "popflow.circuits.cross_entropy")
        if x.ndim != 2 or x.shape[1] != space.inputs or len(x) == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [N, {space.inputs}] with N >= 1 (inputs={space.inputs}).")
        if y.shape != x.shape[:1]:
            raise ValueError(f"y has shape {tuple(y.shape)}, wanted [{len(x)}], one label per row of x.")
        for name, value in (("x", x), ("y", y)):
            bad = int((~torch.isfinite(value.double())).sum())
            if bad:
                raise ValueError(f"{name} holds {bad} values that are NaN or infinite. Fix: drop or impute those rows.")
        classes, labels = max(2, space.outputs), y.unique().tolist()
        if not set(labels) <= set(range(classes)):
            shown = ", ".join(f"{v:g}" for v in labels[:6])
            raise ValueError(
                f"y holds the labels {shown}, wanted 0..{classes - 1} (outputs={space.outputs}). Fix: number the classes from 0."
            )
        if len(labels) < 2:
            raise ValueError(f"y holds the one label {labels[0]:g}, wanted at least 2 classes: there is nothing to learn.")
        rows, count = torch.cat((x.double(), y.double().unsqueeze(1)), 1).unique(dim=0, return_counts=True)
        merged = (rows[:, :-1].contiguous(), rows[:, -1].long(), count.double() / len(x))
        object.__setattr__(self, "_merged", merged)

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the cost ``[S]`` of networks ``[S, n]``; differentiable in floating-point bits."""
        check_bits(bits, self.space.n, relaxed=True)
        x, y, share = self._parts(bits.device)
        wide = max((*self.space.widths, self.space.outputs))
        chunks = bits.split(max(1, _CHUNK // (len(x) * wide)))
        return torch.cat([self.loss(self.space.logits(some, x), y) @ share for some in chunks])

    def accuracy(self, bits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the share ``[S]`` of rows of ``x [N, inputs]`` that networks ``[S, n]`` classify as ``y``."""
        return torch.cat([(classes(self.space.logits(some, x.double())) == y).double().mean(-1) for some in bits.split(256)])

    def table(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the costs ``[2^n]`` of all networks, in the order of their codes, float64.

        Raises:
            ValueError: beyond 2^26 networks, naming the bytes.
            ArithmeticError: when a cost is not finite.
        """
        n = self.space.n
        if n > MAX_TABLE:
            raise ValueError(
                f"n={n} bits: a table of 2^{n} costs takes {size_of(8, n)}, wanted n <= {MAX_TABLE}. "
                "Fix: a smaller space, or a search that evaluates the cost directly (popflow.circuits.search)."
            )
        if len(self.space.hidden) <= 1:
            out = _shallow_table(self, torch.device(device))
        else:
            out = torch.cat([self(bits_of(some, n)) for some in torch.arange(2**n, device=device).split(2**12)])
        if not bool(out.isfinite().all()):
            bad = int((~out.isfinite()).nonzero()[0])
            raise ArithmeticError(f"the cost of network {bad} of {2**n} is {float(out[bad])}, wanted finite. Fix: scale x, or the loss.")
        return out

    def _parts(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        x, y, share = self.__dict__["_merged"]
        return x.to(device), y.to(device), share.to(device, torch.float64)


def classes(z: Tensor) -> Tensor:
    """Return the class ``[..., N]`` of logits ``[..., N, outputs]``."""
    return (z[..., 0] > 0).long() if z.shape[-1] == 1 else z.argmax(-1)


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact properties of a table of costs.

    Attributes:
        optimum: The least cost.
        codes: Every network of that cost.
        second: The second distinct cost.
        mean: Mean cost of all networks.
        std: Standard deviation of the cost over all networks.
        minima: Number of networks that no flip of one bit improves, and that no flip of one or two bits improves.
        basin: Share of networks from which steepest descent by single flips ends at an optimum.
    """

    optimum: float
    codes: Tensor
    second: float
    mean: float
    std: float
    minima: tuple[int, int]
    basin: float


def truth(table: Tensor) -> Truth:
    """Analyse a table ``[2^n]``; costs that differ by less than its `resolution` count as equal.

    Example:
        >>> found = truth(torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64))
        >>> found.codes.tolist(), found.second, found.minima, found.basin
        ([3], 1.0, (1, 1), 1.0)
    """
    n = check_table(table)
    optimum, tolerance = float(table.min()), resolution(table)
    codes = (table <= optimum + tolerance).nonzero()[:, 0]
    others = table[table > optimum + tolerance]
    here = torch.arange(len(table), device=table.device)
    best, target = table.clone(), here.clone()
    for bit in range(n):
        neighbour = here ^ (1 << bit)
        better = table[neighbour] < best - tolerance
        best, target = torch.where(better, table[neighbour], best), torch.where(better, neighbour, target)
    single = target == here
    double = single.clone()
    for first, second in itertools.combinations(range(n), 2):
        double &= table[here ^ (1 << first) ^ (1 << second)] >= table - tolerance
    while bool((target[target] != target).any()):
        target = target[target]
    basin = float(torch.isin(target, codes).double().mean())
    second = float(others.min()) if len(others) else optimum
    minima = (int(single.sum()), int(double.sum()))
    return Truth(optimum, codes, second, float(table.mean()), float(table.std(correction=0)), minima, basin)


def resolution(table: Tensor) -> float:
    """Return the difference below which two costs of a table count as equal: ``1e-12`` of its range."""
    return 1e-12 * float(table.max() - table.min())


def check_table(table: Tensor) -> int:
    """Return n of a table ``[2^n]``.

    Raises:
        ValueError: when the length is not a power of two, or a cost is not finite.
    """
    n = max(len(table).bit_length() - 1, 0)
    if table.ndim != 1 or len(table) != 2**n or n < 1:
        raise ValueError(f"table has shape {tuple(table.shape)}, wanted [2^n], a cost for every bit string.")
    bad = int((~table.isfinite()).sum())
    if bad:
        raise ValueError(f"table holds {bad} costs that are NaN or infinite, wanted none: one of them makes every energy NaN.")
    return n


def idle_bits(table: Tensor, tolerance: float = 0.0) -> list[int]:
    """Return the parameters whose flip never changes the cost by more than a tolerance: weights of dead pixels, for example.

    >>> idle_bits(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    [0]
    """
    n = check_table(table)
    shaped = [table.reshape(2**p, 2, -1) for p in range(n)]
    return [p for p, halves in enumerate(shaped) if float((halves[:, 0] - halves[:, 1]).abs().max()) <= tolerance]


def _shallow_table(cost: Cost, device: torch.device) -> Tensor:
    """Return the table of at most one hidden layer, as many rows of the data at a time as keep its parts small."""
    space, (x, y, share) = cost.space, cost._parts(device)
    direct = space.outputs * space.bias + space.inputs * space.outputs * (space.skip is not None)
    widest = max(space.inputs + space.bias + space.outputs, direct) if space.hidden else (space.parameters + 1) // 2
    rows = max(1, _PARTS // (space.outputs * 2**widest))
    out = torch.zeros(2**space.n, dtype=torch.float64, device=device)
    for some in zip(x.split(rows), y.split(rows), share.split(rows), strict=True):
        _add_shallow(out, cost, *some)
    return out


def _add_shallow(out: Tensor, cost: Cost, x: Tensor, y: Tensor, share: Tensor) -> None:
    """Add the costs on some rows to a table.

    Enumerates networks with at most one hidden layer: ``z = A[state] + B[state]``, and every code names one state of each part.

    Without hidden layers A and B are linear in half of the bits each. With one, A is the sum over hidden units, enumerated by multisets,
    and B is what adds to the logits directly: the output bias and the connections past the hidden layer.
    """
    space, device = cost.space, x.device
    for tail in range(2 ** (space.n - space.parameters)):
        setting = bits_of(torch.tensor([tail], device=device), space.n)
        direct = _direct_features(space, setting, x)
        low, high = space.chosen(space.alphabet, setting)
        if space.hidden:
            a_codes, a_states, a_sums = _unit_sums(space, setting, _connected(space, setting, x), low, high)
            b_codes, b = _linear(space, direct, low, high)
        else:
            half = (len(direct) + 1) // 2
            a_codes, a = _linear(space, direct[:half], low, high)
            b_codes, b = _linear(space, direct[half:], low, high)
            a_states, a_sums = torch.arange(len(a), device=device), lambda some, a=a: a[some]
        rows = int(a_states.max()) + 1
        step = max(1, _CHUNK // b.numel())
        blocks = [cost.loss(a_sums(some).unsqueeze(1) + b, y) @ share for some in torch.arange(rows, device=device).split(step)]
        out[(a_codes.unsqueeze(1) + b_codes + tail).flatten()] += torch.cat(blocks)[a_states].flatten()


def _connected(space: BinaryMLP, setting: Tensor, x: Tensor) -> Tensor:
    return x.index_fill(1, torch.tensor(space.switched_off(setting), dtype=torch.long, device=x.device), 0)


def _direct_features(space: BinaryMLP, setting: Tensor, x: Tensor) -> list[tuple[int, Tensor]]:
    """Return (parameter, feature ``[N, outputs]``) of every bit whose value adds to the logits in proportion to its feature."""
    unit = torch.eye(space.outputs, dtype=x.dtype, device=x.device)
    connected, out = _connected(space, setting, x), []
    names = [(f"W{len(space.hidden) + 1}", True)] if not space.hidden else []
    if space.skip is not None:
        names.append(("Wskip", bool(int(space.code_of(space.skip.name, setting)))))
    for name, on in names:
        start = space.fields[name][0].start
        for i, k in itertools.product(range(space.inputs), range(space.outputs)):
            out.append((start + i * space.outputs + k, connected[:, i : i + 1] * unit[k] * on))
    if space.bias:
        start = space.fields[f"b{len(space.hidden) + 1}"][0].start
        out += [(start + k, unit[k].expand(len(x), -1)) for k in range(space.outputs)]
    return out


def _linear(space: BinaryMLP, features: list[tuple[int, Tensor]], low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the codes ``[2^m]`` and logits ``[2^m, N, outputs]`` of every setting of ``m`` direct bits."""
    m, device = len(features), features[0][1].device if features else torch.device("cpu")
    if m == 0:
        return torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, space.outputs, dtype=torch.float64)
    bits = bits_of(torch.arange(2**m, device=device), m).double()
    places = torch.tensor([2 ** (space.n - 1 - p) for p, _ in features], device=device)
    stacked = torch.stack([feature for _, feature in features])
    return (bits.long() * places).sum(1), torch.tensordot(low + (high - low) * bits, stacked, 1)


def _unit_sums(space: BinaryMLP, setting: Tensor, x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Return, for every setting of the bits of the hidden units, its code and its multiset of states; and multisets -> summed logits."""
    device, (widest,), (width,) = x.device, space.widths, space.hidden
    used = space.chosen(width, setting)
    u = space.inputs + int(space.bias) + space.outputs
    bits = bits_of(torch.arange(2**u, device=device), u)
    value = low + (high - low) * bits.double()
    a = value[:, : space.inputs] @ x.T
    a = a + value[:, space.inputs, None] if space.bias else a
    activation = space.chosen(space.activation, setting)
    each = activation(a).unsqueeze(-1) * value[:, None, u - space.outputs :]

    first, second = space.fields["W1"][0].start, space.fields["W2"][0].start
    codes, states = torch.zeros(1, dtype=torch.long, device=device), torch.zeros(1, 0, dtype=torch.long, device=device)
    for unit in range(widest):
        places = [first + i * widest + unit for i in range(space.inputs)]
        places += [space.fields["b1"][0].start + unit] if space.bias else []
        places += [second + unit * space.outputs + k for k in range(space.outputs)]
        mine = (bits.long() * torch.tensor([2 ** (space.n - 1 - p) for p in places], device=device)).sum(1)
        codes = (codes.unsqueeze(1) + mine).flatten()
        every = torch.arange(2**u, device=device)
        states = torch.cat((states.repeat_interleave(2**u, 0), every.repeat(len(states)).unsqueeze(1)), 1)
    radix = (2**u) ** torch.arange(used - 1, -1, -1, device=device)
    sets = torch.combinations(torch.arange(2**u, device=device), used, with_replacement=True)
    keys = (sets * radix).sum(1)
    index = torch.searchsorted(keys, (states[:, :used].sort(1).values * radix).sum(1))
    return codes, index, lambda some: each[sets[some]].sum(1)
