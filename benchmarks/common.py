"""What the benchmarks share: time, memory, and the circumstances that a figure needs beside it.

Standard library only: scripts of the environments in `peers.py` import it too.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def memory(field: str) -> float:
    """MiB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def peak_growth(run: Callable[[], Any]) -> float | None:
    """MiB of resident memory that a run adds at most; known on Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left to the allocator would hide the growth
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = memory("VmRSS")
    run()
    return round(memory("VmHWM") - before, 1)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def spread(values: list[float]) -> dict[str, float]:
    return {name: round(f(values), 4) for name, f in (("median", median), ("min", min), ("max", max))}


def circumstances(threads: int, *packages: str) -> dict[str, Any]:
    """The machine, the commit, the day, and the versions of these distributions (names as pip knows them)."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    cpu_info = Path("/proc/cpuinfo")
    models = (
        [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        if cpu_info.exists()
        else []
    )
    return {
        "threads": threads,
        "device": "cpu",
        "cpu": models[0].split(": ")[1] if models else platform.processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


class Worker:
    """A contender in a process of its own: a script that answers each line of JSON with one."""

    def __init__(self, script: Path, contender: str, python: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self._process = subprocess.Popen(
            [python, script, contender], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
