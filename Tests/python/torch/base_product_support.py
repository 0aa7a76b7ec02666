# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the tests of the frozen layer's product share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lowrank_swift.torch import OLoRA, adapt, trainable_parameters
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_support import shift_parameters

OURS = "lowrank_swift.base_product_.default"
TORCHS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.matmul", "aten.linear", "mkldnn")


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    @property
    def ours(self) -> int:
        return self.names.count(OURS)

    @property
    def torchs(self) -> list[str]:
        return [name for name in self.names if name.startswith(TORCHS)]


def linear(m: int = 7, n: int = 6, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n, m, bias=bias, dtype=dtype))


def step(model: Any, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """Output and gradients of x and of what trains."""
    x = x.clone().requires_grad_()
    y = model(x)
    grad = torch.ones_like(y) if grad is None else grad
    return [y.detach(), *torch.autograd.grad(y, (x, *trainable_parameters(model)), grad)]


def operators_of(call: Callable[[], object]) -> Operators:
    with Operators() as operators:
        call()
    return operators


def adapted_as_torch(dtype: torch.dtype, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A model that was adapted for OpenBLAS and converted, and the same for torch."""
    pair = [
        adapt(linear(**options), OLoRA(3), targets=["0"], base_product=base_product)
        for base_product in ("openblas", "torch")
    ]
    for model in pair:
        shift_parameters(model)
    return pair[0].to(dtype), pair[1].to(dtype)
