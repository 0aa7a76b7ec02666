# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Arrays on a device whose type has a DLPack C exchange API, as torch's has: its stream and its memory are used."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from device import KEPT, LIBRARY, DeviceArray
from dlpack_structures import ALLOCATE, EXPORT, WORK_STREAM, DLTensor, ExchangeAPI, Versioned, new_capsule, pointer_of
from lowrank_swift import _native

STREAM = 0x77
DELETE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_native.warmup(0, STREAM)  # The handles of a stream are kept.


class Framework:
    """What the functions of a table do and see."""

    def __init__(self) -> None:
        self.devices: list[tuple[int, int]] = []
        self.blocks: dict[int, Versioned] = {}
        self.released: list[int] = []
        self.allocations_left = 1000
        self.table = ExchangeAPI(
            1, 3, None, ALLOCATE(self._allocate), EXPORT(self._export), None, EXPORT(), WORK_STREAM(self._stream)
        )
        self._delete = DELETE(self._release)

    def _export(self, array: Any, out: int) -> int:
        capsule = DeviceArray.__dlpack__(array)
        ctypes.c_void_p.from_address(out).value = pointer_of(capsule, b"dltensor_versioned")
        return 0

    def _stream(self, kind: int, device: int, out: Any) -> int:
        self.devices.append((kind, device))
        out[0] = STREAM
        return 0

    def _allocate(self, prototype: int, out: Any, _context: int, _report: int) -> int:
        self.allocations_left -= 1
        if self.allocations_left < 0:
            return -1
        wanted = DLTensor.from_address(prototype)
        assert (wanted.device_type, wanted.ndim, wanted.code, wanted.bits) == (2, 1, 1, 8)
        address = LIBRARY.cuda_double_allocate(wanted.shape[0], wanted.device_id)
        block = Versioned(1, 0, None, ctypes.cast(self._delete, ctypes.c_void_p), 0, DLTensor(address))
        self.blocks[ctypes.addressof(block)] = block
        out[0] = ctypes.addressof(block)
        return 0

    def _release(self, block: int) -> None:
        # Work that is still queued may use it: it is freed with the stream's other work done.
        self.released.append(self.blocks.pop(block).tensor.data)

    def run(self) -> None:
        """Run what the stream holds."""
        LIBRARY.cuda_double_run(STREAM)
        while self.released:
            LIBRARY.cuda_double_release(self.released.pop())


class Exchanged(DeviceArray):
    """An array that is exported through the exchange API alone."""

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("exported in another way")


@pytest.fixture
def framework() -> Iterator[Framework]:
    made = Framework()
    Exchanged.__dlpack_c_exchange_api__ = new_capsule(  # type: ignore[attr-defined]
        ctypes.addressof(made.table), b"dlpack_exchange_api", None
    )
    yield made
    made.run()
    assert not made.blocks
    del Exchanged.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    KEPT.clear()


def qr_arguments() -> tuple[np.ndarray, Exchanged, Exchanged, Exchanged]:
    matrix = np.random.default_rng(1).standard_normal((40, 24)).astype(np.float32)
    zeros = [np.zeros(shape, np.float32) for shape in ((40, 5), (5, 24))]
    return matrix, Exchanged(matrix), Exchanged(zeros[0]), Exchanged(zeros[1])


def test_stream_and_memory_are_the_frameworks(framework: Framework) -> None:
    matrix, weight, q, r = qr_arguments()
    before = LIBRARY.cuda_double_count(b"cuMemAllocAsync")
    _native.qr(weight, 5, q, r)
    assert LIBRARY.cuda_double_count(b"cuMemAllocAsync") == before
    assert set(framework.devices) == {(2, 0)}
    assert framework.allocations_left < 1000 and framework.released
    framework.run()
    size = 40 * np.finfo(np.float32).eps
    assert np.abs(q.numpy() @ r.numpy() - matrix)[:, :5].max() <= 30 * size * np.abs(matrix).max()
    assert np.abs(q.numpy().T @ q.numpy() - np.eye(5)).max() <= 30 * size


def test_forward_returns_before_its_work_is_done(framework: Framework) -> None:
    random = np.random.default_rng(2)
    x, up, down = (random.standard_normal(shape).astype(np.float32) for shape in ((7, 24), (40, 5), (5, 24)))
    arrays = [Exchanged(array) for array in (x, down, up, np.zeros((7, 40), np.float32), np.zeros((7, 5), np.float32))]
    waits = LIBRARY.cuda_double_count(b"cuStreamSynchronize")
    _native.adapter_forward(arrays[0], arrays[1], None, arrays[2], 0.5, arrays[3], arrays[4])
    assert LIBRARY.cuda_double_count(b"cuStreamSynchronize") == waits
    assert not arrays[3].numpy().any()
    framework.run()
    expected = 0.5 * x.astype(np.float64) @ down.T @ up.T
    assert np.abs(arrays[3].numpy() - expected).max() <= 30 * 24 * np.finfo(np.float32).eps * np.abs(expected).max()


def test_a_framework_without_memory(framework: Framework) -> None:
    for count in range(100):
        _, weight, q, r = qr_arguments()
        framework.allocations_left = count
        try:
            _native.qr(weight, 5, q, r)
            break
        except MemoryError as error:
            assert "could not allocate" in str(error)
        finally:
            framework.run()
    assert 5 < count < 99
    assert not framework.blocks
