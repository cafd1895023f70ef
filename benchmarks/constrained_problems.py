"""Black boxes over sequences for `constrained.py`: transcription-factor binding (measured), folding energies of RNA, and a closed-form Ehrlich function.

An Ehrlich function (Stanton et al., *Closed-form test functions for biophysical sequence design*, 2024) scores a sequence by motifs: motif ``i`` with elements ``a_1..a_k``
and offsets ``s_1..s_k`` is present to the degree ``q_i``, the largest share of its elements found at ``l + s_j`` over all places ``l``, rounded down to a multiple
of ``1/quantization``; the value is ``prod_i q_i``, at most 1. Sequences with a forbidden pair of neighbours are infeasible.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass
class Problem:
    """Sequences of ``letters`` at ``length`` places; ``value(tokens [n, length]) -> [n]`` is maximised and NaN where infeasible."""

    name: str
    length: int
    letters: int
    value: Callable[[Tensor], Tensor]
    rows: Tensor
    y: Tensor


def tf_bind_8(file: Path) -> tuple[Tensor, Tensor]:
    """All 65 536 sequences of eight bases and their normalised binding to SIX6: tokens ``[65536, 8]``, ``y`` in [0, 1]. Row ``i`` is ``i`` in base 4."""
    complement, found = str.maketrans("ACGT", "TGCA"), {}
    with gzip.open(file, "rt") as text:
        for line in text.read().splitlines()[1:]:
            name, _, score, *_ = line.split("\t")
            found[name] = found[name.translate(complement)[::-1]] = float(score)
    names = sorted(found)
    y = torch.tensor([found[name] for name in names], dtype=torch.float64)
    return torch.tensor([["ACGT".index(c) for c in name] for name in names]), (y - y.min()) / (y.max() - y.min())


def code(tokens: Tensor, letters: int) -> Tensor:
    """Number of a sequence in base ``letters``."""
    return (tokens * letters ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(1)


def rna(rows: int, length: int, seed: int) -> Problem:
    """Stable folds of RNA that can be made: minus the folding energy in kcal/mol; GC content of 40 to 60 %, no base four times in a row."""
    import RNA

    rng = np.random.default_rng(seed)

    def feasible(tokens: np.ndarray) -> np.ndarray:
        share = np.isin(tokens, (1, 2)).mean(1)
        same = (tokens[:, 1:] == tokens[:, :-1]).astype(int)
        run = (same[:, 2:] + same[:, 1:-1] + same[:, :-2]).max(1) < 3
        return (share >= 0.4) & (share <= 0.6) & run

    def value(tokens: Tensor) -> Tensor:
        array = tokens.numpy()
        good = feasible(array)
        found = np.full(len(array), np.nan)
        for i in good.nonzero()[0]:
            found[i] = -RNA.fold("".join("ACGU"[c] for c in array[i]))[1]
        return torch.from_numpy(found)

    draws = rng.integers(0, 4, size=(20 * rows, length))
    x = torch.from_numpy(draws[feasible(draws)][:rows])
    return Problem("RNA", length, 4, value, x, value(x))


def ehrlich(rows: int, length: int, letters: int, motifs: int, size: int, seed: int) -> Problem:
    """An Ehrlich function with a quantization of ``size``; its maximum is 1, and a sequence that reaches it is built in, so that it is known to exist."""
    rng = np.random.default_rng(seed)
    while True:
        forbidden = np.zeros((letters, letters), dtype=bool)
        for a in range(letters):
            forbidden[a, rng.choice([b for b in range(letters) if b != a], size=max(1, letters // 4), replace=False)] = True
        elements = [rng.choice(letters, size=size, replace=False) for _ in range(motifs)]
        room = length // motifs
        offsets = [np.concatenate([[0], np.sort(rng.choice(np.arange(1, room), size=size - 1, replace=False))]) for _ in range(motifs)]
        best = _optimum(elements, offsets, room, length, forbidden)
        if best is not None:
            break

    def feasible(tokens: np.ndarray) -> np.ndarray:
        return ~forbidden[tokens[:, :-1], tokens[:, 1:]].any(1)

    def value(tokens: Tensor) -> Tensor:
        array = tokens.numpy()
        total = np.ones(len(array))
        for one, spacing in zip(elements, offsets, strict=True):
            places = np.arange(length - spacing[-1])
            hits = np.stack([array[:, places + s] == e for e, s in zip(one, spacing, strict=True)]).mean(0)
            total *= hits.max(1)
        return torch.from_numpy(np.where(feasible(array), total, np.nan))

    assert value(torch.from_numpy(best[None])).item() == 1.0
    chains = [rng.integers(0, letters, size=4 * rows)]
    for _ in range(length - 1):  # a random walk along allowed pairs
        allowed = (~forbidden[chains[-1]]).astype(float)
        chains.append((allowed.cumsum(1) / allowed.sum(1, keepdims=True) > rng.random((len(allowed), 1))).argmax(1))
    x = torch.from_numpy(np.unique(np.stack(chains, 1), axis=0))
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:rows]]
    return Problem("Ehrlich", length, letters, value, x, value(x))


def _optimum(elements: list[np.ndarray], offsets: list[np.ndarray], room: int, length: int, forbidden: np.ndarray) -> np.ndarray | None:
    """A feasible sequence that holds every motif, by dynamic programming over the free places; None when there is none."""
    fixed = np.full(length, -1)
    for k, (one, spacing) in enumerate(zip(elements, offsets, strict=True)):
        fixed[k * room + spacing] = one
    letters = len(forbidden)
    reach, back = np.zeros((length, letters), dtype=bool), np.zeros((length, letters), dtype=int)
    for place in range(length):
        for letter in range(letters) if fixed[place] < 0 else [fixed[place]]:
            if place == 0:
                reach[0, letter] = True
            else:
                before = (reach[place - 1] & ~forbidden[:, letter]).nonzero()[0]
                if len(before):
                    reach[place, letter], back[place, letter] = True, before[0]
    if not reach[-1].any():
        return None
    sequence = [int(reach[-1].argmax())]
    for place in range(length - 1, 0, -1):
        sequence.append(int(back[place, sequence[-1]]))
    return np.array(sequence[::-1])
