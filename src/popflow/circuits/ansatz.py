r"""The quantum hypernetwork's circuit: layers of entangling gates and one-qubit rotations, from ``|0...0>``.

    U(theta) = prod_{d=D..1} [ prod_j R_z(phi_{d,j}) R_y(theta_{d,j}) ] [ entangling gates of layer d ]

Qubit ``j`` is bit ``j`` of the index of a basis state, the least significant first. Angles have the shape ``[*batch, depth, n, 2]``
(``theta, phi``), or ``[*batch, depth, n, 1]`` without the ``R_z``: then every amplitude is real.

Source: Carrasquilla, Hibat-Allah, Inack, Makhzani, Neklyudov, Taylor and Torlai, *Quantum HyperNetworks*, arXiv 2301.08292. Their ``L``
layers are ``depth = 2 L`` here; depth 1 is a product state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from popflow.core import NonFiniteError, Streams
from popflow.core.checks import at_least_one, function, refuse

Pairs = Sequence[tuple[int, int]]
Entangler = Callable[[int, int], Pairs]
"""``entangler(n, layer) -> pairs`` of qubits (control, target) in the order in which their gates act; layers count from 1."""


def brick(n: int, layer: int) -> Pairs:
    """Alternating neighbours, the circuit of the paper: odd layers (1,2)(3,4)..., even layers (0,1)(2,3)...

    >>> brick(5, 1), brick(5, 2)
    ([(1, 2), (3, 4)], [(0, 1), (2, 3)])
    """
    return [(j, j + 1) for j in range(layer % 2, n - 1, 2)]


def linear(n: int, layer: int) -> Pairs:
    """A chain (0,1)(1,2)...(n-2,n-1) in every layer."""
    return [(j, j + 1) for j in range(n - 1)]


def ring(n: int, layer: int) -> Pairs:
    """The chain, closed by (n-1,0)."""
    return [*linear(n, layer), *([(n - 1, 0)] if n > 2 else [])]


def all_to_all(n: int, layer: int) -> Pairs:
    """Every pair, the lower qubit controlling: (0,1)(0,2)...(n-2,n-1)."""
    return [(c, t) for c in range(n) for t in range(c + 1, n)]


@dataclass(frozen=True, slots=True)
class TwoQubitGate:
    """A two-qubit Clifford gate that maps basis states to signed basis states.

    Attributes:
        name: Name in OpenQASM.
        act: ``act(codes, c, t) -> (codes, flips)``: the images of basis states, and 1 where the sign is negative.
        conjugate: ``conjugate(x, z, c, t)`` moves Pauli operators from before the gate to after it, updating their X and Z parts ``[..., n]``
            in place.
    """

    name: str
    act: Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
    conjugate: Callable[[Tensor, Tensor, int, int], None]

    def blocks(self) -> Tensor:
        """Return the gates ``[2, 2, 2]`` on the target when the control is 0 and when it is 1.

        >>> cx.blocks().tolist()
        [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]
        """
        out = torch.zeros(2, 2, 2)
        image, flips = self.act(torch.arange(4), 0, 1)
        for code in range(4):
            out[code % 2, int(image[code]) // 2, code // 2] = 1 - 2 * int(flips[code])
        return out


def _cx(codes: Tensor, c: int, t: int) -> tuple[Tensor, Tensor]:
    return codes ^ (((codes >> c) & 1) << t), torch.zeros_like(codes)


def _cx_paulis(x: Tensor, z: Tensor, c: int, t: int) -> None:
    x[..., t] ^= x[..., c]
    z[..., c] ^= z[..., t]


def _cz(codes: Tensor, c: int, t: int) -> tuple[Tensor, Tensor]:
    return codes, (codes >> c) & (codes >> t) & 1


def _cz_paulis(x: Tensor, z: Tensor, c: int, t: int) -> None:
    z[..., t] ^= x[..., c]
    z[..., c] ^= x[..., t]


cx = TwoQubitGate("cx", _cx, _cx_paulis)
"""``|c, t> -> |c, t xor c>``."""
cz = TwoQubitGate("cz", _cz, _cz_paulis)
"""``|c, t> -> (-1)^(c t) |c, t>``."""


@dataclass(frozen=True, slots=True)
class Ansatz:
    """A circuit family on ``n`` qubits.

    Attributes:
        n: Qubits, one per bit of the network.
        depth: Layers; 1 is a product state, because the entangling gates of layer 1 act on ``|0...0>``.
        entangler: Pairs that a layer entangles.
        gate: `cx` or `cz`.
        phases: Whether ``R_z`` follows ``R_y``. Without it amplitudes are real, which halves memory and is faster.

    Raises:
        ValueError: on a depth below 1, fewer than 2 qubits, or a pair that is not two different qubits of the circuit.

    Example:
        >>> Ansatz(n=3, depth=2).parameters
        12
    """

    n: int
    depth: int
    entangler: Entangler = brick
    gate: TwoQubitGate = cx
    phases: bool = True

    def __post_init__(self) -> None:
        at_least_one(n=self.n, depth=self.depth)
        function("entangler", self.entangler, "popflow.circuits.ring")
        if not isinstance(self.gate, TwoQubitGate):
            raise TypeError(f"gate={self.gate!r}, wanted a two-qubit gate: popflow.circuits.cx or cz.")
        if self.n < 2:
            raise ValueError(f"n={self.n}: the two-qubit gates need at least 2 qubits. Fix: a search space of 2 bits or more.")
        for layer in (1, 2):
            for c, t in self.pairs(layer):
                if not (0 <= c < self.n and 0 <= t < self.n and c != t):
                    raise ValueError(f"entangler: pair ({c}, {t}) in layer {layer}, wanted two different qubits in 0..{self.n - 1}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the angles of one circuit."""
        return self.depth, self.n, 2 if self.phases else 1

    @property
    def parameters(self) -> int:
        """Number of angles."""
        return math.prod(self.shape)

    def pairs(self, layer: int) -> Pairs:
        """Return the pairs of a layer; layers count from 1."""
        return self.entangler(self.n, layer)

    def random(self, restarts: int, rng: Streams, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw angles ``[restarts, depth, n, r]`` uniformly in ``[0, 2 pi)``.

        The angles of a restart depend on neither the dtype nor the number of restarts that follow.
        """
        at_least_one(restarts=restarts)
        return (2 * math.pi * rng.uniform("angles", (restarts, *self.shape))).to(dtype)

    def check(self, angles: Tensor, *, one: bool = False, finite: bool = True) -> None:
        """Check the shape, type and (with ``finite``) values of angles, of one circuit or of any number.

        Raises:
            ValueError: on another shape.
            TypeError: on angles that are not float32 or float64.
            NonFiniteError: on NaN or infinite angles.
        """
        if not isinstance(angles, Tensor) or angles.dtype not in (torch.float32, torch.float64):
            seen = angles.dtype if isinstance(angles, Tensor) else f"a {type(angles).__name__}"
            raise TypeError(f"angles are {seen}, wanted a tensor of float32 or float64. Fix: angles.real, or angles.double().")
        if tuple(angles.shape[-3:]) != self.shape:
            raise ValueError(
                f"angles have shape {tuple(angles.shape)}, wanted [*batch, {', '.join(map(str, self.shape))}] (depth, qubit, angle)."
            )
        if finite:
            refuse((~angles.isfinite()).sum(), partial(_not_finite, angles.numel()))
        if one and angles.ndim != 3:
            raise ValueError(f"angles have shape {tuple(angles.shape)}, wanted one circuit {self.shape}. Fix: pick a restart.")


def _not_finite(total: int, bad: int) -> NonFiniteError:
    return NonFiniteError(f"{bad} of {total} angles are NaN or infinite. Fix: give finite angles.")


def rotations(angles: Tensor) -> Tensor:
    """Return the one-qubit gates ``R_z(phi) R_y(theta)``, ``[*batch, depth, n, 2, 2]``: complex with phases, real without.

    >>> rotations(torch.tensor([[[3.141592653589793]]], dtype=torch.float64)).squeeze().round(decimals=9).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    half = angles / 2
    c, s = half[..., 0].cos(), half[..., 0].sin()
    real = torch.stack((c, -s, s, c), -1).unflatten(-1, (2, 2))
    if angles.shape[-1] == 1:
        return real
    cosine, sine = half[..., 1].cos(), half[..., 1].sin()
    phase = torch.complex(torch.stack((cosine, cosine), -1), torch.stack((-sine, sine), -1))
    return phase.unsqueeze(-1) * real
