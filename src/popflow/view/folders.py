"""Run folders that the page shows, and the only way to their files: regular files that stand in a run folder itself, never behind a link."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from popflow.core.errors import RunDirectoryError

_DEPTH = 3
_MOST = 500
_FILES = 2_000
"""Run folders that are listed, and files that are looked at in one folder."""


def key_of(folder: Path) -> str:
    """What a run is called in addresses; no path ever comes from the page.

    >>> key_of(Path("/runs/a"))
    '704e1951db552e57'
    """
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def text(value: object, limit: int = 2_000) -> str:
    r"""Text that JSON can carry: without what is not Unicode, and cut at ``limit`` characters.

    >>> text("a\udcffb"), text("long", 2)
    ('a?b', 'lo…')
    """
    said = str(value).encode("utf-8", "replace").decode()
    return said if len(said) <= limit else f"{said[:limit]}…"


class Folders:
    """The folders that were named when the page was opened, and those of runs that it started.

    Args:
        named: Runs, or folders that hold runs at most three levels down.
        out: Folder of new runs, and of all runs where none is named. It need not exist.

    Raises:
        RunDirectoryError: when something that was named is no folder.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("config.json", "env.json"):
        ...     (root / "a").mkdir(exist_ok=True)
        ...     _ = (root / "a" / name).write_text("{}")
        >>> [name for name, _ in Folders([], root).runs().values()]
        ['a']
    """

    def __init__(self, named: Iterable[Path], out: Path):
        named = list(named)
        for one in named:
            if not one.is_dir():
                raise RunDirectoryError(f"{one} is no folder. Fix: give a run directory, or a folder of them.")
        self.out = out.resolve()
        self.roots = list(dict.fromkeys(one.resolve() for one in named)) or [self.out]
        self.started: dict[str, Path] = {}

    def runs(self) -> dict[str, tuple[str, Path]]:
        """Name and folder of every run by its key, sorted by name."""
        found: dict[Path, str] = {}
        for root in self.roots:
            before = f"{root.name}/" if len(self.roots) > 1 else ""
            for folder in _below(root, _DEPTH):
                if len(found) < _MOST:
                    found.setdefault(folder, root.name if folder == root else f"{before}{folder.relative_to(root)}")
        for folder in self.started.values():
            found.setdefault(folder, folder.name)
        return {key_of(folder): (text(name, 200), folder) for folder, name in sorted(found.items(), key=lambda one: one[1])}

    def find(self, key: str) -> Path | None:
        """The folder of a run, or None."""
        return self.runs().get(key, ("", None))[1]

    def new(self, name: str, job: str) -> Path:
        """Folder of a new run; without a name the first free one, such as ``demo-fkc-2``.

        Raises:
            ValueError: for a name that is not one plain word, or a folder that lies behind a link.
        """
        job = job.replace(" ", "-")
        taken = {folder.name for folder in self.started.values()}
        name = name or next(free for i in range(1, 10**6) if (free := f"{job}-{i}") not in taken and not os.path.lexists(self.out / free))
        plain = name[:1].isalnum() and len(name) <= 100 and all(letter.isalnum() or letter in "._-" for letter in name)
        if not (plain and name.isascii()):
            raise ValueError(
                f"folder={name!r}, wanted a name of letters, digits, dots, dashes and underscores that begins with one of the first two."
            )
        folder = self.out / name
        if folder.resolve() != folder:
            raise ValueError(f"folder={name!r} leads out of {self.out}, wanted a folder in it: give another name.")
        return folder


def is_run(folder: Path) -> bool:
    """Say whether a folder holds a run."""
    return all(_regular(folder / name) for name in ("config.json", "env.json"))


def open_file(folder: Path, name: str) -> IO[bytes]:
    """Open a file of a run for reading.

    Raises:
        OSError: when it is absent, is no regular file, or is reached through a link.
    """
    path = folder / name
    if Path(name).name != name or path.resolve(strict=True) != path:
        raise PermissionError(f"{name} does not stand in the run folder")
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PermissionError(f"{name} is no regular file")
    return file


def read_file(folder: Path, name: str, limit: int, *, tail: bool = False) -> bytes:
    """Read at most ``limit`` bytes from the beginning of a file of a run, or from its end.

    Raises:
        OSError: as `open_file`.
        ValueError: when a file that is wanted whole is longer.
    """
    with open_file(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        if tail:
            file.seek(max(0, size - limit))
        elif size > limit:
            raise ValueError(f"{name} has {size} bytes, more than {limit}")
        return file.read(limit)


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells that a file of a run has changed, for its regular files by name."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(_FILES), entries, strict=False):
                if entry.is_file(follow_symlinks=False):
                    one = entry.stat(follow_symlinks=False)
                    found[entry.name] = (one.st_mtime_ns, one.st_size, one.st_ino)
    except OSError:
        return {}
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            with os.scandir(folder) as entries:
                inner = sorted(entry.name for _, entry in zip(range(_FILES), entries, strict=False) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return
        for name in inner:
            if not name.startswith("."):
                yield from _below(folder / name, depth - 1)


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
