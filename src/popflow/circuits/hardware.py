r"""Training and evaluation as on a quantum computer: shots, parameter-shift gradients, depolarising noise, measured counts.

    dE/dt = 1/2 [E(t + pi/2) - E(t - pi/2)]        (exact, two circuits per angle)

Noise is simulated by quantum trajectories: after every gate, a random Pauli operator with the probability of the channel. Pauli operators
after entangling gates are moved to the end of their layer and multiplied into its rotations, so that a trajectory costs no more than a
noiseless circuit, and a batch of trajectories is a batch of circuits.

Source: Carrasquilla et al., *Quantum HyperNetworks*, arXiv 2301.08292 (noise model: 0.001 after one-qubit and 0.00375 after two-qubit gates).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz, rotations
from popflow.circuits.oracle import Oracle
from popflow.circuits.space import bits_of
from popflow.circuits.statevector import born, born_of_gates, sample
from popflow.core.checks import at_least_one


def parameter_shift(energies: Callable[[Tensor], Tensor], angles: Tensor) -> Tensor:
    """Return the gradient ``[depth, n, r]`` of a circuit's energy from ``2 depth n r`` energies.

    Args:
        energies: Energies ``[K]`` of circuits ``[K, depth, n, r]``, exact or from shots.
        angles: Angles ``[depth, n, r]`` of the circuit.

    Example:
        >>> ansatz, cost = Ansatz(n=2, depth=2), torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
        >>> angles = torch.arange(8, dtype=torch.float64).reshape(2, 2, 2).requires_grad_()
        >>> (born(ansatz, angles) @ cost).backward()
        >>> bool((parameter_shift(lambda t: born(ansatz, t) @ cost, angles.detach()) - angles.grad).abs().max() < 1e-12)
        True
    """
    count = angles.numel()
    shifts = torch.eye(count, dtype=angles.dtype, device=angles.device).reshape(count, *angles.shape) * (math.pi / 2)
    both = energies(torch.cat((angles + shifts, angles - shifts)))
    return ((both[:count] - both[count:]) / 2).reshape(angles.shape)


def sampled_energies(ansatz: Ansatz, angles: Tensor, oracle: Oracle, shots: int, generator: torch.Generator) -> Tensor:
    """Return the mean cost ``[K]`` of ``shots`` measurements of each circuit ``[K, depth, n, r]``; every measurement is a call of the oracle."""
    with torch.no_grad():
        codes = torch.cat([sample(born(ansatz, some), shots, generator) for some in angles.split(max(1, 2**20 >> ansatz.n))])
    return oracle(bits_of(codes.flatten(), ansatz.n)).reshape(codes.shape).mean(-1)


def train_shots(
    ansatz: Ansatz, oracle: Oracle, angles: Tensor, *, shots: int, steps: int, lr: float = 0.1, generator: torch.Generator
) -> Tensor:
    """Minimise the energy of one circuit ``[depth, n, r]`` as on a quantum computer: Adam, with parameter shifts of measured energies.

    The oracle counts ``2 * parameters * shots * steps`` calls and keeps the best network measured.

    Returns:
        The final angles.
    """
    at_least_one(steps=steps)
    theta = angles.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=lr)
    for _ in range(steps):
        theta.grad = parameter_shift(lambda t: sampled_energies(ansatz, t, oracle, shots, generator).to(t.dtype), theta.detach())
        optimiser.step()
    return theta.detach()


@dataclass(frozen=True, slots=True)
class Depolarising:
    """Probabilities of a random non-identity Pauli operator after each one-qubit and each two-qubit gate.

    The defaults are the paper's at scale 1.

    Example:
        >>> Depolarising().scaled(2.0)
        Depolarising(one=0.002, two=0.0075)
    """

    one: float = 0.001
    two: float = 0.00375

    def __post_init__(self) -> None:
        for name, value in (("one", self.one), ("two", self.two)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: wanted a probability in [0, 1].")

    def scaled(self, factor: float) -> Depolarising:
        """Return both probabilities times a factor."""
        return Depolarising(self.one * factor, self.two * factor)


def noisy_born(ansatz: Ansatz, angles: Tensor, noise: Depolarising, trajectories: int, generator: torch.Generator) -> Tensor:
    """Return the Born distributions ``[trajectories, 2^n]`` of one circuit ``[depth, n, r]`` under sampled noise.

    Their mean estimates the diagonal of the noisy density matrix. Without noise every row is that of `born`.
    """
    at_least_one(trajectories=trajectories)
    ansatz.check(angles, one=True)
    shape, device = (trajectories, ansatz.depth, ansatz.n), angles.device
    x, z = torch.zeros(2, *shape, dtype=torch.long, device=device)

    def draw(probability: float, qubits: int, *size: int) -> Tensor:
        """Draw one of the ``4^qubits - 1`` non-identity Pauli operators with this probability, else 0; base-4 digits are ``x + 2 z``."""
        hit = torch.rand(trajectories, *size, generator=generator, device=device) < probability
        return hit * torch.randint(1, 4**qubits, hit.shape, generator=generator, device=device)

    for layer in range(1, ansatz.depth + 1):
        for c, t in ansatz.pairs(layer):
            ansatz.gate.conjugate(x[:, layer - 1], z[:, layer - 1], c, t)
            code = draw(noise.two, 2)
            for qubit, digit in ((c, code % 4), (t, code // 4)):
                x[:, layer - 1, qubit] ^= digit % 2
                z[:, layer - 1, qubit] ^= digit // 2
    parts = [rotations(angles[..., :1])]
    if ansatz.phases:
        parts.append(rotations(torch.stack((torch.zeros_like(angles[..., 1]), angles[..., 1]), -1)))
    paulis = _paulis(parts[-1].dtype, device)
    gates = paulis[x + 2 * z]
    for part in parts:
        gates = paulis[draw(noise.one, 1, ansatz.depth, ansatz.n)] @ (part.to(gates.dtype) @ gates)
    return born_of_gates(ansatz, gates)


def _paulis(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``Z^z X^x`` at index ``x + 2 z``: the Pauli operators up to a phase, which are real."""
    one, flip = torch.eye(2, dtype=dtype, device=device), torch.eye(2, dtype=dtype, device=device).flip(0)
    sign = torch.diag(torch.tensor([1, -1], dtype=dtype, device=device))
    return torch.stack((one, flip, sign, sign @ flip))


@dataclass(frozen=True, slots=True)
class CountsSummary:
    """Mean cost of a shot with its standard error, the best network seen and its cost, and the number of shots."""

    mean: float
    error: float
    bits: str
    cost: float
    shots: int


def evaluate_counts(oracle: Oracle, counts: Mapping[str, int], *, qubit_zero_first: bool = False) -> CountsSummary:
    """Evaluate counts of bit strings measured on hardware.

    Args:
        oracle: Cost of networks.
        counts: Shots by bit string, ``{"0110...": 37}``. With qubit 0 rightmost, as Qiskit prints it, a string is a network, parameter 0 first.
        qubit_zero_first: Read strings in reverse, for programs that print qubit 0 first (PennyLane, Cirq).

    Raises:
        ValueError: on strings of another length or with other characters, negative counts, or no shots.
    """
    n = oracle.n
    for key, count in counts.items():
        if len(key) != n or set(key) - {"0", "1"}:
            good = [k for k in counts if len(k) == n and not set(k) - {"0", "1"}]
            close = difflib.get_close_matches(key, good, n=1, cutoff=0)
            like = f", such as {close[0]!r}" if close else ""
            raise ValueError(
                f"counts: the key {key!r} has {len(key)} characters, wanted {n} of 0 and 1{like}. Fix: strip spaces and registers."
            )
        if count < 0 or int(count) != count:
            raise ValueError(f"counts[{key!r}]={count}: wanted an integer number of shots, at least 0.")
    shots = sum(counts.values())
    if shots < 1:
        raise ValueError(f"counts hold {shots} shots in {len(counts)} keys, wanted at least 1.")
    keys = [key[::-1] if qubit_zero_first else key for key in counts]
    costs = oracle(torch.tensor([[int(c) for c in key] for key in keys], dtype=torch.uint8))
    weight = torch.tensor([counts[key] for key in counts], dtype=torch.float64) / shots
    mean = float(weight @ costs)
    variance = float(weight @ (costs - mean).square())
    seen = torch.where(weight > 0, costs, torch.inf)
    best = int(seen.argmin())
    return CountsSummary(mean, math.sqrt(variance / shots), keys[best], float(costs[best]), shots)
