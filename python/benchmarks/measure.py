# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Timing side by side, and the record of what ran where."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowrank_swift import __version__, _native, set_num_threads

__all__ = ["Timing", "environment", "time_side_by_side", "use_threads"]

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Wall times of one contender, in milliseconds."""

    median: float
    minimum: float
    maximum: float
    repetitions: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise the times of a contender."""
        return cls(statistics.median(seconds) * 1e3, min(seconds) * 1e3, max(seconds) * 1e3, len(seconds))


def time_side_by_side(
    contenders: Mapping[str, Run], *, before: Run, repetitions: int, seconds_each: float
) -> dict[str, Timing]:
    """Time the contenders in turn, A B C A B C, so that a machine that drifts slows all of them.

    Args:
        contenders: What to time, by name.
        before: Runs untimed before every single repetition: restores what a contender changes in place.
        repetitions: How often each runs after one warm-up.
        seconds_each: A contender that has run for so long, and three times at least, is not run again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            times = seconds[name]
            if len(times) >= 3 and sum(times) > seconds_each:
                continue
            before()
            begin = time.perf_counter()
            run()
            if repetition > 0:
                times.append(time.perf_counter() - begin)
    return {name: Timing.of(times) for name, times in seconds.items()}


def use_threads(count: int) -> None:
    """Give torch and this package the same number of threads."""
    torch.set_num_threads(count)
    set_num_threads(count)


def environment() -> dict[str, Any]:
    """Return the facts that a number is worth nothing without."""
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
        "openblas_variables": {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")},
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
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": git("rev-parse", "--short", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
