# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The public functions on arrays of a CUDA device, whose results are the CPU's."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import lowrank_swift as lrs
import numpy as np
import pytest
from device import LIBRARY, DeviceArray, to_numpy
from support import LIMIT, eps, ratio, weight

DTYPES = [np.float32, np.float64, np.float16]


def gaussian(rows: int, columns: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return weight(rows, columns, seed=seed).numpy().astype(dtype)


def close(got: Any, expected: np.ndarray, reference: np.ndarray | None = None) -> None:
    """Expect results that differ by roundings of sums, and for 16 bits by one of the result."""
    got = to_numpy(got) if isinstance(got, lrs.Tensor) else got.numpy()
    assert got.dtype == expected.dtype
    norm = float(np.linalg.norm((expected if reference is None else reference).astype(np.float64)))
    error = got.astype(np.float64) - expected.astype(np.float64)
    if expected.dtype == np.float16:
        error = max(float(np.linalg.norm(error)) - norm * 2.0**-10, 0.0) * np.ones((1, 1))
    assert ratio(np.atleast_2d(error), norm, eps(expected)) < LIMIT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", [0, 1])
def test_factorizations(dtype: Any, device: int) -> None:
    matrix = gaussian(40, 24, dtype)
    array = DeviceArray(matrix, device)
    for got, expected in (
        (lrs.qr(array, 5), lrs.qr(matrix, 5)),
        (lrs.svd(array, 5), lrs.svd(matrix, 5)),
        (lrs.ldu(array, 5), lrs.ldu(matrix, 5)),
        (lrs.spectrum(array, 5)[:1], lrs.spectrum(matrix, 5)[:1]),
    ):
        for a, b in zip(got, expected, strict=True):
            if not hasattr(b, "dtype"):
                continue  # what an SVD reports
            if b.dtype == np.int64:
                assert np.array_equal(to_numpy(a), b)
            else:
                assert a.__dlpack_device__() == (2, device)
                close(a, b)
    assert all(export.get("stream") == 1 for export in array.exports)


class NamedArray(DeviceArray):
    """An array of a library that has a `from_dlpack`, as cupy's and jax's."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda made: NamedArray(to_numpy(made), made.__dlpack_device__()[1]))


@pytest.mark.parametrize("device", [0, 1])
def test_results_are_of_the_callers_library(device: int) -> None:
    matrix = gaussian(40, 24)
    results = *lrs.qr(NamedArray(matrix, device), 5), *lrs.lamda(NamedArray(matrix, device), 4)[1:4]
    for got, expected in zip(results, (*lrs.qr(matrix, 5), *lrs.lamda(matrix, 4)[1:4]), strict=True):
        assert (type(got), got.device) == (NamedArray, device)
        close(got, expected)


@pytest.mark.parametrize("method", ["olora", "loldu", "lamda", "pissa", "lora_xs"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_starting_factors(method: str, dtype: Any) -> None:
    matrix = gaussian(33, 40, dtype, seed=1)
    array = DeviceArray(matrix)
    got, expected = getattr(lrs, method)(array, 4), getattr(lrs, method)(matrix, 4)
    for a, b in zip(got[1:4], expected[1:4], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)
    assert np.array_equal(array.numpy(), matrix)
    if not hasattr(lrs, f"{method}_"):
        return
    changed = matrix.copy()
    in_place = getattr(lrs, f"{method}_")(array, 4, scale=0.5)
    getattr(lrs, f"{method}_")(changed, 4, scale=0.5)
    close(array, changed, matrix)
    lrs.merge_(array, in_place)
    close(array, matrix)
    lrs.unmerge_(array, in_place)
    close(array, changed, matrix)


@pytest.mark.parametrize("core", [None, "vector", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters(core: str | None, dtype: Any) -> None:
    up, down = gaussian(9, 3, dtype, 2), gaussian(3, 7, dtype, 3)
    middle = None if core is None else gaussian(3, 3, dtype, 4) if core == "matrix" else gaussian(1, 3, dtype, 4)[0]
    x, out, grad = (
        gaussian(10, 7, dtype, 5).reshape(2, 5, 7),
        gaussian(10, 9, dtype, 6).reshape(2, 5, 9),
        gaussian(10, 9, dtype, 7),
    )
    grad = grad.reshape(2, 5, 9)
    arrays = [None if array is None else DeviceArray(array) for array in (up, middle, down)]
    factors, on_device = lrs.Factors("olora", up, middle, down, 0.5), lrs.Factors("olora", *arrays, 0.5)
    device_x, device_out, device_grad = DeviceArray(x), DeviceArray(out), DeviceArray(grad)
    h = lrs.adapter_forward(device_x, on_device, device_out)
    expected_h = lrs.adapter_forward(x, factors, out)
    close(device_out, out)
    close(h, expected_h)
    got = lrs.adapter_backward(device_grad, device_x, h, on_device, frozen_columns=1)
    expected = lrs.adapter_backward(grad, x, expected_h, factors, frozen_columns=1)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


def test_strided_arrays() -> None:
    matrix = gaussian(40, 60, seed=8)
    for view in (matrix[::2, 1::3], matrix.T, matrix[3:, 5:]):
        close(lrs.qr(DeviceArray(view), 5).Q, lrs.qr(view, 5).Q)


def test_arrays_of_other_devices_are_refused() -> None:
    up, down = gaussian(9, 3, seed=2), gaussian(3, 7, seed=3)
    for other in (up, DeviceArray(up, 1)):
        factors = lrs.Factors("olora", other, None, DeviceArray(down), 1.0)
        with pytest.raises(BufferError, match="up: expected memory on CUDA device 0"):
            lrs.merge_(DeviceArray(gaussian(9, 7)), factors)


def test_errors_of_arguments() -> None:
    matrix = gaussian(9, 7)
    with pytest.raises(BufferError, match="read-only"):
        lrs.olora_(DeviceArray(matrix, read_only=True), 2)
    with pytest.raises(ValueError, match="rank: expected 1 <= rank <= min"):
        lrs.qr(DeviceArray(matrix), 8)
    matrix[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"weight: expected finite values.*\[3, 2\]"):
        lrs.qr(DeviceArray(matrix), 3)
    with pytest.raises(lrs.BackendUnavailableError, match="CUDA device 2 is not there: the driver finds 2"):
        lrs.warmup("cuda:2")


def test_new_tensors() -> None:
    tensor = lrs.Tensor((3, 4), "float32", (2, 1))
    assert tensor.__dlpack_device__() == (2, 1)
    assert not to_numpy(tensor).any()
    assert to_numpy(lrs.Tensor((0, 4), "float64", (2, 0))).shape == (0, 4)
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(tensor)


def test_configuration() -> None:
    cuda = json.loads(lrs._native.config())["cuda"]
    folder = os.environ["LOWRANK_CUDA_LIBRARIES"]
    assert cuda["devices"] == [0, 1]
    assert all(os.path.realpath(path).startswith(os.path.realpath(folder)) for path in cuda["libraries"])


def test_forked_processes_are_refused() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lrs.qr(DeviceArray(gaussian(9, 7)), 2)
            message = "no error"
        except lrs.BackendUnavailableError as error:
            message = str(error)
        os.write(writer, message.encode())
        os._exit(0)
    os.close(writer)
    assert b"forked" in os.read(reader, 1000)
    assert os.waitpid(child, 0)[1] == 0


def test_calls_wait_for_the_default_stream() -> None:
    """The framework's own work is ordered with the default stream alone, so nothing may be left to run."""
    before = LIBRARY.cuda_double_count(b"cuStreamSynchronize")
    out = DeviceArray(gaussian(5, 9))
    factors = lrs.Factors("olora", DeviceArray(gaussian(9, 3)), None, DeviceArray(gaussian(3, 7)), 1.0)
    lrs.adapter_forward(DeviceArray(gaussian(5, 7)), factors, out)
    assert LIBRARY.cuda_double_count(b"operations") == 0
    assert LIBRARY.cuda_double_count(b"cuStreamSynchronize") > before
