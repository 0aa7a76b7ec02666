# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The extension's side of DLPack: what it accepts, refuses, and hands back."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
import warnings
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from lowrank_swift import _native
from support import weight


class Exporter:
    """A bare object with `__dlpack__`."""

    def __init__(self, array: Any, device: Any = (1, 0), error: Exception | None = None) -> None:
        self.array, self.device, self.error = array, device, error

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__(**arguments)


class OldExporter:
    """An exporter from before DLPack 1.0, without a maximum version and without a device."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, stream: None = None) -> Any:
        return self.array.__dlpack__()


CAPSULE_NAME = ctypes.pythonapi.PyCapsule_GetName
CAPSULE_NAME.restype, CAPSULE_NAME.argtypes = ctypes.c_char_p, [ctypes.py_object]
CAPSULE_POINTER = ctypes.pythonapi.PyCapsule_GetPointer
CAPSULE_POINTER.restype, CAPSULE_POINTER.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


EXCHANGE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")


class FixedCapsule:
    """An exporter that returns a given capsule."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.capsule


@pytest.mark.parametrize("wrap", [Exporter, OldExporter])
@pytest.mark.parametrize("array", [weight(4, 6), weight(4, 6).numpy()], ids=["torch", "numpy"])
def test_bare_exporters(wrap: Any, array: Any) -> None:
    assert _native.check_weight(wrap(array), 2) == (4, 6, "float32")


@pytest.mark.parametrize("versioned", [True, False])
def test_capsules_are_consumed_once(versioned: bool) -> None:
    array = np.ones((4, 6), dtype=np.float32)
    references = sys.getrefcount(array)
    capsule = array.__dlpack__(**({"max_version": (1, 0)} if versioned else {}))
    name = b"dltensor_versioned" if versioned else b"dltensor"
    assert CAPSULE_NAME(capsule) == name
    exporter = FixedCapsule(capsule)
    assert _native.check_weight(exporter, 2) == (4, 6, "float32")
    assert CAPSULE_NAME(capsule) == b"used_" + name
    assert sys.getrefcount(array) == references  # the deleter has run
    with pytest.raises(BufferError, match="weight: expected __dlpack__ to return an unused DLPack capsule"):
        _native.check_weight(exporter, 2)
    del capsule, exporter
    assert sys.getrefcount(array) == references


def test_arrays_are_handed_back_after_success_and_failure() -> None:
    array, out = np.ones((4, 6), dtype=np.float32), np.empty((4, 2), dtype=np.float32)
    tensor = weight(4, 6)
    before = sys.getrefcount(array), sys.getrefcount(out), sys.getrefcount(tensor)
    for _ in range(10):
        _native.check_weight(array, 2)
        _native.check_weight(tensor, 2)
        for rank, result in ((0, out), (2, out), ("2", out), (2, None)):
            with pytest.raises((ValueError, TypeError, BufferError)):
                _native.qr(array, rank, out, result)
    gc.collect()
    assert (sys.getrefcount(array), sys.getrefcount(out), sys.getrefcount(tensor)) == before


def test_read_only_arrays_are_inputs_only() -> None:
    array = weight(8, 6).numpy().copy()
    array.flags.writeable = False
    before = array.tobytes()
    factors = lrs.olora(array, 2)
    for function in (lrs.olora_, lrs.loldu_, lrs.lamda_, lrs.pissa_):
        with pytest.raises(BufferError, match="weight"):
            function(array, 2)
    for function in (lrs.merge_, lrs.unmerge_):
        with pytest.raises(BufferError, match="weight"):
            function(array, factors)
    out = np.zeros((3, 8), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(BufferError, match="out"):
        lrs.adapter_forward(np.ones((3, 6), dtype=np.float32), factors, out)
    assert array.tobytes() == before
    assert not out.any()


def test_newer_major_versions_are_refused() -> None:
    array = np.ones((4, 6), dtype=np.float32)
    references = sys.getrefcount(array)
    capsule = array.__dlpack__(max_version=(1, 0))
    version = ctypes.cast(CAPSULE_POINTER(capsule, b"dltensor_versioned"), ctypes.POINTER(ctypes.c_uint32))
    version[0] = 2
    with pytest.raises(BufferError, match=r"weight: expected DLPack version 1, got 2\."):
        _native.check_weight(FixedCapsule(capsule), 2)
    assert CAPSULE_NAME(capsule) == b"dltensor_versioned"  # not consumed: the capsule frees it
    del capsule
    assert sys.getrefcount(array) == references


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ((8, 0), r"expected a tensor on the CPU or a CUDA device, got one on DLPack device \(8, 0\)"),
        (None, "cannot be borrowed through DLPack"),
        ((1,), "cannot be borrowed through DLPack"),
    ],
)
def test_other_devices_are_refused_without_an_export(device: Any, text: str) -> None:
    exporter = Exporter(None, device=device, error=AssertionError("exported"))
    with pytest.raises(BufferError, match=f"weight: {text}"):
        _native.check_weight(exporter, 2)


def test_an_exporters_error_is_the_cause() -> None:
    with pytest.raises(BufferError, match="weight: cannot be borrowed through DLPack: broken") as info:
        _native.check_weight(Exporter(None, error=RuntimeError("broken")), 2)
    assert isinstance(info.value.__cause__, RuntimeError)
    with pytest.raises(MemoryError):
        _native.check_weight(Exporter(None, error=MemoryError()), 2)

    class Interrupted(Exporter):
        def __dlpack__(self, **arguments: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _native.check_weight(Interrupted(None), 2)


@pytest.mark.parametrize("capsule", [None, 3, "capsule", object()], ids=repr)
def test_what_is_no_capsule_is_refused(capsule: Any) -> None:
    with pytest.raises(BufferError, match="weight: expected __dlpack__ to return an unused DLPack capsule"):
        _native.check_weight(FixedCapsule(capsule), 2)


@pytest.mark.parametrize("tensor", [weight(4, 6).to("meta"), weight(4, 6).to_sparse()], ids=["meta", "sparse"])
def test_tensors_without_memory_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(BufferError, match="weight"):
        lrs.qr(tensor, 2)


def test_fake_tensors_are_refused() -> None:
    with torch._subclasses.FakeTensorMode() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = mode.from_tensor(weight(4, 6))
        with pytest.raises((BufferError, ValueError)):
            lrs.qr(tensor, 2)


def test_negated_views_are_refused() -> None:
    tensor = torch.view_as_complex(torch.ones(4, 6, 2)).conj().imag
    assert tensor.is_neg()
    with pytest.raises(BufferError, match="weight: expected a tensor without the negative bit"):
        lrs.qr(tensor, 2)


def test_tensors_that_require_grad() -> None:
    tensor = weight(4, 6).requires_grad_()
    if EXCHANGE:
        assert _native.check_weight(tensor, 2) == (4, 6, "float32")
    else:
        with pytest.raises(BufferError, match="require gradient"):
            _native.check_weight(tensor, 2)


@pytest.mark.parametrize(("function", "expected"), [("qr", 4), ("svd", 7), ("initialize", 11), ("_test_status", 1)])
def test_number_of_arguments(function: str, expected: int) -> None:
    for count in (0, expected - 1, expected + 1):
        with pytest.raises(TypeError, match=f"{function}: expected {expected} positional arguments, got {count}"):
            getattr(_native, function)(*[None] * count)


def test_other_threads_run_during_a_call() -> None:
    matrix = weight(1200, 1200, torch.float64)
    finished = threading.Event()

    def work() -> None:
        lrs.svd(matrix, 300, tol=1e-12)
        finished.set()

    thread = threading.Thread(target=work)
    begin = time.perf_counter()
    thread.start()
    ticks = 0
    while not finished.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    # With the lock held throughout there would be one tick or two.
    assert ticks > 10, f"{ticks} ticks in {time.perf_counter() - begin:.3f} s"


def test_many_threads_get_their_own_results_and_errors() -> None:
    matrices = [weight(40, 30, seed=seed) for seed in range(4)]
    expected = [lrs.qr(matrix, 5) for matrix in matrices]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not torch.equal(lrs.qr(matrices[index], 5).R, expected[index].R):
                failures.append("another result")
            rank = 31 + index
            try:
                lrs.qr(matrices[index], rank)
            except ValueError as error:
                if f"got {rank}" not in str(error):
                    failures.append(str(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
