"""Products of controlled gates: signed permutations of the basis states (monomial matrices with entries plus and minus one)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.circuits.ansatz import Pairs, TwoQubitGate


@dataclass(frozen=True, slots=True)
class SignedPermutation:
    """A matrix that maps every basis state to a signed basis state, ``|j> -> sign[j] |image[j]>``.

    Attributes:
        image: ``[2^n]``, None for the identity permutation.
        source: The inverse of ``image``, None likewise.
        sign: ``[2^n]`` of 1 and -1, None where all are 1.
    """

    image: Tensor | None
    source: Tensor | None
    sign: Tensor | None

    @staticmethod
    def of(qubits: int, pairs: Pairs, gate: TwoQubitGate, device: torch.device) -> SignedPermutation:
        """Return the product of a gate on several pairs, the first pair acting first."""
        codes = torch.arange(2**qubits, device=device)
        image, flips = codes, torch.zeros_like(codes)
        for c, t in pairs:
            image, flip = gate.act(image, c, t)
            flips = flips ^ flip
        source = torch.empty_like(image)
        source[image] = codes
        moves = bool((image != codes).any())
        return SignedPermutation(
            image.int() if moves else None, source.int() if moves else None, (1 - 2 * flips).to(torch.int8) if bool(flips.any()) else None
        )

    def __call__(self, psi: Tensor, out: Tensor | None = None) -> Tensor:
        """Apply to states ``[batch, 2^n]``."""
        psi = psi if self.sign is None else torch.mul(psi, self.sign, out=None if self.source is not None else out)
        return psi if self.source is None else torch.index_select(psi, 1, self.source, out=out)

    def inverse(self, psi: Tensor, out: Tensor | None = None) -> Tensor:
        """Apply the inverse, which is the transpose."""
        psi = psi if self.image is None else torch.index_select(psi, 1, self.image, out=out)
        return psi if self.sign is None else torch.mul(psi, self.sign, out=out)

    def before(self, matrix: Tensor) -> Tensor:
        """Return ``matrix @ self``, a signed permutation of the columns."""
        matrix = matrix if self.image is None else matrix.index_select(-1, self.image)
        return matrix if self.sign is None else matrix * self.sign
