# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Every type of layer that takes adapters, with its options, and a float64 oracle that is torch's own layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lowrank_swift import Factors
from lowrank_swift.torch import adapt
from lowrank_swift.torch._layer import AdaptedLayer
from torch import Tensor, nn
from torch.func import functional_call
from torch_support import delta, square

CHANNELS_LAST = torch.channels_last


def conv1d(n: int, m: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(m, n)


def conv2d(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **options)


@dataclass(frozen=True)
class LayerCase:
    """A layer, the shape of an input (of indices below 9 for an embedding), and how its weight holds a matrix."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    as_weight: Callable[[Tensor, Tensor], Tensor]
    memory_format: torch.memory_format = torch.preserve_format

    def layer(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        layer = self.make().double()
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
        return layer.to(dtype).to(memory_format=self.memory_format)

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.name == "Embedding":
            return torch.randint(9, self.shape, generator=generator)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.to(memory_format=self.memory_format)

    def oracle(self, layer: nn.Module, x: Tensor, change: Tensor) -> Tensor:
        """What the layer computes in float64 with a matrix added to its weight."""
        layer = copy.deepcopy(layer).double()
        weight = layer.weight.detach() + self.as_weight(change, layer.weight)
        x = x.double() if x.is_floating_point() else x
        return functional_call(layer, {"weight": weight}, (x,))

    def bound(self, layer: nn.Module, x: Tensor, *changes: Factors) -> Tensor:
        """The same of absolute values: a bound for every sum on the way."""
        layer = copy.deepcopy(layer).double()
        for parameter in layer.parameters():
            parameter.data.abs_()
        x = x.abs() if x.is_floating_point() else x
        return self.oracle(layer, x, sum(delta(absolute(factors)) for factors in changes))


def absolute(factors: Factors) -> Factors:
    core = None if factors.core is None else factors.core.abs()
    return factors._replace(up=factors.up.abs(), core=core, down=factors.down.abs(), scale=abs(factors.scale))


def same(change: Tensor, weight: Tensor) -> Tensor:
    return change


def transposed(change: Tensor, weight: Tensor) -> Tensor:
    return change.T


def kernels(change: Tensor, weight: Tensor) -> Tensor:
    return change.reshape(weight.shape)


IMAGES = (2, 3, 6, 5)
CASES = (
    LayerCase("Linear", lambda: nn.Linear(6, 7), (2, 3, 6), same),
    LayerCase("Conv1D", lambda: conv1d(6, 7), (2, 3, 6), transposed),
    LayerCase("Embedding", lambda: nn.Embedding(11, 7), (2, 6), transposed),
    LayerCase("Conv2d", conv2d(3, 7, (3, 2), stride=(2, 1), padding=(1, 2)), IMAGES, kernels),
    LayerCase("Conv2d-1x1", conv2d(3, 7, 1, bias=False), IMAGES, kernels),
    LayerCase("Conv2d-dilated", conv2d(3, 7, 2, dilation=(1, 2)), IMAGES, kernels),
    LayerCase("Conv2d-same", conv2d(3, 7, (2, 3), padding="same"), IMAGES, kernels),
    LayerCase("Conv2d-reflect", conv2d(3, 7, 3, padding=1, padding_mode="reflect"), IMAGES, kernels),
    LayerCase("Conv2d-circular-same", conv2d(3, 7, (2, 3), padding="same", padding_mode="circular"), IMAGES, kernels),
    LayerCase("Conv2d-channels-last", conv2d(3, 7, 3, stride=2), IMAGES, kernels, CHANNELS_LAST),
    LayerCase("Conv2d-one-image", conv2d(3, 7, 3, padding=1), IMAGES[1:], kernels),
)
TYPES = tuple(case for case in CASES if "-" not in case.name)

every_type = pytest.mark.parametrize("case", TYPES, ids=lambda case: case.name)


def adapted(
    case: LayerCase, method: Any, base: str, dtype: torch.dtype = torch.float32, rank: int = 3
) -> tuple[AdaptedLayer, nn.Module]:
    """An adapted layer and what it was."""
    pretrained = case.layer(dtype)
    model = adapt(nn.Sequential(copy.deepcopy(pretrained)), method(rank, alpha=1.7 * rank), targets=["0"], base=base)
    layer = model[0]
    assert isinstance(layer, AdaptedLayer)
    return layer, pretrained


def oracle_gradients(
    case: LayerCase, pretrained: nn.Module, x: Tensor, start: Factors, now: Factors, grad: Tensor
) -> dict[str, Tensor]:
    """The gradients of the oracle by the input and by the factors."""
    leaves = {"up": now.up, "down": now.down, "core": square(now.core, now.down.shape[0])}
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in leaves.items()}
    leaves |= {"x": x.detach().double().requires_grad_()} if x.is_floating_point() else {}
    change = now.scale * leaves["up"] @ leaves["core"] @ leaves["down"] - delta(start)
    case.oracle(pretrained, leaves.get("x", x), change).backward(grad.double())
    return {name: tensor.grad for name, tensor in leaves.items()}
