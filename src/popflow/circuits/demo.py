"""``popflow demo qhn``: a search whose optimum is known."""

from __future__ import annotations

from popflow.circuits import job
from popflow.circuits.config import DemoConfig, SearchConfig
from popflow.runs import Report, Run


def demo(config: DemoConfig, run: Run) -> Report:
    """Tell the digits 3 and 7 apart with nine weights of plus or minus one: the optimum of 1024 networks is known."""
    restarts, curve, runs = (min(8, config.restarts), (1,), 20) if config.quick else (config.restarts, (1, 2, 4, 16), 200)
    data, seed = "digits:3,7:3", config.seed
    search = SearchConfig(data=data, depth=config.depth, restarts=restarts, curve=curve, calls=256, runs=runs, seed=seed)
    return job.run(search, run)
