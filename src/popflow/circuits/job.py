"""The job of ``popflow search``: every cost, then circuits of several depths and classical searches on the same costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from torch import Tensor

from popflow.circuits import search
from popflow.circuits.ansatz import Ansatz, all_to_all, brick, cx, cz, linear, ring
from popflow.circuits.config import SearchConfig
from popflow.circuits.cost import Cost, truth
from popflow.circuits.export import qasm3
from popflow.circuits.hypernetwork import Trained, energy, evaluate, free_energy, success, tail_mean, train_adam, train_lbfgs
from popflow.circuits.oracle import Oracle
from popflow.circuits.report import SearchResult, report
from popflow.circuits.task import task
from popflow.core import Streams
from popflow.core.checkpoint import write_atomic
from popflow.runs import ConfigError, Report, Run, once

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
    try:
        cost, data = task(config)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    run.log(f"{data.name}, {cost.space.n} bits")
    table = once(run, "table", lambda: {"cost": cost.table(run.device).cpu()})["cost"]
    trained = {depth: train(config, run, table, depth) for depth in sorted({*config.curve, config.depth})}
    result = SearchResult(config, cost, data, table, truth(table), trained, classical(config, cost, table))
    network = {"bits": f"{result.code:0{cost.space.n}b}", "names": cost.space.names, **cost.space.describe(result.code)}
    write_atomic(run.path / "network.json", json.dumps(network, indent=1) + "\n")
    write_atomic(run.path / "circuit.qasm", qasm3(result.found.ansatz, result.angles) + "\n")
    return report(result, run)


def train(config: SearchConfig, run: Run, table: Tensor, depth: int) -> Trained:
    """Train all restarts of one depth, once per run."""
    ansatz = Ansatz(len(table).bit_length() - 1, depth, ENTANGLERS[config.entangler], GATES[config.gate], config.phases)

    def restarts() -> dict[str, Tensor]:
        start = ansatz.random(config.restarts, Streams(config.seed)).to(run.device)
        train = partial(train_adam, lr=config.lr) if config.optimiser == "adam" else train_lbfgs
        found = train(ansatz, table.to(run.device), start, steps=config.steps, objective=OBJECTIVES[config.objective])
        return {"angles": found.angles.cpu(), "evaluations": found.evaluations}

    run.progress(f"depth {depth}", 0, config.restarts)
    saved = once(run, f"depth_{depth}", restarts)
    run.progress(f"depth {depth}", config.restarts, config.restarts)
    found = evaluate(ansatz, saved["angles"], table, saved["evaluations"])
    s, energies = success(found, table), {"least_energy": float(found.energy.min()), "median_energy": float(found.energy.median())}
    shares = {"within_1_percent": s.energy.value, "top_is_optimal": s.top.value, "optimal_in_100_shots": s.sampled.value}
    run.metrics.add("depth", depth, energies | shares)
    return found


def classical(config: SearchConfig, cost: Cost, table: Tensor) -> dict[str, search.Found]:
    """Run every classical search, each with its own random stream."""

    def found(name: str, method: Callable[..., search.Found], asked: Oracle | Cost, runs: int) -> search.Found:
        return method(asked, calls=config.calls, runs=runs, generator=Streams(config.seed)(name))

    few = {"straight-through training": found("straight-through", search.straight_through, cost, min(config.runs, 20))}
    return {name: found(name, method, Oracle.of_table(table), config.runs) for name, method in SEARCHES.items()} | few
