"""The job behind ``popflow optimize``: a table to candidates, as stages of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popflow.compose.constrained.candidates import Candidates, Sampling
from popflow.compose.constrained.config import OptimizeConfig
from popflow.compose.constrained.estimator import DiffOPT
from popflow.compose.constrained.files import Offline, read_table, write_rows
from popflow.compose.constrained.report import Outcome, report
from popflow.core import State, Streams
from popflow.runs import ConfigError, Ledger, Report, Run, simulation, training, user_code


def run(config: OptimizeConfig, run: Run) -> Report:
    """Learn the table, sample, and write the candidates."""
    try:
        table = read_table(config.data, config.target, config.missing)
        function = None if config.objective is None else load(config.objective)
        model = estimator(config, function)
        model.ledger = None if function is None else Ledger(run.path / "calls.jsonl")
        fitted = model._fit(table.rows, _values(table), run.device, lambda name, steps: training(run, name, steps))
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    run.log(
        f"{len(fitted.model_.rows)} rows, {fitted.schema_.dim} coordinates, {fitted.model_.duplicates} repeated rows, {table.dropped} left out"
    )
    if not config.target:
        run.log(
            f"no target: all {len(table.rows)} columns are chosen ({', '.join(list(table.rows)[:10])}); --target COLUMN leaves a measured one out"
        )
    found = fitted.explore(stages(run))
    chosen = fitted.best(config.n) if config.select == "best" else fitted.draw(config.n)
    write_rows(run.path / "candidates.csv", _columns(config, chosen, found.acceptance, found.ess))
    fitted_values = torch.from_numpy(table.values) if table.values is not None else None
    calls = {str(kind): count for kind, count in model.ledger.counts().items()} if isinstance(model.ledger, Ledger) else {}
    return report(Outcome(config, fitted.model_, found, chosen, fitted_values, table.dropped, calls, prior_values(fitted, config)))


def estimator(config: OptimizeConfig, function: Callable[[Any], Any] | None) -> DiffOPT:
    """Return the estimator of a configuration."""
    return DiffOPT(
        config.beta,
        route=config.route,
        objective=function,
        maximize=not config.minimize,
        categorical="all" if config.categorical == ("all",) else config.categorical,
        kappa=config.kappa,
        weights=config.populations if len(config.target) > 1 else None,
        steps=config.steps,
        width=config.width,
        members=config.members,
        particles=config.particles,
        moves=config.moves,
        reverse_steps=config.reverse_steps,
        on_error=config.on_error,
        workers=config.workers,
        timeout=config.timeout,
        random_state=config.seed,
    )


def load(text: str) -> Callable[[Any], Any]:
    """Import the objective ``MODULE:FUNCTION``.

    Raises:
        ValueError: when there is no such module or function.
    """
    module, _, name = text.partition(":")
    function = user_code.load(f"objective {text!r}", module, name)
    if not callable(function):
        raise ValueError(f"the objective {text!r} is a {type(function).__name__}, wanted a function of one row.")
    return function


def stages(run: Run) -> Sampling:
    """Record, checkpoint and resume the sampling stages of a run."""

    def sampling(name: str, rng: Streams, last: int) -> Mapping[str, Any]:
        def mean(key: str) -> Callable[[State], Tensor]:
            return lambda state: (
                state.pop.aux[key].double().mean() if key in state.pop.aux else torch.tensor(float("nan"), dtype=torch.float64)
            )

        every = 1 if name == "tempering" else max(1, last // 4)
        kept = simulation(
            run, name, rng, last=last, every=every, trace=None, ess=lambda state: state.pop.ess().min(), accepted=mean("accepted")
        )
        return {"record": tuple(kept["record"]), "resume": kept["resume"]}

    return sampling


def prior_values(model: DiffOPT, config: OptimizeConfig) -> Tensor | None:
    """Predicted values of draws from the prior, what ``beta = 0`` would give; None for a black box, whose calls are costly."""
    fitted = model.model_
    if fitted.surrogate is None:
        return None
    draws = fitted.prior.draw(512, Streams(config.seed, fitted.rows.device), config.reverse_steps)
    return fitted.surrogate.predict(draws)[0]


def _values(table: Offline) -> np.ndarray | None:
    if table.values is None:
        return None
    return table.values[:, 0] if table.values.shape[1] == 1 else table.values


def _columns(config: OptimizeConfig, found: Candidates, acceptance: float, ess: float) -> dict[str, list[Any]]:
    """Columns of candidates.csv; names that the table has already get an underscore."""
    columns: dict[str, list[Any]] = {name: np.asarray(column).tolist() for name, column in _table(found).items()}
    names = config.target or ("objective",)

    def add(name: str, values: list[float]) -> None:
        while name in columns:
            name += "_"
        columns[name] = values

    for k, name in enumerate(names):
        add(name, found.value[:, k].tolist())
        add(f"{name} uncertainty", found.uncertainty[:, k].tolist())
    add("feasibility", found.feasibility.tolist())
    add("acceptance", [acceptance] * len(found.z))
    add("ess", [ess] * len(found.z))
    return columns


def _table(found: Candidates) -> Mapping[str, Any]:
    return found.rows
