# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Random calls of what allocates ranks, of what reads files for it, and of what makes a CUDA device ready."""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import lowrank_swift as lrs
import numpy as np
import torch
from fuzz_arrays import Draw, choose, integers, side, tensor
from fuzz_calls import Arguments, Call, _check_spectrum, native_factorization, passes
from lowrank_swift import _native
from safetensors.torch import save_file

# From here on a layer has captured all of its energy: 10 eps of float32.
WHOLE = 1 - 10 * 2.0**-23

# The process's own, gone with it. Error messages begin with the file's name, which is an argument's.
_folder = tempfile.TemporaryDirectory(prefix="lowrank-fuzz-")
os.chdir(_folder.name)
_descriptor = os.open("content", os.O_RDONLY | os.O_CREAT)


def native_spectrum(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, outputs: tuple[Any, ...]) -> None:
        _check_spectrum(old, new, (outputs[0], 0.0))

    call = native_factorization(draw, "spectrum", check, {"out_values": "r"})
    inner = call.check

    def checks(old: Arguments, new: Arguments, result: Any) -> None:
        norm, share = result
        assert norm >= 0 and 0 <= share <= 1, f"norm {norm}, share {share}"
        inner(old, new, result)

    call.check = checks
    return call


def _numbers(data: bytes, code: str) -> tuple[Any, ...]:
    return struct.unpack(f"={len(data) // 8}{code}", data)


def _follow_the_rule(a: Arguments) -> tuple[list[int], int, int]:
    """The definition, step by step: always the smallest (E_l(k), l, k) of the layers that may take one more."""
    values, counts, norms = _numbers(a["values"], "d"), _numbers(a["counts"], "q"), _numbers(a["norms"], "d")
    limits, costs = _numbers(a["limits"], "q"), _numbers(a["costs"], "q")
    starts = np.cumsum((0, *counts))
    rank_min = int(a["rank_min"])

    def share(layer: int, rank: int) -> float:
        if norms[layer] == 0:
            return 1.0
        total = 0.0
        for value in values[starts[layer] : starts[layer] + rank]:
            total += (value / norms[layer]) * (value / norms[layer])
        return min(1.0, total)

    ranks = [rank_min] * len(counts)
    left = int(a["budget"]) - rank_min * sum(costs)
    while True:
        is_open = [k < limits[i] and share(i, k) < WHOLE and costs[i] <= left for i, k in enumerate(ranks)]
        waiting = [(share(i, k), i) for i, k in enumerate(ranks) if is_open[i]]
        if not waiting:
            return ranks, left, -1
        _, layer = min(waiting)
        ranks[layer] += 1
        left -= costs[layer]
        if counts[layer] < ranks[layer] < limits[layer] and left > 0:
            return ranks, left, layer


def native_allocation(draw: Draw) -> Call:
    rank_min, layers = draw(integers(1, 3)), draw(integers(1, 6))
    random = np.random.default_rng(draw(integers(0, 2**32)))
    values, counts, norms, limits, costs = [], [], [], [], []
    for _ in range(layers):
        spectrum = np.sort(np.abs(random.standard_normal(draw(integers(rank_min, 12)))))[::-1]
        spectrum *= choose(draw, (0.0, 1.0, 1.0, 1e-150, 1e150))
        beyond = choose(draw, (1.0, 1.5))
        values += [*spectrum]
        counts.append(len(spectrum))
        norms.append(beyond * float(np.sqrt(np.sum((spectrum / max(spectrum[0], 1e-300)) ** 2))) * float(spectrum[0]))
        limits.append(len(spectrum) + (choose(draw, (0, 0, 5)) if beyond > 1 else 0))
        costs.append(choose(draw, (1, 1, 30, 77)))
    least = rank_min * sum(costs)
    arguments = {
        "values": struct.pack(f"={len(values)}d", *values),
        "counts": struct.pack(f"={layers}q", *counts),
        "norms": struct.pack(f"={layers}d", *norms),
        "limits": struct.pack(f"={layers}q", *limits),
        "costs": struct.pack(f"={layers}q", *costs),
        "rank_min": rank_min,
        "budget": least + draw(integers(0, 400)),
    }

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        ranks, unspent, undecided = result
        costs = _numbers(new["costs"], "q")
        spent = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
        assert unspent >= 0 and spent + unspent == int(new["budget"]), f"{spent} spent, {unspent} left"
        assert -1 <= undecided < max(len(ranks), 1)
        assert (ranks, unspent, undecided) == _follow_the_rule(new), "the ranks are those of the rule"

    def invoke(**a: Any) -> Any:
        try:
            return _native.allocate_ranks(*a.values())
        except ValueError as error:
            # The C ABI's names of what is in the lists.
            if re.match(r"(layers|singular_values|norm|rank_max|cost)\b", str(error)):
                raise ValueError(f"values: {error}") from error
            raise

    return Call(invoke, arguments, check)


def allocation(draw: Draw) -> Call:
    arguments: Arguments = {
        name: tensor(draw, (side(draw), side(draw))) for name in ("first", "second", "third")[: draw(integers(1, 3))]
    }
    names = [*arguments]
    least = min(min(matrix.shape) for matrix in arguments.values())
    rank_min = draw(integers(1, min(least, 4)))
    arguments |= {
        "mean_rank": rank_min + choose(draw, (0, 0.5, 3, 20.0)),
        "rank_min": rank_min,
        "rank_max": choose(draw, (None, rank_min, rank_min + 5)),
        "tol": 1e-4,
        "seed": draw(integers(0, 2**64 - 1)),
    }

    def invoke(mean_rank: Any, **options: Any) -> Any:
        weights = {name: options.pop(name) for name in names}
        return lrs.allocate_ranks(weights, mean_rank, **options)

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        assert [*result] == names
        assert all(np.isfinite(old[name]).all() for name in names), "a weight that is not finite was accepted"
        rank_max = math.inf if new["rank_max"] is None else int(new["rank_max"])
        for name, rank in result.items():
            assert int(new["rank_min"]) <= rank <= min(*new[name].shape, rank_max), f"the rank {rank} of {name}"
        budget = min(math.floor(new["mean_rank"] * len(names)), 2**62)
        assert result.unspent >= 0 and sum(result.values()) + result.unspent == budget

    return Call(invoke, arguments, check)


def file_allocation(draw: Draw) -> Call:
    """Of a safetensors file in which some bytes may be others, or be missing."""
    path = Path("weights.safetensors")
    shapes = {f"layer{i}.weight": (side(draw), side(draw)) for i in range(draw(integers(1, 3)))}
    dtype = choose(draw, (torch.float32, torch.bfloat16, torch.float16, torch.float64))
    save_file({name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}, path)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    kind = choose(draw, ("whole", "whole", "cut", "header", "header", "length"))
    if kind == "cut":
        del data[draw(integers(0, len(data) - 1)) :]
    elif kind != "whole":
        for _ in range(draw(integers(1, 4))):
            begin, end = (0, 8) if kind == "length" else (8, header)
            data[draw(integers(begin, end - 1))] = choose(draw, (*b'0129-,:"{}[]ex. ', *range(256)))
    path.write_bytes(data)
    arguments: Arguments = {"weights": str(path), "mean_rank": 1}

    def invoke(weights: Any, mean_rank: Any) -> Any:
        try:
            return lrs.allocate_ranks(weights, mean_rank)
        except ValueError as error:
            if kind == "whole" or not str(error).startswith(("weights", "layer")):
                raise
        except OSError as error:  # No name that a file can have.
            raise ValueError(f"weights: {error}") from error

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        if kind == "whole":
            assert set(result) == {name.removesuffix(".weight") for name in shapes} and set(result.values()) == {1}

    return Call(invoke, arguments, check)


def native_read_file(draw: Draw) -> Call:
    content = np.random.default_rng(draw(integers(0, 2**32))).bytes(draw(integers(0, 3000)))
    Path("content").write_bytes(content)
    out = torch.zeros(choose(draw, ((side(draw, 0),), (side(draw, 0), side(draw, 0)))))
    out = out.to(choose(draw, (torch.float32, torch.bfloat16, torch.float16, torch.float64)))
    room = len(content) - out.nbytes
    if room < 0:
        Path("content").write_bytes(content := content + bytes(-room))
        room = 0
    arguments = {"descriptor": _descriptor, "offset": draw(integers(0, room)), "out": out}

    def invoke(**a: Any) -> Any:
        try:
            return _native.read_file(*a.values())
        except OSError as error:
            raise ValueError(f"descriptor: {error}") from error

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        found = new["out"].tobytes() if isinstance(new["out"], np.ndarray) else _bytes(new["out"])
        offset = int(new["offset"])
        if new["descriptor"] == _descriptor:
            assert found == content[offset : offset + len(found)], "the bytes are the file's"

    return Call(invoke, arguments, check, outputs=frozenset({"out"}))


def _bytes(tensor: torch.Tensor) -> bytes:
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.reshape(-1).view(torch.uint8).numpy().tobytes()


def warmup(draw: Draw) -> Call:
    """Ready or not there: nothing else may become of it."""

    def invoke(device: Any) -> None:
        with contextlib.suppress(lrs.BackendUnavailableError):
            lrs.warmup(device)

    return Call(invoke, {"device": choose(draw, ("cuda", "cuda:0", 0, torch.device("cuda")))}, passes)


def native_warmup(draw: Draw) -> Call:
    def invoke(device: Any, stream: Any) -> None:
        with contextlib.suppress(lrs.BackendUnavailableError):
            _native.warmup(device, stream)

    return Call(invoke, {"device": 0, "stream": 0}, passes)
