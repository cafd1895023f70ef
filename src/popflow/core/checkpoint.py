"""Files that are whole or absent: tensors and text, written to a temporary name and renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from popflow.core.errors import CheckpointError


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write a file so that a crash, a kill or a full disk leaves either the old one or the new one, whole.

    Raises:
        CheckpointError: when the file cannot be written; what stood there before still does.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. What stood there before is whole. Fix: free space, or give another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> Path:
    """Write named tensors as safetensors, atomically, with a JSON-able description; equal content gives equal bytes."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return write_atomic(path, save(plain, {"about": json.dumps(dict(about or {}), sort_keys=True)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: tensors and description. Nothing is unpickled.

    Raises:
        CheckpointError: when the file is absent, truncated or not safetensors.
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
