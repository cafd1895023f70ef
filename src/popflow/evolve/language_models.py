"""Children by a language model in a Hugging Face folder, causal or encoder-decoder: it edits one molecule, or is shown two, after a template of words.

Only safetensors are read, no code of a folder is run, and what the model writes counts only as far as it is a molecule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from popflow.core.errors import MissingExtraError
from popflow.evolve.chat import ChildCounts, Objective, messages, molecules_in
from popflow.evolve.molecules import canonical_or_none
from popflow.evolve.operators import Child, Operator, Parent

_SELFIES = re.compile(r"(?:\[[^\[\]\s]{1,20}\]\s*)+")


@dataclass(frozen=True)
class Template:
    """How a molecule is put to a model, and in what language the answer comes.

    Attributes:
        text: The prompt. ``{smiles}`` and ``{selfies}`` stand for the parent, ``{score}`` for its score, ``{goal}`` for `goal`. Other braces stay.
        goal: What is asked for.
        selfies: The answer is read as SELFIES, not as SMILES.

    Example:
        >>> Template("{goal} {smiles} ->", goal="Improve").prompt(Parent("CCO", 0.5))
        'Improve CCO ->'
        >>> Template("<bom>{selfies}<eom>", selfies=True).prompt(Parent("CCO", 0.5))
        '<bom>[C][C][O]<eom>'
    """

    text: str
    goal: str = ""
    selfies: bool = False

    def __post_init__(self) -> None:
        if "{smiles}" not in self.text and "{selfies}" not in self.text:
            raise ValueError(f"text={self.text!r} shows the model no molecule, wanted {{smiles}} or {{selfies}} in it.")

    def prompt(self, parent: Parent) -> str:
        """Return the prompt for a parent.

        Raises:
            ValueError: when the molecule cannot be written as SELFIES.
        """
        values = {"goal": self.goal, "smiles": parent.smiles, "score": f"{parent.score:.4g}"}
        if "{selfies}" in self.text:
            values["selfies"] = _to_selfies(parent.smiles)
        return re.sub(r"\{(goal|smiles|selfies|score)\}", lambda match: values[match[1]], self.text)

    def molecule(self, text: str) -> str | None:
        """Return the molecule of an answer, canonical, or None.

        >>> Template("{smiles}").molecule("it is OCCc1ccccc1"), Template("{smiles}", selfies=True).molecule("<bom>[C] [C] [O]<eom>")
        ('OCCc1ccccc1', 'CCO')
        """
        if not self.selfies:
            whole = canonical_or_none(text.strip()) if text.strip() else None
            return whole or next(iter(molecules_in(text, 1)), None)
        match = _SELFIES.search(text)
        return None if match is None else _from_selfies("".join(match[0].split()))


BIOT5 = Template(
    "{goal}\n\nInput: <bom>{selfies}<eom>\nOutput: ", goal="Change the molecule so that it fits the target better.", selfies=True
)
"""The form that BioT5 models read and write; the wording of the goal is the user's."""


@dataclass(frozen=True)
class TextModel:
    """A language model and its tokenizer, made by `load_text_model`."""

    model: Any
    tokenizer: Any
    device: torch.device

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model reads with an encoder: its output is then the answer alone."""
        return bool(self.model.config.is_encoder_decoder)

    @torch.no_grad()
    def answers(self, prompts: Sequence[str], seed: int, *, temperature: float = 0.8, longest: int = 256, batch: int = 16) -> list[str]:
        """Draw one answer to each prompt; the same seed gives the same answers, and global generators stay as they are."""
        found: list[str] = []
        room = getattr(self.model.config, "max_position_embeddings", None) or 10**6
        limits = {"truncation": True, "max_length": max(1, room - longest)} if not self.encoder_decoder else {}
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with _seeded(seed, self.device):
            for start in range(0, len(prompts), batch):
                given = self.tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True, **limits).to(self.device)
                given.pop("token_type_ids", None)
                out = self.model.generate(
                    **given, max_new_tokens=min(longest, room - 1), pad_token_id=self.tokenizer.pad_token_id, **sampling
                )
                out = out if self.encoder_decoder else out[:, given["input_ids"].shape[1] :]
                found += self.tokenizer.batch_decode(out, skip_special_tokens=True)
        return found


def load_text_model(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> TextModel:
    """Load a language model from a folder written by ``save_pretrained``, or by its name on the hub.

    Raises:
        MissingExtraError: without transformers.
        ValueError: when it is no such folder or name, has no safetensors, or is no text model.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "transformers is not installed and is needed for language models. Fix: pip install 'popflow[diffusers]'."
        ) from error
    there = Path(folder).is_dir()
    if there and not (Path(folder) / "config.json").is_file():
        raise ValueError(f"folder={str(folder)!r} holds no config.json, wanted a folder written by model.save_pretrained(folder).")
    if not there and (Path(folder).is_absolute() or str(folder).count("/") != 1 or str(folder).startswith(".")):
        raise ValueError(f"folder={str(folder)!r}: no such folder, nor a name on the hub (owner/name). Fix: give the path of a folder.")
    options: dict[str, Any] = {"local_files_only": there, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), **options)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model = kind.from_pretrained(str(folder), use_safetensors=True, **options, **({} if dtype is None else {"dtype": dtype}))
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), padding_side="left", **options)
    except Exception as error:
        where = "a file is missing or damaged" if there else "the hub cannot be reached or does not have it"
        raise ValueError(
            f"{folder} cannot be loaded, {where}: {type(error).__name__}: {str(error).strip().splitlines()[0]} Fix: save model and tokenizer again with "
            "save_pretrained(folder); weights must be safetensors, and folders that bring code of their own are not run."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    place: Any = torch.device(device)
    return TextModel(model.to(place).eval(), tokenizer, place)


@dataclass
class EditText:
    """Children by a `TextModel`: each try draws a parent and asks for one molecule; what it fails to give, the fallback makes.

    Attributes:
        model: Who is asked.
        template: How; None for the tokenizer's own chat template, with two parents and the words of `popflow.evolve.chat`.
        fallback: Makes the children that are missing; None: they are missing.
        objective: What a chat model is told.
        temperature: Of the draws; 0 for the likeliest tokens, where equal parents give equal children.
        longest: Tokens of an answer at most.
        counts: What the answers came to so far.
    """

    model: TextModel
    template: Template | None
    fallback: Operator | None = None
    objective: Objective = field(default_factory=Objective)
    temperature: float = 0.8
    longest: int = 256
    name: str = "language model"
    counts: ChildCounts = field(default_factory=ChildCounts)

    def __post_init__(self) -> None:
        if self.template is None and not getattr(self.model.tokenizer, "chat_template", None):
            raise ValueError("template=None, but the tokenizer has no chat template: give a Template('... {smiles} ...').")

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Ask ``n`` times."""
        prompts, origins = [], []
        for pair in rng.integers(len(parents), size=(n, 2)):
            chosen = [parents[k] for k in (pair if self.template is None else pair[:1])]
            try:
                prompts.append(self._prompt(chosen))
            except ValueError:  # no SELFIES for it
                continue
            origins.append(tuple(parent.smiles for parent in chosen))
        answers = (
            self.model.answers(prompts, int(rng.integers(2**31)), temperature=self.temperature, longest=self.longest) if prompts else []
        )
        kids: dict[str, Child] = {}
        for answer, origin in zip(answers, origins, strict=True):
            smiles = self._molecule(answer, origin)
            if smiles is None:
                self.counts.empty += 1
            else:
                kids.setdefault(smiles, Child(smiles, self.name, origin))
        return self.counts.completed(list(kids.values()), n, self.fallback, parents, rng)

    def _prompt(self, chosen: Sequence[Parent]) -> str:
        if self.template is not None:
            return self.template.prompt(chosen[0])
        talk = messages(chosen, 1, self.objective)
        return self.model.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)

    def _molecule(self, answer: str, origin: tuple[str, ...]) -> str | None:
        found = molecules_in(answer, 1 + len(origin)) if self.template is None else [self.template.molecule(answer)]
        return next((smiles for smiles in found if smiles is not None and smiles not in origin), None)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block torch's global generators are seeded, because `generate` takes no other; afterwards they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _to_selfies(smiles: str) -> str:
    import selfies

    try:
        return selfies.encoder(smiles)
    except selfies.EncoderError as error:
        raise ValueError(f"{smiles} cannot be written as SELFIES: {str(error).strip().splitlines()[0]}") from error


def _from_selfies(text: str) -> str | None:
    import selfies

    try:
        return canonical_or_none(str(selfies.decoder(text)))
    except selfies.DecoderError:
        return None
