"""What all tests share: checked shapes and types, one torch thread, the data folder, and no global random numbers."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config, install_import_hook

# Annotations of popflow are checked at every call; an int is accepted where a float is annotated, as static checkers do.
install_import_hook("popflow", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
importlib.import_module("popflow.core")  # now, not in a test: the checkers' own first imports may draw from numpy's generator
torch.set_num_threads(1)
# a shell has what it runs in the background ignore SIGINT, and the processes that tests start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = ["pytester"]


def data_folder() -> Path | None:
    """Return ``$POPFLOW_DATA``, or the ``shared/data`` beside the repository (or beside a folder above it), or None."""
    if os.environ.get("POPFLOW_DATA"):
        return Path(os.environ["POPFLOW_DATA"])
    return next((parent / "shared/data" for parent in ROOT.parents if (parent / "shared/data").is_dir()), None)


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of published data sets. Without it the test is skipped, except in CI, where the data must be there and it fails."""
    folder = data_folder()
    if folder is None or not folder.is_dir():
        reason = f"no data: POPFLOW_DATA={os.environ.get('POPFLOW_DATA')!r} and no shared/data beside {ROOT}"
        if os.environ.get("CI"):
            pytest.fail(reason + "; CI must have it")
        pytest.skip(reason)
    return folder


def launch(script: Path, *arguments: str | Path, processes: int = 1) -> None:
    """Run a script, with ``torchrun`` for several processes, one thread each; the test fails if it fails."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *several, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


@pytest.fixture
def torchrun() -> Callable[..., None]:
    """Return `launch`."""
    return launch


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the checks of annotations: `torch.compile` cannot trace through them, and users do not have them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def no_global_random_numbers() -> Iterator[None]:
    """Fail a test that uses a global random generator: randomness comes from `Streams` only.

    A test that builds plain torch layers does so under ``torch.random.fork_rng()``.
    """
    before = _global_states()
    yield
    after = _global_states()
    moved = [name for name in before if before[name] != after[name]]
    assert not moved, f"the global random generators of {moved} were used: draw from Streams or a torch.Generator"


def _global_states() -> dict[str, object]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": (kind, keys.tobytes(), *rest)}
