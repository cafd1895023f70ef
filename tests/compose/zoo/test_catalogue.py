"""The experts that come with the library: small, honest about images they have not seen, and what their names say."""

import importlib
from pathlib import Path

import pytest
import torch

from popflow.compose import kernel_mixture, zoo
from popflow.compose.particles import models
from popflow.compose.zoo import digits, networks
from popflow.core import Streams
from popflow.core.checkpoint import load_tensors

LEVELS = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)


def error(expert, data: digits.Digits, sigma: float) -> float:
    """Root mean square error of the noise that an expert predicts, on blurred images (the data that it models)."""
    rng = Streams(0)
    x = data.images.repeat(1 + 1000 // len(data), 1, 1, 1)
    x = x + digits.BANDWIDTH * rng.normal("blur", x)
    eps = rng.normal("noise", x)
    cond = None if expert.cond is None else expert.cond.expand(len(x))
    return float((expert.model(x + sigma * eps, sigma, cond) - eps).square().mean().sqrt())


def test_everything_shipped_loads_and_is_below_two_megabytes():
    files = [*zoo.DATA.iterdir(), *models.DATA.iterdir()]
    tables = [f"{name}-reference" for name in models.MODELS]
    assert {file.name for file in files} == {f"{name}.safetensors" for name in (*zoo.ENTRIES, "digits-classifier", *tables)}
    assert sum(file.stat().st_size for file in files) < 2_000_000
    for name, entry in zoo.ENTRIES.items():
        expert = zoo.load(name)
        assert expert.event == (models.MODELS[name].system.event if name in models.MODELS else (1, 8, 8))
        assert expert.name == name
        assert (entry.recipe.judge is not None) == (name in models.MODELS)
        assert (expert.cond is not None) == (entry.labels == 11)


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(ValueError, match="did you mean 'digits-even'"):
        zoo.load("digit-even")


def test_loading_twice_gives_the_same_expert_whatever_the_chunk():
    y = digits.held_out().images[:20]
    once, again = zoo.load("digits-prime").score(y, 0.7), zoo.load("digits-prime", chunk=7).score(y, 0.7)
    assert torch.allclose(once, again, atol=1e-5)
    assert torch.equal(once, zoo.load("digits-prime").score(y, 0.7))


@pytest.mark.parametrize(
    ("name", "classes"),
    [("digits-all", digits.ALL), ("digits-even", digits.EVEN), ("digits-odd", digits.ODD), ("digits-prime", digits.PRIME)],
)
def test_networks_predict_the_noise_on_unseen_images_better_than_the_kernel_mixture_of_the_same_data(name, classes):
    network, kernel, unseen = zoo.load(name), digits.kernel_expert(classes), digits.held_out().of(classes)
    ratio = {sigma: error(network, unseen, sigma) / error(kernel, unseen, sigma) for sigma in LEVELS}
    assert max(ratio.values()) < 1.01  # as good as exact for their data where noise hides the difference,
    assert max(ratio[sigma] for sigma in (0.3, 0.5)) < 0.955  # and better where a kernel mixture only knows its own images


def test_an_expert_knows_its_own_classes_best():
    even, odd = zoo.load("digits-even"), zoo.load("digits-odd")
    for sigma in (0.3, 1.0):
        for mine, other, classes in ((even, odd, digits.EVEN), (odd, even, digits.ODD)):
            unseen = digits.held_out().of(classes)
            assert error(mine, unseen, sigma) < 0.93 * error(other, unseen, sigma)


def test_halves_have_learned_the_distribution_more_than_their_images():
    """Networks of disjoint data agree about unseen images; their kernel mixtures do not."""
    networks = [zoo.load("digits-half-a"), zoo.load("digits-half-b")]
    kernels = [kernel_mixture(half.images, digits.BANDWIDTH) for half in digits.halves()]
    x = digits.held_out().images
    for sigma in (0.1, 0.3, 0.5):
        y = x + (sigma**2 + digits.BANDWIDTH**2) ** 0.5 * Streams(1).normal("noise", x)
        apart = [float((a.score(y, sigma) - b.score(y, sigma)).norm()) for a, b in (networks, kernels)]
        assert apart[0] < 0.6 * apart[1]


def test_the_conditional_expert_follows_its_label():
    expert = zoo.load("digits-class")
    for digit in (1, 3, 7):
        unseen = digits.held_out().of((digit,))
        right, wrong = (error(expert.given(torch.tensor(label)), unseen, 1.0) for label in (digit, digit + 1))
        none = error(expert, unseen, 1.0)
        assert right < 0.97 * none
        assert none < 0.9 * wrong


def test_preconditioning_is_exact_for_a_gaussian():
    """A network that returns zero is the model of N(0, sigma_data^2) data, blurred: its score is that of the total variance."""
    schedule, sigma = networks.Blurred(), 0.7
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)
    alpha = schedule.alpha(sigma)
    eps = networks.blurred_output(torch.zeros_like(y), alpha * y, alpha, alpha * sigma)
    assert torch.allclose(-eps / sigma, -y / (sigma**2 + digits.BANDWIDTH**2 + networks.SIGMA_DATA**2))
    levels = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    assert torch.allclose(schedule.sigma(schedule.time(levels)), levels)


def test_blur_is_the_kernel_of_the_exact_experts():
    """Where noise hides the details, network and kernel mixture agree at the same sigma: both model blurred images."""
    network, kernel = zoo.load("digits-all"), digits.kernel_expert()
    x = digits.training().images
    y = x + 2.0 * Streams(2).normal("noise", x)
    exact = kernel.score(y, 2.0)
    assert float((network.score(y, 2.0) - exact).norm() / exact.norm()) < 0.08


def test_the_script_trains_resumes_where_it_stopped_and_refuses_unknown_names(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    train = importlib.import_module("train_zoo")
    monkeypatch.setattr(train, "DATA", tmp_path)
    monkeypatch.setattr(train, "BATCH", 16)
    for steps in (101, 102):
        monkeypatch.setattr(train, "STEPS", steps)
        train.main(["digits-class", "--work", str(tmp_path / "work")])
        tensors, about = load_tensors(tmp_path / "digits-class.safetensors")
        assert about["steps"] == steps
    assert all(value.dtype == torch.float16 for value in tensors.values())
    assert load_tensors(tmp_path / "work" / "digits-class.safetensors")[1]["step"] == 102
    with pytest.raises(SystemExit):
        train.main(["digits-eve"])
    assert "did you mean 'digits-even'" in capsys.readouterr().err
