# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Repeats calls and counts the bytes that they leave allocated.

Usage: python leaks.py EXAMPLES SEED [FUNCTION ...]

Random calls of the fuzz tests, valid or not, and steps of the PyTorch layer, each many times with the same arguments.
Set GLIBC_TUNABLES=glibc.malloc.tcache_count=0 and PYTHONMALLOC=malloc: then glibc counts every block of Python's, of
C's and of Swift's, and the count is exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from campaign import CALLS, DOCUMENTED, TRIVIAL, bared, choose, describe, replace_some
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lowrank_swift.torch import LaMDA, LoLDU, OLoRA, PiSSA, adapt, disabled, merge, unadapt, unmerge

WARM_UP = 10
# The count jumps by some kilobytes now and then; over more calls that comes to nothing, and a leak does not.
COUNTS = (50, 1000, 5000)
# json's encoder with an indentation is a cycle of closures.
CYCLES_OF_OTHERS = {"show_config"}
# glibc's smallest block: a call that leaves one behind, Python object or not, adds at least so much.
SMALLEST_BLOCK = 32


class MallInfo2(ctypes.Structure):
    # arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost
    _fields_ = (("counts", ctypes.c_size_t * 10),)


_libc = ctypes.CDLL("libc.so.6")
_mallinfo2 = _libc.mallinfo2
_mallinfo2.restype = MallInfo2


def allocated() -> int:
    """Bytes in all blocks of malloc, those of all threads and those mapped one by one."""
    gc.collect()
    counts = _mallinfo2().counts
    return int(counts[4] + counts[7])


def growth(call: Callable[[], object], count: int) -> int:
    """Bytes that `count` calls leave allocated."""
    for _ in range(WARM_UP):
        call()
    before = allocated()
    for _ in range(count):
        call()
    return allocated() - before


def is_leak(call: Callable[[], object]) -> bool:
    """Whether each call leaves a block behind."""
    return all(growth(call, count) >= count * SMALLEST_BLOCK for count in COUNTS)


def leaves_cycles(call: Callable[[], object]) -> bool:
    """Whether each call leaves objects behind that only the garbage collector finds."""
    call()
    gc.collect()
    for _ in range(WARM_UP):
        call()
    return gc.collect() >= WARM_UP


def leak_of(name: str, examples: int, start: int) -> str | None:
    """Describe a call of a function that leaks, or return None."""
    found = []

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.data())
    def calls(data: st.DataObject) -> None:
        call = CALLS[name](data.draw)
        is_bare = choose(data.draw, (False, True))
        replaced = replace_some(data.draw, call.arguments, is_bare or name.startswith("_native."))
        arguments = {key: bared(value) if is_bare else value for key, value in call.arguments.items()}

        def run() -> None:
            with contextlib.suppress(*DOCUMENTED, MemoryError):
                call.function(**arguments)

        if is_leak(run) or (name not in CYCLES_OF_OTHERS and leaves_cycles(run)):
            found.append(f"{name}({describe(call.arguments)}); replaced: {replaced}, bare: {is_bare}")

    calls()
    return found[0] if found else None


def torch_steps() -> dict[str, Callable[[], object]]:
    """What a training process repeats, over all methods and both forms of the base."""
    steps: dict[str, Callable[[], object]] = {}
    x = torch.randn(5, 24)
    for method in (OLoRA, LoLDU, LaMDA, PiSSA):
        for base in ("intact", "residual"):
            name = f"{method.__name__}, {base}"
            model = adapt(torch.nn.Sequential(torch.nn.Linear(24, 16)), method(4), targets=["0"], base=base)
            plain = torch.nn.Sequential(torch.nn.Linear(24, 16))

            def train(model: Any = model) -> None:
                inputs = x.clone().requires_grad_()
                model(inputs).sum().backward()
                model.zero_grad()

            def forward_alone(model: Any = model) -> None:
                model(x)

            def turn_off(model: Any = model) -> None:
                merge(model)
                unmerge(model)
                with disabled(model):
                    model(x)

            def come_and_go(plain: Any = plain, method: Any = method, base: str = base) -> None:
                adapt(plain, method(4), targets=["0"], base=base)
                unadapt(plain)

            def fail(model: Any = model, plain: Any = plain, method: Any = method) -> None:
                for wrong in (
                    lambda: model(torch.ones(3, 5)),
                    lambda: adapt(plain, method(400), targets=["0"]),
                    lambda: unadapt(plain),
                ):
                    with contextlib.suppress(RuntimeError, ValueError):
                        wrong()

            steps |= {
                f"training step, {name}": train,
                f"forward without a backward, {name}": forward_alone,
                f"merge, unmerge, disabled, {name}": turn_off,
                f"adapt, unadapt, {name}": come_and_go,
                f"errors, {name}": fail,
            }
    return steps


def main() -> int:
    """Print what leaks and how many calls were repeated; 1 if one leaks."""
    warnings.simplefilter("ignore")
    gc.disable()
    gc.freeze()  # Collections then look at what comes from here on only.
    kept: list[object] = []
    # The checks themselves must be able to fail: over a block of Python's, one of C's, and a cycle.
    assert is_leak(lambda: kept.append(object())) and is_leak(lambda: _libc.malloc(1))
    assert leaves_cycles(lambda: (cycle := []).append(cycle))
    examples, start, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or [*CALLS]
    leaks = [leak_of(name, min(examples, TRIVIAL.get(name, examples)), start + i) for i, name in enumerate(names)]
    steps = {} if sys.argv[3:] else torch_steps()
    leaks += [name for name, step in steps.items() if is_leak(step) or leaves_cycles(step)]
    for leak in filter(None, leaks):
        print(f"LEAK {leak}")
    print(f"functions: {len(names)}, steps: {len(steps)}")
    return int(any(leaks))


if __name__ == "__main__":
    sys.exit(main())
