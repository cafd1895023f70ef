"""Language models in folders: tiny ones, made and taught here, work end to end."""

import numpy as np
import pytest
import torch

from popflow.evolve.language_models import BIOT5, EditText, Template, load_text_model
from popflow.evolve.operators import Child, Parent

ANSWER = "OCCc1ccccc1"
PARENTS = [Parent("CC(=O)Nc1ccc(O)cc1", 0.5)]


def test_a_causal_folder_edits_molecules(causal):
    model = load_text_model(causal)
    before = torch.get_rng_state()
    edit = EditText(model, Template("{smiles}>"), longest=16, temperature=0.1)
    kids = edit(PARENTS, 3, np.random.default_rng(0))
    assert kids == [Child(ANSWER, "language model", (PARENTS[0].smiles,))]
    assert edit(PARENTS, 3, np.random.default_rng(0)) == kids
    assert torch.equal(torch.get_rng_state(), before)  # nothing global was drawn


def test_an_encoder_decoder_folder_edits_selfies(encoder_decoder):
    edit = EditText(load_text_model(encoder_decoder), BIOT5, longest=10, temperature=0.0)
    assert edit(PARENTS, 2, np.random.default_rng(0)) == [Child("CCCO", "language model", (PARENTS[0].smiles,))]


def test_a_chat_template_shows_two_parents_and_hides_the_target(causal):
    def graph(parents, n, rng):
        return [Child("CCC", "graph", (parents[0].smiles,))] * n

    edit = EditText(load_text_model(causal), None, fallback=graph, longest=16)
    prompt = edit._prompt([PARENTS[0], Parent("CCN", 0.1)])
    assert "CCN  0.1" in prompt
    kids = edit(PARENTS, 2, np.random.default_rng(0))
    assert len(kids) >= 2 - edit.counts.children
    assert edit.counts.asked_of_fallback == 2 - edit.counts.children == edit.counts.by_fallback


def test_bad_folders_are_refused(causal, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_text_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_text_model(tmp_path)
    with pytest.raises(ValueError, match="no molecule"):
        Template("hello")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in causal.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be safetensors"):
        load_text_model(pickled)
