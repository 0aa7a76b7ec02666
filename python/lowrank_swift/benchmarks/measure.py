# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Timing side by side, memory, and the record of what ran where."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowrank_swift import __version__, _native, set_num_threads

__all__ = ["Run", "Timing", "environment", "peak_extra_bytes", "time_side_by_side", "use_threads"]

Run = Callable[[], object]

_SLOW = 1.0  # seconds; what takes longer is not run an extra time to warm up
_FEWEST = 2


@dataclass(frozen=True)
class Timing:
    """Wall times of one contender, in milliseconds, in the order in which they were taken."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.milliseconds)

    def ratio_to(self, other: Timing) -> float:
        """Median over the rounds of this time over the other's, both of the same round."""
        pairs = zip(self.milliseconds, other.milliseconds, strict=False)
        return statistics.median(mine / its for mine, its in pairs)

    def excess_over(self, other: Timing) -> float:
        """Median over the rounds of this time minus the other's, both of the same round, in milliseconds."""
        pairs = zip(self.milliseconds, other.milliseconds, strict=False)
        return statistics.median(mine - its for mine, its in pairs)

    def record(self) -> dict[str, Any]:
        """Return what goes into the JSON file."""
        return {
            "median": self.median,
            "minimum": min(self.milliseconds),
            "maximum": max(self.milliseconds),
            "repetitions": len(self.milliseconds),
        }


def time_side_by_side(
    contenders: Mapping[str, Run], *, before: Run, repetitions: int, seconds_each: float
) -> dict[str, Timing]:
    """Time the contenders in turn, A B C A B C, so that a machine that drifts slows all of them.

    Args:
        contenders: What to time, by name.
        before: Runs untimed before every single repetition: restores what a contender changes in place.
        repetitions: How often each runs, after one more to warm up unless that took over a second.
        seconds_each: A contender that has run for so long, and twice at least, is not run again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repetitions + 1):
        for name, run in contenders.items():
            times = seconds[name]
            if len(times) >= min(_FEWEST, repetitions) and (sum(times) > seconds_each or len(times) == repetitions):
                continue
            before()
            begin = time.perf_counter()
            run()
            elapsed = time.perf_counter() - begin
            if round_ > 0 or elapsed > _SLOW:
                times.append(elapsed)
    return {name: Timing(tuple(1e3 * each for each in times)) for name, times in seconds.items()}


def peak_extra_bytes(run: Run) -> int:
    """Return by how much the resident memory grew at most while something ran (Linux)."""
    run()  # What is allocated once and kept is no part of it.
    ctypes.CDLL(None).malloc_trim(0)  # Memory that was freed and not returned would be used unseen.
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None, field
    return 1024 * int(match[1])


def use_threads(count: int) -> None:
    """Give torch and this package the same number of threads."""
    torch.set_num_threads(count)
    set_num_threads(count)


def environment() -> dict[str, Any]:
    """Return the facts that a number is worth nothing without: CPU, instruction set, threads, BLAS, versions."""
    import peft

    return {
        "lowrank_swift": __version__,
        "torch": torch.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg(),
        **_commit(),
        **json.loads(_native.config()),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        try:
            return subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
            ).stdout.strip()
        except FileNotFoundError:
            return ""

    return {"commit": git("rev-parse", "--short", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
