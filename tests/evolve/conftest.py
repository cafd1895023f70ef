"""Tiny language models in folders, made and taught here."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from popflow.evolve.language_models import BIOT5
from popflow.evolve.operators import Parent

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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
