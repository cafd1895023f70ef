"""Load pipelines of diffusers from folders and from the hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from popflow.core import MissingExtraError


def extra(name: str) -> Any:
    """Import ``diffusers`` or ``transformers``.

    Raises:
        MissingExtraError: when it is absent, naming the extra that brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"pretrained pipelines need {name}, which cannot be imported ({error}): pip install 'popflow[diffusers]'."
        ) from error


def load_pipe(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Any:
    """Load the pipeline itself; see `from_pretrained`."""
    diffusers = extra("diffusers")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r}, wanted a torch.dtype such as torch.float16, or None for that of the folder.")
    if not isinstance(folder, str | Path):
        raise TypeError(f"folder={folder!r}, wanted a path, or the name of a repository on the hub; pass several as separate arguments.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}), wanted 'cpu', or a device that torch sees."
        ) from error
    there = Path(folder).is_dir()
    if there and not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"folder={str(folder)!r} holds no model_index.json, wanted a folder written by pipe.save_pretrained(folder).")
    if not there and (
        Path(folder).is_absolute() or str(folder).count("/") != 1 or str(folder).startswith(".") or str(folder).endswith("/")
    ):
        raise ValueError(
            f"folder={str(folder)!r}: no such folder, nor a name on the hub (owner/name). Fix: give the path of a folder written by "
            "pipe.save_pretrained(folder)."
        )
    try:
        options = {} if dtype is None else {"dtype": dtype}
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **options)
    except Exception as error:
        chain = _chain(error)
        said = "; first cause: ".join(dict.fromkeys(f"{type(one).__name__}: {str(one).strip()}" for one in (error, chain[-1])))
        if any(isinstance(one, ImportError) for one in chain):
            raise ValueError(
                f"{folder} cannot be loaded, a library that it needs cannot be imported: {said} Fix: reinstall that library, "
                "pip install --force-reinstall NAME, or remove it if nothing needs it; the folder itself may be fine."
            ) from error
        if there:
            raise ValueError(
                f"{folder} cannot be loaded, a component is missing or damaged: {said} Fix: save it again with pipe.save_pretrained(folder); weights "
                "must be safetensors."
            ) from error
        raise ValueError(
            f"{folder} is not a folder here, and the hub cannot be reached or does not have it ({type(chain[-1]).__name__}: {chain[-1]}). Fix: on a machine "
            f"with network access, `hf download {folder} --local-dir FOLDER`, copy FOLDER here and give its path."
        ) from error
    return pipe.to(device)


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and its chain of causes, the first cause last."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [error] if before is None else [error, *_chain(before)]
