"""The job of ``popflow search``: every cost, then circuits of several depths and classical searches on the same costs."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from torch import Tensor

from popflow.circuits import search
from popflow.circuits.ansatz import Ansatz, all_to_all, brick, cx, cz, linear, ring
from popflow.circuits.config import SearchConfig
from popflow.circuits.cost import Cost, cross_entropy, squared_error, truth
from popflow.circuits.data import Dataset, digits, gaussians, mnist
from popflow.circuits.export import qasm3
from popflow.circuits.hypernetwork import Trained, energy, evaluate, free_energy, success, tail_mean, train_adam, train_lbfgs
from popflow.circuits.oracle import Oracle
from popflow.circuits.report import SearchResult, report
from popflow.circuits.space import ACTIVATIONS, BinaryMLP, Choice
from popflow.core import Streams
from popflow.core.checkpoint import write_atomic
from popflow.runs import Report, Run, once

COMFORTABLE = 18  # bits of a network up to which digits keep their resolution
DATA_SETS = {"digits": digits, "gaussians": gaussians, "mnist": mnist}
LOSSES = {"cross-entropy": cross_entropy, "squared": squared_error}
ENTANGLERS = {"brick": brick, "linear": linear, "ring": ring, "all": all_to_all}
GATES = {"cx": cx, "cz": cz}
OBJECTIVES = {"energy": energy, "tail": tail_mean(0.1), "free-energy": free_energy(lambda progress: 0.1 * (1 - progress))}
SEARCHES = {
    "restarted local search": search.local_search,
    "simulated annealing": search.annealing,
    "genetic": search.genetic,
    "REINFORCE, product distribution": search.reinforce,
    "random": search.random_search,
}


def run(config: SearchConfig, run: Run) -> Report:
    """Train circuits whose measurement is a binary network; compare with the exact optimum and with classical search."""
    cost, data = task(config)
    run.log(f"{data.name}, {cost.space.n} bits")
    table = once(run, "table", lambda: {"cost": cost.table(run.device).cpu()})["cost"]
    trained = {depth: train(config, run, table, depth) for depth in sorted({*config.curve, config.depth})}
    result = SearchResult(config, cost, data, table, truth(table), trained, classical(config, cost, table))
    network = {"bits": f"{result.code:0{cost.space.n}b}", "names": cost.space.names, **cost.space.describe(result.code)}
    write_atomic(run.path / "network.json", json.dumps(network, indent=1) + "\n")
    write_atomic(run.path / "circuit.qasm", qasm3(result.found.ansatz, result.angles) + "\n")
    return report(result, run)


def task(config: SearchConfig) -> tuple[Cost, Dataset]:
    """Return the cost and the data that a configuration names; digits without a side are as fine as `COMFORTABLE` allows."""
    kind, arguments = config.data_set()
    if kind == "digits" and "side" not in arguments:
        arguments["side"] = next((side for side in (8, 4, 3) if networks(config, side * side).n <= COMFORTABLE), 2)
    data = DATA_SETS[kind](**arguments)
    return Cost(networks(config, data.x.shape[1]), data.x, data.y, LOSSES[config.loss]), data


def networks(config: SearchConfig, inputs: int) -> BinaryMLP:
    """Return the space of networks on a number of inputs."""
    widths, activations = config.widths(), tuple(ACTIVATIONS[name] for name in config.activation)
    alphabet = _choice("alphabet", config.alphabets())
    if not widths:
        return BinaryMLP(inputs, alphabet=alphabet)
    return BinaryMLP(inputs, (_choice("width", widths),), activation=_choice("activation", activations), alphabet=alphabet)


def _choice(name: str, options: tuple[Any, ...]) -> Any:
    return options[0] if len(options) == 1 else Choice(name, options)


def train(config: SearchConfig, run: Run, table: Tensor, depth: int) -> Trained:
    """Train all restarts of one depth, once in the life of a run."""
    ansatz = Ansatz(len(table).bit_length() - 1, depth, ENTANGLERS[config.entangler], GATES[config.gate], config.phases)

    def restarts() -> dict[str, Tensor]:
        start = ansatz.random(config.restarts, Streams(config.seed)).to(run.device)
        train = partial(train_adam, lr=config.lr) if config.optimiser == "adam" else train_lbfgs
        found = train(ansatz, table.to(run.device), start, steps=config.steps, objective=OBJECTIVES[config.objective])
        return {"angles": found.angles.cpu(), "evaluations": found.evaluations}

    saved = once(run, f"depth_{depth}", restarts)
    found = evaluate(ansatz, saved["angles"], table, saved["evaluations"])
    s = success(found, table)
    shares = {"within_1_percent": s.energy.value, "top_is_optimal": s.top.value, "optimal_in_100_shots": s.sampled.value}
    run.metrics.add("depth", depth, {"least_energy": float(found.energy.min()), "median_energy": float(found.energy.median()), **shares})
    return found


def classical(config: SearchConfig, cost: Cost, table: Tensor) -> dict[str, search.Found]:
    """Run every classical search, each from a random stream of its own name."""
    budget = {"calls": config.calls, "runs": config.runs}
    found = {name: method(Oracle.of_table(table), **budget, generator=Streams(config.seed)(name)) for name, method in SEARCHES.items()}
    budget["runs"] = min(config.runs, 20)
    return found | {
        "straight-through training": search.straight_through(cost, **budget, generator=Streams(config.seed)("straight-through"))
    }
