"""Costly calls on two workers: how much faster, and what it costs to write each down.

    python benchmarks/ledger.py --json FILE

An objective that sleeps 50 ms is called through every backend, the workers started beforehand; the speed-up is the time that the calls sleep over the time
that the batch took. Two workers can reach 2. The floor of the cost is one line written and synced.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from harness import Row, run

from popflow.runs import CostlyFunction, Ledger, Outcome

SLEEP = 0.05


def objective(x: float) -> float:
    time.sleep(SLEEP)
    return 2.0 * x


def speed_up(folder: Path, calls: int, backend: str | None, timeout: float | None = None) -> float:
    """Time that the calls sleep, over the time of the batch."""
    with Ledger(folder / f"{time.monotonic_ns()}.jsonl") as ledger:
        costly = CostlyFunction(objective, ledger, workers=2, backend=backend, timeout=timeout)
        costly([-1.0, -2.0, -3.0, -4.0])
        start = time.perf_counter()
        values = costly([float(i) for i in range(calls)])
        seconds = time.perf_counter() - start
    assert values.tolist() == [2.0 * i for i in range(calls)]
    return calls * SLEEP / seconds


def dask(folder: Path, calls: int) -> float:
    from dask.distributed import Client  # type: ignore[import-not-found]

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
        return speed_up(folder, calls, "dask")


def ray(folder: Path, calls: int) -> float:
    import ray  # type: ignore[import-not-found]
    from ray.util.joblib import register_ray  # type: ignore[import-not-found]

    ray.init(num_cpus=2, include_dashboard=False)
    register_ray()
    try:
        return speed_up(folder, calls, "ray")
    finally:
        ray.shutdown()


def peer(measure: Callable[[Path, int], float], folder: Path, calls: int) -> float | str:
    """Return the figure of a cluster that need not be installed."""
    try:
        return measure(folder, calls)
    except ImportError as error:
        return f"absent: {error}"


def written(folder: Path, calls: int) -> float:
    """Milliseconds to write and sync one outcome, the median."""
    seconds = []
    with Ledger(folder / "written.jsonl") as ledger:
        for i in range(calls):
            start = time.perf_counter()
            ledger.record(str(i), Outcome("value", i / 3), i)
            seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main(options: Namespace) -> list[Row]:
    """Speed-up on two workers of an objective that sleeps 50 ms."""
    calls = 8 if options.quick else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def median(backend: str | None, timeout: float | None = None) -> tuple[float, float]:
            found = [speed_up(folder, calls, backend, timeout) for _ in range(options.seeds)]
            return statistics.median(found), statistics.stdev(found) if len(found) > 1 else 0.0

        start = time.perf_counter()
        value, error = median(None)
        peers = {"threading": median("threading")[0], "multiprocessing (in rounds)": median("multiprocessing")[0]}
        peers |= {"dask": peer(dask, folder, calls), "ray (in rounds)": peer(ray, folder, calls)}
        notes = {"calls": calls, "repetitions": options.seeds, "workers": 2}
        rows = [
            Row("loky, 2 workers, objective of 50 ms: speed-up", value, error, target=1.8, direction=">=", peers=peers, notes=notes),
        ]
        value, error = median(None, timeout=10.0)
        rows.append(Row("the same with a time limit on each call", value, error, target=1.8, direction=">=", notes=notes))
        rows.append(Row("one outcome written and synced", written(folder, 20 if options.quick else 500), unit="ms"))
        rows[0].seconds = time.perf_counter() - start
    return rows


if __name__ == "__main__":
    run("ledger", main)
