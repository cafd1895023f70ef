"""SINGD as the optimiser of a Hugging Face Trainer: a tiny causal language model, with a checkpoint and exact resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from popflow.optim import SINGD

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Rows(torch.utils.data.Dataset):
    """Counting upwards modulo 16."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(8) + index) % 16
        return {"input_ids": tokens, "labels": tokens}


@contextmanager
def restored_seeds() -> Iterator[None]:
    """A Trainer seeds the global generators of torch and numpy; give them back as they were."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    np.random.set_state(before)  # noqa: NPY002


def trained(folder, steps: int, resume: bool = False):
    with restored_seeds():
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, max_position_embeddings=8, **sizes))
        optimizer = SINGD(model, lr=4e-2, structure="auto", interval=2, fallback_lr=4e-2)
        arguments = transformers.TrainingArguments(
            str(folder), per_device_train_batch_size=8, max_steps=steps, save_steps=4, learning_rate=4e-2, report_to=[], use_cpu=True,
            logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, lr_scheduler_type="constant", seed=0,
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return optimizer, losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_trainer_learns_saves_and_goes_on(tmp_path):
    optimizer, losses, whole = trained(tmp_path / "whole", 12)
    assert losses[-1] < 0.7 * losses[0]
    assert optimizer.preconditioner.refreshes == 6
    assert {line.name for line in optimizer.report() if line.inputs is not None} >= {"lm_head", "model.layers.0.self_attn.q_proj"}
    trained(tmp_path / "parts", 4)
    _, _, resumed = trained(tmp_path / "parts", 12, resume=True)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
