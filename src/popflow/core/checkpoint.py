"""Atomic files: tensors and text, written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from popflow.core.errors import CheckpointError


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary file that takes the place of ``path`` when the block ends well, and is removed otherwise.

    A crash, a kill or a full disk leaves either the old content or the new one, complete.

    Raises:
        CheckpointError: when the file cannot be written; the old content is then untouched.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. The previous file is untouched. Fix: free space, or give another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write a file as a `whole`, and wait until it is on the disk."""
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> Path:
    """Write named tensors and a JSON-compatible description as safetensors, atomically; equal content gives equal bytes."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return write_atomic(path, save(plain, {"about": json.dumps(dict(about or {}), sort_keys=True)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and description from a file of `save_tensors`. Nothing is unpickled.

    Raises:
        CheckpointError: when the file is missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"cannot read {path} as safetensors: {error}. Fix: give the right file, or remove it and start again."
        ) from error
    return tensors, about
