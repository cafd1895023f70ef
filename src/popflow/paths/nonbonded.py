r"""Nonbonded terms: Coulomb and Lennard-Jones over all pairs, and OBC2 implicit solvent, with their forces by hand.

    pairs      E = sum_{i<j} 138.935 q_i q_j / r + 4 eps ((sigma/r)^12 - (sigma/r)^6)
    OBC2       I_i = sum_j H(r_ij; o_i, s_j),   psi = I_i o_i,   1/B_i = 1/o_i - tanh(psi - 0.8 psi^2 + 4.85 psi^3)/rho_i
               E = -138.935 (1/eps_in - 1/eps_out) (sum_{i<j} q_i q_j / f_ij + sum_i q_i^2 / (2 B_i)) + 28.39 sum_i (rho_i + 0.14)^2 (rho_i/B_i)^6
               f_ij^2 = r^2 + B_i B_j exp(-r^2/(4 B_i B_j))

Positions are ``[N, 3, batch]``. Pairs are the full square ``[N, N, batch]``: twice the arithmetic of the triangle, and no gathering and scattering,
which cost more. Excluded pairs have coefficients of zero; exceptions have their own.

Source: Onufriev, Bashford and Case, Proteins 55 (2004) 383.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SURFACE = 28.3919551
"""4 pi times 2.25936 kJ/mol/nm^2, the surface term's constant."""
PROBE = 0.14
"""Radius of a water molecule in nm."""


def differences(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Components of ``x_i - x_j``, three of ``[N, N, batch]``, and squared distances with ones on the diagonal."""
    d = [x[:, None, k] - x[None, :, k] for k in range(3)]
    square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    return d, square + torch.eye(len(x), dtype=x.dtype, device=x.device)[..., None]


class Pairs(nn.Module):
    """Coulomb and Lennard-Jones: ``coulomb`` q_i q_j in kJ/mol nm, ``c6`` = 4 eps sigma^6 and ``c12`` = 4 eps sigma^12, all ``[N, N]``, symmetric."""

    coulomb: Tensor
    c6: Tensor
    c12: Tensor

    def __init__(self, coulomb: Tensor, c6: Tensor, c12: Tensor):
        super().__init__()
        for name, value in (("coulomb", coulomb), ("c6", c6), ("c12", c12)):
            self.register_buffer(name, value[..., None])

    def energy(self, d: list[Tensor], square: Tensor) -> Tensor:
        """Energy ``[batch]`` in kJ/mol."""
        inverse = 1 / square
        sixth = inverse * inverse * inverse
        return (self.coulomb * inverse.sqrt() + (self.c12 * sixth - self.c6) * sixth).sum((0, 1)) / 2

    def strength(self, d: list[Tensor], square: Tensor) -> Tensor:
        """Return ``s_ij`` with ``dE/dx_i = -sum_j s_ij (x_i - x_j)``: ``s = -E'(r)/r``."""
        inverse = 1 / square
        sixth = inverse * inverse * inverse
        return (self.coulomb * inverse.sqrt() + (12 * self.c12 * sixth - 6 * self.c6) * sixth) * inverse


class OBC2(nn.Module):
    """Generalised Born solvent of Onufriev, Bashford and Case, second set of parameters.

    Args:
        charges: Charges ``[N]`` in e.
        offset_radii: Radii less the offset ``[N]`` in nm.
        scaled_radii: Radii less the offset, scaled for descreening ``[N]`` in nm.
        coulomb: Coulomb's constant times ``1/eps_in - 1/eps_out``, in kJ/mol nm.
        offset: The offset, in nm.
    """

    charges: Tensor
    inner: Tensor
    scaled: Tensor
    products: Tensor

    def __init__(self, charges: Tensor, offset_radii: Tensor, scaled_radii: Tensor, coulomb: float, offset: float = 0.009):
        super().__init__()
        self.register_buffer("charges", charges)
        self.register_buffer("inner", offset_radii)
        self.register_buffer("scaled", scaled_radii)
        self.register_buffer("products", (coulomb * charges[:, None] * charges[None, :])[..., None])
        self.offset = offset

    def _descreening(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Pair terms ``H(r_ij; o_i, s_j)`` and their slopes ``H'/r``, both ``[N, N, batch]`` with zero diagonals."""
        o, s = self.inner[:, None, None], self.scaled[None, :, None]
        r = square.sqrt()
        apart = ~torch.eye(len(o), dtype=torch.bool, device=o.device)[..., None]
        seen = apart & (r + s > o)
        upper, lower = 1 / (r + s), 1 / torch.maximum(o, (r - s).abs())
        gap = upper.square() - lower.square()
        ratio = torch.log(upper / lower)  # log L/U
        ratio_r, s_r = ratio / r, s * s / r
        value = 0.5 * (lower - upper + 0.25 * (r - s_r) * gap + 0.5 * ratio_r)
        # what depends on r through U, and through L while r > s, cancels; an atom inside another's sphere leaves 2 / L^2
        slope = 0.5 * (0.25 * (1 + s_r / r) * gap - 0.5 * ratio_r / r + torch.where(s - r > o, 2 * lower.square(), 0.0))
        nothing = torch.zeros((), dtype=r.dtype, device=r.device)
        return torch.where(seen, value, nothing), torch.where(seen, slope / r, nothing)

    def _radii(self, integral: Tensor) -> tuple[Tensor, Tensor]:
        """Born radii ``[N, batch]`` and their slopes ``dB/dI``."""
        o = self.inner[:, None]
        rho = o + self.offset
        psi = integral * o
        bent = torch.tanh(psi * (1 - psi * (0.8 - 4.85 * psi)))
        born = 1 / (1 / o - bent / rho)
        return born, born.square() * (1 - bent.square()) * (1 - psi * (1.6 - 14.55 * psi)) * o / rho

    def _interaction(self, square: Tensor, born: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``1/f_ij``, ``exp(-r^2/(4 B_i B_j))`` and ``r^2/(4 B_i B_j)`` of all pairs, those of an atom with itself included."""
        itself = torch.eye(len(born), dtype=born.dtype, device=born.device)[..., None]
        both = born[:, None] * born[None, :]
        scaled = (square - itself) / (4 * both)
        decay = torch.exp(-scaled)
        return 1 / (square - itself + both * decay).sqrt(), decay, scaled

    def energy(self, d: list[Tensor], square: Tensor) -> Tensor:
        """Energy ``[batch]`` in kJ/mol."""
        born, _ = self._radii(self._descreening(square)[0].sum(1))
        inverse, _, _ = self._interaction(square, born)
        rho = (self.inner + self.offset)[:, None]
        return -0.5 * (self.products * inverse).sum((0, 1)) + SURFACE * ((rho + PROBE).square() * (rho / born) ** 6).sum(0)

    def strength(self, d: list[Tensor], square: Tensor) -> Tensor:
        """Return ``s_ij`` with ``dE/dx_i = -sum_j s_ij (x_i - x_j)``: the pairs' own part, and what moves through the Born radii."""
        terms, slopes = self._descreening(square)
        born, by_integral = self._radii(terms.sum(1))
        inverse, decay, scaled = self._interaction(square, born)
        cubed = self.products * inverse * inverse * inverse
        rho = (self.inner + self.offset)[:, None]
        # dE/dB_i = sum_j q_i q_j / (2 f^3) decay (1 + r^2/(4 B_i B_j)) B_j - 6 surface_i / B_i
        by_born = (
            0.5 * (cubed * decay * (1 + scaled) * born[None, :]).sum(1) - 6 * SURFACE * (rho + PROBE).square() * (rho / born) ** 6 / born
        )
        moved = (by_born * by_integral)[:, None] * slopes
        return -cubed * (1 - 0.25 * decay) - (moved + moved.transpose(0, 1))
