# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Tensors of a torch that has no exchange API yet, which exports from its current device alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from device import LIBRARY, DeviceArray
from lowrank_swift import _native

STREAM = 0x79

for _device in (0, 1):
    _native.warmup(_device, STREAM)  # The handles of a stream are kept.


class Tensor(torch.Tensor):
    """A tensor as torch before 2.10 has it, whose memory is a device array's."""

    __dlpack_c_exchange_api__ = None
    current_device = 0

    @staticmethod
    def of(array: np.ndarray, device: int) -> Tensor:
        made = torch.empty(array.shape).as_subclass(Tensor)
        made.array = DeviceArray(array, device)
        return made

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **arguments: Any) -> Any:
        if Tensor.current_device != self.array.device:
            raise BufferError("Can't export tensors on a different CUDA device index")
        assert arguments["stream"] == -1
        return self.array.__dlpack__(**arguments)


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's current device and streams."""

    @contextmanager
    def device(index: int) -> Iterator[None]:
        before, Tensor.current_device = Tensor.current_device, index
        yield
        Tensor.current_device = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=STREAM))


def run_stream(device: int) -> None:
    LIBRARY.cuda_double_run(STREAM)
    assert LIBRARY.cuda_double_count(b"operations") == 0, f"work on another stream of device {device}"


@pytest.mark.parametrize("device", [0, 1])
def test_the_tensors_device_and_its_stream(device: int) -> None:
    matrix = np.random.default_rng(3).standard_normal((40, 24)).astype(np.float32)
    zeros = [np.zeros(shape, np.float32) for shape in ((40, 5), (5, 24))]
    q, r = (Tensor.of(array, device) for array in zeros)
    _native.qr(Tensor.of(matrix, device), 5, q, r)
    assert Tensor.current_device == 0
    run_stream(device)
    error = np.abs(q.array.numpy() @ r.array.numpy() - matrix)[:, :5].max()
    assert error <= 30 * 40 * np.finfo(np.float32).eps * np.abs(matrix).max()


def test_the_current_device_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Tensor, **_: Any) -> Any:
        raise BufferError(f"on device {self.current_device}")

    monkeypatch.setattr(Tensor, "__dlpack__", fail)
    with pytest.raises(BufferError, match="on device 1"):
        _native.check_weight(Tensor.of(np.zeros((4, 6), np.float32), 1), 2)
    assert Tensor.current_device == 0
