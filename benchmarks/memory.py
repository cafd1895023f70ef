"""Peak memory and time of one call, measured in a process of its own.

The process builds the call, makes it once to warm up, returns freed memory to the system (large allocations by ``mmap``), resets the kernel's
high-water mark of resident memory, makes the call again and reads the mark: libraries' scratch memory counts as well as tensors.
Linux alone; elsewhere `peak_megabytes` gives None.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

CHILD = """
import json, sys, time
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads({threads})
from {module} import {maker}
from memory import read, reset
call = {maker}(*json.loads({arguments!r}))
call()
before = read("VmRSS")
reset()
start = time.perf_counter()
call()
print(json.dumps([read("VmHWM") - before, time.perf_counter() - start]))
"""


def read(field: str) -> float:
    """Return a field of ``/proc/self/status`` in megabytes."""
    return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))


def reset() -> None:
    """Set the high-water mark of resident memory to what is resident now."""
    RESET.write_text("5")


def peak_megabytes(module: str, maker: str, *arguments, threads: int = 1) -> float | None:
    """Return the peak memory of ``maker(*arguments)()`` above what was resident before the call, in megabytes."""
    if not os.access(RESET, os.W_OK):
        return None
    code = CHILD.format(here=str(Path(__file__).parent), module=module, maker=maker, arguments=json.dumps(arguments), threads=threads)
    unbuffered = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | unbuffered, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{maker}{arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])[0]
