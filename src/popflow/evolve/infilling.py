"""Mutation and crossover by the small SMILES model: a gap in one molecule is filled anew, or two fragments are linked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rdkit import Chem

from popflow.evolve.molecules import canonical_or_none
from popflow.evolve.operators import Child, Parent
from popflow.evolve.smiles_model import SmilesModel, fill, from_tensors, shipped
from popflow.evolve.smiles_tokens import VOCABULARY, decode, encode
from popflow.evolve.smiles_training import gap_of, rooted, train

_ACYCLIC = Chem.MolFromSmarts("[*]-;!@[*]")
_DIGITS = "123456789"


@dataclass(frozen=True)
class FillGap:
    """Mutation: the parent is written from a random atom, 1 to 15 tokens are taken out, and the model fills the gap.

    Args:
        model: The model; the one that comes with the library unless given.
        temperature: Of the draws, see `popflow.evolve.smiles_model.continued`.
        draws: Gaps filled for a try at most, one after another, until one gives a child.

    Example:
        >>> import numpy as np
        >>> kids = FillGap()([Parent("CC(=O)Nc1ccc(O)cc1", 1.0)], 4, np.random.default_rng(0))
        >>> {kid.operator for kid in kids} <= {"fill gap"}
        True
    """

    model: SmilesModel | None = None
    temperature: float = 1.0
    draws: int = 8
    name: str = "fill gap"

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Try to change ``n`` parents drawn with replacement; a text that is no molecule, or the parent again, is no child."""
        origins = [(parents[k].smiles,) for k in rng.integers(len(parents), size=n)]
        return _children(self, origins, lambda origin: self._gap(origin[0], rng), rng)

    def _gap(self, smiles: str, rng: np.random.Generator) -> tuple[str, str] | None:
        root, length, place = rng.random(3)
        try:
            tokens = encode(rooted(smiles, root))
        except ValueError:  # an element that the model has never seen
            return None
        i, j = gap_of(len(tokens), length, place)
        return decode(tokens[:i]), decode(tokens[j:])


@dataclass(frozen=True)
class LinkFragments:
    """Crossover: a fragment of one parent, then what the model writes as a linker (which may be nothing), then a fragment of another parent.

    Each parent is cut at a random acyclic single bond, and one of the two fragments is kept.

    Args:
        model: The model; the one that comes with the library unless given.
        temperature: Of the draws, see `popflow.evolve.smiles_model.continued`.
        draws: Gaps filled for a try at most, one after another, until one gives a child.
    """

    model: SmilesModel | None = None
    temperature: float = 1.0
    draws: int = 8
    name: str = "link fragments"

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Try to link ``n`` pairs of parents drawn with replacement."""
        origins = [(parents[a].smiles, parents[b].smiles) for a, b in rng.integers(len(parents), size=(n, 2))]
        return _children(self, origins, lambda origin: linked(origin[0], origin[1], rng), rng)


@dataclass(frozen=True)
class LearnFirst:
    """Train the model for a moment on the parents, then let an operator use it: what the best molecules share becomes likelier.

    Every call starts again from the model given, so a resumed run makes the same children as one that was not interrupted.

    Args:
        operator: `FillGap` or `LinkFragments`.
        steps: Steps of training, of 8 rows of tokens each.
        lr: Highest learning rate.

    """

    operator: FillGap | LinkFragments
    steps: int = 20
    lr: float = 5e-4

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Return children of ``parents`` by the model that has learned from them."""
        seed, known = int(rng.integers(2**31)), [parent.smiles for parent in parents if _known(parent.smiles)]
        if not n or not known:
            return []
        model = learned(self.operator.model or shipped(), known, self.steps, self.lr, seed)
        return replace(self.operator, model=model, name=f"learn, {self.operator.name}")(parents, n, rng)


def learned(model: SmilesModel, smiles: Sequence[str], steps: int = 20, lr: float = 5e-4, seed: int = 0) -> SmilesModel:
    """Return a copy of the model after ``steps`` steps of training on some molecules; those with unknown tokens are left out.

    Raises:
        ValueError: when none of them can be written in the model's tokens.
    """
    known = [one for one in smiles if _known(one)]
    if not known:
        raise ValueError("none of the molecules can be written in the tokens of the model, wanted at least one to learn from.")
    fitted = train(model, known, steps=steps, rows=8, lr=lr, seed=seed, warmup=max(1, steps // 5), decay=steps)
    return from_tensors(fitted.params)


def linked(a: str, b: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Cut two molecules and return ``(prefix, suffix)``: between them belongs what links a fragment of ``a`` to one of ``b``; None where nothing can be cut.

    The fragment of ``a`` is written with its cut end as ``*``: what stands before is the prefix. The fragment of ``b`` is written from its cut
    end, with ring digits that are not open there, and what stood behind the ``*`` follows.

    >>> prefix, suffix = linked("CCOc1ccccc1", "NC1CCCCC1", np.random.default_rng(0))
    >>> Chem.MolFromSmiles(prefix + suffix) is not None
    True
    """
    first, second = fragment(a, rng), fragment(b, rng)
    if first is None or second is None:
        return None
    ends = [atom.GetIdx() for atom in first.GetAtoms() if atom.GetAtomicNum() == 0]
    inner = [atom.GetIdx() for atom in first.GetAtoms() if atom.GetAtomicNum() != 0]
    text = Chem.MolToSmiles(first, rootedAtAtom=int(inner[rng.integers(len(inner))]))
    before, _, after = text.partition("*")
    end = next(atom.GetIdx() for atom in second.GetAtoms() if atom.GetAtomicNum() == 0)
    tail = Chem.MolToSmiles(second, rootedAtAtom=end).removeprefix("*")
    if len(ends) != 1 or not (_known(before) and _known(tail) and (not after or _known(after))):
        return None
    open_digits = {digit for digit in _DIGITS if _count(before, digit) % 2}
    tail = _renumbered(tail, [digit for digit in _DIGITS if digit not in open_digits])
    return None if tail is None else (before, tail + after)


def fragment(smiles: str, rng: np.random.Generator) -> Chem.Mol | None:
    """Cut a molecule at a random acyclic single bond and return one side, its cut end a dummy atom; None when it has no such bond."""
    molecule = Chem.MolFromSmiles(smiles)
    bonds = molecule.GetSubstructMatches(_ACYCLIC)
    if not bonds:
        return None
    i, j = bonds[rng.integers(len(bonds))]
    cut = Chem.FragmentOnBonds(molecule, [molecule.GetBondBetweenAtoms(i, j).GetIdx()], dummyLabels=[(0, 0)])
    sides = Chem.GetMolFrags(cut, asMols=True)
    return sides[rng.integers(len(sides))]


def _renumbered(text: str, digits: list[str]) -> str | None:
    """Write the ring digits of a text anew, with the digits given; None when they are too few."""
    tokens = [VOCABULARY[number] for number in encode(text)]
    used = sorted({token for token in tokens if token in _DIGITS})
    if len(used) > len(digits):
        return None
    new = dict(zip(used, digits, strict=False))
    return "".join(new.get(token, token) for token in tokens)


def _count(text: str, digit: str) -> int:
    return sum(VOCABULARY[number] == digit for number in encode(text))


def _known(text: str) -> bool:
    try:
        return bool(encode(text))
    except ValueError:
        return False


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


def _children(
    operator: FillGap | LinkFragments,
    origins: Sequence[tuple[str, ...]],
    gap: Callable[[tuple[str, ...]], tuple[str, str] | None],
    rng: np.random.Generator,
) -> list[Child]:
    """Fill a gap for each origin, then another one where that gave no molecule but a parent or nothing, up to ``operator.draws`` times."""
    model, generator = operator.model or shipped(), _generator(rng)
    found: dict[int, str] = {}
    for _ in range(operator.draws):
        drawn = [(k, one) for k, origin in enumerate(origins) if k not in found and (one := gap(origin)) is not None]
        texts = fill(model, [one for _, one in drawn], generator, temperature=operator.temperature)
        for (k, _), text in zip(drawn, texts, strict=True):
            smiles = canonical_or_none(text)
            if smiles is not None and smiles not in origins[k]:
                found[k] = smiles
    return [Child(found[k], operator.name, origins[k]) for k in sorted(found)]
