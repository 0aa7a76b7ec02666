# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapted layers on a CUDA device train as on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from gpu_support import DEVICE, assert_close
from lowrank_swift.torch import LaMDA, LoLDU, LoRAXS, OLoRA, PiSSA, adapt, load_adapter, merge, save_adapter, unmerge
from torch import Tensor, nn

pytestmark = pytest.mark.gpu

TARGETS = ["linear", "convolution", "head"]
METHODS = [OLoRA, LoLDU, LaMDA, PiSSA, LoRAXS]


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


@pytest.mark.parametrize("base", ["residual", "intact"])
@pytest.mark.parametrize("method", METHODS)
def test_training(method: Any, base: str) -> None:
    host, model = pair(method, base)
    assert_close(model(indices().to(DEVICE)).detach(), host(indices()).detach())
    for got, expected in zip(train(model, 4), train(host, 4), strict=True):
        assert_close(got, expected, limit=1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models(dtype: torch.dtype) -> None:
    host, model = pair(OLoRA, "intact", dtype)
    assert_close(model(indices().to(DEVICE)).detach(), host(indices()).detach())
    assert all(torch.isfinite(loss) for loss in train(model, 3))


def test_autocast() -> None:
    _, model = pair(OLoRA, "residual")
    losses = train(model, 6, autocast=torch.bfloat16)
    assert losses[-1] < losses[0]


def test_merging() -> None:
    _, model = pair(LoLDU, "residual")
    train(model, 2)
    before = model(indices().to(DEVICE)).detach()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    merge(model)
    assert_close(model(indices().to(DEVICE)).detach(), before.cpu())
    unmerge(model)
    for name, value in model.state_dict().items():
        assert_close(value, weights[name].cpu())


def test_files(tmp_path: Path) -> None:
    _, model = pair(PiSSA, "residual")
    train(model, 2)
    save_adapter(model, tmp_path)
    other = network().to(DEVICE)
    load_adapter(other, tmp_path)
    assert_close(other(indices().to(DEVICE)).detach(), model(indices().to(DEVICE)).detach().cpu())


def test_moved_models() -> None:
    """A model adapted on the CPU and moved then."""
    host, _ = pair(OLoRA, "residual")
    moved = copy.deepcopy(host).to(DEVICE)
    for got, expected in zip(train(moved, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)


def test_compiled_models() -> None:
    host, model = pair(OLoRA, "intact")
    compiled = torch.compile(model)
    assert_close(compiled(indices().to(DEVICE)).detach(), host(indices()).detach())


@pytest.mark.skipif(DEVICE.type != "cuda", reason="about graphs of CUDA")
@pytest.mark.parametrize("method", METHODS)
def test_graphs(method: Any) -> None:
    """A step in a graph; of LaMDA one whose number of frozen columns changes between two replays."""
    _, model = pair(method, "intact")
    x = indices().to(DEVICE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        model(x).square().mean().backward()

    lrs.warmup(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    captured = [parameter.grad for parameter in parameters]
    for count in (0, 2):
        for name, buffer in model.named_buffers():
            if name.endswith("frozen_columns"):
                buffer.fill_(count)
        graph.replay()
        model.zero_grad()
        step()
        for gradient, parameter in zip(captured, parameters, strict=True):
            assert_close(gradient, parameter.grad.cpu())


@pytest.mark.skipif(DEVICE.type != "cuda" or torch.cuda.device_count() < 2, reason="about two GPUs")
def test_second_gpu() -> None:
    host, _ = pair(LaMDA, "residual")
    other = network().to("cuda:1")
    adapt(other, LaMDA(4), targets=TARGETS, base="residual")
    assert torch.cuda.current_device() == 0
    assert_close(other(indices().to("cuda:1")).detach(), host(indices()).detach())
    assert all(torch.isfinite(loss) for loss in train(other, 2))
