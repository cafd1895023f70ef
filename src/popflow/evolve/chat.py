"""Children by conversation: a chat model is shown two scored molecules and asked for better ones.

The wording and the parser are our own. Whatever a model writes, nothing but molecules leaves this file: canonical SMILES that RDKit made from the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from popflow.evolve.chat_client import ChatClient, Reply
from popflow.evolve.molecules import canonical_or_none, parse
from popflow.evolve.operators import Child, Operator, Parent

LONGEST_TEXT = 60_000
"""Characters of a reply that are looked at."""
LONGEST_SMILES = 300
CANDIDATES = 60
LEAST_ATOMS = 6
"""Heavy atoms of a molecule found in running text, where "CO", "In" and "I" are words; fewer will do where the model says that it is a molecule."""

SYSTEM = (
    "You are a medicinal chemist who designs molecules. You answer with one JSON object and nothing else. "
    "Every molecule is a valid SMILES of one neutral or charged compound without salts."
)
ASKED = (
    "{about}\nTwo molecules and their scores:\n{parents}\n"
    "Propose {n} new {molecules} that should score higher than both. Combine parts of the two, change them, or use what you know of chemistry; "
    "do not repeat them, and make the proposals differ.\n"
    'Answer with JSON of this form: {{"reason": "one sentence", "molecules": [{form}]}}'
)
BLIND = "A hidden function scores molecules; higher is better, and you are not told what it measures."


@dataclass(frozen=True)
class Objective:
    """What a model is told of the objective.

    A named target may be one that the model has read about, so a good score may be memory instead of search. Blinded, the model sees scores alone; give
    both figures where a named one is reported.

    Attributes:
        name: What is to be maximised, in words: ``"inhibition of the kinase JNK3"``.
        reveal: Tell the model. The default tells it nothing.
    """

    name: str = ""
    reveal: bool = False

    def __str__(self) -> str:
        return f"Molecules are scored for {self.name}; higher is better." if self.reveal and self.name else BLIND


def messages(parents: Sequence[Parent], n: int, objective: Objective) -> list[dict[str, str]]:
    """Return the messages that ask for ``n`` children of scored molecules.

    >>> talk = messages([Parent("CCO", 0.25), Parent("CCN", 0.5)], 2, Objective("inhibition of JNK3"))
    >>> "JNK3" in talk[1]["content"], "CCO  0.25" in talk[1]["content"]
    (False, True)
    """
    lines = "\n".join(f"{parent.smiles}  {parent.score:.4g}" for parent in parents)
    form = ", ".join(['"SMILES"'] * n)
    asked = ASKED.format(about=objective, parents=lines, n=n, molecules="molecule" if n == 1 else "molecules", form=form)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_BOX = re.compile(r"\\box(?:ed)?\{([^{}\n]{1,300})\}")
_TAG = re.compile(r"<(?:molecule|smiles|mol)>([^<>\n]{1,300})</", re.IGNORECASE)
_FENCE = re.compile(r"```[ \t]*(?:smiles|text)?[ \t]*\n([^`]{1,4000})```", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9@+\-\[\]()=#/\\%.:]{2,400}")


def molecules_in(text: str, most: int) -> list[str]:
    """Return at most ``most`` different molecules of a reply, canonical, those that the model marked as its answer first.

    Looked at in this order: the list "molecules" of a JSON object, tags and boxes, fenced blocks, and any word of at least `LEAST_ATOMS` heavy
    atoms that RDKit can read. Thoughts (``<think>``) are left out.

    >>> molecules_in('Sure! {"reason": "polar", "molecules": ["OCC", "C1CC"]}', 2)
    ['CCO']
    >>> molecules_in("I would try c1ccccc1CCO, In CO.", 2)
    ['OCCc1ccccc1']
    """
    text = _THOUGHT.sub(" ", text[:LONGEST_TEXT])
    found: dict[str, None] = {}
    for number, (candidate, marked) in enumerate(_candidates(text)):
        if len(found) >= most or number >= CANDIDATES:
            break
        smiles = canonical_or_none(candidate) if len(candidate) <= LONGEST_SMILES else None
        if smiles is not None and (marked or parse(smiles).GetNumHeavyAtoms() >= LEAST_ATOMS):
            found.setdefault(smiles)
    return list(found)


def _candidates(text: str) -> Iterator[tuple[str, bool]]:
    """Texts that may be molecules, and whether the model marked them."""
    for pattern in (_BOX, _TAG):
        for match in pattern.finditer(text):
            yield match[1].strip(), True
    for listed in _json_lists(text):
        for one in listed:
            if isinstance(one, str):
                yield one.strip(), True
    for match in _FENCE.finditer(text):
        for line in match[1].splitlines():
            if line.strip():
                yield line.split()[0], True
    for match in _WORD.finditer(text):
        yield match[0].strip(".:-"), False


def _json_lists(text: str) -> Iterator[list[object]]:
    """The list "molecules" of every JSON object in a text, or a list around its entry "molecule" or "smiles"."""
    decoder, start, tried = json.JSONDecoder(), text.find("{"), 0
    while start >= 0 and tried < CANDIDATES:
        tried += 1
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        for name in ("molecules", "molecule", "smiles"):
            value = found.get(name)
            if isinstance(value, list):
                yield value
            elif isinstance(value, str):
                yield [value]
        start = text.find("{", end)


@dataclass
class ChildCounts:
    """What the replies came to: molecules taken, replies without any, and children that the fallback had to make."""

    children: int = 0
    empty: int = 0
    asked_of_fallback: int = 0
    by_fallback: int = 0

    def completed(
        self, kids: list[Child], n: int, fallback: Operator | None, parents: Sequence[Parent], rng: np.random.Generator
    ) -> list[Child]:
        """Count children, and let the fallback (if there is one) make what is missing of ``n``."""
        self.children += len(kids)
        missing = n - len(kids)
        if not missing or fallback is None:
            return kids
        made = fallback(parents, missing, rng)
        self.asked_of_fallback += missing
        self.by_fallback += len(made)
        return [*kids, *made]


@dataclass
class AskChat:
    """Crossover by a chat model: for every question two parents, several children a reply; what it fails to give, the fallback makes.

    Attributes:
        client: Whom to ask.
        fallback: Makes the children that replies did not bring: an operator such as graph crossover. None: they are missing.
        objective: What the model is told.
        children: Molecules asked for at once: two cost little more than one.
        counts: What the replies came to so far; what the questions cost is in ``client.counts``.
    """

    client: ChatClient
    fallback: Operator | None = None
    objective: Objective = field(default_factory=Objective)
    children: int = 2
    name: str = "chat"
    counts: ChildCounts = field(default_factory=ChildCounts)

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Ask for ``n`` children in ``ceil(n / children)`` questions."""
        questions = -(-n // self.children)
        pairs = [[parents[k] for k in row] for row in rng.integers(len(parents), size=(questions, 2))]
        draws = rng.integers(2**53, size=questions).tolist()
        wanted = [min(self.children, n - k * self.children) for k in range(questions)]
        asked = [(messages(pair, count, self.objective), draw) for pair, count, draw in zip(pairs, wanted, draws, strict=True)]
        kids: dict[str, Child] = {}
        for pair, count, reply in zip(pairs, wanted, self.client.round(asked), strict=True):
            for smiles in self._read(pair, count, reply):
                kids.setdefault(smiles, Child(smiles, self.name, tuple(parent.smiles for parent in pair)))
        return self.counts.completed(list(kids.values()), n, self.fallback, parents, rng)

    def _read(self, pair: Sequence[Parent], count: int, reply: Reply) -> list[str]:
        if reply.text is None:
            return []
        known = {parent.smiles for parent in pair}
        found = [smiles for smiles in molecules_in(reply.text, count + len(known)) if smiles not in known][:count]
        self.counts.empty += not found
        return found
