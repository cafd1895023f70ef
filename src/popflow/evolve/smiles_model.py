"""A small model of SMILES: it writes molecules from nothing, or fills a gap between a prefix and a suffix.

A gated recurrent unit reads the tokens, and one attention layer over its past states looks up what a single state forgets: open rings, and the
suffix that a gap has to meet,

    h_t = GRU(e(x_t), h_(t-1)),    y_t = h_t + O softmax(q_t K_t^T / sqrt d) V_t,    p(x_(t+1) | x_(<=t)) = softmax(R y_t),

with queries, keys and values linear in h. A molecule is ``<bos> SMILES <eos>``; a gap to be filled is ``<prefix> p <suffix> s <middle> m <eos>``
for the SMILES ``p m s`` (Bavarian et al., Efficient training of language models to fill in the middle, arXiv 2207.14255).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checkpoint import load_tensors
from popflow.evolve.smiles_tokens import BOS, EOS, MIDDLE, PAD, PREFIX, SUFFIX, VOCABULARY, decode, encode

DATA = Path(__file__).parent / "data"
HEADS = 2
State = tuple[Tensor, Tensor, Tensor]
"""What a step needs from those before: state [1, n, width], keys and values [n, heads, t, d]."""


class SmilesModel(nn.Module):
    """``p(x) = prod_t p(x_t | x_<t)`` over the tokens of a SMILES.

    Args:
        width: Size of the recurrent state.
        embedding: Size of the embedding of a token.
        attention: Joint size of the keys of both heads.
    """

    def __init__(self, width: int = 512, embedding: int = 128, attention: int = 128):
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), embedding)
        self.recur = nn.GRU(embedding, width, batch_first=True)
        self.attend = nn.Linear(width, 3 * attention, bias=False)
        self.collect = nn.Linear(attention, width, bias=False)
        self.read = nn.Linear(width, len(VOCABULARY))
        nn.init.zeros_(self.collect.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[n, t, vocabulary]`` of the token after each position; ``mask`` [n, 1, t, t] says which positions may be looked at."""
        h, _ = self.recur(self.embed(tokens))
        q, k, v = self._heads(h)
        return self._logits(h, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def step(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits ``[n, vocabulary]`` of the token after ``tokens`` [n], and the state to go on from."""
        h, last = self.recur(self.embed(tokens)[:, None], None if state is None else state[0])
        q, k, v = self._heads(h)
        if state is not None:
            k, v = torch.cat([state[1], k], 2), torch.cat([state[2], v], 2)
        return self._logits(h, F.scaled_dot_product_attention(q, k, v))[:, 0], (last, k, v)

    def _heads(self, h: Tensor) -> Tensor:
        n, t, _ = h.shape
        return self.attend(h).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)

    def _logits(self, h: Tensor, looked_up: Tensor) -> Tensor:
        return self.read(h + self.collect(looked_up.transpose(1, 2).flatten(2)))


