"""Peers for `constrained.py`: each proposes sequences by calls of one function ``score(tokens [n, length]) -> [n]`` (maximised; NaN where there is no value)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Score = Callable[[Tensor], Tensor]


class Archive:
    """Calls of a score, each sequence once, up to a number of calls; remembers everything."""

    def __init__(self, score: Score, letters: int, calls: float = float("inf")):
        self.score, self.letters, self.calls = score, letters, calls
        self.known: dict[bytes, float] = {}

    @property
    def left(self) -> float:
        """Calls that are left."""
        return self.calls - len(self.known)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the scores; NaN beyond the number of calls."""
        keys = [row.tobytes() for row in tokens.to(torch.int8).numpy()]
        fresh: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in self.known and key not in fresh and len(fresh) < self.left:
                fresh[key] = i
        if fresh:
            values = self.score(tokens[list(fresh.values())]).double()
            self.known.update(zip(fresh, values.tolist(), strict=True))
        return torch.tensor([self.known.get(key, float("nan")) for key in keys], dtype=torch.float64)

    def best(self, n: int) -> Tensor:
        """The best ``n`` sequences called, ``[n, length]``."""
        order = sorted((-value, key) for key, value in self.known.items() if not np.isnan(value))[:n]
        return torch.from_numpy(np.stack([np.frombuffer(key, dtype=np.int8) for _, key in order]).astype(np.int64))


def evolution(archive: Archive, start: Tensor, length: int, rng: torch.Generator, population: int = 256) -> None:
    """A genetic algorithm: tournaments of two, uniform crossover, one mutation a child on average, the best of parents and children survive."""
    pool, value = start[:population], archive(start[:population]).nan_to_num(-torch.inf)
    idle = 0
    while archive.left > 0 and idle < 50:
        before = len(archive.known)
        pairs = torch.randint(len(pool), (2, population, 2), generator=rng)
        winner = torch.where(value[pairs[..., 0]] >= value[pairs[..., 1]], pairs[..., 0], pairs[..., 1])
        mask = torch.rand(population, length, generator=rng) < 0.5
        children = torch.where(mask, pool[winner[0]], pool[winner[1]])
        mutate = torch.rand(population, length, generator=rng) < 1 / length
        children = torch.where(mutate, torch.randint(archive.letters, children.shape, generator=rng), children)
        pool = torch.unique(torch.cat([pool, children]), dim=0)
        value = archive(pool).nan_to_num(-torch.inf)
        keep = value.argsort(descending=True)[:population]
        pool, value = pool[keep], value[keep]
        idle = idle + 1 if len(archive.known) == before else 0


def cma_es(archive: Archive, start: Tensor, length: int, seed: int) -> None:
    """CMA-ES on logits, rounded to the largest; restarted from other rows until the calls are spent."""
    import cma

    k, idle = 0, 0
    while archive.left > 0 and idle < 20:
        before = len(archive.known)
        first = F.one_hot(start[k % len(start)], archive.letters).double().flatten().numpy()
        search = cma.CMAEvolutionStrategy(first, 0.5, {"seed": seed * 1000 + k + 1, "verbose": -9, "popsize": 64, "maxiter": 60})
        while not search.stop() and archive.left > 0:
            asked = search.ask()
            tokens = torch.from_numpy(np.stack(asked)).unflatten(1, (length, archive.letters)).argmax(2)
            search.tell(asked, (-archive(tokens).nan_to_num(-1e3)).tolist())
        idle = idle + 1 if len(archive.known) == before else 0
        k += 1


def gradient_ascent(model: Callable[[Tensor], Tensor], start: Tensor, letters: int, steps: int = 200, lr: float = 0.05) -> Tensor:
    """Adam on relaxed one-hot rows from the best of the data; every row rounded after each step is a proposal: tokens ``[steps * n, length]``."""
    x = F.one_hot(start, letters).float().requires_grad_()
    optimizer, found = torch.optim.Adam([x], lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        (-model(x).sum()).backward()
        optimizer.step()
        found.append(x.detach().argmax(2))
    return torch.cat(found[::-1])


def gaussian_process(rows: Tensor, y: Tensor, pool: Tensor, letters: int, n: int, seed: int) -> Tensor:
    """The ``n`` sequences of a pool with the largest expected improvement under an exact GP (botorch) of 500 rows, the best half among them."""
    from botorch.acquisition import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.manual_seed(seed)
    best = y.argsort(descending=True)[:250]
    chosen = torch.cat([best, torch.randperm(len(y))[:250]])
    x = F.one_hot(rows[chosen], letters).double().flatten(1)
    model = SingleTaskGP(x, y[chosen].double()[:, None], outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 50}})
    acquisition = LogExpectedImprovement(model, best_f=y.max())
    with torch.no_grad():
        value = torch.cat([acquisition(F.one_hot(part, letters).double().flatten(1)[:, None]) for part in pool.split(2048)])
    return pool[value.argsort(descending=True)[:n]]
