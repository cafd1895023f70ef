"""Optimisation inside an unknown feasible set (`DiffOPT`) against closed forms, measured optima and peers.

Parts: ``mixture`` (a tilted Gaussian mixture, exact scores), ``branin`` (a learned prior on an ellipse), ``tfbind`` (TF-Bind-8 from its lower half, all values known),
``rna`` and ``ehrlich`` (black boxes with hidden constraints, equal calls), ``pareto`` (fronts with hidden constraints), ``cost`` (seconds, workers). Settings of ``tfbind``
were chosen inside the lower half: trained on its own lower half, judged on the rest of it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from constrained_peers import Archive, cma_es, evolution, gaussian_process, gradient_ascent
from constrained_problems import Problem, code, data_folder, ehrlich, rna, tf_bind_8
from harness import Row, run
from torch import Tensor
from torch.nn import functional as F

from popflow.compose.constrained import Constraint, DiffOPT, Prior, corrected, guided, tempered
from popflow.compose.constrained.candidates import Effort, explore
from popflow.compose.constrained.closed_forms import MINIMA, branin, branin_rows, ellipse, three_modes
from popflow.compose.constrained.objective import Objective
from popflow.compose.constrained.pareto import front, hypervolume, simplex_weights
from popflow.core import Population, Streams

PARTS = ("mixture", "branin", "tfbind", "rna", "ehrlich", "pareto", "cost")
PROPOSED = 256


def main(options: argparse.Namespace) -> list[Row]:
    """Optimise inside an unknown feasible set, against closed forms and peers."""
    torch.set_num_threads(1)
    parts: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "mixture": mixture, "branin": branin_part, "tfbind": tfbind, "rna": rna_part, "ehrlich": ehrlich_part, "pareto": pareto, "cost": cost,
    }  # fmt: skip
    return [row for name in options.only for row in parts[name](options)]


def mixture(options: argparse.Namespace) -> list[Row]:
    """The closed form at several beta: errors of the exact route, of guidance alone, and of guidance with Langevin steps."""
    known, n = three_modes(), 400 if options.quick else 4000
    steps = 10 if options.quick else 80
    rows = []
    for beta in (0.0, 4.0) if options.quick else (0.0, 1.0, 4.0, 16.0):
        found: dict[str, list[tuple[float, float, float]]] = {"exact": [], "guided": [], "langevin": []}
        begin = time.perf_counter()
        for seed in range(options.seeds):
            data = known.draw(4000, Streams(100 + seed))
            prior = Prior.of(known.expert(), data, rng=Streams(seed))

            def slope(x: Tensor, sigma: float = 0.0, beta: float = beta) -> Tensor:
                return beta * (x - known.centre)

            def potential(x: Tensor, beta: float = beta) -> Tensor:
                return beta * known.h(x).double()

            start = prior.draw(n, Streams(seed), 2 * steps)
            found["exact"].append(_errors(known, beta, tempered(prior, potential, start, rng=Streams(10 + seed), steps=steps).population))
            x = guided(prior, slope, n, rng=Streams(seed), steps=4 * steps)
            found["guided"].append(_errors(known, beta, Population.of(x)))
            found["langevin"].append(_errors(known, beta, corrected(prior, slope, potential, x, rng=Streams(20 + seed), steps=2 * steps)))
        seconds = time.perf_counter() - begin
        median = {name: [statistics.median(one[k] for one in each) for k in range(3)] for name, each in found.items()}
        for k, (what, target) in enumerate((("mean", 0.05), ("covariance", 0.10), ("weights of the modes", 0.03))):
            peers: dict[str, float | str] = {"guidance alone": median["guided"][k], "guidance, then Langevin": median["langevin"][k]}
            each = [one[k] for one in found["exact"]]
            notes = {"particles": n, "reverse steps": steps, "seeds": options.seeds, "largest": max(each)}
            rows.append(
                Row(f"tilted mixture, beta {beta:g}: error of the {what}", median["exact"][k], _spread(each), "", target, "<=", peers, seconds, notes)
            )
    return rows


def _errors(known, beta: float, pop: Population) -> tuple[float, float, float]:
    weights, x = pop.weights().double(), pop.x.double()
    mean, covariance, modes = known.truth(beta)
    away = x - weights @ x
    return (
        float((weights @ x - mean).abs().max()),
        float(((weights[:, None] * away).T @ away - covariance).abs().max()),
        float((known.modes(beta, x, weights) - modes).abs().max()),
    )


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def branin_part(options: argparse.Namespace) -> list[Row]:
    """Branin's function, data in the rotated ellipse; the objective is given, its feasible set is not."""
    data, beta = branin_rows(), 60.0
    names = ("inside the ellipse inflated by 5 %", "median value", "farthest of the two feasible minima", "near the third, infeasible minimum")
    kept: dict[str, list[list[float]]] = {"exact": [], "guided": [], "langevin": []}
    other, begin = [], time.perf_counter()
    for seed in range(1 if options.quick else min(options.seeds, 3)):
        size: dict = {"steps": 30, "width": 32, "particles": 64, "reverse_steps": 8} if options.quick else {"steps": 2000, "width": 128, "particles": 1000}
        for route in kept:
            model = DiffOPT(beta, route=route, objective=branin, differentiable=True, maximize=False, random_state=seed, **size)
            if route == "exact":
                fitted = model.fit(data.numpy(), branin(data).numpy())
            else:  # the same prior
                model = fitted.set_params(route=route)
                model.found_ = None
            kept[route].append(_branin_figures(torch.from_numpy(model.draw(64 if options.quick else 500).rows)))
        known = Constraint(is_feasible=lambda rows: rows[:, 1] <= 1.5 * rows[:, 0] + 7.5)
        fitted.set_params(route="exact", constraints=[known])
        fitted.found_ = None
        rows = torch.from_numpy(fitted.draw(64 if options.quick else 500).rows)
        other.append(float((torch.cdist(rows, MINIMA)[:, 1] < 1).double().mean()))
    seconds = time.perf_counter() - begin
    median = {route: [statistics.median(one[k] for one in each) for k in range(4)] for route, each in kept.items()}
    made = []
    for k, (name, target, direction) in enumerate(zip(names, (0.95, 2.0, 0.3, 0.01), (">=", "<=", "<=", "<="), strict=True)):
        peers: dict[str, float | str] = {"guidance alone": median["guided"][k], "guidance, then Langevin": median["langevin"][k]}
        each = [one[k] for one in kept["exact"]]
        made.append(Row(f"Branin: {name}", median["exact"][k], _spread(each), "", target, direction, peers, seconds, {"beta": beta}))
    made.append(Row("Branin with a known constraint: share within 1 of (pi, 2.275)", statistics.median(other), _spread(other), "", 0.95, ">=", {}, 0.0))
    return made


def _branin_figures(rows: Tensor) -> list[float]:
    away = torch.cdist(rows.double(), MINIMA)
    return [
        float((ellipse(rows) <= 1.05**2).double().mean()),
        float(branin(rows).median()),
        float(away[:, :2].amin(0).max()),
        float((away[:, 2] < 1).double().mean()),
    ]


def tfbind(options: argparse.Namespace) -> list[Row]:
    """TF-Bind-8 from its lower half: 256 different sequences, judged by the measured values of all 65 536."""
    if not (data_folder() / "chem" / "tfbind8_six6.tsv.gz").exists():
        return [Row("TF-Bind-8: median value of 256 sequences", float("nan"), None, "", None, ">=", {"all": "absent: no data, set POPFLOW_DATA"})]
    tokens, y = tf_bind_8()
    rank = torch.empty(len(y), dtype=torch.float64)
    rank[y.argsort(descending=True)] = torch.arange(len(y), dtype=torch.float64)
    half = y.argsort()[: len(y) // 2]
    if options.quick:
        half = half[::16]
    table: dict[str, list[list[float]]] = {}
    begin = time.perf_counter()
    for seed in range(options.seeds):
        for name, chosen in _tfbind_methods(tokens, half, y[half], seed, options.quick).items():
            if isinstance(chosen, str):
                table.setdefault(name, []).append([chosen])  # type: ignore[list-item]
                continue
            place = torch.unique(code(chosen, 4))
            values = y[place]
            table.setdefault(name, []).append([float(values.median()), float(values.mean()), float(rank[place].mean()), float(1 - values.max()), len(place)])
    seconds = time.perf_counter() - begin
    absent = {name: str(each[0][0]) for name, each in table.items() if isinstance(each[0][0], str)}
    mean = {name: [statistics.fmean(one[k] for one in each) for k in range(5)] for name, each in table.items() if name not in absent}
    made, ours, limit = [], mean["DiffOPT"], mean["enumeration, same surrogate"]
    peers = [name for name in mean if name not in ("DiffOPT", "enumeration, same surrogate", "enumeration, same acquisition")]
    units = ("median value", "mean value", "mean rank", "regret of the best", "different sequences")
    for k, unit in enumerate(units):
        shown: dict[str, float | str] = {name: values[k] for name, values in mean.items() if name != "DiffOPT"} | absent
        best = (min if k in (2, 3) else max)(mean[name][k] for name in peers)
        target = {0: max(best, limit[0] - 0.02), 2: best}.get(k)
        each = [one[k] for one in table["DiffOPT"]]
        made.append(
            Row(f"TF-Bind-8: {unit} of {PROPOSED} sequences", ours[k], _spread(each), "", target, "<=" if k in (2, 3) else ">=", shown, seconds,
                {"seeds": options.seeds, "each seed": each})
        )  # fmt: skip
    return made


def _tfbind_methods(tokens: Tensor, half: Tensor, y: Tensor, seed: int, quick: bool) -> dict[str, Tensor | str]:
    """Sequences that every method proposes, from the same data and the same surrogate; a text for one that is absent."""
    rows, rng = tokens[half], torch.Generator().manual_seed(seed)
    size: dict = {"steps": 20, "width": 16, "particles": 300, "reverse_steps": 3} if quick else TFBIND
    model = DiffOPT(random_state=seed, categorical="all", **size | {"beta": size.get("beta", 8.0)}).fit(rows.numpy(), y.numpy())
    surrogate = model.model_.surrogate

    def encode(x: Tensor) -> Tensor:
        return ((x - 0.25) * (4 / 3**0.5)).flatten(1)

    def relaxed(x: Tensor) -> Tensor:
        return surrogate.standardised(encode(x))[:, 0]

    @torch.no_grad()
    def predicted(tokens: Tensor, kappa: float = 0.0) -> Tensor:
        return surrogate.standardised(encode(F.one_hot(tokens, 4).float()), kappa)[:, 0].double()

    best = rows[y.argsort(descending=True)]
    found: dict[str, Tensor | str] = {"DiffOPT": torch.as_tensor(model.best(PROPOSED).rows)}
    calls = sum(TFBIND_CALLS(model))
    every = predicted(tokens)
    found["enumeration, same surrogate"] = tokens[every.argsort(descending=True)[:PROPOSED]]
    found["enumeration, same acquisition"] = tokens[predicted(tokens, model.kappa).argsort(descending=True)[:PROPOSED]]
    ascent = gradient_ascent(relaxed, best[:PROPOSED], 4, steps=20 if quick else 200)
    found["gradient ascent"] = _different(ascent[:PROPOSED], ascent, PROPOSED)
    codes = encode(F.one_hot(ascent[:PROPOSED], 4).float())
    edited = torch.as_tensor(model.schema_.decode(model.model_.prior.renoise(codes, 0.5, 30, Streams(seed))))
    found["gradient ascent, one noise-denoise edit"] = torch.unique(edited, dim=0)
    archive = Archive(predicted, 4, calls)
    evolution(archive, best, 8, rng)
    found["evolution on the surrogate"] = archive.best(PROPOSED)
    archive = Archive(predicted, 4, calls)
    found["CMA-ES on the surrogate (cma)"] = _peer(lambda: (cma_es(archive, best, 8, seed), archive.best(PROPOSED))[1])
    found["GP, expected improvement (botorch)"] = _peer(lambda: gaussian_process(rows, y, tokens, 4, PROPOSED, seed))
    found["random"] = tokens[torch.randperm(len(tokens), generator=rng)[:PROPOSED]]
    found["best of the data"] = best[:PROPOSED]
    return found


TFBIND = {"steps": 3000, "width": 256, "members": 4, "particles": 2048, "moves": 2, "reverse_steps": 16, "beta": 8.0, "kappa": 1.0}
"""Chosen inside the lower half."""


def TFBIND_CALLS(model: DiffOPT) -> list[int]:
    """Calls of the surrogate by each temperature, the start included."""
    levels = model.explore().levels
    return [model.particles] + [model.particles * (max(8, 2 * model.moves) if one.fraction == 1 else model.moves) for one in levels]


def _different(first: Tensor, rest: Tensor, n: int) -> Tensor:
    """The first rows, then later ones, without repetition."""
    seen = dict.fromkeys(tuple(row) for row in torch.cat([first, rest]).tolist())
    return torch.tensor(list(seen)[:n])


def _peer(call: Callable[[], Tensor]) -> Tensor | str:
    try:
        return call()
    except ImportError as error:
        return f"absent: {error}"


if __name__ == "__main__":
    run("constrained", main, seeds=5, parts=PARTS)
