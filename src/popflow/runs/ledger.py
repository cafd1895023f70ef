"""The ledger: an append-only file of costly calls, each written and on the disk before its value is used.

    {"ledger": 1, "about": {...}, "process": 4711, "host": "node3", "opened": "2026-11-30 12:00:00", "crc": "83a1c0de"}
    {"index": 0, "key": "CCO", "kind": "value", "value": 0.407, "seconds": 2.1, "crc": "9f0c1b22"}
    {"index": 1, "key": "C#C", "kind": "timeout", "message": "ended after 60 s", "seconds": 60.0, "crc": "0b61a7d5"}

One JSON object a line: one for each process that opened it to write, one for each call. A line ends with the CRC-32 of what precedes it, so a line that a
kill or a power cut left unfinished is recognised: at the end of the file it is dropped, and that call is made again; elsewhere the file is damaged, and
the error names the line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from popflow.core.errors import CheckpointError, PopflowWarning
from popflow.core.locks import lock
from popflow.runs.outcomes import KINDS, Kind, Outcome
from popflow.runs.run import RunBusyError

FORMAT = 1


class Ledger(Mapping[str, Outcome]):
    """Outcomes of costly calls by key, ``ledger[key] -> Outcome``, in a file that one process at a time may write.

    What is promised: a call that `record` returned from is on the disk, and survives a kill of the process or of the machine. A call that was running,
    or whose outcome was not yet recorded, leaves nothing, and is made again by the next process.

    Args:
        path: The file, made when it does not exist (with its folder). None keeps the outcomes in memory alone.
        about: What the values depend on besides the key (JSON): the receptor, the settings of the force field. Written into the file; another process
            must give the same.

    Raises:
        RunBusyError: when another process writes it; the message says which.
        CheckpointError: when it cannot be written, is damaged, is no ledger, or is about something else.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/calls.jsonl"
        >>> with Ledger(path) as ledger:
        ...     ledger.record("CCO", Outcome("value", 0.407))
        ...     ledger.record("C#C", Outcome("infeasible", message="too small"))
        >>> again = Ledger.read(path)
        >>> again["CCO"].value, len(again), again.counts()["infeasible"]
        (0.407, 2, 1)
    """

    def __init__(self, path: str | Path | None = None, about: Mapping[str, Any] | None = None):
        self.path = None if path is None else Path(path)
        self._begin(about)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise OSError(errno.EINVAL, "it is not a file")
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            if not lock(self._file):
                raise RunBusyError(
                    f"{self.path} is being written by {_writer(self.path)}. Fix: wait for it, or stop it: no recorded call is lost."
                )
            self._read(self._file)
            self._open(check=about is not None)
        except OSError as error:
            self.close()
            raise CheckpointError(
                f"cannot write the ledger {self.path}: {error.strerror or error}. No call was made. Fix: give a file in a folder that can be written, "
                "with free space."
            ) from error
        except BaseException:
            self.close()
            raise

    @staticmethod
    def read(path: str | Path) -> Ledger:
        """Read a ledger as it is now, without writing, also while another process writes it.

        Raises:
            CheckpointError: when it cannot be read, or is damaged.
        """
        ledger = Ledger()
        ledger.path = Path(path)
        try:
            with open(path, "rb", buffering=0) as file:
                ledger._read(file)
        except OSError as error:
            raise CheckpointError(f"cannot read the ledger {path}: {error.strerror or error}. Fix: give the file of a ledger.") from error
        return ledger

    def __getitem__(self, key: str) -> Outcome:
        return self._outcomes[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in the order in which they were asked for."""
        return iter(sorted(self._outcomes, key=self._index.__getitem__))

    def __len__(self) -> int:
        return len(self._outcomes)

    @property
    def about(self) -> Mapping[str, Any]:
        """What the values depend on besides the key."""
        return self._about if self._head is None else self._head["about"]

    def known(self, key: str) -> bool:
        """Say whether a key needs no call: it has an outcome, and none that was forgotten."""
        return key in self._outcomes and key not in self._forgotten

    def index(self, key: str) -> int:
        """Return the number of a key in the order in which keys were asked for, from 0; calls that finish earlier do not change it."""
        return self._index[key]

    def note(self, key: str) -> Mapping[str, Any]:
        """Return what the caller wrote beside the outcome."""
        return self._notes.get(key, {})

    def counts(self) -> dict[Kind, int]:
        """Return how many keys have an outcome of each kind."""
        found = Counter(outcome.kind for outcome in self._outcomes.values())
        return {kind: found[kind] for kind in KINDS}

    def forget(self, *kinds: Kind) -> int:
        """Let keys whose outcome is of these kinds be asked for again, by this process; return how many they are.

        The old lines stay in the file; a new outcome takes the place of the old one.

        Raises:
            ValueError: for a kind that does not exist.
        """
        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise ValueError(f"kinds={sorted(unknown)}, wanted some of {', '.join(KINDS)}.")
        found = {key for key, outcome in self._outcomes.items() if outcome.kind in kinds}
        self._forgotten |= found
        return len(found)

    def free(self, keys: Sequence[str]) -> list[int]:
        """Return the numbers that new keys will have: those unused so far, in order, and its own for a key that has one.

        A process that was killed leaves out the numbers of calls in flight; the next one asks for them again in the same order.
        """
        used = set(self._index.values())
        unused = (number for number in range(len(used) + len(keys)) if number not in used)
        return [self._index[key] if key in self._index else next(unused) for key in keys]

    def record(self, key: str, outcome: Outcome, index: int | None = None, note: Mapping[str, Any] | None = None) -> None:
        """Write an outcome, and return once it is on the disk.

        Args:
            key: Identifies the input; see `key_of`.
            outcome: What the call gave.
            index: Number of the key, from `free`; the least unused one by default.
            note: What shall stand beside it (JSON): who proposed the input, in which round.

        Raises:
            CheckpointError: when it cannot be written (the file then ends before it), or the ledger is closed or was opened by `read`.
        """
        index = self.free([key])[0] if index is None else index
        row: dict[str, Any] = {"index": index, "key": key, "kind": outcome.kind}
        rest = {
            "value": outcome.value,
            "message": outcome.message or None,
            "seconds": round(outcome.seconds, 6),
            "note": dict(note or {}) or None,
        }
        row |= {name: one for name, one in rest.items() if one is not None}
        line = _line(row)
        if self.path is not None:
            self._write(line)
        self._keep(row)

    def close(self) -> None:
        """Let another process write the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, about: Mapping[str, Any] | None) -> None:
        self._file: FileIO | None = None
        self._outcomes: dict[str, Outcome] = {}
        self._index: dict[str, int] = {}
        self._notes: dict[str, Mapping[str, Any]] = {}
        self._forgotten: set[str] = set()
        self._head: dict[str, Any] | None = None
        self._end = 0
        self._about: dict[str, Any] = json.loads(json.dumps(dict(about or {}), allow_nan=False))

    def _open(self, check: bool) -> None:
        """Cut what a kill left, and say in the file who writes it now: a full disk shows before the first call."""
        assert self._file is not None
        if self._head is not None and check and self._head["about"] != self._about:
            there: dict[str, Any] = self._head["about"]
            names = [name for name in {**there, **self._about} if there.get(name, ...) != self._about.get(name, ...)]
            differing = "; ".join(
                f"{name} is {there.get(name, 'absent')!r} there and {self._about.get(name, 'absent')!r} now" for name in names
            )
            raise CheckpointError(f"{self.path} is about other calls: {differing}. Fix: give another file.")
        torn = os.fstat(self._file.fileno()).st_size - self._end
        if torn:
            self._file.truncate(self._end)
            warnings.warn(
                f"{self.path}: the last line was torn ({torn} bytes, left by a kill or a power cut) and is dropped; its call will be made again.",
                PopflowWarning,
                stacklevel=3,
            )
        head = {
            "ledger": FORMAT,
            "about": self.about,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "opened": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._write(_line(head))

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise CheckpointError(f"{self.path} is not open for writing. Fix: open it with Ledger(path).")
        try:
            rest = line
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            try:
                self._file.truncate(self._end)
            except OSError:
                self.close()  # what stands behind the end is dropped by the next process
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror or error}. The calls recorded before are safe, the last one is not recorded. "
                "Fix: free space, then run again."
            ) from error
        self._end += len(line)

    def _read(self, file: FileIO) -> None:
        file.seek(0)
        content = file.readall() or b""
        lines = [line + b"\n" for line in content.split(b"\n")]
        lines[-1] = lines[-1][:-1]  # what follows the last line break: nothing, or a torn line
        lines = lines if lines[-1] else lines[:-1]
        for number, line in enumerate(lines, 1):
            row = _row(line)
            if row is None and not line.endswith(b"\n") and (number > 1 or b'{"ledger"'.startswith(line[:9])):
                return
            if row is None or (number == 1 and "ledger" not in row):
                what = "is no ledger" if number == 1 else f"is damaged: line {number} does not match its checksum"
                raise CheckpointError(f"{self.path} {what}. Fix: restore the file, or give another one.")
            if row.get("ledger", FORMAT) != FORMAT:
                raise CheckpointError(
                    f"{self.path} has format {row['ledger']}, wanted {FORMAT}. Fix: read it with the version that wrote it."
                )
            if "ledger" in row:
                self._head = self._head or row
            else:
                self._keep(row)
            self._end += len(line)

    def _keep(self, row: Mapping[str, Any]) -> None:
        key, value = row["key"], row.get("value")
        self._outcomes[key] = Outcome(
            row["kind"], tuple(value) if isinstance(value, list | tuple) else value, row.get("message", ""), row["seconds"]
        )
        self._index[key] = row["index"]
        self._notes[key] = row.get("note", {})
        self._forgotten.discard(key)


def key_of(item: Any) -> str:
    """Return the canonical key of an input: equal inputs have equal keys, in every process and on every machine.

    Text is its own key. Numbers, lists, tuples and mappings of them are written as JSON with sorted names; arrays and tensors count by
    their type, shape and bytes, so ``1`` and ``1.0``, and ``0.0`` and ``-0.0``, are different inputs.

    Raises:
        TypeError: for other inputs.

    >>> key_of("CCO"), key_of({"y": 2, "x": [1.5, True]})
    ('CCO', 'json:{"x":[1.5,true],"y":2}')
    >>> key_of(np.zeros((2, 3)))
    'float64[2,3]:17b0761f87b081d5cf10757ccc89f12b'
    """
    if isinstance(item, str):
        return item
    if isinstance(item, np.ndarray | np.generic | Tensor):
        return _array(item)
    return "json:" + json.dumps(_plain(item), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(item: Any) -> Any:
    if item is None or (isinstance(item, str | bool | int | float) and not isinstance(item, np.generic)):
        return item
    if isinstance(item, np.ndarray | np.generic | Tensor):
        return _array(item)
    if isinstance(item, bytes):
        return f"bytes:{hashlib.sha256(item).hexdigest()[:32]}"
    if isinstance(item, list | tuple):
        return [_plain(one) for one in item]
    if isinstance(item, Mapping) and all(isinstance(name, str) for name in item):
        return {name: _plain(one) for name, one in item.items()}
    raise TypeError(f"an input holds {type(item).__name__}, which has no canonical key. Fix: give key=, a function from inputs to text.")


def _array(item: np.ndarray | np.generic | Tensor) -> str:
    if isinstance(item, Tensor):
        import torch

        name, content = str(item.dtype).removeprefix("torch."), item.detach().cpu().contiguous()
        content = content.reshape(-1).view(torch.uint8).numpy().tobytes() if content.numel() else b""
    else:
        array = np.asarray(item)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"an input is an array of {array.dtype}, wanted numbers. Fix: give key=, a function from inputs to text.")
        name, content = array.dtype.name, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    shape = ",".join(map(str, item.shape))
    return f"{name}[{shape}]:{hashlib.sha256(content).hexdigest()[:32]}"


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(row, allow_nan=False)[:-1]
    except (TypeError, ValueError) as error:
        raise TypeError(f"cannot be written as JSON: {error}. Fix: notes hold finite numbers, text, lists and mappings.") from error
    return f'{text}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def _row(line: bytes) -> dict[str, Any] | None:
    """The content of a line, or None when it is not whole."""
    text, comma, crc = line.rpartition(b', "crc": "')
    if not comma or crc != b'%08x"}\n' % zlib.crc32(text):
        return None
    return json.loads(text + b"}")


def _writer(path: Path) -> str:
    """Who writes a file, by the last line that says so."""
    with open(path, "rb") as file:
        heads = [row for line in file if line.startswith(b'{"ledger"') and (row := _row(line))]
    if not heads:
        return "another process"
    return f"process {heads[-1]['process']} on {heads[-1]['host']} since {heads[-1]['opened']}"
