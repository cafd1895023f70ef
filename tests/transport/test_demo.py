"""The demo: its problems are what they say. That it meets its criterion is tested with all demos, in tests/conformance."""

import pytest

from popflow.core import Population, Streams
from popflow.transport.config import DemoConfig
from popflow.transport.demo import problems


def test_every_problem_starts_and_ends_at_its_exact_value():
    for problem in problems(64, Streams(0)).values():
        first = problem.measure(Population.of(problem.snapshots.x[0]))
        assert first == pytest.approx(problem.exact(0.0), rel=0.02)
        if problem.lagrangian.lam == 0:
            assert problem.measure(Population.of(problem.snapshots.x[1])) == pytest.approx(problem.exact(1.0), rel=0.02)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="steps=3, wanted an integer >= 20"):
        DemoConfig(steps=3)
