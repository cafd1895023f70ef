"""The demo: its problems are what they say, and its report holds the learned actions against the exact ones."""

import pytest
import torch

from popflow.core import Population, Streams
from popflow.runs import Run
from popflow.transport.demo import DemoConfig, demo, problems


def test_every_problem_starts_and_ends_at_its_exact_value():
    for problem in problems(64, Streams(0)).values():
        first = problem.measure(Population.of(problem.snapshots.x[0]))
        assert first == pytest.approx(problem.exact(0.0), rel=0.02)
        if problem.lagrangian.lam == 0:
            assert problem.measure(Population.of(problem.snapshots.x[1])) == pytest.approx(problem.exact(1.0), rel=0.02)


def test_the_quick_demo_meets_its_criterion(tmp_path):
    config = DemoConfig(quick=True)
    with Run.open(tmp_path / "run", config, job="demo wlf") as run:
        report = demo(config, run)
    assert report.verdict.passed
    (table,) = report.comparison
    for name, dual, action, exact, strands, _ in table.rows:
        assert action == pytest.approx(exact, rel=0.03), name
        assert dual <= strands + 1e-4 * exact


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="steps=3, cells=1024, width=64, wanted at least"):
        DemoConfig(steps=3)
    assert torch.is_tensor(problems(16, Streams(0))["transport"].snapshots.x[0])
