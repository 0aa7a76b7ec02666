# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the tests of the PyTorch layer share: the cases, the float64 oracle and the unit-free error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lowrank_swift import Factors
from lowrank_swift.torch import LaMDA, LoLDU, LoRAXS, OLoRA, PiSSA, adapt, named_adapters, trainable_parameters
from lowrank_swift.torch._adapter import Adapter
from lowrank_swift.torch._layer import AdaptedLayer
from torch import Tensor, nn

METHODS = (OLoRA, LoLDU, LaMDA, PiSSA, LoRAXS)
BASES = ("intact", "residual")
LIMIT = 30.0

NAMES = {OLoRA: "olora", LoLDU: "loldu", LaMDA: "lamda", PiSSA: "pissa", LoRAXS: "lora_xs"}

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
every_base = pytest.mark.parametrize("base", BASES)


def error_ratio(actual: Tensor, expected: Tensor, magnitude: Tensor, size: int, eps: float) -> float:
    """Largest error over size * eps * magnitude; `magnitude` bounds the terms that were added up."""
    assert actual.shape == expected.shape
    if torch.equal(actual.double(), expected.double()):
        return 0.0
    error = (actual.double() - expected.double()).abs().max().item()
    return error / (size * eps * magnitude.double().abs().max().item())


def adapted_linear(
    method: Any, base: str, *, m: int = 7, n: int = 6, rank: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[AdaptedLayer, Tensor]:
    """An adapted linear layer and a copy of its pretrained weight."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(n, m, dtype=torch.float64))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / n**0.5
    model.to(dtype)
    weight = model[0].weight.detach().clone()
    adapt(model, method(rank, alpha=1.7 * rank), targets=["0"], base=base)
    layer = model[0]
    assert isinstance(layer, AdaptedLayer)
    return layer, weight


def only_adapter(layer: AdaptedLayer) -> Adapter:
    ((_, adapter),) = layer.named_adapters()
    return adapter


def only_factors(layer: AdaptedLayer) -> Factors:
    """A detached copy in float64 of the factors that the layer holds."""
    ((_, live),) = named_adapters(layer)
    core = None if live.core is None else live.core.detach().double().clone()
    up, down = live.up.detach().double().clone(), live.down.detach().double().clone()
    return Factors(method=live.method, up=up, core=core, down=down, scale=live.scale)


def square(core: Tensor | None, rank: int) -> Tensor:
    if core is None:
        return torch.eye(rank, dtype=torch.float64)
    return torch.diag(core) if core.dim() == 1 else core


def delta(factors: Factors) -> Tensor:
    """S B C A."""
    return factors.scale * factors.up @ square(factors.core, factors.down.shape[0]) @ factors.down


def magnitude_of(x: Tensor, weight: Tensor, *adapters: Factors) -> Tensor:
    """The forward of absolute values: a bound for every sum on the way."""
    total = x.double().abs() @ weight.double().abs().T
    for factors in adapters:
        core = None if factors.core is None else factors.core.abs()
        bound = Factors(method="", up=factors.up.abs(), core=core, down=factors.down.abs(), scale=abs(factors.scale))
        total = total + x.double().abs() @ delta(bound).T
    return total


def shift_parameters(layer: nn.Module, seed: int = 1) -> None:
    """Moves the trained parameters away from the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += (0.3 * noise).to(parameter.dtype)


def walk_tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.query(x).tanh() * self.value(x))


def blocks(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Block(), Block(), nn.Linear(8, 3))


def train(model: nn.Module, steps: int = 3, **options) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2, **options)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
