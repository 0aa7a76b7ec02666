# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the tests on a GPU share: the device, and how far its results may be from the CPU's.

With ``LOWRANK_GPU_TEST_DEVICE=cpu`` they run on the CPU, which tries the tests themselves.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_swift.torch import LaMDA, LoLDU, LoRAXS, OLoRA, PiSSA, adapt
from support import LIMIT, eps, float64
from torch import Tensor, nn

DEVICE = torch.device(os.environ.get("LOWRANK_GPU_TEST_DEVICE", "cuda"))

cuda_only = pytest.mark.skipif(DEVICE.type != "cuda", reason="about CUDA alone")

# Convolutions are torch's own, and compared with the CPU's; cuDNN would round their operands to 10 bits.
torch.backends.cudnn.allow_tf32 = False

TARGETS = ["linear", "convolution", "head"]
METHODS = [OLoRA, LoLDU, LaMDA, PiSSA, LoRAXS]


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


class Network(nn.Module):
    """A layer of each kind, with a nonlinearity between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.linear = nn.Linear(24, 40)
        self.convolution = nn.Conv2d(40, 32, 3, padding=1)
        self.head = nn.Linear(32, 10, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        h = torch.tanh(self.linear(self.embedding(indices)))
        h = self.convolution(h.mT.reshape(-1, 40, 4, 5))
        return self.head(torch.tanh(h).flatten(2).mT)


def network(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype)


def indices() -> Tensor:
    return torch.arange(6 * 20).reshape(6, 20) * 7 % 50


def pair(method: Any, base: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The same adapted model on the CPU and on the device, whose adapter is found there."""
    host, model = network(dtype), network(dtype).to(DEVICE)
    for each in (host, model):
        adapt(each, method(4), targets=TARGETS, base=base)
    return host, model


def train(model: nn.Module, steps: int, autocast: torch.dtype | None = None) -> list[Tensor]:
    """Losses of a few steps of plain gradient descent."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = model(indices().to(device)).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
