# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What a training step keeps and what it asks torch to compute."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, PiSSA, adapt
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_support import every_base, every_method, walk_tensors

ROWS, WIDTH, RANK = 13, 32, 4


def two_layers(method, base: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).to(dtype)
    return adapt(model, method(RANK), targets=["0", "1"], base=base)


def bytes_kept(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes of the unique storages saved for the backward, parameters and buffers left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in walk_tensors(model)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(kept.values())


@every_base
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("needs_input_gradient", (False, True))
@pytest.mark.parametrize(
    ("method", "numbers_per_token"),
    ((LoLDU, RANK), (LaMDA, RANK), (OLoRA, RANK + WIDTH), (PiSSA, RANK + WIDTH)),
    ids=("LoLDU", "LaMDA", "OLoRA", "PiSSA"),
)
def test_bytes_kept_for_the_backward(method, numbers_per_token, base, dtype, needs_input_gradient):
    model = two_layers(method, base, dtype)
    x = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=needs_input_gradient)
    assert bytes_kept(model, x) == 2 * ROWS * numbers_per_token * dtype.itemsize


@every_method
def test_nothing_is_kept_without_gradients(method):
    with torch.no_grad():
        assert bytes_kept(two_layers(method, "intact"), torch.randn(ROWS, WIDTH)) == 0


class Watch(TorchDispatchMode):
    """Counts the operators that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.name().split("::")[-1].split(".")[0] if "aten" in func.name() else func.namespace] += 1
        return func(*args, **(kwargs or {}))


NO_ARITHMETIC = {"view", "_unsafe_view", "t", "transpose", "detach", "new_empty", "empty_like", "empty", "alias"}


@every_method
@every_base
@pytest.mark.parametrize("needs_input_gradient", (False, True))
@pytest.mark.parametrize("shape", ((ROWS, WIDTH), (3, ROWS, WIDTH)))
def test_a_training_step_computes_only_the_base_product_in_torch(method, base, needs_input_gradient, shape):
    model = two_layers(method, base)[:1]
    x = torch.randn(shape, requires_grad=needs_input_gradient)
    grad = torch.randn(shape)
    with Watch() as forward:
        y = model(x)
    with Watch() as backward:
        y.backward(grad)
    assert forward.seen.pop("addmm") == 1
    assert backward.seen.pop("mm", 0) == int(needs_input_gradient)
    for watch in (forward, backward):
        assert watch.seen.pop("lowrank_swift") > 0
        assert set(watch.seen) <= NO_ARITHMETIC


@every_base
def test_a_wholly_frozen_up_costs_no_gradient_and_keeps_as_little(base):
    model = two_layers(LaMDA, base)
    GradualFreeze(model, total_steps=1, fraction=0)
    x = torch.randn(ROWS, WIDTH)
    assert bytes_kept(model, x) == 2 * ROWS * RANK * 4
    model(x).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"0.adapters.default.core", "1.adapters.default.core"}
