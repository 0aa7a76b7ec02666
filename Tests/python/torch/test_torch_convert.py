# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Converting an adapted model to another dtype, before and after training, and carrying its state elsewhere."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from lowrank_swift.torch import (
    LaMDA,
    LoLDU,
    OLoRA,
    adapt,
    disabled,
    load_adapter,
    merge,
    named_adapters,
    save_adapter,
    trainable_parameters,
    unmerge,
)
from torch import Tensor, nn
from torch_support import (
    LIMIT,
    adapted_linear,
    blocks,
    error_ratio,
    every_base,
    every_method,
    magnitude_of,
    only_adapter,
    only_factors,
    shift_parameters,
    train,
    walk_tensors,
)

CONVERSIONS = {
    "half": (torch.float16, nn.Module.half),
    "bfloat16": (torch.bfloat16, nn.Module.bfloat16),
    "double": (torch.float64, nn.Module.double),
    "to": (torch.bfloat16, lambda model: model.to(torch.bfloat16)),
    "to_device_and_dtype": (torch.float16, lambda model: model.to("cpu", torch.float16)),
}
every_conversion = pytest.mark.parametrize(("dtype", "convert"), CONVERSIONS.values(), ids=CONVERSIONS)


def precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


@every_method
@every_base
@every_conversion
def test_everything_is_converted_but_what_must_cancel(method, base, dtype, convert):
    layer, _ = adapted_linear(method, base)
    assert convert(layer) is layer
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        wanted = {"start_product": precise(dtype), "frozen_columns": torch.int64}.get(name.split(".")[-1], dtype)
        assert tensor.dtype is wanted, name
    assert {p.requires_grad for p in only_adapter(layer).parameters()} == {True}


@every_method
@every_base
@every_conversion
def test_converted_before_training(method, base, dtype, convert):
    """The function is the converted pretrained layer's: exactly for LoLDU and LaMDA over an intact base."""
    layer, weight = adapted_linear(method, base, m=40, n=24, rank=8)
    bias = layer.bias.detach().clone()
    factors = only_factors(layer)
    convert(layer)
    x = torch.randn(11, 24).to(dtype)
    y = layer(x)
    assert y.dtype is dtype
    expected = nn.functional.linear(x, weight.to(dtype), bias.to(dtype))
    if base == "intact":
        assert torch.equal(layer.weight, weight.to(dtype))
    if base == "intact" and method in (LoLDU, LaMDA):
        assert torch.equal(y, expected)
        return
    # A residual was rounded to float32 when it was taken, and every factor is rounded to the new dtype.
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert error_ratio(y, expected, magnitude_of(x, weight, factors), 40, eps) < LIMIT


@every_method
@every_base
@every_conversion
def test_converted_after_training(method, base, dtype, convert):
    """The trained function survives to the rounding of the factors, and training goes on."""
    layer, weight = adapted_linear(method, base, m=40, n=24, rank=8)
    start = only_factors(layer)
    shift_parameters(layer)
    factors = only_factors(layer)
    x = torch.randn(11, 24).to(dtype)
    expected = layer(x.float())
    convert(layer)
    y = layer(x)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert error_ratio(y, expected, magnitude_of(x, weight, start, factors), 40, eps) < LIMIT
    y.float().square().sum().backward()
    for parameter in trainable_parameters(layer):
        assert parameter.grad.dtype is dtype
        assert parameter.grad.abs().max() > 0
    with disabled(layer):
        pretrained = nn.functional.linear(x.double(), weight.double(), layer.bias.double())
        assert error_ratio(layer(x), pretrained, magnitude_of(x, weight, start), 40, eps) < LIMIT


@pytest.mark.parametrize("method", (LoLDU, LaMDA), ids=("LoLDU", "LaMDA"))
def test_converted_back_and_forth_before_training(method):
    layer, weight = adapted_linear(method, "intact")
    layer.half().float().bfloat16().double().float()
    x = torch.randn(5, 6)
    expected = nn.functional.linear(x, weight.half().bfloat16().float(), layer.bias)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
def test_a_residual_keeps_what_was_subtracted(dtype):
    layer, _ = adapted_linear(LaMDA, "residual")
    subtracted = only_adapter(layer).start_product.clone()
    layer.to(dtype)
    assert torch.equal(only_adapter(layer).start_product, subtracted.to(precise(dtype)))


def test_a_16_bit_lamda_keeps_small_changes():
    """A start rounded to 16 bits would drown them."""
    layer, _ = adapted_linear(LaMDA, "intact", m=40, n=24, rank=8)
    layer.bfloat16()
    adapter = only_adapter(layer)
    with torch.no_grad():  # The smallest change that bfloat16 can hold, of one number.
        changed = adapter.core[0, 0] * (1 + torch.finfo(torch.bfloat16).eps)
        step = (changed - adapter.core[0, 0]).double()
        adapter.core[0, 0] = changed
    (term,) = adapter.change()
    actual = term.factors(torch.float64)
    expected = torch.zeros(40, 8, dtype=torch.float64)
    expected[:, 0] = step * adapter.up[:, 0].double()
    assert step > 0
    assert error_ratio(actual.up, expected, adapter.up.double() * adapter.core.max(), 8, 2**-23) < LIMIT


@every_method
def test_only_the_dtype_that_changes_touches_the_start(method):
    """Moving a model, or nothing but its gradients, leaves every bit."""
    layer, _ = adapted_linear(method, "intact")
    shift_parameters(layer)
    before = [tensor.detach().clone() for tensor in walk_tensors(layer)]
    layer.to("cpu").float().requires_grad_(False)
    assert all(torch.equal(a, b) for a, b in zip(walk_tensors(layer), before, strict=True))


@every_method
@every_base
def test_converted_while_merged(method, base):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    merge(layer).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    merged = layer(x)
    unmerge(layer)
    factors, eps = only_factors(layer), torch.finfo(torch.float32).eps
    assert error_ratio(merged, layer(x), magnitude_of(x, layer.weight, factors, factors), 7, eps) < LIMIT


@every_method
@every_base
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
def test_saved_after_a_conversion(method, base, dtype, tmp_path):
    pretrained = blocks()
    model = adapt(copy.deepcopy(pretrained), method(3), targets=["query"], base=base).to(dtype)
    for parameter in trainable_parameters(model):
        parameter.data.mul_(1.25)
    save_adapter(model, tmp_path)
    loaded = load_adapter(pretrained.to(dtype), tmp_path)
    x = torch.randn(5, 8).to(dtype)
    state = loaded.state_dict()
    for key, tensor in model.state_dict().items():
        if ".adapters." in key:
            assert state[key].dtype is tensor.dtype, key
            assert torch.equal(state[key], tensor), key
    if base == "intact":
        assert torch.equal(loaded(x), model(x))


def round_trips(model: nn.Module) -> dict[str, nn.Module]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(file, weights_only=False),
    }


@every_method
@every_base
def test_copies(method, base):
    model = adapt(blocks(), method(3), targets=["query"], base=base)
    train(model)
    x = torch.randn(5, 8)
    before = model(x)
    for kind, clone in round_trips(model).items():
        assert torch.equal(clone(x), before), kind
        assert [p.requires_grad for p in clone.parameters()] == [p.requires_grad for p in model.parameters()]
        train(clone)
        assert not torch.equal(clone(x), before), kind
        assert torch.equal(model(x), before), kind


@every_method
@every_base
@pytest.mark.parametrize("assign", (False, True))
def test_state_dict_into_a_freshly_adapted_model(method, base, assign):
    """Another pretrained model, another seed: after loading there is no difference left."""
    model = adapt(blocks(), method(3, alpha=6), targets=["query", "value"], base=base)
    train(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state: dict[str, Tensor] = torch.load(file, weights_only=True)
    other = adapt(blocks(seed=1), method(3, alpha=6), targets=["query", "value"], base=base)
    x = torch.randn(5, 8)
    assert not torch.equal(other(x), model(x))
    assert not any(other.load_state_dict(state, assign=assign))
    assert torch.equal(other(x), model(x))
    with disabled(other), disabled(model):
        assert torch.equal(other(x), model(x))
    for (_, ours), (_, theirs) in zip(named_adapters(other), named_adapters(model), strict=True):
        assert torch.equal(ours.up, theirs.up)
        assert torch.equal(ours.down, theirs.down)
    train(other)
    train(model)
    assert torch.equal(other(x), model(x))


def test_state_dict_into_another_form_is_an_error():
    model = adapt(blocks(), OLoRA(3), targets=["query"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        adapt(blocks(), OLoRA(2), targets=["query"]).load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        adapt(blocks(), LoLDU(3), targets=["query"]).load_state_dict(model.state_dict())
