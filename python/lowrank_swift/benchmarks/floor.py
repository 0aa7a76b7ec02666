# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the machine could do at best: the time that memory or arithmetic alone would take."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from .measure import Run

__all__ = ["Machine", "Work"]


@dataclass(frozen=True)
class Work:
    """What an operation cannot do without: bytes to and from memory, and floating-point operations."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Machine:
    """Rates measured in the run whose times are compared with them."""

    bytes_per_second: float
    """Read and written by a copy between arrays that no cache holds."""
    flops_per_second: float
    """Of the fastest float32 matrix product that torch or NumPy makes of 2048 x 2048 matrices."""

    @classmethod
    def measured(cls, *, quick: bool = False) -> Machine:
        """Measure the rates with the number of threads that torch has."""
        source = torch.ones((16 if quick else 256) * 2**18)
        target = torch.empty_like(source)
        copy = _fastest(lambda: target.copy_(source))
        size = 512 if quick else 2048
        left, right, product = (torch.randn(size, size) for _ in range(3))
        a, b = left.numpy(), right.numpy()
        multiply = min(_fastest(lambda: torch.mm(left, right, out=product)), _fastest(lambda: a @ b))
        return cls(2 * source.nbytes / copy, 2 * size**3 / multiply)

    def milliseconds(self, work: Work) -> float:
        """Return the time below which the work can't be done."""
        return 1e3 * max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)

    def record(self) -> dict[str, float]:
        """Return what goes into the JSON file."""
        return asdict(self)


def _fastest(run: Run, repetitions: int = 7) -> float:
    times = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
