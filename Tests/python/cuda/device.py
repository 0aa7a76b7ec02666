# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Arrays on the devices of the test double of CUDA, as a framework that is not torch would share them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from dlpack_structures import DLTensor, Versioned, new_capsule, pointer_of

LIBRARY = ctypes.CDLL(str(Path(os.environ["LOWRANK_CUDA_LIBRARIES"], "libcuda.so.1")))
LIBRARY.cuda_double_allocate.restype = ctypes.c_uint64
LIBRARY.cuda_double_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
LIBRARY.cuda_double_release.argtypes = [ctypes.c_uint64]
LIBRARY.cuda_double_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
LIBRARY.cuda_double_violations.restype = ctypes.c_char_p
LIBRARY.cuda_double_run.argtypes = [ctypes.c_void_p]
LIBRARY.cuda_double_count.restype = ctypes.c_size_t
LIBRARY.cuda_double_count.argtypes = [ctypes.c_char_p]


KEPT: dict[int, Any] = {}
"""What exports that are in use point to."""


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def delete(address: int) -> None:
    """Drop what an export keeps."""
    del KEPT[address]


class DeviceArray:
    """A copy of a NumPy array on a device, with the same strides."""

    def __init__(self, array: np.ndarray, device: int = 0, *, read_only: bool = False) -> None:
        self.shape, self.dtype, self.device = array.shape, array.dtype, device
        self.exports: list[dict[str, Any]] = []
        self._strides, self._read_only = array.strides, read_only
        self._bytes = array.nbytes and self._reach() + array.itemsize
        self._address = LIBRARY.cuda_double_allocate(self._bytes, device)
        assert all(stride >= 0 for stride in array.strides)
        LIBRARY.cuda_double_copy(self._address, array.ctypes.data, self._bytes)

    def _reach(self) -> int:
        return sum((size - 1) * stride for size, stride in zip(self.shape, self._strides, strict=True))

    def __del__(self) -> None:
        LIBRARY.cuda_double_release(self._address)

    def numpy(self) -> np.ndarray:
        """What is on the device now: work that is still queued has not happened."""
        buffer = np.empty(self._bytes, dtype=np.uint8)
        LIBRARY.cuda_double_copy(buffer.ctypes.data, self._address, self._bytes)
        return np.ndarray(self.shape, self.dtype, buffer, strides=self._strides)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, **arguments: Any) -> Any:
        self.exports.append(arguments)
        count = len(self.shape)
        sizes = (ctypes.c_int64 * (2 * count))(
            *self.shape, *(stride // self.dtype.itemsize for stride in self._strides)
        )
        shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
        strides = ctypes.cast(ctypes.byref(sizes, 8 * count), ctypes.POINTER(ctypes.c_int64))
        code, width = (0 if self.dtype.kind == "i" else 2), 8 * self.dtype.itemsize
        flags = 1 if self._read_only else 0
        deleter = ctypes.cast(delete, ctypes.c_void_p)
        tensor = DLTensor(self._address, 2, self.device, count, code, width, 1, shape, strides, 0)
        managed = Versioned(1, 0, None, deleter, flags, tensor)
        KEPT[ctypes.addressof(managed)] = self, managed, sizes
        return new_capsule(ctypes.addressof(managed), b"dltensor_versioned", None)


def to_numpy(tensor: Any) -> np.ndarray:
    """A ``lowrank_swift.Tensor`` on a device, as a NumPy array."""
    kind, _ = tensor.__dlpack_device__()
    assert kind == 2
    capsule = tensor.__dlpack__(max_version=(1, 0), stream=1)
    managed = Versioned.from_address(pointer_of(capsule, b"dltensor_versioned")).tensor
    shape = tuple(managed.shape[i] for i in range(managed.ndim))
    kinds = {(0, 64): np.int64, (2, 64): np.float64, (2, 32): np.float32, (2, 16): np.float16}
    array = np.empty(shape, dtype=kinds[managed.code, managed.bits])
    LIBRARY.cuda_double_copy(array.ctypes.data, managed.data + managed.byte_offset, array.nbytes)
    return array
