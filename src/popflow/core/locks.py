"""Locks on files, which end with the process that holds them, however it ends. Importing this module imports no torch. Without effect on Windows."""

from __future__ import annotations

import os
import sys
import weakref
from typing import IO, Any

_LOCKED: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def lock(file: IO[Any]) -> bool:
    """Lock an open file for this process, until the file is closed or the process ends; say whether it could be locked.

    A process forked from this one does not share the lock, which would outlive this one: there the file is closed.
    """
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _LOCKED.add(file)
    return True


def locked(file: IO[Any]) -> bool:
    """Say whether a process holds the lock of a file, which is open here for reading. To look is to hold a shared lock for some microseconds.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/.lock"
    >>> with open(path, "a") as held, open(path) as seen:
    ...     locked(seen), lock(held), locked(seen)
    (False, True, True)
    """
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _close_in_fork() -> None:
    for file in list(_LOCKED):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_fork)
