"""SMILES as sequences of atom tokens, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

PAD, BOS, EOS, PREFIX, SUFFIX, MIDDLE = range(6)
"""Numbers of the control tokens: padding, begin and end of a molecule, and what stands before prefix, suffix and middle of a filled gap."""

CONTROL = ("<pad>", "<bos>", "<eos>", "<prefix>", "<suffix>", "<middle>")
_ORGANIC = ("C", "c", "N", "n", "O", "o", "S", "s", "F", "Cl", "Br", "I", "P")
_BRACKETS = (
    "[C@@H]", "[C@H]", "[C@]", "[C@@]", "[CH-]", "[CH2-]", "[NH+]", "[NH2+]", "[NH3+]", "[N+]", "[N-]", "[NH-]", "[nH]", "[nH+]", "[n+]", "[n-]",
    "[O-]", "[O+]", "[OH+]", "[o+]", "[S@]", "[S@@]", "[S@@+]", "[S-]", "[S+]", "[SH+]", "[s+]", "[P@]", "[P@@]", "[P@@H]", "[PH]", "[PH2]", "[P+]",
    "[PH+]",
)  # fmt: skip
_SIGNS = ("(", ")", "=", "#", "-", "/", "\\", *"123456789")
VOCABULARY = (*CONTROL, *_ORGANIC, *_BRACKETS, *_SIGNS)
"""Tokens by number: the control tokens, then all atoms, bonds, brackets and ring digits of ZINC-250k."""

NUMBER = {token: number for number, token in enumerate(VOCABULARY)}
_TOKEN = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|.", re.DOTALL)


def encode(smiles: str) -> list[int]:
    """Split a SMILES into the numbers of its tokens.

    Raises:
        ValueError: when the SMILES is empty or holds a token that the model has never seen, with the token.

    >>> [VOCABULARY[number] for number in encode("C[C@@H](Cl)Br")]
    ['C', '[C@@H]', '(', 'Cl', ')', 'Br']
    """
    if not smiles:
        raise ValueError("smiles='' is empty, wanted at least one atom.")
    try:
        return [NUMBER[token] for token in _TOKEN.findall(smiles)]
    except KeyError as error:
        raise ValueError(
            f"smiles={smiles[:80]!r} holds {error.args[0]!r}, wanted tokens of popflow.evolve.smiles_tokens.VOCABULARY: the model was trained on "
            "drug-like molecules. Fix: leave the molecule to another operator, or train a model with this token."
        ) from None


def decode(numbers: Iterable[int]) -> str:
    """Join tokens to text; stop at the end of the molecule, leave other control tokens out.

    >>> decode([BOS, *encode("c1ccccc1"), EOS, PAD])
    'c1ccccc1'
    """
    text = []
    for number in numbers:
        if number == EOS:
            break
        if number >= len(CONTROL):
            text.append(VOCABULARY[number])
    return "".join(text)


def rows_of(sequences: list[list[int]]) -> Tensor:
    """Pad sequences of numbers on the right to one tensor ``[n, longest]``.

    >>> rows_of([[1, 2], [3]]).tolist()
    [[1, 2], [3, 0]]
    """
    longest = max(map(len, sequences))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in sequences])
