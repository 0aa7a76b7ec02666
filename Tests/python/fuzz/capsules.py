# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Calls with malformed DLPack capsules, made through ctypes. A process of its own: the parent sees a crash."""

from __future__ import annotations

import ctypes
import faulthandler
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import lowrank_swift as lrs
from dlpack_structures import Managed, Versioned, new_capsule
from lowrank_swift import _native


def longs(numbers: Sequence[int]) -> Any:
    return (ctypes.c_int64 * max(len(numbers), 1))(*numbers)


class Exporter:
    """A [4, 6] float32 matrix of ones without a deleter, with some fields overwritten. Capsules live as long as it."""

    def __init__(self, *, versioned: bool = True, name: bytes | None = None, **fields: Any) -> None:
        self.memory = (ctypes.c_float * 64)(*[1.0] * 64)
        self.shape, self.strides = longs(fields.pop("shape", [4, 6])), fields.pop("strides", [6, 1])
        self.strides = None if self.strides is None else longs(self.strides)
        managed = Versioned(major=1) if versioned else Managed()
        self.name = name or (b"dltensor_versioned" if versioned else b"dltensor")
        tensor = managed.tensor
        tensor.data, tensor.device_type, tensor.ndim = ctypes.addressof(self.memory), 1, 2
        tensor.code, tensor.bits, tensor.lanes = 2, 32, 1
        tensor.shape = self.shape
        if self.strides is not None:
            tensor.strides = self.strides
        for field, value in fields.items():
            setattr(managed if hasattr(managed, field) else tensor, field, value)
        self.managed = managed

    def __dlpack__(self, **arguments: Any) -> Any:
        return new_capsule(ctypes.addressof(self.managed), self.name, None)


HUGE = (2**31, 2**40, 2**62, 2**63 - 1)
NEGATIVE = (-1, -(2**31), -(2**63))
NULL = ctypes.POINTER(ctypes.c_int64)()

# Fields, the exception, and a part of its message.
MALFORMED: list[tuple[dict[str, Any], type[Exception], str]] = [
    *[({"ndim": n}, ValueError, "at most 32 dimensions") for n in (-1, -(2**31), 33, 2**31 - 1)],
    *[
        ({"ndim": n, "shape": [1] * 32, "strides": [1] * 32}, ValueError, "expected 2 dimensions")
        for n in (0, 1, 3, 32)
    ],
    ({"shape": [4, 6], "ndim": 2, "tensor_shape": NULL}, ValueError, "dimensions"),
    ({"data": None}, ValueError, "null pointer"),
    *[
        ({"shape": shape}, ValueError, "dimensions of at least 0")
        for n in NEGATIVE
        for shape in ([n, 6], [4, n], [n, n])
    ],
    *[({"shape": [n, m], "strides": [0, 0]}, ValueError, "") for n, m in product(HUGE[2:], HUGE[2:])],
    *[({"shape": shape}, ValueError, "address space") for n in HUGE[2:] for shape in ([n, 6], [4, n], [n, n])],
    *[({"shape": shape, "strides": None}, ValueError, "address space") for n in HUGE[2:] for shape in ([n, 6], [n, n])],
    *[({"shape": [n, 0]}, ValueError, "") for n in HUGE],
    *[
        ({"strides": strides}, ValueError, "address space")
        for n in (2**60, 2**62, 2**63 - 1, -(2**60), -(2**63))
        for strides in ([n, 1], [6, n], [n, n])
    ],
    *[({"byte_offset": n}, ValueError, "") for n in (2**57, 2**63, 2**64 - 1, 2**64 - 4)],
    *[({"byte_offset": n}, ValueError, "aligned") for n in (1, 2, 3, 5)],
    ({"data": 2**64 - 8}, ValueError, "address space"),
    ({"data": 3}, ValueError, "aligned"),
    *[({"lanes": n}, TypeError, "lanes") for n in (0, 2, 4, 65535)],
    *[({"bits": n}, TypeError, "weight: expected float32") for n in (0, 1, 4, 8, 33, 128, 255)],
    *[({"code": n}, TypeError, "weight: expected float32") for n in (0, 1, 3, 5, 6, 7, 17, 255)],
    *[({"device_type": n}, BufferError, "CPU") for n in (0, 4, 10, -1, 2**31 - 1)],
    *[({"major": n}, BufferError, "DLPack version 1") for n in (2, 2**32 - 1)],
    *[
        ({"name": n}, BufferError, "unused DLPack capsule")
        for n in (b"used_dltensor", b"used_dltensor_versioned", b"x")
    ],
]


def expect(call: Callable[[], Any], exception: type[Exception], text: str, what: str) -> None:
    try:
        call()
    except Exception as error:
        assert type(error) is exception and str(error).startswith("weight: ") and text in str(error), (
            f"{what}: {error!r}"
        )
    else:
        raise AssertionError(f"{what}: accepted")


def exporter(versioned: bool, fields: dict[str, Any]) -> Exporter:
    fields = dict(fields)
    has_no_shape = fields.pop("tensor_shape", None) is not None
    result = Exporter(versioned=versioned, **fields)
    if has_no_shape:
        result.managed.tensor.shape = NULL
    return result


def main() -> None:
    """Make all calls."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(60, exit=True)
    count = 0
    up, down = Exporter(shape=[4, 2], strides=[2, 1]), Exporter(shape=[2, 6], strides=[6, 1])
    for versioned in (True, False):
        assert _native.check_weight(Exporter(versioned=versioned), 2) == (4, 6, "float32")
        for fields, exception, text in MALFORMED:
            if "major" in fields and not versioned:
                continue
            for rank in (1, 2, 4):
                malformed = exporter(versioned, fields)
                what = f"versioned {versioned}, rank {rank}, {fields}"
                for call in (
                    lambda m=malformed, r=rank: _native.check_weight(m, r),
                    lambda m=malformed, r=rank: lrs.qr(m, r),
                    lambda m=malformed, r=rank: lrs.olora_(m, r),
                    lambda m=malformed: _native.merge(m, down, None, up, 1.0),
                ):
                    expect(call, exception, text, what)
                    count += 1
                assert list(malformed.memory) == [1.0] * 64, f"{what}: written"
    # Wide strides that lead nowhere, and rows that overlap, are well formed.
    for strides in ([2**62, 1], [-(2**63), 1]):
        assert _native.check_weight(Exporter(shape=[1, 6], strides=strides), 1)[:2] == (1, 6)
    assert _native.check_weight(Exporter(strides=[1, 1]), 1)[:2] == (4, 6)
    print(f"refused: {count}")


if __name__ == "__main__":
    main()
