"""Training data, loss and training of the small SMILES model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from popflow.core.streams import Streams
from popflow.evolve.smiles_model import SmilesModel
from popflow.evolve.smiles_tokens import BOS, EOS, MIDDLE, PAD, PREFIX, SUFFIX, encode
from popflow.learn import Fit, Progress, fit

LENGTH = 128
"""Tokens in a row of a batch; several molecules share a row."""
MEAN_GAP, LONGEST_GAP = 5.0, 15


def gap_of(length: int, u: float, v: float) -> tuple[int, int]:
    """Draw a gap ``[i, i + k)`` in ``length`` tokens: ``k`` geometric with mean 5, cut at 15 and at ``length - 1``, ``i`` uniform.

    >>> gap_of(20, 0.0, 0.0), gap_of(20, 0.999, 0.999)
    ((0, 1), (5, 20))
    """
    k = 1 + int(math.log1p(-u) / math.log1p(-1 / MEAN_GAP))
    k = max(1, min(k, LONGEST_GAP, length - 1))
    i = int(v * (length - k + 1))
    return i, i + k


def rooted(smiles: str, u: float) -> str:
    """Write a molecule anew from one of its atoms, atom ``int(u n)``: another SMILES of the same molecule.

    >>> rooted("CCO", 0.9)
    'OCC'
    """
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles)
    return Chem.MolToSmiles(molecule, rootedAtAtom=int(u * molecule.GetNumAtoms()))


def example(smiles: str, u: Tensor) -> list[int]:
    """Tokens of one training example from four uniform numbers: half of them a molecule as it is written, half a gap in it, written from another atom.

    From another atom a centre may turn into a token that there is not (``[S@+]`` for ``[S@@+]``): such a molecule stays as it is written.
    """
    kind, root, length, place = u.tolist()
    whole = [BOS, *encode(smiles), EOS]
    if kind < 0.5:
        return whole
    try:
        x = encode(rooted(smiles, root))
    except ValueError:
        return whole
    i, j = gap_of(len(x), length, place)
    return [PREFIX, *x[:i], SUFFIX, *x[j:], MIDDLE, *x[i:j], EOS]


def packed(examples: list[list[int]], rows: int) -> tuple[Tensor, list[list[int]]]:
    """Put examples into ``rows`` rows of `LENGTH` + 1 tokens, the longest that still fits first; return tokens and numbers of examples, and the rest.

    The first channel of the result ``[2, rows, LENGTH + 1]`` holds the tokens, the second which example of its row a token belongs to (0: padding).
    """
    left = sorted(examples, key=len)
    out = torch.zeros(2, rows, LENGTH + 1, dtype=torch.long)
    out[0] = PAD
    for row in range(rows):
        filled = count = 0
        while fitting := [k for k, tokens in enumerate(left) if len(tokens) <= LENGTH + 1 - filled]:
            tokens = left.pop(fitting[-1])
            count += 1
            out[0, row, filled : filled + len(tokens)] = torch.tensor(tokens)
            out[1, row, filled : filled + len(tokens)] = count
            filled += len(tokens)
    return out, left


def batches_of(smiles: Sequence[str], rows: int) -> Callable[[Streams], Tensor]:
    """Batches of packed rows, of molecules drawn with replacement. Nothing is kept between batches: a resumed training draws the same ones."""
    often = LENGTH // 36  # examples a row: a few more are drawn than fit, so that rows are full

    def batches(rng: Streams) -> Tensor:
        n = often * rows + 16
        which = torch.randint(len(smiles), (n,), generator=rng("molecules")).tolist()
        uniform = rng.uniform("examples", (n, 4))
        return packed([example(smiles[int(k)], u) for k, u in zip(which, uniform, strict=True)], rows)[0]

    return batches


def loss_of(model: SmilesModel, low_precision: bool = False) -> Callable[[dict[str, Tensor], Tensor], tuple[Tensor, dict[str, Tensor]]]:
    """Mean negative log-likelihood of a token, in nats, over batches of `packed`."""
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()

    def loss(params: dict[str, Tensor], batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, part = batch.unbind(0)
        mask = (causal & (part[:, :-1, None] == part[:, None, :-1]))[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            logits = torch.func.functional_call(model, params, (x[:, :-1], mask))
        known = (part[:, 1:] == part[:, :-1]) & (part[:, 1:] > 0)
        nll = F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten(), reduction="none").view_as(known)
        return (nll * known).sum() / known.sum(), {"tokens": known.sum().float()}

    return loss


def train(
    model: SmilesModel,
    smiles: Sequence[str],
    *,
    steps: int,
    rows: int = 32,
    lr: float = 2.5e-3,
    seed: int = 0,
    record: Sequence[Callable[[Progress], None]] = (),
    checkpoint: Path | None = None,
    low_precision: bool = False,
    warmup: int = 100,
    decay: int = 600,
    log_every: int = 50,
) -> Fit:
    """Train by maximum likelihood with AdamW.

    The learning rate rises over ``warmup`` steps, stays, and falls to zero over the last ``decay`` ones. A checkpoint from before the fall can be continued
    with any larger number of steps, as if that number had been given at first.
    """
    return fit(
        loss_of(model, low_precision),
        dict(model.named_parameters()),
        batches_of(smiles, rows),
        steps=steps,
        rng=Streams(seed),
        optimizer=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=lambda step: min(1.0, (step + 1) / warmup, (steps - step) / decay),
        clip_norm=1.0,
        record=record,
        log_every=log_every,
        checkpoint=checkpoint,
        compile=False,
        bar=False,
    )
