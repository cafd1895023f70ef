"""The surrogate's uncertainty against errors, and its place in an objective."""

import pytest
import torch

from popflow.compose.constrained.objective import of_surrogate
from popflow.compose.constrained.surrogate import Surrogate, learn_surrogate
from popflow.core import Streams


def rows(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = Streams(seed).normal("x", torch.empty(n, 3))
    return x, 5 + 3 * (2 * x[:, :1].sin() + x[:, 1:2] * x[:, 2:])


@pytest.fixture(scope="module", params=[2, 4])
def surrogate(request: pytest.FixtureRequest) -> Surrogate:
    return learn_surrogate(*rows(400, 0), rows(60, 1), steps=200, rng=Streams(0), members=request.param, width=32, batch=64)


def test_uncertainties_are_as_large_as_errors_however_few_the_members(surrogate: Surrogate) -> None:
    def squares(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        value, uncertainty = surrogate.predict(x)
        return float((y - value).square().mean()), float(uncertainty.square().mean())

    error, uncertainty = squares(*rows(60, 1))
    assert uncertainty == pytest.approx(error, rel=1e-6)  # the rows that calibrate it
    error, uncertainty = squares(*rows(3000, 2))
    assert 0.5 < (uncertainty / error) ** 0.5 < 2  # others


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_kappa_adds_uncertainties_on_the_side_that_is_wanted(surrogate: Surrogate, sign: float) -> None:
    x, _ = rows(50, 3)
    value, uncertainty = surrogate.predict(x)
    found = sign * of_surrogate(surrogate, sign, 1.5).values(x).double() * surrogate.std + surrogate.mean  # minimised: low is good
    torch.testing.assert_close(found, value - sign * 1.5 * uncertainty, rtol=1e-3, atol=1e-3)
