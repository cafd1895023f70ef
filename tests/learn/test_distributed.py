"""Several processes learn as one: the same parameters, one checkpoint, one set of records; and they say when they cannot."""

import json
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from popflow.core.checkpoint import load_tensors
from popflow.core.streams import Streams
from popflow.learn import MLP, cosine, distributed, fit
from popflow.learn.distributed import processes, shard_rows

STEPS = 40


def job(folder: Path, *, steps: int = STEPS, seed: int = 0) -> dict:
    """Regress a small network, in however many processes this runs; the optimiser, clipping, average and schedule all take part."""
    with Streams(1).layers():
        network = MLP(2, out=1, width=8, depth=2).double()

    def loss(params, batch):
        x, t = batch
        error = functional_call(network, params, (x, t))[:, 0] - x.sin().sum(1)
        return error.square().mean(), {"bias": error.mean()}

    def batches(rng):
        return rng.normal("x", torch.empty(16, 2, dtype=torch.float64)), rng.uniform("t", (16,))

    records = []
    result = fit(
        loss,
        dict(network.named_parameters()),
        batches,
        steps=steps,
        rng=Streams(seed),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=cosine(STEPS, warmup=5),
        clip_norm=0.5,
        ema=0.9,
        record=[lambda progress: records.append([progress.step, dict(progress.metrics)])],
        log_every=15,
        checkpoint=folder / "fit.safetensors",
        checkpoint_every=10,
        compile=False,
    )
    return {"records": records, "params": {name: p.tolist() for name, p in result.ema.items()}}


SCRIPT = """
import importlib.util, json, os, sys, pathlib, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("test_distributed", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
folder, rank = pathlib.Path(sys.argv[2]), int(os.environ["RANK"])
seen = {"fresh": module.job(folder / "fresh"), "resumed": module.job(folder / "resumed")}
try:
    module.job(folder / "unlike", seed=rank)
except RuntimeError as error:
    seen["unlike"] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(seen))
"""


def furthest(a: dict, b: dict) -> float:
    return max(float((torch.tensor(a[name]) - torch.tensor(b[name])).abs().max()) for name in a)


def test_two_processes_are_one_with_the_same_batch_and_share_its_checkpoint(tmp_path, torchrun):
    job(tmp_path / "one", steps=25)
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    alone, fresh = job(tmp_path / "one"), job(tmp_path / "fresh one")
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun(tmp_path / "script.py", __file__, tmp_path, processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for stage, one in (("fresh", fresh), ("resumed", alone)):
        assert first[stage]["params"] == second[stage]["params"]
        assert furthest(first[stage]["params"], one["params"]) < 1e-6
        assert second[stage]["records"] == []
        assert [step for step, _ in first[stage]["records"]] == [step for step, _ in one["records"]]
        for (_, metrics), (_, expected) in zip(first[stage]["records"], one["records"], strict=True):
            assert metrics == pytest.approx(expected, abs=1e-9)
        (mine, about), (theirs, _) = (load_tensors(tmp_path / f / "fit.safetensors") for f in (stage, "one"))
        assert about["step"] == STEPS
        assert all(torch.equal(mine[name], value) for name, value in theirs.items() if name.startswith("rng."))
    for seen in (first, second):
        assert "the seed of rng is between 0.0 and 1.0 in the 2 processes" in seen["unlike"]


def test_rows_are_shared_equally_or_not_at_all():
    batch = {"x": torch.arange(12).reshape(6, 2), "t": (torch.arange(6), torch.tensor(1.0)), "name": "kept"}
    parts = [shard_rows(batch, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part["t"][0] for part in parts]), batch["t"][0])
    assert parts[2]["t"][1] == 1.0
    assert parts[0]["name"] == "kept"
    assert shard_rows(batch, 0, 1) is batch
    with pytest.raises(ValueError, match=r"first dimensions \[6\], wanted one and the same, a multiple of the 4 processes"):
        shard_rows(batch, 0, 4)
    with pytest.raises(ValueError, match=r"first dimensions \[2, 6\]"):
        shard_rows((torch.zeros(6), torch.zeros(2)), 0, 2)


def test_a_message_is_let_go_before_the_call_returns(monkeypatch):
    """A thread of gloo that still holds a message when the interpreter is torn down aborts the process."""
    held = []
    late = threading.Timer(0.1, held.clear)

    def all_reduce(message, op):
        held.append(message)
        late.start()

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    assert distributed.Processes(0, 2).any(True, torch.device("cpu"))
    assert held == []
    late.join()


def test_one_process_is_left_alone():
    team = processes(torch.device("cpu"))
    x = torch.ones(2)
    assert (team.rank, team.size) == (0, 1)
    assert team.mean([x])[0] is x
    assert team.any(True, x.device)
    assert not team.first(False, x.device)
