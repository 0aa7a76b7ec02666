# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Runs random calls. A process of its own, so that a crash of it is a failure that names the call.

Usage: python campaign.py EXAMPLES SEED [FUNCTION ...]
"""

from __future__ import annotations

import faulthandler
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lowrank_swift as lrs
import numpy as np
import torch
from fuzz_arrays import Draw, choose, integers, replacement
from fuzz_calls import (
    FACTORIZATIONS,
    Call,
    as_factors,
    config_call,
    delta,
    initializer,
    merging,
    native_borrow,
    native_check_weight,
    native_config,
    native_contents,
    native_initialize,
    new_tensor,
    thread_count,
)
from fuzz_products import (
    backward,
    forward,
    native_backward,
    native_base_product,
    native_change_backward,
    native_change_forward,
    native_effective_up,
    native_effective_up_backward,
    native_forward,
)
from fuzz_ranks import (
    allocation,
    file_allocation,
    native_allocation,
    native_read_file,
    native_spectrum,
    native_warmup,
    warmup,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lowrank_swift import _native
from support import float64

CALLS: dict[str, Callable[[Draw], Call]] = {
    **FACTORIZATIONS,
    **{
        name: (lambda draw, name=name: initializer(draw, name))
        for method in ("olora", "loldu", "lamda", "pissa")
        for name in (method, f"{method}_")
    },
    "lora_xs": lambda draw: initializer(draw, "lora_xs"),
    "adapter_forward": forward,
    "adapter_backward": backward,
    "merge_": lambda draw: merging(draw, "merge_", 1, lambda a: lrs.merge_(a["weight"], as_factors(a))),
    "unmerge_": lambda draw: merging(draw, "unmerge_", -1, lambda a: lrs.unmerge_(a["weight"], as_factors(a))),
    "Factors.delta": delta,
    "show_config": config_call,
    "set_num_threads": thread_count,
    "_native.check_weight": native_check_weight,
    "_native.initialize": native_initialize,
    "_native.adapter_forward": native_forward,
    "_native.adapter_backward": native_backward,
    "_native.change_forward": native_change_forward,
    "_native.change_backward": native_change_backward,
    "_native.effective_up": native_effective_up,
    "_native.effective_up_backward": native_effective_up_backward,
    "_native.base_product": native_base_product,
    "_native.merge": lambda draw: merging(draw, "merge", 1, lambda a: _native.merge(*a.values())),
    "_native.config": native_config,
    "_native.borrow": native_borrow,
    "_native.contents": native_contents,
    "Tensor": new_tensor,
    "allocate_ranks": allocation,
    "allocate_ranks of files": file_allocation,
    "_native.allocate_ranks": native_allocation,
    "_native.spectrum": native_spectrum,
    "_native.read_file": native_read_file,
    "warmup": warmup,
    "_native.warmup": native_warmup,
}
# Functions of which one call tells as much as a thousand.
TRIVIAL = {"warmup": 50, "_native.warmup": 50, "show_config": 50, "set_num_threads": 200, "_native.config": 20}

SECONDS_PER_CALL = 60
# Three times what the libraries map: a call that asks for more than is there must not get at the machine's memory.
ADDRESS_SPACE = 4 * 2**30

DOCUMENTED = (TypeError, ValueError, BufferError, lrs.LinAlgError)
# A failed computation names what was computed.
OPERATIONS = ("qr", "ldu", "svd", "spectrum", "lora_xs", "gesdd", "olora", "loldu", "lamda", "pissa")


def snapshot(array: Any) -> tuple[bytes, np.ndarray | None] | None:
    """The bytes of an array, and its numbers in float64 where it has any; None for what is no array in memory."""
    is_tensor = isinstance(array, torch.Tensor) and array.device.type == "cpu" and array.layout == torch.strided
    if not is_tensor and not isinstance(array, np.ndarray):
        return None
    if is_tensor and array.is_neg():
        array = array.resolve_neg()
    is_float = array.is_floating_point() if is_tensor else array.dtype.kind == "f"
    if is_tensor:
        # A copy with plain strides, also along single elements.
        memory = array.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()
    else:
        memory = array
    return memory.tobytes(), float64(array).copy() if is_float else None


class Bare:
    """An array of which only DLPack's methods are known."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def bared(value: Any) -> Any:
    return Bare(value) if isinstance(value, (torch.Tensor, np.ndarray)) else value


def clothed(result: Any) -> Any:
    """The result with arrays in the place of the library's own tensors."""
    if isinstance(result, lrs.Tensor):
        # NumPy has no bfloat16; torch ends the process over a negative stride.
        return torch.from_dlpack(result) if result.dtype == "bfloat16" else np.from_dlpack(result)
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*map(clothed, result))
    return result


def replace_some(draw: Draw, arguments: dict[str, Any], is_raw: bool) -> list[str]:
    """Put something else in the place of some arguments, and return their names."""
    count = choose(draw, (0, 0, 0, 1, 1, 1, 2, 3)) if arguments else 0
    names = [choose(draw, [*arguments]) for _ in range(count)]
    for name in names:
        arrays = [n for n, value in arguments.items() if isinstance(value, (torch.Tensor, np.ndarray))]
        if name in arrays and draw(integers(0, 7)) == 0:
            arguments[name] = arguments[choose(draw, arrays)]
        else:
            value = replacement(draw, name, arguments[name])
            # Torch exports a negated view without its sign; the public functions see to that.
            if is_raw and isinstance(value, torch.Tensor) and value.is_neg():
                value = value.resolve_neg()
            arguments[name] = value
    return names


def describe(arguments: dict[str, Any]) -> str:
    """The arguments as one line."""

    def text(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            strides = value.stride() if value.layout == torch.strided else value.layout
            return f"torch {value.dtype} {list(value.shape)} strides {strides}"
        if isinstance(value, np.ndarray):
            return f"numpy {value.dtype} {list(value.shape)} strides {value.strides} writeable {value.flags.writeable}"
        return repr(value)[:60]

    return ", ".join(f"{name}={text(value)}" for name, value in arguments.items())


def run(name: str, draw: Draw, log: Callable[[str], None]) -> str:
    """Make one call, and return how it ended.

    Raises:
        AssertionError: if it ended in a way that it must not.
    """
    call = CALLS[name](draw)
    arguments = call.arguments
    is_bare = choose(draw, (False,) * 5 + (True,))
    replaced = replace_some(draw, arguments, is_bare or name.startswith("_native."))
    line = f"{name}({describe(arguments)}); replaced: {replaced}, bare: {is_bare}"
    log(line)
    before = {argument: snapshot(value) for argument, value in arguments.items()}
    changed: frozenset[str]
    old = {argument: copy[1] if copy else None for argument, copy in before.items()}
    try:
        passed = {argument: bared(value) for argument, value in arguments.items()} if is_bare else arguments
        result = clothed(call.function(**passed))
    except MemoryError:
        assert name == "Tensor" and replaced, f"{line}: out of memory"
        changed, outcome = frozenset(), "MemoryError"
    except DOCUMENTED as error:
        assert replaced, f"{line}: a valid call failed: {error!r}"
        words = [*arguments, "factors"] + ([*OPERATIONS, r"out_\w+"] if isinstance(error, lrs.LinAlgError) else [])
        pattern = "|".join(rf"(?:out_)?{word}" for word in words)
        assert re.match(rf"(?:{pattern})\b", str(error)), f"{line}: {error!r} names no argument"
        changed, outcome = frozenset(), type(error).__name__
    else:
        for argument in call.outputs | call.changed:
            value = arguments[argument]
            if isinstance(value, np.ndarray) and not value.flags.writeable and value.size:
                is_written = argument != "weight" or arguments.get("in_place", True)
                assert not is_written, f"{line}: read-only {argument} was accepted"
        for argument in replaced:
            takes_integers = argument in ("out_perm", "array") or name == "_native.read_file"
            if isinstance(arguments[argument], (torch.Tensor, np.ndarray)) and not takes_integers:
                assert old[argument] is not None, f"{line}: {argument} of a wrong dtype was accepted"
        try:
            call.check(old, arguments, result)
        except Exception as error:
            raise AssertionError(f"{line}: {error}") from error
        changed = call.changed if arguments.get("in_place", True) else frozenset()
        outcome = "success"
    for argument, copy in before.items():
        if copy is not None and argument not in call.outputs | changed:
            assert snapshot(arguments[argument])[0] == copy[0], f"{line}: {argument} was changed ({outcome})"
    return outcome


def fuzz(name: str, examples: int, start: int, log: Callable[[str], None]) -> tuple[Counter[str], BaseException | None]:
    """Make random calls of a function; how they ended, and what failed."""
    outcomes: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(st.data())
    def calls(data: st.DataObject) -> None:
        outcomes[run(name, data.draw, log)] += 1

    try:
        calls()
    except Exception as error:
        return outcomes, error
    return outcomes, None


def main() -> int:
    """Run the campaign; print how the calls ended."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    examples, start, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or [*CALLS]
    log_file = sys.stderr

    def log(line: str) -> None:
        # Read by the parent after a crash: the last line is the call that did it. A call that hangs is one too.
        faulthandler.dump_traceback_later(SECONDS_PER_CALL, exit=True)
        log_file.write(line.encode("ascii", "backslashreplace").decode() + "\n")
        log_file.flush()

    warnings.simplefilter("ignore")
    total = failed = 0
    begin = time.monotonic()
    for index, name in enumerate(names):
        outcomes, error = fuzz(name, min(examples, TRIVIAL.get(name, examples)), start + index, log)
        lrs.set_num_threads(0)
        if error is not None:
            failed += 1
            print(f"FAILED {name}, seed {start + index}: {type(error).__name__}: {error}", flush=True)
        total += sum(outcomes.values())
        print(f"{name}: {sum(outcomes.values())} calls, {dict(outcomes)}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"calls: {total}, functions that failed: {failed}")
    print(f"{total / seconds:.0f} calls per second for {seconds:.0f} s, {peak} MiB at most", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
