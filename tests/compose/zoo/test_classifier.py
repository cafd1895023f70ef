import torch

from popflow.compose.zoo import classifier, digits
from popflow.core import Streams


def accuracy(data: digits.Digits, noise: float = 0.0) -> float:
    x = data.images + noise * Streams(0).normal("noise", data.images)
    return float((classifier.load()(x).argmax(1) == data.labels).float().mean())


def test_it_knows_digits_that_it_has_not_seen():
    assert accuracy(digits.held_out()) >= 0.985
    assert accuracy(digits.training()) >= 0.98


def test_it_knows_them_under_the_blur_of_the_experts():
    assert accuracy(digits.training(), digits.BANDWIDTH) >= 0.97


def test_logits_are_those_of_the_features():
    network, x = classifier.load(), digits.held_out().images[:7]
    assert torch.allclose(network.last(network.features(x)), network(x))
    assert network.features(x).shape == (7, 64)


def test_share_counts_within_each_run():
    twos, threes = (digits.training().of((d,)).images[:10] for d in (2, 3))
    runs = torch.stack([twos, torch.cat([twos[:5], threes[:5]])])
    assert torch.equal(classifier.share(runs, 2), torch.tensor([1.0, 0.5]))
