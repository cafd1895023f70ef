"""Flows learned by two processes under torchrun are those of one: whole slices of paths are shared, so growth stays normalised."""

import torch
from safetensors.torch import load_file

SCRIPT = """
import os, sys, torch
from safetensors.torch import save_file
from popflow.core import Streams
from popflow.transport import WFR, Lagrangian, LagrangianFlow, Snapshots, VelocityPrior, path_coupling

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
cells = Snapshots.of([torch.randn(20, 2, generator=g, dtype=torch.float64) + k for k in range(3)], times=[0, 1, 3])
flows = {
    "bridge": LagrangianFlow(Lagrangian(noise=0.3, drift=VelocityPrior.between(cells, 1.0)), width=8, depth=2, slices=8, paths=4),
    "growth": LagrangianFlow(Lagrangian(WFR(0.5)), coupling=path_coupling.random_pairs, width=8, depth=2, slices=8, paths=4),
}
for name, flow in flows.items():
    found = flow.fit(cells, steps=8, rng=Streams(0), compile=False).learned.params
    save_file({key: p.detach().contiguous() for key, p in found.items()}, f"{sys.argv[1]}/{name}.{os.environ.get('RANK', 'alone')}")
"""


def test_two_processes_learn_the_flow_of_one(tmp_path, torchrun):
    (tmp_path / "script.py").write_text(SCRIPT)
    for processes in (1, 2):
        torchrun(tmp_path / "script.py", tmp_path, processes=processes)
    for name in ("bridge", "growth"):
        alone, first, second = (load_file(tmp_path / f"{name}.{who}") for who in ("alone", "0", "1"))
        for key, p in alone.items():
            assert torch.equal(first[key], second[key])
            torch.testing.assert_close(first[key], p, rtol=0, atol=1e-6)
