"""Language models in folders: tiny ones, made and taught here, work end to end."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from popflow.evolve.language_models import BIOT5, EditText, Template, load_text_model
from popflow.evolve.operators import Child, Parent

ANSWER = "OCCc1ccccc1"
PARENTS = [Parent("CC(=O)Nc1ccc(O)cc1", 0.5)]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}>"


def tokenizer_of(words: list[str], pattern: str) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def teach(model, inputs: dict, steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A character model that knows one answer."""
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = tokenizer_of(sorted(set("BCNOcno()[]=#123>Fl -")), r"[\s\S]")
    tokenizer.chat_template = CHAT
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=1400, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
        model = GPT2LMHeadModel(config)
        ids = tokenizer(f"{PARENTS[0].smiles}>{ANSWER}<eos>", return_tensors="pt")["input_ids"]
        teach(model, {"input_ids": ids, "labels": ids}, 80, 1e-2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    """A model of SELFIES, of BioT5's kind, that knows one answer."""
    folder = tmp_path_factory.mktemp("seq2seq")
    tokenizer = tokenizer_of(
        ["[C]", "[O]", "[N]", "[=C]", "[Ring1]", "[=Branch1]", "[Branch1]", "[=O]", "<bom>", "<eom>"], r"\[[^\]]*\]|<[a-z]*>"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=len(tokenizer), **sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
        )
        asked = tokenizer(BIOT5.prompt(PARENTS[0]), return_tensors="pt")
        labels = tokenizer("<bom>[C][C][C][O]<eom><eos>", return_tensors="pt")["input_ids"]
        teach(model, {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"], "labels": labels}, 80, 3e-3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
