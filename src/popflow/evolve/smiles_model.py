"""A small model of SMILES: it writes molecules from nothing, or fills a gap between a prefix and a suffix.

A gated recurrent unit reads the tokens, and one attention layer over its past states looks up what a single state forgets: open rings, and the
suffix that a gap has to meet,

    h_t = GRU(e(x_t), h_(t-1)),    y_t = h_t + O softmax(q_t K_t^T / sqrt d) V_t,    p(x_(t+1) | x_(<=t)) = softmax(R y_t),

with queries, keys and values linear in h. A molecule is ``<bos> SMILES <eos>``; a gap to be filled is ``<prefix> p <suffix> s <middle> m <eos>``
for the SMILES ``p m s`` (Bavarian et al., Efficient training of language models to fill in the middle, arXiv 2207.14255).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from popflow.core.checkpoint import load_tensors
from popflow.evolve.smiles_tokens import BOS, EOS, MIDDLE, PAD, PREFIX, SUFFIX, VOCABULARY, decode, encode, rows_of

DATA = Path(__file__).parent / "data"
HEADS = 2
_NEVER = [PAD, BOS, PREFIX, SUFFIX, MIDDLE]
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

    def step(self, tokens: Tensor, state: State | None = None, wanted: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits ``[n, vocabulary]`` of the token after ``tokens`` [n], of the ``wanted`` rows alone where given, and the state to go on from."""
        h, last = self.recur(self.embed(tokens)[:, None], None if state is None else state[0])
        q, k, v = self._heads(h)
        if state is not None:
            k, v = torch.cat([state[1], k], 2), torch.cat([state[2], v], 2)
        state = (last, k, v)
        if wanted is not None and not wanted.all():  # what is looked up does not enter the state
            h, q, k, v = h[wanted], q[wanted], k[wanted], v[wanted]
        return self._logits(h, F.scaled_dot_product_attention(q, k, v))[:, 0], state

    def _heads(self, h: Tensor) -> Tensor:
        n, t, _ = h.shape
        return self.attend(h).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)

    def _logits(self, h: Tensor, looked_up: Tensor) -> Tensor:
        return self.read(h + self.collect(looked_up.transpose(1, 2).flatten(2)))


@cache
def shipped() -> SmilesModel:
    """The model that comes with the library, trained on ZINC-250k, in float32; see the [page](../methods/smiles_model.md) for what it was measured to do.

    Raises:
        CheckpointError: when the file of parameters is damaged.
    """
    tensors, _ = load_tensors(DATA / "smiles.safetensors")
    return from_tensors(tensors)


def from_tensors(tensors: dict[str, Tensor]) -> SmilesModel:
    """Make a model of the sizes that its parameters have, from a file of `popflow.core.checkpoint.save_tensors`; it is not to be trained."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first parameters from the global generator
        model = SmilesModel(tensors["read.weight"].shape[1], tensors["embed.weight"].shape[1], tensors["collect.weight"].shape[1])
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def continued(
    model: SmilesModel,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    longest: int = 100,
) -> list[list[int]]:
    """Draw what follows each prompt, up to the end of the molecule, all prompts side by side.

    Prompts of unlike lengths need no padding: a row is fed its prompt while it lasts, and from then on what was drawn.

    Args:
        model: The model.
        prompts: Numbers of tokens, at least one each.
        generator: Source of randomness.
        temperature: Logits are divided by it: 1 draws from the model, less draws its likelier texts.
        longest: Tokens to draw at most; what has not ended by then is returned without `EOS`.

    Returns:
        The tokens drawn, for each prompt.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}, wanted a positive number: 1 draws from the model as it is.")
    if not prompts:
        return []
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    given = rows_of([list(prompt) for prompt in prompts])
    drawn: list[list[int]] = [[] for _ in prompts]
    alive, tokens, state = torch.arange(len(prompts)), given[:, 0], None
    for t in range(1, int(lengths.max()) + longest):
        fed = lengths[alive] > t
        logits, state = model.step(tokens, state, ~fed)
        logits[:, _NEVER] = -math.inf
        new = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0] if len(logits) else tokens[:0]
        tokens = given[alive, min(t, given.shape[1] - 1)]
        tokens[~fed] = new
        for row, number in zip(alive[~fed].tolist(), new.tolist(), strict=True):
            drawn[row].append(number)
        going = fed | ((tokens != EOS) & (t - lengths[alive] + 1 < longest))
        if not going.any():
            break
        if not going.all():  # rows that have ended leave the batch
            alive, tokens = alive[going], tokens[going]
            state = (state[0][:, going], state[1][going], state[2][going])
    return drawn


def sample(model: SmilesModel, n: int, generator: torch.Generator, *, temperature: float = 1.0, batch: int = 512) -> list[str]:
    """Draw ``n`` texts from the model, raw: nothing is checked, repaired or left out.

    >>> len(sample(SmilesModel(8, 4, 4), 3, torch.Generator().manual_seed(0)))
    3
    """
    texts: list[str] = []
    while len(texts) < n:
        rows = continued(model, [[BOS]] * min(batch, n - len(texts)), generator, temperature=temperature)
        texts += [decode(row) for row in rows]
    return texts


def fill(
    model: SmilesModel, gaps: Sequence[tuple[str, str]], generator: torch.Generator, *, temperature: float = 1.0, longest: int = 20
) -> list[str]:
    """Draw what stands between each prefix and suffix; return the whole texts, unchecked.

    Raises:
        ValueError: when a prefix or suffix holds a token that the model has never seen.

    >>> fill(SmilesModel(8, 4, 4), [("CC", "O")], torch.Generator().manual_seed(0))[0].startswith("CC")
    True
    """
    prompts = [[PREFIX, *_tokens(before), SUFFIX, *_tokens(after), MIDDLE] for before, after in gaps]
    middles = continued(model, prompts, generator, temperature=temperature, longest=longest)
    return [before + decode(middle) + after for (before, after), middle in zip(gaps, middles, strict=True)]


@torch.no_grad()
def log_likelihood(model: SmilesModel, smiles: str) -> float:
    """``log p`` of a SMILES as a whole molecule, in nats: of this spelling, which is one of many.

    >>> log_likelihood(SmilesModel(8, 4, 4), "CCO") < 0
    True
    """
    x = torch.tensor([[BOS, *encode(smiles), EOS]])
    t = x.shape[1] - 1
    logits = model(x[:, :-1], torch.ones(1, 1, t, t, dtype=torch.bool).tril())
    return -float(F.cross_entropy(logits[0], x[0, 1:], reduction="sum"))


def _tokens(text: str) -> list[int]:
    return encode(text) if text else []
