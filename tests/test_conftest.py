"""The checks that every other test relies on do check."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from popflow.core import Population, Rates, Streams, euler, multinomial, systematic


def test_shapes_and_types_of_calls_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        systematic(torch.ones(4, dtype=torch.long), torch.Generator())  # weights are Float
    with pytest.raises(TypeCheckError):
        multinomial([0.5, 0.5], torch.Generator())  # type: ignore[arg-type]


def test_fields_of_dataclasses_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        dataclasses.replace(Population.of(torch.zeros(3, 1)), log_w=[0.0, 0.0, 0.0])


def test_an_int_serves_where_a_float_is_annotated() -> None:
    moved = euler(lambda t, pop: Rates(drift=pop.x))(Population.of(torch.ones(1, 1)), 0, 1, Streams(0))
    assert moved.x.item() == 2.0


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of its own with this conftest and no data folder."""
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    monkeypatch.setenv("POPFLOW_DATA", str(pytester.path / "nowhere"))
    return pytester


def test_global_random_numbers_fail_a_test_and_absent_data_skips_it(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    project.makepyfile(
        """
        import numpy, torch
        def test_torch(): torch.rand(1)
        def test_numpy(): numpy.random.rand(1)
        def test_own_generators():
            torch.rand(1, generator=torch.Generator().manual_seed(0))
            numpy.random.default_rng(0).normal()
        def test_forked():
            with torch.random.fork_rng():
                torch.nn.Linear(1, 1)
        def test_reads(data): assert data.is_dir()
        """
    )
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():  # what those tests use is put back, or this one would fail itself
        outcome = project.runpytest_inprocess("-rs")
    np.random.set_state(state)  # noqa: NPY002
    outcome.assert_outcomes(passed=4, errors=2, skipped=1)
    for generator in ("torch", "numpy"):
        outcome.stdout.fnmatch_lines(f"*generators of ??{generator}?? were used*")
    outcome.stdout.fnmatch_lines("*no data: POPFLOW_DATA=*")


def test_absent_data_fails_under_ci(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    project.makepyfile("def test_reads(data): assert data.is_dir()")
    project.runpytest_inprocess().assert_outcomes(errors=1)
