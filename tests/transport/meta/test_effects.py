"""Effects within patients: differences of means that can be had by hand, each patient counted once."""

import pytest
import torch

from popflow.core import Population, Streams
from popflow.transport.meta import MetaFlow, Populations, observed_effects, predicted_effects


@pytest.fixture(scope="module")
def trial():
    """Drugs ``A`` and ``B`` on patient 0 (control mean 0), ``A`` alone on patient 1 (control mean 3). The drug sorts before the control."""
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    clouds = {("p0", "none"): x, ("p0", "A"): x + 1, ("p0", "B"): x - 5, ("p1", "none"): x + 3, ("p1", "A"): x + 6}
    group, condition = zip(*[key for key in clouds for _ in range(50)], strict=True)
    populations = Populations.from_cells(
        torch.cat(list(clouds.values())), group, condition, control="none", features=["m", "n"], unit="counts"
    )
    assert populations.pairs[0].target == 0
    return x, populations, MetaFlow(None, width=4, cells=50, pairs=50).fit(populations, steps=1, rng=Streams(0)).ready()


def test_a_prediction_stands_beside_the_patients_own_difference_and_the_usual_effect(trial):
    x, populations, field = trial
    found = predicted_effects(x + 2, [Population.of(x + 4)], field, populations, "A", rng=Streams(0))
    for one in found:
        assert (one.control, one.treated, one.effect) == pytest.approx((2.0, 4.0, 2.0), abs=1e-5)
        assert one.own == pytest.approx(0.5, abs=1e-5)  # 2 less the mean of 0 and 3
        assert one.usual == pytest.approx(2.0, abs=1e-5)  # the mean of 1 and 3
        assert one.high - one.low < 1e-5  # all cells move alike, and there is one member
    alone = populations.of_pairs(populations.pairs[:1])
    assert predicted_effects(x, [Population.of(x)], field, alone, "A", rng=Streams(0))[0].usual == pytest.approx(1.0, abs=1e-5)
    assert [one.effect for one in observed_effects(populations, "A")] == pytest.approx([2.0, 2.0], abs=1e-5)


def test_weights_move_means_and_intervals_join_members_and_cells(trial):
    x, populations, field = trial
    heavy = Population.of(x).replace(log_w=torch.where(x[:, 0] > 0, 0.0, -torch.inf))
    one = predicted_effects(x, [heavy], field, populations, "A", rng=Streams(0))[0]
    assert one.treated == pytest.approx(float(x[x[:, 0] > 0, 0].mean()), abs=1e-5)
    two = predicted_effects(x, [Population.of(x + 1), Population.of(x + 2)], field, populations, "A", rng=Streams(0))[0]
    assert (two.low, two.high) == pytest.approx(
        (1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5), abs=1e-3
    )  # t with one degree of freedom, sd / sqrt(2) = 1/2
    spread = x + torch.linspace(-2, 2, 50)[:, None]
    mean = predicted_effects(x, [Population.of(spread)], field, populations, "A", rng=Streams(0), draws=400)[0]
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * float(torch.linspace(-2, 2, 50).std()) / 50**0.5, rel=0.15)


def test_the_zero_of_a_feature_does_not_matter_where_cells_have_weights(trial):
    """An interval of a weighted mean is that of a ratio: the number of cells drawn that weigh much moves both of its sides."""
    x, populations, field = trial
    weight = torch.where(x[:, 0] > 0, 0.0, -2.0)
    one, two = (
        predicted_effects(x + far, [Population.of(x + 1 + far).replace(log_w=weight)], field, populations, "A", rng=Streams(0))[1]
        for far in (0.0, 100.0)
    )
    assert two.high - two.low == pytest.approx(one.high - one.low, rel=1e-3)
    share = weight.softmax(0) * len(x)
    y = x[:, 1]
    gain = share * (y - (share * y).mean()) - y
    assert one.high - one.low == pytest.approx(2 * 1.96 * float(gain.std()) / len(x) ** 0.5, rel=0.15)
