import pytest
import torch

from popflow.compose.zoo import digits


def test_the_parts_are_disjoint_and_cover_the_set():
    parts = [digits.training(), digits.for_classifier(), digits.held_out()]
    assert [len(p) for p in parts] == [899, 674, 224]
    rows = torch.cat([p.images.flatten(1) for p in parts])
    assert len(rows.unique(dim=0)) == len(digits.everything().images.flatten(1).unique(dim=0)) == 1797
    assert float(rows.min()) == -1
    assert float(rows.max()) == 1


def test_halves_are_disjoint_fixed_and_balanced():
    a, b = digits.halves()
    together = torch.cat([a.images, b.images]).flatten(1)
    assert len(together.unique(dim=0)) == 899
    assert len(a) - len(b) == 1
    assert torch.equal(a.labels, digits.halves()[0].labels)
    shares = torch.stack([torch.bincount(h.labels, minlength=10) / len(h) for h in (a, b)])
    assert float((shares[0] - shares[1]).abs().max()) < 0.06


def test_classes_are_kept_and_bad_ones_are_named():
    even = digits.training().of(digits.EVEN)
    assert set(even.labels.tolist()) == {0, 2, 4, 6, 8}
    assert len(even) == 448
    with pytest.raises(ValueError, match="digits between 0 and 9"):
        digits.training().of((3, 10))


def test_kernel_expert_knows_the_density_of_its_images():
    data, sigma = digits.training().of((2,)), 0.4
    expert = digits.kernel_expert((2,))
    y = data.images[:5] + 0.1
    variance = digits.BANDWIDTH**2 + sigma**2
    parts = torch.distributions.Normal(data.images.flatten(1).double(), variance**0.5).log_prob(y.flatten(1).double()[:, None]).sum(-1)
    assert torch.allclose(expert.log_prob(y, sigma).double(), parts.logsumexp(1) - torch.tensor(86.0).log(), atol=1e-3)
