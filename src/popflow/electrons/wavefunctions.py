r"""Antisymmetric wave functions of electrons: PsiFormer, and a small Slater-Jastrow. Each is written once, for values and for forward Laplacians.

    log|psi(x)| = log| sum_k det_k [ phi^k_o(r_i; all r) Omega^k_o(r_i) ] | + J(x)

- Features of electron ``i`` at centre ``A``: ``log(1 + r)`` and ``a / (1 + r)``, ``a = r_i - R_A``; smooth ones (``log(1 + r^2)``, ``a / (1 + r^2)``) in a trap.
- Envelope: ``Omega_o = sum_A pi_oA exp(-sigma_oA r_iA)``, Gaussian in a trap; its parameters are those of a spin channel, never of an electron.
- Electron-electron cusps: ``J = sum_{i<j} -c a^2 / (a + r_ij)``, whose slope at 0 is ``c = 1/(d+1)`` for equal and ``1/(d-1)`` for opposite spins.

Sources: von Glehn, Spencer, Pfau, *A self-attention ansatz for ab-initio quantum chemistry*, ICLR 2023 (arXiv 2211.13672); Pfau et al., *Ab initio solution
of the many-electron Schroedinger equation with deep neural networks*, Phys. Rev. Research 2, 033429 (2020); Kato, Commun. Pure Appl. Math. 10, 151 (1957).
"""

# Operations take tensors or jets and give back the same kind, which the checker cannot follow through isinstance.
# pyright: reportReturnType=false, reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from popflow.core.checks import at_least_one
from popflow.core.streams import Streams
from popflow.electrons import forward_laplacian as fl
from popflow.electrons.forward_laplacian import Jet, Quantity


@runtime_checkable
class System(Protocol):
    """Electrons in a potential: a `Molecule` or a `Trap`."""

    @property
    def up(self) -> int:
        """Electrons with spin up."""
        ...

    @property
    def down(self) -> int:
        """Electrons with spin down."""
        ...

    @property
    def electrons(self) -> int:
        """Number of electrons."""
        ...

    @property
    def dim(self) -> int:
        """Dimension of space."""
        ...

    @property
    def centres(self) -> Tensor:
        """Nuclei, or the middle of a trap: ``[A, d]``."""
        ...

    @property
    def charges(self) -> tuple[int, ...]:
        """Charges of the centres."""
        ...

    @property
    def smooth(self) -> bool:
        """Whether the potential is finite at the centres."""
        ...

    @property
    def formula(self) -> str:
        """Its name."""
        ...

    def potential(self, x: Tensor) -> Tensor:
        """``[B, N, d] -> [B]``, in Hartree."""
        ...

    def start(self, like: Tensor, noise: Tensor) -> Tensor:
        """Positions to start from: ``[B, N, d]``."""
        ...


class WaveFunction(nn.Module, ABC):
    """``log|psi|`` of electrons. A subclass says in `evaluate` how it is computed, from `popflow.electrons.forward_laplacian` operations.

    Called with positions ``[B, N, d]`` it gives ``log|psi| [B]``.
    """

    @abstractmethod
    def evaluate(self, x: Quantity) -> tuple[Tensor, Quantity]:
        """Sign ``[B]`` and ``log|psi|`` of ``[B, N, d]``, or its jet from the local jet of the positions."""

    def forward(self, x: Tensor) -> Tensor:
        """``log|psi|``: ``[B, N, d] -> [B]``."""
        return self.evaluate(x)[1]

    def sign(self, x: Tensor) -> Tensor:
        """Sign of ``psi``: ``[B, N, d] -> [B]``."""
        return self.evaluate(x)[0]

    def forward_laplacian(self, x: Tensor) -> Jet:
        """``log|psi|`` with its gradient ``[B, N d]`` and its Laplacian, in one pass."""
        return self.evaluate(fl.seed(x))[1]


class Features(nn.Module):
    """What an electron knows of itself: its place seen from every centre, and its spin."""

    def __init__(self, system: System):
        super().__init__()
        self.smooth = system.smooth
        self.register_buffer("centres", system.centres)
        spins = torch.tensor([1.0] * system.up + [-1.0] * system.down, dtype=torch.float64)
        self.register_buffer("spins", spins[:, None])
        self.size = len(system.centres) * (system.dim + 1) + 1

    centres: Tensor
    spins: Tensor

    def forward(self, x: Quantity) -> tuple[Quantity, Quantity]:
        """Features ``[B, N, size]`` and distances from the centres ``[B, N, A]`` (squared in a trap)."""
        seen = (x if isinstance(x, Tensor) else x.value).shape
        if seen[1:] != (len(self.spins), self.centres.shape[1]):
            raise ValueError(
                f"x has the shape {tuple(seen)}, wanted (walkers, {len(self.spins)}, {self.centres.shape[1]}): the electrons and dimensions of the "
                "system that the wave function was made for."
            )
        a, r = fl.displacements(x, self.centres)
        if self.smooth:
            r = fl.total(a * a, -1)  # smooth at the centre too, where r is not
        b = len(a) if isinstance(a, Tensor) else len(a.parts)
        n = self.spins.shape[0]
        inverse = fl.reciprocal(r, 1.0)
        direction = a * fl.shaped(inverse, n, -1, 1)
        flat = fl.shaped(direction, n, self.centres.numel())
        spins = self.spins.expand(b, -1, -1)
        if isinstance(flat, Jet):
            zeros = torch.zeros_like(spins)
            spin = Jet.of(spins, zeros.unsqueeze(1).expand(-1, self.centres.shape[1], -1, -1), zeros)
            return fl.join(fl.log1p(r), flat, spin), r
        return fl.join(fl.log1p(r), flat, spins), r


class Envelope(nn.Module):
    """``sum_A pi_oA exp(-|sigma_oA| r_A)``: decay of the orbitals of one spin channel, which no step can turn into growth."""

    def __init__(self, centres: int, orbitals: int, decay: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(orbitals, centres))
        self.decay = nn.Parameter(torch.full((orbitals, centres), decay))

    def forward(self, r: Quantity) -> Quantity:
        """``[B, n, A] -> [B, n, orbitals]``."""
        n, count = (r.shape if isinstance(r, Tensor) else r.value.shape)[1:]
        each = fl.exp(fl.scale(fl.shaped(r, n, 1, count), -self.decay.abs()))
        return fl.total(fl.scale(each, self.weight), -1)


class Jastrow(nn.Module):
    """Electron-electron cusps: ``sum_{i<j} -c a^2 / (a + r_ij)``, with one length ``a = |length|`` for equal and one for opposite spins."""

    def __init__(self, system: System):
        super().__init__()
        n = system.electrons
        i, j = torch.triu_indices(n, n, 1)
        self.register_buffer("pairs", torch.stack([i, j]))
        same = (i < system.up) == (j < system.up)
        opposite = 1 / (system.dim - 1) if system.dim > 1 else 0.5
        repel = float(getattr(system, "interacting", True))  # without repulsion there is no cusp
        self.register_buffer("slopes", repel * torch.where(same, 1 / (system.dim + 1), opposite).double())
        self.register_buffer("kinds", same.long())
        self.length = nn.Parameter(torch.ones(2))

    pairs: Tensor
    slopes: Tensor
    kinds: Tensor

    def forward(self, x: Quantity) -> Quantity:
        """``[B, N, d] -> [B]``."""
        a = self.length.abs()[self.kinds]  # a pole at r = -a otherwise
        return fl.pair_sum(x, self.pairs, lambda r: fl.scale(fl.reciprocal(r, a), -self.slopes * a * a))


class PsiFormer(WaveFunction):
    """Attention among electrons, then sums of determinants of all electrons.

    Args:
        system: Electrons and centres.
        width: Width of the network; a multiple of ``heads``.
        layers: Attention layers.
        heads: Attention heads.
        determinants: Number of determinants.
        rng: Initial weights, stream ``layers``.
        dtype: float32 or float64.

    Raises:
        ValueError: for a width that heads do not divide.
        TypeError: for another dtype: Laplacians are differences of large terms.

    Example:
        >>> from popflow.electrons.molecule import Molecule
        >>> psi = PsiFormer(Molecule.of("Li"), width=8, layers=1, heads=2, determinants=2, dtype=torch.float64)
        >>> x = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> swapped = x[:, [1, 0, 2]]  # two electrons of equal spin
        >>> bool((psi.sign(x) == -psi.sign(swapped)).all()), bool(torch.allclose(psi(x), psi(swapped)))
        (True, True)
        >>> jet = psi.forward_laplacian(x)
        >>> jet.jacobian.shape, jet.laplacian.shape
        (torch.Size([5, 9]), torch.Size([5]))
    """

    def __init__(
        self,
        system: System,
        *,
        width: int = 32,
        layers: int = 2,
        heads: int = 4,
        determinants: int = 4,
        rng: Streams | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        at_least_one(width=width, layers=layers, heads=heads, determinants=determinants)
        if width % heads:
            raise ValueError(f"width={width} is no multiple of heads={heads}: give width={math.ceil(width / heads) * heads}.")
        self.heads, self.counts, self.determinants = heads, [n for n in (system.up, system.down) if n], determinants
        with (rng or Streams(0)).layers():
            self.features, self.jastrow = Features(system), Jastrow(system)
            self.embed = _linear(self.features.size, width)
            self.attention = nn.ModuleList(
                nn.ModuleDict(
                    {"query": _linear(width, width), "key": _linear(width, width), "value": _linear(width, width)}
                    | {"out": _linear(width, width)}
                )
                for _ in range(layers)
            )
            self.mlp = nn.ModuleList(nn.ModuleList((_linear(width, width, 0.1), _linear(width, width, 0.1))) for _ in range(layers))
            self.orbital = nn.ModuleList(_linear(width, determinants * system.electrons) for _ in self.counts)
            decay = 0.5 if system.smooth else 1.0
            self.envelope = nn.ModuleList(Envelope(len(system.centres), determinants * system.electrons, decay) for _ in self.counts)
        _to(self, dtype)

    def extra_repr(self) -> str:
        """Say what the shapes of the parameters do not."""
        return f"heads={self.heads}"

    def orbitals(self, x: Quantity) -> Quantity:
        """``[B, N, d] -> [B, N, determinants, N]``."""
        f, r = self.features(x)
        local, h = True, fl.linear(self.embed, f)
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            q, k, v = (self._split(fl.linear(attention[name], h)) for name in ("query", "key", "value"))
            n = self.features.spins.shape[0]
            mixed = fl.linear(attention["out"], fl.shaped(fl.attend(q, k, v, local=local), n, -1))
            h = (fl.spread(h) if local and isinstance(h, Jet) else h) + mixed
            local = False
            h = h + fl.tanh(fl.linear(mlp[1], fl.tanh(fl.linear(mlp[0], h))))
        parts, first = [], 0
        for n, orbital, envelope in zip(self.counts, self.orbital, self.envelope, strict=True):
            parts.append((fl.linear(orbital, fl.rows(h, first, first + n)), envelope(fl.rows(r, first, first + n))))
            first += n
        whole = fl.times_local(fl.stack_rows([one for one, _ in parts]), fl.stack_rows([other for _, other in parts]))
        return fl.shaped(whole, first, self.determinants, first)

    def evaluate(self, x: Quantity) -> tuple[Tensor, Quantity]:
        """Sign and ``log|psi|``, or its jet."""
        sign, log = fl.log_sum_det(self.orbitals(x))
        return sign, log + self.jastrow(x)

    def _split(self, h: Quantity) -> Quantity:
        return fl.shaped(h, self.features.spins.shape[0], self.heads, -1)


class SlaterJastrow(WaveFunction):
    """Orbitals of one electron each, a determinant for each spin, and the Jastrow factor: a few hundred parameters.

    ``log|psi| = log|det phi_up| + log|det phi_down| + J``; each orbital is a two-layer network of the electron's own features under its envelope.

    Args:
        system: Electrons and centres.
        width: Width of the networks.
        rng: Initial weights, stream ``layers``.
        dtype: float32 or float64.

    Raises:
        TypeError: for another dtype.

    Example:
        >>> from popflow.electrons.traps import quantum_dot
        >>> SlaterJastrow(quantum_dot(), width=4)(torch.ones(1, 2, 2) * torch.tensor([[0.0], [1.0]])).shape
        torch.Size([1])
    """

    def __init__(self, system: System, *, width: int = 16, rng: Streams | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        at_least_one(width=width)
        self.counts = [n for n in (system.up, system.down) if n]
        with (rng or Streams(0)).layers():
            self.features, self.jastrow = Features(system), Jastrow(system)
            self.hidden = nn.ModuleList(_linear(self.features.size, width, 0.1) for _ in self.counts)
            self.orbital = nn.ModuleList(_linear(width, n, 0.1) for n in self.counts)
            decay = 0.5 if system.smooth else 1.0
            self.envelope = nn.ModuleList(Envelope(len(system.centres), n, decay) for n in self.counts)
        _to(self, dtype)

    def evaluate(self, x: Quantity) -> tuple[Tensor, Quantity]:
        """Sign and ``log|psi|``, or its jet."""
        f, r = self.features(x)
        log: Any = self.jastrow(x)
        sign, first, n_all, d = None, 0, sum(self.counts), self.features.centres.shape[1]
        for n, hidden, orbital, envelope in zip(self.counts, self.hidden, self.orbital, self.envelope, strict=True):
            h = fl.linear(orbital, fl.tanh(fl.linear(hidden, fl.rows(f, first, first + n))))
            local = h * envelope(fl.rows(r, first, first + n))
            if isinstance(local, Jet):
                local = fl.spread(local)
            s, part = fl.log_sum_det(fl.shaped(local, n, 1, n))
            sign = s if sign is None else sign * s
            log = log + (fl.padded(part, first * d, (n_all - first - n) * d) if isinstance(part, Jet) else part)
            first += n
        assert sign is not None
        return sign, log


def _linear(inputs: int, outputs: int, bias: float | None = None) -> nn.Linear:
    """Make a layer with weights N(0, 1 / inputs), and biases N(0, bias^2) unless None."""
    layer = nn.Linear(inputs, outputs, bias=bias is not None)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    if bias is not None:
        nn.init.normal_(layer.bias, std=bias)
    return layer


def _to(module: nn.Module, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype={dtype}, wanted torch.float32 or torch.float64: a Laplacian in half precision is noise.")
    module.to(dtype)
