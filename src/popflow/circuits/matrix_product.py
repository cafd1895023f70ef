r"""Circuits on any number of qubits as exact matrix product states: bonds grow where gates entangle, and nothing is truncated.

An entangling gate on neighbours doubles the bond between them. In a controlled gate

    gate = sum_{s=0,1} |s><s| (x) G_s        G_0 = 1,  G_1 = X (cx) or Z (cz)

the control passes its value ``s`` through the bond, and the target applies ``G_s``. The `brick` circuit crosses a bond in every second
layer, and its first layer acts on ``|0...0>``. After ``D`` layers the bond between qubits 2k and 2k+1 therefore has dimension
``2^floor(D/2)``, the bond between 2k+1 and 2k+2 ``2^floor((D-1)/2)``, and none is larger than the state space of its smaller side. Time and
memory are linear in n.

Probabilities are exact, samples are independent, and ``log p`` differentiates, which is what score-function training needs.

Source: Carrasquilla et al., *Quantum HyperNetworks*, arXiv 2301.08292, who truncate by singular values; sampling after Ferris and Vidal,
*Perfect sampling with unitary tensor networks*, Phys. Rev. B 85, 165146 (2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.circuits.ansatz import Ansatz, rotations
from popflow.circuits.oracle import Oracle
from popflow.core.checks import at_least_one


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """A state ``psi(s_0 ... s_{n-1}) = A_0[s_0] A_1[s_1] ... A_{n-1}[s_{n-1}]``.

    Attributes:
        tensors: ``[left, 2, right]`` for each qubit, starting with qubit 0.
    """

    tensors: tuple[Tensor, ...]

    @property
    def n(self) -> int:
        """Number of qubits."""
        return len(self.tensors)

    @property
    def bonds(self) -> tuple[int, ...]:
        """Dimensions of the n - 1 bonds."""
        return tuple(tensor.shape[-1] for tensor in self.tensors[:-1])

    def state(self) -> Tensor:
        """Return the state vector ``[2^n]``, for few qubits; qubit j is bit j of the index."""
        psi = self.tensors[0].squeeze(0)
        for tensor in self.tensors[1:]:
            psi = torch.einsum("ib,bsc->sic", psi, tensor).flatten(0, 1)
        return psi.squeeze(-1)

    def log_p(self, bits: Tensor) -> Tensor:
        """Return ``log p(sigma) [S]`` of networks ``[S, n]`` (parameter 0 first, which is qubit n-1); differentiable in the tensors."""
        if bits.ndim != 2 or bits.shape[1] != self.n:
            raise ValueError(f"bits have shape {tuple(bits.shape)}, wanted [S, {self.n}].")
        rows = torch.arange(len(bits), device=bits.device)
        vector, total = None, torch.zeros(len(bits), dtype=self.tensors[0].real.dtype, device=bits.device)
        for tensor, s in zip(self.tensors, bits.flip(-1).long().unbind(-1), strict=True):
            both = tensor.movedim(1, 0) if vector is None else torch.einsum("kb,bsc->skc", vector, tensor)
            vector = both[s, 0 if vector is None else rows]
            norm = vector.abs().square().sum(-1).clamp_min(1e-300 if total.dtype == torch.float64 else 1e-37)
            total, vector = total + norm.log(), vector / norm.sqrt().unsqueeze(-1)
        return total

    def sample(self, shots: int, generator: torch.Generator) -> Tensor:
        """Draw independent networks ``[shots, n]`` (uint8, parameter 0 first), one qubit after another from its exact conditional."""
        at_least_one(shots=shots)
        with torch.no_grad():
            environments, drawn, vector = self.right_environments(), [], None
            rows = torch.arange(shots, device=environments[0].device)
            for tensor, right in zip(self.tensors, environments, strict=True):
                both = tensor.movedim(1, 0).expand(2, shots, -1) if vector is None else torch.einsum("kb,bsc->skc", vector, tensor)
                weight = torch.einsum("skb,bc,skc->ks", both, right, both.conj()).real.double().clamp_min(0)
                u = torch.rand(shots, generator=generator, dtype=torch.float64, device=weight.device)
                s = (u * weight.sum(1) >= weight[:, 0]).long()
                drawn.append(s)
                vector = both[s, rows]
                vector = vector / vector.abs().square().sum(-1, keepdim=True).sqrt()
        return torch.stack(drawn[::-1], 1).to(torch.uint8)

    def right_environments(self) -> list[Tensor]:
        """Return, for every qubit, ``R = sum over the qubits after it of psi psi^dagger`` ``[b, b]`` on the bond to its right."""
        last = self.tensors[-1]
        out = [torch.ones(1, 1, dtype=last.dtype, device=last.device)]
        for tensor in reversed(self.tensors[1:]):
            out.append(torch.einsum("asb,bc,dsc->ad", tensor, out[-1], tensor.conj()))
        return out[::-1]


def matrix_product(ansatz: Ansatz, angles: Tensor) -> MatrixProduct:
    """Return the state of one circuit ``[depth, n, r]`` as a matrix product; differentiable in the angles.

    Raises:
        ValueError: when the entangler couples qubits that are not neighbours (`brick` and `linear` do not).

    Example:
        >>> from popflow.core import Streams
        >>> ansatz = Ansatz(n=100, depth=4)
        >>> state = matrix_product(ansatz, ansatz.random(1, Streams(0), torch.float64)[0])
        >>> state.bonds[:5], state.sample(3, torch.Generator().manual_seed(0)).shape
        ((2, 2, 4, 2, 4), torch.Size([3, 100]))
    """
    ansatz.check(angles, one=True)
    gates = rotations(angles)
    zero = torch.tensor([1.0, 0.0], dtype=gates.dtype, device=gates.device)
    tensors = [zero.reshape(1, 2, 1)] * ansatz.n
    for layer in range(1, ansatz.depth + 1):
        for c, t in ansatz.pairs(layer) if layer > 1 else ():
            if abs(c - t) != 1:
                raise ValueError(
                    f"entangler couples qubits {c} and {t}, wanted neighbours. Fix: brick or linear, or popflow.circuits.born."
                )
            tensors[min(c, t)], tensors[max(c, t)] = _entangle(ansatz, tensors[min(c, t)], tensors[max(c, t)], c < t)
        tensors = [torch.einsum("xs,asb->axb", gate, tensor) for gate, tensor in zip(gates[layer - 1], tensors, strict=True)]
    return MatrixProduct(tuple(_narrow(tensors)))


def _entangle(ansatz: Ansatz, left: Tensor, right: Tensor, control_left: bool) -> tuple[Tensor, Tensor]:
    """Apply a controlled gate on neighbours: the bond between them becomes (old bond, value of the control)."""
    applied = ansatz.gate.blocks().to(left)
    keep = torch.eye(2, dtype=left.dtype, device=left.device)
    if control_left:
        new_left = torch.einsum("asb,sv->asbv", left, keep)
        new_right = torch.einsum("vxs,bsc->bvxc", applied, right)
    else:
        new_left = torch.einsum("vxs,asb->axbv", applied, left)
        new_right = torch.einsum("bsc,sv->bvsc", right, keep)
    return new_left.flatten(-2), new_right.flatten(0, 1)


def _narrow(tensors: list[Tensor]) -> list[Tensor]:
    """Reduce bonds near the ends, exactly, to the state space of their smaller side: end tensors become identities, their content moves in."""
    out = list(tensors)
    for j in range(len(out) - 1):
        a, s, b = out[j].shape
        if a * s >= b:
            break
        out[j + 1] = torch.einsum("ab,bsc->asc", out[j].reshape(a * s, b), out[j + 1])
        out[j] = torch.eye(a * s, dtype=out[j].dtype, device=out[j].device).reshape(a, s, a * s)
    for j in range(len(out) - 1, 0, -1):
        a, s, b = out[j].shape
        if s * b >= a:
            break
        out[j - 1] = torch.einsum("asb,bc->asc", out[j - 1], out[j].reshape(a, s * b))
        out[j] = torch.eye(s * b, dtype=out[j].dtype, device=out[j].device).reshape(s * b, s, b)
    return out


def train_score(
    ansatz: Ansatz,
    oracle: Oracle,
    angles: Tensor,
    *,
    shots: int,
    steps: int,
    lr: float = 0.1,
    temperature: float = 0.0,
    generator: torch.Generator,
) -> Tensor:
    r"""Minimise the free energy of one circuit ``[depth, n, r]`` by score-function gradients, without forming the state vector.

        dF = E[(f - b) d log p],   f = C / spread + T log p,   b = mean of f over the other samples

    The spread is the standard deviation of the cost over the first samples, and the temperature falls linearly to 0. The oracle counts
    ``shots * steps`` calls and keeps the best network.

    Returns:
        The final angles.

    Raises:
        ValueError: on fewer than 2 shots (the baseline is the mean of the other samples), or fewer than 1 step.
    """
    at_least_one(steps=steps)
    if shots < 2:
        raise ValueError(f"shots={shots}: wanted at least 2, the baseline is the mean of the other samples.")
    theta = angles.detach().clone().requires_grad_()
    optimiser, spread = torch.optim.Adam([theta], lr=lr), math.nan
    for step in range(steps):
        state = matrix_product(ansatz, theta)
        bits = state.sample(shots, generator)
        cost = oracle(bits)
        spread = max(float(cost.std()), 1e-12) if step == 0 else spread
        log_p = state.log_p(bits)
        value = (cost / spread).to(log_p.dtype) + temperature * (1 - step / steps) * log_p.detach()
        advantage = (value - value.mean()) * shots / (shots - 1)
        optimiser.zero_grad()
        (advantage * log_p).mean().backward()
        optimiser.step()
    return theta.detach()
