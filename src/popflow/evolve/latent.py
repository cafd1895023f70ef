"""Mutation along a gradient in the latent space of the small SMILES model: a parent with a gap is moved towards better molecules, then the gap is filled.

The model reads a molecule with a gap, ``<prefix> p <suffix> s <middle>``, and its state h is what it knows of the parent. What stood in the gap of the
molecules scored so far, m_i, says in which direction a state would have to go to make each of them likelier, and a small linear head learns from their
scores which of these directions are good:

    u_i = d/dh log p(m_i | h),    z_i = w . u_i + noise,    h' = h + strength w / sqrt(mean (w . u)^2)

By ``d/da E[f(m) | h + a] = E[f(m) u]``, the head's w is the gradient of the mean score of children in the latent space, damped by the noise of the fit: with
`strength` 1 the logarithm of the likelihood of a filling changes by one standard deviation. The head is a Gaussian process with a linear kernel on the mean u
of each molecule, its noise chosen by likelihood, its targets normal scores of ranks.

Source: the idea is the latent edit of Liu et al., *Multi-modal molecule structure-text model for text-based retrieval and editing* (MoleculeSTM, 2023), with
scores in place of text; the gradient is that of Williams (1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checks import at_least_one, real
from popflow.evolve.infilling import FillGap, _known
from popflow.evolve.operators import Child, Parent
from popflow.evolve.preranking import likelihood_fit, rank_normal
from popflow.evolve.smiles_model import SmilesModel, from_tensors, shipped
from popflow.evolve.smiles_tokens import MIDDLE, PAD, rows_of
from popflow.evolve.smiles_training import example


@dataclass(frozen=True)
class LatentEdit:
    """Mutation: the hidden representation of a parent with a gap is moved along the gradient of a head that the parents' scores teach, then decoded.

    Every call learns the head anew from the parents, so a resumed run makes the same children as one that was not interrupted. While all parents have one
    score there is nothing to learn, and the gaps are filled as by `FillGap`.

    Args:
        model: The model; the one that comes with the library unless given.
        strength: Length of the move, in standard deviations of the logarithm of the likelihood of a filling.
        gaps: Gaps read in each parent to learn the head.
        temperature: Of the draws, see `popflow.evolve.smiles_model.continued`.
        draws: Gaps filled for a try at most, one after another, until one gives a child.

    Raises:
        ValueError: for a strength that is negative or not finite.

    Example:
        >>> parents = [Parent("CC(=O)Nc1ccc(O)cc1", 1.0), Parent("CCOc1ccccc1", 0.5)]
        >>> {kid.operator for kid in LatentEdit()(parents, 4, np.random.default_rng(0))} <= {"latent"}
        True
    """

    model: SmilesModel | None = None
    strength: float = 2.0
    gaps: int = 4
    temperature: float = 1.0
    draws: int = 8

    def __post_init__(self) -> None:
        at_least_one(gaps=self.gaps, draws=self.draws)
        real(strength=self.strength)
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength={self.strength!r}, wanted a finite number >= 0: 0 fills gaps as the model does by itself.")

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Try to change ``n`` parents drawn with replacement."""
        model = self.model or shipped()
        scores = {one.smiles: one.score for one in parents if _known(one.smiles)}
        if not n or not scores:
            return []
        move = self.strength * direction(model, list(scores), np.array(list(scores.values())), rng, self.gaps)
        return FillGap(moved(model, move), self.temperature, self.draws, "latent")(parents, n, rng)


def direction(model: SmilesModel, smiles: Sequence[str], scores: np.ndarray, rng: np.random.Generator, gaps: int = 4) -> Tensor:
    """Return the direction ``[width]`` in which the state after a gap has been read is to move, of one standard deviation; zero for equal scores.

    Args:
        model: The model.
        smiles: Molecules in the tokens of the model.
        scores: Their scores ``[n]``.
        rng: Draws the gaps.
        gaps: Gaps read in each molecule.
    """
    places = [(k, rng.random(3)) for k in range(len(smiles)) for _ in range(gaps)]
    read = [(k, example(smiles[k], torch.tensor([1.0, *place]))) for k, place in places]
    read = [(k, tokens) for k, tokens in read if MIDDLE in tokens]  # written from another atom, some hold unknown tokens
    owner, u = np.array([k for k, _ in read], dtype=int), latent_gradients(model, [tokens for _, tokens in read]).double().numpy()
    there = np.unique(owner)
    if len(np.unique(scores[there])) < 2:
        return torch.zeros(u.shape[1])
    rows, z = np.array([u[owner == k].mean(0) for k in there]), rank_normal(scores[there])
    kernel = rows @ rows.T
    unit = max(float(kernel.trace()) / len(kernel), 1e-300)
    ratio, _ = likelihood_fit(kernel / unit, z)
    w = rows.T @ np.linalg.solve(kernel / unit + ratio * np.eye(len(z)), z)
    return torch.from_numpy(w / max(float(np.sqrt(((u @ w) ** 2).mean())), 1e-300)).float()


def latent_gradients(model: SmilesModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return ``d/dh log p(m <eos> | h)`` ``[n, width]`` for tokens ``<prefix> p <suffix> s <middle> m <eos>``, h being the state at ``<middle>``."""
    found = torch.zeros(len(sequences), model.recur.hidden_size)
    places: dict[int, list[int]] = {}
    for row, tokens in enumerate(sequences):
        places.setdefault(list(tokens).index(MIDDLE), []).append(row)
    for place, rows in places.items():
        x = rows_of([list(sequences[row]) for row in rows])
        with torch.no_grad():
            before, _ = model.recur(model.embed(x[:, : place + 1]))
        with torch.enable_grad():
            move = torch.zeros(len(rows), found.shape[1], requires_grad=True)
            start = before[:, -1] + move
            after, _ = model.recur(model.embed(x[:, place + 1 : -1]), start[None])
            h = torch.cat([before[:, :-1], start[:, None], after], 1)
            q, k, v = model._heads(h)
            mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril()[place:]
            logits = model._logits(h[:, place:], F.scaled_dot_product_attention(q[:, :, place:], k, v, attn_mask=mask))
            nll = F.cross_entropy(logits.flatten(0, 1), x[:, place + 1 :].flatten(), ignore_index=PAD, reduction="sum")
            found[rows] = -torch.autograd.grad(nll, move)[0]
    return found


def moved(model: SmilesModel, move: Tensor) -> SmilesModel:
    """Return a copy of the model whose state is moved when it has read a molecule with a gap, and goes on from there."""
    copy = from_tensors(model.state_dict())
    copy.recur = _Moved(copy.recur, copy.embed.weight[MIDDLE], move)  # type: ignore[assignment]
    return copy


class _Moved(nn.Module):
    """A recurrent unit, fed one token at a time, whose state is moved where the token is the one given."""

    def __init__(self, recur: nn.Module, token: Tensor, move: Tensor):
        super().__init__()
        self.recur, self.token, self.move = recur, token, move

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, last = self.recur(x, state)
        move = (x == self.token).all(-1)[..., None] * self.move  # [n, 1, width]
        return h + move, last + move.transpose(0, 1)
