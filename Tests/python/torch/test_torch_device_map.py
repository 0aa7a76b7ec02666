# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Models that accelerate has spread over devices, as transformers does for a ``device_map``; here all are the CPU."""

from __future__ import annotations

import pytest
import torch
from lowrank_swift.torch import OLoRA, adapt, disabled, load_adapter, merge, save_adapter, unadapt, unmerge
from torch import nn
from torch_support import blocks, every_base, every_method, shift_parameters

accelerate = pytest.importorskip("accelerate")
hooks = pytest.importorskip("accelerate.hooks")

TARGETS = ["query", "value"]


def dispatched() -> nn.Module:
    return accelerate.dispatch_model(blocks(), {"": "cpu"}, force_hooks=True)


def x() -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(3))


@every_method
@every_base
def test_the_life_of_an_adapter(method, base, tmp_path):
    """What it is without hooks, which are there again when it ends."""
    model, plain = dispatched(), blocks()
    assert "forward" in vars(model[0].query)
    for each in (model, plain):
        adapt(each, method(3), targets=TARGETS, base=base)
        shift_parameters(each)
    assert torch.equal(model(x()), plain(x()))
    merge(model), merge(plain)
    assert torch.equal(model(x()), plain(x()))
    unmerge(model), unmerge(plain)
    with disabled(model), disabled(plain):
        assert torch.equal(model(x()), plain(x()))
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(dispatched(), tmp_path)(x()), plain(x()))
    unadapt(model)
    assert "forward" in vars(model[0].query)
    torch.testing.assert_close(model(x()), blocks()(x()))


def test_what_is_no_placement_is_refused():
    def refused(layer: nn.Module, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            adapt(nn.Sequential(layer), OLoRA(2), targets=["0"])

    offloaded = accelerate.cpu_offload(blocks(), torch.device("cpu"))
    refused(offloaded[0].query, "without hooks")
    same_device = nn.Linear(4, 4)
    hooks.add_hook_to_module(same_device, hooks.AlignDevicesHook("cpu", io_same_device=True))
    refused(same_device, "without hooks")
    another = nn.Linear(4, 4)
    hooks.add_hook_to_module(another, hooks.ModelHook())
    refused(another, "without hooks")
    replaced = nn.Linear(4, 4)
    hooks.add_hook_to_module(replaced, hooks.AlignDevicesHook("cpu"))
    placed = replaced.forward
    replaced.forward = lambda x: placed(x) + 1
    refused(replaced, "without hooks")
    below = nn.Linear(4, 4)
    original = below.forward
    below.forward = lambda x: original(x) + 1
    hooks.add_hook_to_module(below, hooks.AlignDevicesHook("cpu"))
    refused(below, "without hooks")
