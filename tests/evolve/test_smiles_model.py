"""The small SMILES model: one step at a time equals all at once, gaps keep what stands around them, training lowers the loss and resumes exactly."""

import random

import numpy as np
import pytest
import torch
from rdkit import Chem

from popflow.core.streams import Streams
from popflow.evolve.infilling import FillGap, LearnFirst, LinkFragments, learned, linked
from popflow.evolve.molecules import canonical
from popflow.evolve.operators import Parent
from popflow.evolve.smiles_model import DATA, SmilesModel, continued, fill, from_tensors, log_likelihood, sample, shipped
from popflow.evolve.smiles_tokens import BOS, EOS, MIDDLE, PREFIX, SUFFIX, VOCABULARY, decode, encode
from popflow.evolve.smiles_training import LENGTH, example, gap_of, loss_of, packed, rooted, train

DRUGS = [
    "CC(=O)Nc1ccc(O)cc1",
    "CC(C)Cc1ccc([C@H](C)C(=O)O)cc1",
    "Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1",
    "CN1C[C@H](C(=O)N(C)C)C=C2c3cccc4[nH]cc(c34)C[C@H]21",
    "O=C(/C=C/c1ccccc1Br)NCC[NH+]1CCOCC1",
]


@pytest.fixture(scope="module")
def small():
    """An untrained model that is not uniform."""
    with Streams(3).layers():
        model = SmilesModel(24, 8, 8)
        torch.nn.init.normal_(model.collect.weight, std=0.5)
    return model.requires_grad_(False)


def test_every_spelling_is_encoded_and_decoded():
    for smiles in DRUGS:
        for u in (0.0, 0.4, 0.99):
            text = rooted(smiles, u)
            assert decode(encode(text)) == text
            assert canonical(text) == canonical(smiles)
    with pytest.raises(ValueError, match=r"holds '\[Si\]'"):
        encode("C[Si](C)C")
    with pytest.raises(ValueError, match="is empty"):
        encode("")
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_one_token_at_a_time_equals_all_at_once(small):
    tokens = torch.tensor([[BOS, *encode(DRUGS[0])], [BOS, *encode(DRUGS[0])[::-1]]])
    t = tokens.shape[1]
    whole = small(tokens, torch.ones(2, 1, t, t, dtype=torch.bool).tril())
    state = None
    for k in range(t):
        logits, state = small.step(tokens[:, k], state)
        assert torch.allclose(logits, whole[:, k], atol=1e-5)
    one, after = small.step(tokens[:, -1], state, torch.tensor([False, True]))
    both, same = small.step(tokens[:, -1], state)
    assert torch.allclose(one, both[1:], atol=1e-6)
    assert all(torch.equal(x, y) for x, y in zip(after, same, strict=True))


def test_draws_follow_the_model(small):
    """First tokens after a prompt against their probabilities (chi-square), beside a row with a longer prompt."""
    prompts = [[BOS, *encode("CC")], [BOS, *encode("CCOC(=O)")]] * 3000
    drawn = continued(small, prompts, torch.Generator().manual_seed(0), longest=1)
    for row in range(2):
        tokens = torch.tensor([prompts[row]])
        t = tokens.shape[1]
        logits = small(tokens, torch.ones(1, 1, t, t, dtype=torch.bool).tril())[0, -1]
        logits[[0, BOS, PREFIX, SUFFIX, MIDDLE]] = -torch.inf
        p = logits.softmax(0).double()
        counts = torch.bincount(torch.tensor([one[0] for one in drawn[row::2]]), minlength=len(VOCABULARY))
        assert len(drawn[row]) == 1
        expected = 3000 * p
        seen = expected > 5
        chi = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
        assert chi < int(seen.sum()) + 5 * (2 * int(seen.sum())) ** 0.5


def test_a_low_temperature_draws_the_likeliest_token(small):
    a, b = (continued(small, [[BOS]] * 4, torch.Generator().manual_seed(seed), temperature=1e-4, longest=12) for seed in (0, 1))
    assert a == b
    assert a[0] == a[1]
    with pytest.raises(ValueError, match="temperature=0"):
        continued(small, [[BOS]], torch.Generator(), temperature=0.0)


def test_the_likelihood_is_normalised(small):
    """The probabilities of all first tokens add up to one, those of control tokens included."""
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    first = small(torch.tensor([[BOS]]), mask)[0, 0].log_softmax(0)
    carbon = first[encode("C")[0]]
    after = small(torch.tensor([[BOS, *encode("C")]]), torch.ones(1, 1, 2, 2, dtype=torch.bool).tril())[0, 1].log_softmax(0)[EOS]
    assert log_likelihood(small, "C") == pytest.approx(float(carbon + after), abs=1e-5)


def test_gaps_keep_what_stands_around_them(small):
    for text in fill(small, [("CCO", "c1ccccc1"), ("C1CC", "")], torch.Generator().manual_seed(0), longest=5):
        assert text.startswith(("CCO", "C1CC"))
    assert fill(small, [("CCO", "c1ccccc1")], torch.Generator().manual_seed(0))[0].endswith("c1ccccc1")


def test_gaps_have_their_lengths():
    draw = random.Random(0)
    lengths = [j - i for i, j in (gap_of(40, draw.random(), draw.random()) for _ in range(4000))]
    assert max(lengths) == 15
    assert min(lengths) == 1
    mean = sum(min(k, 15) * 0.2 * 0.8 ** (k - 1) for k in range(1, 400))  # of a geometric length cut at 15
    assert abs(np.mean(lengths) - mean) < 0.2


def test_examples_hold_the_molecule_and_rows_hold_the_examples():
    whole = example(DRUGS[1], torch.tensor([0.1, 0, 0, 0]))
    gap = example(DRUGS[1], torch.tensor([0.9, 0.3, 0.7, 0.5]))
    assert decode(whole[1:]) == DRUGS[1]
    k, m = gap.index(SUFFIX), gap.index(MIDDLE)
    assert canonical(decode(gap[1:k] + gap[m + 1 : -1] + gap[k + 1 : m])) == canonical(DRUGS[1])
    out, left = packed([whole, gap, whole, gap, whole], 1)
    assert out.shape == (2, 1, LENGTH + 1)
    kept = [out[0, 0][out[1, 0] == number].tolist() for number in range(1, int(out[1].max()) + 1)]
    assert sorted(kept + left) == sorted([whole, gap, whole, gap, whole])


def test_the_loss_is_the_likelihood_of_a_token(small):
    """A row with one molecule: padding costs nothing."""
    tokens = [BOS, *encode(DRUGS[0]), EOS]
    value, metrics = loss_of(small)(dict(small.named_parameters()), packed([tokens], 1)[0])
    assert float(metrics["tokens"]) == len(tokens) - 1
    assert float(value) * (len(tokens) - 1) == pytest.approx(-log_likelihood(small, DRUGS[0]), rel=1e-5)


def test_attention_stays_inside_an_example(small):
    """Without the recurrence, whose state may be carried on, what stands before an example in its row changes nothing."""
    with torch.no_grad():
        model = from_tensors({name: value for name, value in small.state_dict().items()})
        model.recur.weight_hh_l0.zero_()
        model.recur.bias_ih_l0[24:48] = -20.0  # the update gate forgets the state before
        model.recur.weight_ih_l0[24:48] = 0.0
        molecule = [BOS, *encode(DRUGS[0]), EOS]
        found = []
        for before in (encode(DRUGS[1]), encode(DRUGS[1])[::-1]):
            out = torch.zeros(2, 1, LENGTH + 1, dtype=torch.long)
            for number, part in ((1, [BOS, *before]), (2, molecule)):
                start = 0 if number == 1 else 1 + len(before)
                out[0, 0, start : start + len(part)] = torch.tensor(part)
                out[1, 0, start : start + len(part)] = number
            first = out.clone()
            first[1][first[1] == 1] = 0  # score the molecule alone
            value, metrics = loss_of(model)(dict(model.named_parameters()), first)
            assert int(metrics["tokens"]) == len(molecule) - 1
            found.append(float(value))
        assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_training_learns_and_resumes_exactly(tmp_path):
    with Streams(0).layers():
        model = SmilesModel(32, 16, 16)
    losses = []
    options = {"rows": 1, "lr": 1e-2, "warmup": 3, "decay": 5, "log_every": 5}
    whole = train(model, DRUGS[:2], steps=24, record=[lambda progress: losses.append(progress.metrics["loss"])], **options)
    assert losses[-1] < 0.5 * losses[0]
    file = tmp_path / "state.safetensors"
    train(model, DRUGS[:2], steps=12, checkpoint=file, **options | {"decay": 1})  # the rate has not begun to fall: 24 steps could follow
    again = train(model, DRUGS[:2], steps=24, checkpoint=file, **options)
    assert all(torch.equal(again.params[name], value) for name, value in whole.params.items())


def test_fragments_are_linked_where_they_were_cut():
    rng = np.random.default_rng(0)
    made = 0
    for _ in range(60):
        a, b = (DRUGS[k] for k in rng.integers(len(DRUGS), size=2))
        gap = linked(a, b, rng)
        if gap is None:
            continue
        direct = Chem.MolFromSmiles("".join(gap))  # nothing between them: joined by a single bond
        spaced = Chem.MolFromSmiles(gap[0] + "CC" + gap[1])
        assert direct is not None
        assert spaced.GetNumAtoms() == direct.GetNumAtoms() + 2
        made += 1
    assert made > 40
    assert linked("c1ccccc1", "CCO", rng) is None  # nothing to cut


@pytest.mark.skipif(not (DATA / "smiles.safetensors").exists(), reason="the parameters are part of the package")
@pytest.mark.parametrize("operator", [FillGap(), LinkFragments(), LearnFirst(FillGap(), steps=2)])
def test_children_of_the_shipped_model(operator):
    parents = [Parent(canonical(smiles), 1.0) for smiles in DRUGS]
    before = [parent.smiles for parent in parents]
    kids = operator(parents, 24, np.random.default_rng(0))
    assert [parent.smiles for parent in parents] == before
    assert len(kids) >= 3
    assert all(canonical(kid.smiles) == kid.smiles and kid.smiles not in kid.parents for kid in kids)
    assert all(set(kid.parents) <= set(before) for kid in kids)
    assert operator(parents, 24, np.random.default_rng(0)) == kids


@pytest.mark.skipif(not (DATA / "smiles.safetensors").exists(), reason="the parameters are part of the package")
def test_the_shipped_model_is_small_and_writes_molecules():
    model = shipped()
    assert sum(p.numel() for p in model.parameters()) <= 2.4e6
    assert (DATA / "smiles.safetensors").stat().st_size < 5e6
    texts = sample(model, 100, torch.Generator().manual_seed(0))
    assert len(set(texts)) >= 99
    assert sum(Chem.MolFromSmiles(text) is not None for text in texts) >= 50


def test_a_moment_of_learning_makes_the_molecules_likelier():
    with Streams(0).layers():
        model = SmilesModel(32, 16, 16)
    model = from_tensors({name: value.detach() for name, value in model.state_dict().items()})
    wiser = learned(model, DRUGS[:2], steps=8, lr=1e-2)
    assert all(log_likelihood(wiser, smiles) > log_likelihood(model, smiles) + 10 for smiles in DRUGS[:2])
    with pytest.raises(ValueError, match="none of the molecules"):
        learned(model, ["C[Si](C)C"])
