# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Random arrays: frameworks, dtypes, memory layouts and contents, and what may be put in the place of an argument."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHER_DTYPES = (
    torch.int8,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
)
PLAIN = ("gaussian", "gaussian", "gaussian", "ones", "zeros", "deficient", "integers", "diagonal")
ODD = ("tiny", "huge", "mixed", "nan", "infinity")


LARGE = (119, 121, 128, 257, 300)


@functools.cache
def integers(lowest: int, highest: int) -> st.SearchStrategy[int]:
    """A strategy, made once: that takes longer than to draw from it."""
    return st.integers(lowest, highest)


def choose(draw: Draw, options: Sequence[Any]) -> Any:
    """One of some options."""
    return options[draw(integers(0, len(options) - 1))]


def side(draw: Draw, lowest: int = 1) -> int:
    """A number of rows, columns or tokens: around the widths of vectors and tiles, seldom larger than a block."""
    kind = draw(integers(0, 39))
    if kind == 39:
        return choose(draw, LARGE)
    return draw(integers(lowest, 9 if kind < 12 else 70))


def values(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, kinds: tuple[str, ...]) -> tuple[str, torch.Tensor]:
    """Numbers of a kind, in a dtype."""
    kind = choose(draw, kinds)
    random = np.random.default_rng(draw(integers(0, 2**32)))
    info = torch.finfo(dtype)
    numbers = random.standard_normal(shape)
    if kind in ("ones", "zeros"):
        numbers = np.full(shape, float(kind == "ones"))
    elif kind == "integers":
        numbers = random.integers(-2, 3, shape).astype(np.float64)
    elif kind == "deficient" and len(shape) == 2:
        numbers = random.standard_normal((shape[0], 2)) @ random.standard_normal((2, shape[1]))
    elif kind == "diagonal" and len(shape) == 2:
        numbers = np.eye(*shape) * random.permutation(np.arange(1, shape[1] + 1))
    elif kind == "tiny":
        numbers = np.clip(numbers, -3, 3) * (info.tiny / 8)
    elif kind == "huge":
        numbers = np.clip(numbers / 3, -1, 1) * info.max
    elif kind == "mixed":
        numbers = numbers * 10.0 ** random.uniform(-30, 30, shape)
    elif numbers.size and kind in ("nan", "infinity"):
        bad = np.nan if kind == "nan" else random.choice([-np.inf, np.inf])
        numbers.flat[random.integers(numbers.size)] = bad
    return kind, torch.from_numpy(np.ascontiguousarray(numbers)).to(dtype)


def laid_out(draw: Draw, array: torch.Tensor) -> Any:
    """The same numbers in a memory layout of torch or NumPy; what lies between them is NaN."""
    layout = choose(draw, ["plain", "plain", "transposed", "padded", "offset", "strided", "reversed", "numpy"])
    shape = array.shape
    if layout == "transposed":
        return array.mT.contiguous().mT if array.ndim >= 2 else array
    if layout in ("reversed", "numpy"):
        if array.dtype not in (torch.float32, torch.float64, torch.float16) or array.ndim > 32:
            return array
        flip = tuple(
            slice(None, None, -1 if layout == "reversed" and choose(draw, (False, True)) else 1) for _ in shape
        )
        memory = np.empty(shape, dtype=array.numpy().dtype)
        memory[flip] = array.numpy()
        return memory[flip]
    sizes, window = [], []
    for dimension, size in enumerate(shape):
        # Only the last two have gaps: in nine of them these would be gigabytes.
        has_gaps = layout != "plain" and dimension >= array.ndim - 2
        start = 2 if has_gaps and layout in ("offset", "strided") else 0
        step = 3 if has_gaps and layout == "strided" else 1
        sizes.append(start + step * size + 3 * has_gaps)
        window.append(slice(start, start + step * size, step))
    view = torch.full(sizes, math.nan).to(array.dtype)[tuple(window)]
    return view.copy_(array)


def tensor(
    draw: Draw, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS, kinds: tuple[str, ...] = PLAIN
) -> Any:
    """A valid array of plain numbers."""
    return laid_out(draw, values(draw, shape, choose(draw, dtypes), kinds)[1])


def _of_another_type(draw: Draw, array: Any) -> Any:
    return choose(draw, [None, 3, 2.5, "array", b"array", [[1.0, 2.0]], (), object(), np.float32(1), type])


def _of_another_dtype(draw: Draw, array: Any) -> Any:
    if isinstance(array, np.ndarray):
        name = choose(draw, ["int32", "uint8", "complex64", "bool", ">f4", ">f8", "object", "float32", "float64"])
        return np.zeros(array.shape, dtype=name) if name == "object" else array.astype(name)
    return array.detach().to(choose(draw, [*OTHER_DTYPES, *FLOATS]))


def _of_another_shape(draw: Draw, array: Any) -> Any:
    shape = [int(size) for size in array.shape]
    change = choose(draw, ["grow", "shrink", "add", "drop", "swap", "empty", "scalar", "many"])
    at = draw(integers(0, max(len(shape) - 1, 0)))
    if change == "scalar" or not shape:
        shape = []
    elif change in ("grow", "shrink", "empty"):
        shape[at] = 0 if change == "empty" else max(shape[at] + (1 if change == "grow" else -1), 0)
    elif change == "add":
        shape.insert(at, choose(draw, (1, 2)))
    elif change == "drop":
        del shape[at]
    elif change == "many":
        shape = [1] * choose(draw, [9, 32, 60]) + shape
    else:
        shape.reverse()
    if isinstance(array, np.ndarray):
        return np.ones(shape[-32:], dtype=array.dtype)  # NumPy 1's limit
    return torch.ones(shape, dtype=array.dtype)


def _overlapping(draw: Draw, array: Any) -> Any:
    shape = tuple(int(size) for size in array.shape)
    strides = [choose(draw, [0, 0, 1, 2]) for _ in shape]
    reach = 1 + sum(max(size - 1, 0) * stride for size, stride in zip(shape, strides, strict=True))
    if isinstance(array, np.ndarray):
        memory = np.arange(reach).astype(array.dtype)
        steps = [stride * memory.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(memory, shape, steps)
    return torch.arange(reach).to(array.dtype).as_strided(shape, strides)


def _read_only(draw: Draw, array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        if array.dtype not in (torch.float32, torch.float64, torch.float16) or array.ndim > 32:
            return array
        array = array.detach().numpy()
    result = array.copy()
    result.flags.writeable = False
    return result


def _special(draw: Draw, array: Any) -> Any:
    """Tensors that can't be shared as they are, or seem so."""
    if str(array.dtype).removeprefix("torch.") not in ("float32", "float64", "bfloat16", "float16"):
        return array
    tensor = torch.from_numpy(array.copy()) if isinstance(array, np.ndarray) else array.detach()
    kinds: list[Callable[[], Any]] = [
        lambda: tensor.clone().requires_grad_(),
        lambda: torch.nn.Parameter(tensor.clone()),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.ones(tensor.shape, dtype=torch.complex64).conj().imag,
        lambda: np.ma.masked_array(np.ones(tuple(tensor.shape), dtype=np.float32)),
    ]
    return choose(draw, kinds)()


def _odd_contents(draw: Draw, array: Any) -> Any:
    if str(array.dtype).removeprefix("torch.") not in ("float32", "float64", "bfloat16", "float16"):
        return array
    if isinstance(array, np.ndarray):
        dtype = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
        return values(draw, array.shape, dtype, ODD)[1].numpy()
    return laid_out(draw, values(draw, tuple(array.shape), array.dtype, ODD)[1])


REPLACEMENTS: dict[str, Callable[[Draw, Any], Any]] = {
    "type": _of_another_type,
    "dtype": _of_another_dtype,
    "shape": _of_another_shape,
    "overlap": _overlapping,
    "read-only": _read_only,
    "special": _special,
    "contents": _odd_contents,
}

WRONG_TYPES = (None, "1", b"1", [1], (), object(), 1 + 0j)
RANKS = (0, -1, 71, 2**31, 2**40, 2**63 - 1, 2**63, -(2**63), 2**100, True, 2.0, math.nan, np.int64(1), np.uint8(2))
NUMBERS = {
    "rank": RANKS,
    "frozen_columns": RANKS,
    "scale": (
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        -1.0,
        1e-300,
        1e-40,
        1e20,
        1e300,
        10**400,
        2,
        True,
        np.float32(3),
    ),
    "tol": (0.0, -1e-3, 1.0, 2, math.nan, math.inf, 1e-300, 0.999, np.float32(0.5), 10**400),
    "seed": (-1, 2**64, 2**64 - 1, 2**63, 1.0, math.nan, True, np.int64(-1), np.uint64(3)),
    "count": (-1, 0, 1, 3, 4096, 4097, 2**31, 2**63, True, 2.0, math.nan),
    "status": (-1, 0, 5, 12, 2**31 - 1, 2**31, True, 2.0),
    "in_place": (0, 1, "", "yes", None, 2.5),
    "mean_rank": (0, -1, 0.5, math.nan, math.inf, -math.inf, 1e300, 2**70, True, 1e-300, 3, 10**400),
    "rank_min": RANKS,
    "rank_max": (*RANKS, None),
    "budget": (*RANKS, 2**62, 10**6),
    "descriptor": (-1, 2**20, 2**31, -(2**31), 2**40, True, 2.0, math.nan),
    "offset": (-1, 1, 7, 2**31, 2**40, 2**63 - 1, 2**63, -(2**63), True, 2.0, math.nan),
    # What is no stream at all: another number would be taken for the address of one.
    "stream": (-1, 2**64, 2**100, 1.0, math.nan),
}
NUMBERS_IN_BYTES = (math.nan, math.inf, -1.0, 0.0, 5e-324, 1e308, -1, 0, 1, 3, 2**31, 2**62, 2**63 - 1, -(2**63))
SHAPES = (None, 3, [2, 3], (-1,), (2, -3), (2**62, 4), (2**63,), (2**40, 2**40), ("2",), (2.0,), (True, 2), (1,) * 70)
TEXTS = (
    "",
    "x",
    "LDU",
    "ldu\0",
    "o" * 5000,
    "\ud800",
    "é",
    3,
    None,
    b"ldu",
    ["ldu"],
    "olora",
    "loldu",
    "lamda",
    "pissa",
)


def _of_other_bytes(draw: Draw, data: bytes) -> bytes:
    """The same with a number of 8 bytes exchanged, or of another length."""
    kind = choose(draw, ("number", "number", "number", "cut", "longer", "twice"))
    if kind == "number" and len(data) >= 8:
        at = 8 * draw(integers(0, len(data) // 8 - 1))
        number = choose(draw, NUMBERS_IN_BYTES)
        return data[:at] + struct.pack("=d" if isinstance(number, float) else "=q", number) + data[at + 8 :]
    return {"cut": data[:-1], "longer": data + b"\0", "twice": data * 2}.get(kind, data + bytes(8))


def replacement(draw: Draw, name: str, value: Any) -> Any:
    """Something in the place of an argument, mostly wrong."""
    if isinstance(value, torch.Tensor) and (value.device.type != "cpu" or value.layout != torch.strided):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return REPLACEMENTS[choose(draw, sorted(REPLACEMENTS))](draw, value)
    if isinstance(value, str):
        return choose(draw, TEXTS)
    if isinstance(value, bytes) and draw(integers(0, 7)):
        return _of_other_bytes(draw, value)
    if name in NUMBERS:
        return choose(draw, [*NUMBERS[name], *WRONG_TYPES])
    if name == "shape":
        return choose(draw, SHAPES)
    if value is None:
        return choose(draw, [*WRONG_TYPES, np.ones(2, dtype=np.float32), torch.ones(2, 2), torch.ones(1, 1, 1)])
    return choose(draw, WRONG_TYPES)
