# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Times and memory on a device; with the CPU in its place, the rows can be tried."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .measure import Run, Timing, peak_extra_bytes
from .table import matrix

__all__ = ["FLOOR", "Gpu"]

FLOOR = "bandwidth floor"


@dataclass(frozen=True)
class Gpu:
    """Where to measure, and how often."""

    device: torch.device
    repetitions: int
    is_quick: bool

    def side(self, size: int) -> int:
        """Return a size, a sixteenth of it in a quick run."""
        return max(64, size // 16) if self.is_quick else size

    def matrix(self, rows: int, columns: int, dtype: torch.dtype, *, decay: bool = False) -> Tensor:
        """Return a seeded weight on the device."""
        return matrix(rows, columns, dtype, decay=decay).to(self.device)

    @cached_property
    def _scratch(self) -> Tensor:
        """Several times what a device's cache holds."""
        return torch.empty((1 if self.is_quick else 256) << 20, dtype=torch.uint8, device=self.device)

    def milliseconds(self, run: Run, calls: int = 1) -> float:
        """Return how long the device works on one of so many calls in a row."""
        self._scratch.zero_()
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            return 1e3 * (time.perf_counter() - begin) / calls
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls

    def time(self, contenders: Mapping[str, Run], before: Run = lambda: None, calls: int = 1) -> dict[str, Timing]:
        """Time the contenders in turn, after one round to warm up; what takes seconds runs twice."""
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(self.repetitions + 1):
            for name, run in contenders.items():
                if round_ > 2 and max(times[name]) > 1000:
                    continue
                before()
                elapsed = self.milliseconds(run, calls)
                if round_ > 0:
                    times[name].append(elapsed)
        return {name: Timing(tuple(each)) for name, each in times.items()}

    def floor(self, passes: float, weight: Tensor) -> float:
        """Return the time of so many passes over a weight, by the time of a copy, which is two."""
        target = torch.empty_like(weight)
        return self.time({FLOOR: lambda: target.copy_(weight)})[FLOOR].median * passes / 2

    def bandwidth(self) -> float:
        """Return the gigabytes per second that a large copy reads and writes."""
        source = torch.empty((1 << 20) if self.is_quick else (1 << 30), dtype=torch.uint8, device=self.device)
        return 2 * source.nbytes / self.floor(2, source) / 1e6

    def peak_bytes(self, prepare: Callable[[], Run]) -> float:
        """Return the most memory that what was prepared takes with its own run, after one run to warm up."""
        if self.device.type != "cuda":
            return float(peak_extra_bytes(prepare()))
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        run = prepare()
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
