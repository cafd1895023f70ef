"""The demos, small: they meet their criterion, show their tables, and a second call finds everything done."""

import math

import torch

from popflow.compose import kernel_mixture
from popflow.compose.config import DemoConfig, SuperDiffDemoConfig
from popflow.compose.zoo import digits
from popflow.compose.zoo.demo import demo, superdiff
from popflow.compose.zoo.even_prime import BEST, EXACT, LANGEVIN, NAIVE, TRAINED, exact_experts, gap, judge, log_normalizer, truth
from popflow.core import Streams
from popflow.runs import Run, Table


def tables(report):
    return [item for item in report.comparison if isinstance(item, Table)]


def test_the_product_is_met_and_shown(tmp_path):
    config = DemoConfig(quick=True, particles=128, steps=40)
    with Run.open(tmp_path / "run", config, job="demo fkc") as run:
        report = demo(config, run)
        html = run.finish(report).read_text()
    assert report.verdict is not None
    assert report.verdict.passed, report.verdict.statement
    exact, trained, mixture = tables(report)
    alone, best = (next(row[2].value for row in trained.rows if row[0] == name) for name in (LANGEVIN, BEST))
    closer = "Langevin steps alone are closer" if alone < best else f"{BEST} is closer than Langevin steps alone"
    assert closer in report.verdict.statement
    assert [row[0] for row in exact.rows] == ["exact draws", NAIVE, LANGEVIN, "FKC alone", BEST, "SuperDiff AND"]
    assert [row[0] for row in mixture.rows] == [*map(str, range(10)), "total variation"]
    assert float(mixture.rows[-1][2]) < 0.15
    assert [row[5] for row in trained.rows] == [None, 80, 480, 80, 480, 80]  # evaluations: levels x experts x (1 + Langevin steps)
    assert report.results[f"{BEST}, {TRAINED}, share of 2s"].value > report.results[f"{NAIVE}, {TRAINED}, share of 2s"].value + 0.3
    assert report.results[f"{BEST}, {EXACT}, distinct 2s"].value > exact.rows[3][3].value  # more variety than weights alone
    assert html.count("<img") == 4
    assert "distinct 2s of 86" in html
    before = (tmp_path / "run/report.json").read_bytes()
    with Run.open(tmp_path / "run", config, job="demo fkc") as run:
        run.finish(demo(config, run))
    assert (tmp_path / "run/report.json").read_bytes() == before


def test_superposition_keeps_densities_equal_and_mixes_classes(tmp_path):
    config = SuperDiffDemoConfig(quick=True)
    with Run.open(tmp_path / "run", config, job="demo superdiff") as run:
        report = superdiff(config, run)
        run.finish(report)
    assert report.verdict is not None
    assert report.verdict.passed, report.verdict.statement
    gaps = {row[0]: row[1].value for row in tables(report)[0].rows}
    assert gaps[f"SuperDiff AND, {EXACT}"] < gaps[f"equal shares, {EXACT}"] / 4
    assert gaps[f"SuperDiff OR, {EXACT}"] > 10 * gaps[f"equal shares, {EXACT}"]  # of the mixture, each sample belongs to one


def test_exact_draws_judge_themselves_well():
    known = truth(2, 512, 0.1, Streams(3))
    judged = judge(known.product, known)
    assert float(judged.share.min()) > 0.98
    assert float(judged.mmd2.abs().max()) < 0.003
    assert float(judged.distinct.min()) > 0.9 * len(known.twos)
    others = judge(known.mixture, known)
    assert float(others.mmd2.min()) > 0.05


def test_log_normalizer_is_one_density_blurred_by_the_other():
    """``int q_even q_prime dy`` is the mean over even images of the density of primes with both blurs."""
    sigma = 0.8
    even, prime = (digits.training().of(classes).images.double() for classes in (digits.EVEN, digits.PRIME))
    both = kernel_mixture(prime, (2 * (digits.BANDWIDTH**2 + sigma**2)) ** 0.5)
    assert both.log_prob is not None
    by_hand = both.log_prob(even, 0.0).logsumexp(0) - math.log(len(even))
    assert torch.allclose(log_normalizer(torch.tensor([sigma], dtype=torch.float64))[0], by_hand)


def test_gap_is_that_of_the_exact_experts():
    even, prime = exact_experts()
    x = digits.training().images[:6].reshape(2, 3, 1, 8, 8)
    by_hand = (even.log_prob(x[1].double(), 0.2) - prime.log_prob(x[1].double(), 0.2)).abs().median()
    assert torch.allclose(gap(x, 0.2)[1], by_hand)
