# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the tests on a GPU share: the device, and how far its results may be from the CPU's.

With ``LOWRANK_GPU_TEST_DEVICE=cpu`` they run on the CPU, which tries the tests themselves.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from support import LIMIT, eps, float64

DEVICE = torch.device(os.environ.get("LOWRANK_GPU_TEST_DEVICE", "cuda"))


def on_device(value: Any) -> Any:
    """A copy of a tensor on the device, with the same strides; what is no tensor stays as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
    return copy.copy_(value.detach()).requires_grad_(value.requires_grad)


def assert_close(got: Any, expected: Any, *, reference: Any = None, limit: float = LIMIT) -> None:
    """Expect a tensor of the device that differs by roundings of sums, and for 16 bits by two of the result.

    `reference` is what small results are left of, as a residual is of its weight.
    """
    assert got.device.type == DEVICE.type
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    if not expected.dtype.is_floating_point:
        assert torch.equal(got.cpu(), expected)
        return
    norm = float(np.linalg.norm(float64(expected if reference is None else reference)))
    distance = float(np.linalg.norm(float64(got.cpu()) - float64(expected)))
    rounding = 2 * torch.finfo(expected.dtype).eps * norm if expected.dtype.itemsize == 2 else 0.0
    allowed = rounding + limit * max(expected.shape, default=1) * eps(expected) * norm
    assert distance <= allowed, f"{distance}, {allowed} allowed"
