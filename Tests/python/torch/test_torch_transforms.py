# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapted layers under what torch wraps around a model: autocast, recomputation, torch.func, partial gradients."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from lowrank_swift.torch import LaMDA, LoLDU, adapt, disabled, trainable_parameters
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap
from torch.utils.checkpoint import checkpoint
from torch_support import LIMIT, adapted_linear, blocks, error_ratio, every_base, every_method, shift_parameters


@every_method
@every_base
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(method, base, dtype):
    """Under autocast the base product and its gradient are 16-bit, and the gradients have the parameters' dtype."""
    layer, weight = adapted_linear(method, base)
    shift_parameters(layer)
    x = torch.randn(9, 6, requires_grad=True)
    exact = layer(x)
    wanted = torch.autograd.grad(exact.sum(), (x, *trainable_parameters(layer)))
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype is dtype
    assert not torch.equal(y.float(), exact)
    gradients = torch.autograd.grad(y.sum(), (x, *trainable_parameters(layer)))
    eps = torch.finfo(dtype).eps
    for actual, expected in zip((y, *gradients), (exact, *wanted), strict=True):
        assert error_ratio(actual, expected, expected, max(weight.shape), eps) < LIMIT
    assert all(a.dtype == b.dtype for a, b in zip(gradients, wanted, strict=True))
    assert {t.dtype for t in (layer.weight, *layer.adapters.parameters())} == {torch.float32}


@every_method
@every_base
def test_autocast_through_a_model(method, base):
    """The second layer's input is what the first one's output became: 16-bit, over a float32 base."""
    torch.manual_seed(0)
    model = adapt(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), method(3), targets=["0", "2"], base=base)
    shift_parameters(model)
    x = torch.randn(9, 8)
    exact = model(x)
    wanted = torch.autograd.grad(exact.sum(), trainable_parameters(model))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    gradients = torch.autograd.grad(y.sum(), trainable_parameters(model))
    eps = torch.finfo(torch.bfloat16).eps
    for actual, expected in zip((y, *gradients), (exact, *wanted), strict=True):
        assert error_ratio(actual, expected, expected, 2 * 8, eps) < LIMIT


@pytest.mark.parametrize("method", (LoLDU, LaMDA), ids=("LoLDU", "LaMDA"))
def test_the_pretrained_function_under_autocast(method):
    layer, weight = adapted_linear(method, "intact")
    x = torch.randn(9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.linear(x, weight, layer.bias)
        assert torch.equal(layer(x), expected)
        shift_parameters(layer)
        assert not torch.equal(layer(x), expected)
        with disabled(layer):
            assert torch.equal(layer(x), expected)


@every_method
@every_base
@pytest.mark.parametrize("reentrant", (False, True))
@pytest.mark.parametrize("autocast", (False, True))
def test_activation_checkpointing(method, base, reentrant, autocast):
    model = adapt(blocks(), method(3), targets=["query", "value"], base=base)
    shift_parameters(model)
    parameters = trainable_parameters(model)
    x = torch.randn(9, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = model(x)
    wanted = torch.autograd.grad(expected.float().square().sum(), (x, *parameters))

    y = x
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for part in model:
            y = checkpoint(part, y, use_reentrant=reentrant)
    y.float().square().sum().backward()
    assert torch.equal(y, expected)
    assert all(torch.equal(leaf.grad, gradient) for leaf, gradient in zip((x, *parameters), wanted, strict=True))


@every_method
@every_base
def test_any_part_can_train_alone(method, base):
    """Every choice of what requires a gradient gives those gradients that all together have, and no others."""
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    x = torch.randn(9, 6)
    leaves = [x, *trainable_parameters(layer)]
    names = ["x", *sorted(method.trains)]
    assert len(leaves) == len(names)
    for leaf in leaves:
        leaf.requires_grad_()
    everything = torch.autograd.grad(layer(x).square().sum(), leaves)
    for count in range(len(leaves) + 1):
        for chosen in combinations(range(len(leaves)), count):
            for i, leaf in enumerate(leaves):
                leaf.requires_grad_(i in chosen)
                leaf.grad = None
            y = layer(x)
            assert y.requires_grad == bool(chosen)
            if chosen:
                y.square().sum().backward()
            for i, leaf in enumerate(leaves):
                assert torch.equal(leaf.grad, everything[i]) if i in chosen else leaf.grad is None


@every_method
@every_base
def test_functional_call_and_grad(method, base):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    names = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    values = {name: torch.randn_like(layer.get_parameter(name)) for name in names}
    x = torch.randn(2, 5, 6)

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, values, (x,)).square().sum()

    by_values, by_x = grad(loss, argnums=(0, 1))(values, x)
    for name, value in values.items():
        layer.get_parameter(name).data.copy_(value)
    x.requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *map(layer.get_parameter, names)])
    assert all(torch.equal(a, b) for a, b in zip((by_x, *by_values.values()), expected, strict=True))

    output, pull_back = vjp(layer, x.detach())
    assert torch.equal(pull_back(2 * output)[0], expected[0])


@every_method
def test_what_is_not_supported_is_an_error(method):
    layer, _ = adapted_linear(method, "intact")
    shift_parameters(layer)
    x = torch.randn(4, 6)
    no_vmap = pytest.raises(RuntimeError, match=r"torch\.vmap can't map over an adapted layer; x may have any leading")
    with no_vmap:
        vmap(layer)(x)
    with no_vmap, torch.no_grad():
        vmap(layer)(x)
    with no_vmap:
        vmap(grad(lambda row: layer(row).sum()))(x)
    with no_vmap:
        jacrev(layer)(x)
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(layer, (x,), (x,))
    leaf = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="Batching rule not implemented for lowrank_swift"):
        torch.autograd.grad(layer(leaf)[0], leaf, torch.eye(7), is_grads_batched=True)


@every_method
@every_base
def test_a_second_derivative_is_an_error(method, base):
    """And never zero, which nested torch.func.grad gives for what torch.autograd.function.once_differentiable marks."""
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    twice = "an adapted layer can be differentiated once, not twice"
    x = torch.randn(3, 6, requires_grad=True)
    first = torch.autograd.grad(layer(x).square().sum(), (x, *trainable_parameters(layer)), create_graph=True)
    expected = torch.autograd.grad(layer(x).square().sum(), (x, *trainable_parameters(layer)))
    assert all(torch.equal(a, b) for a, b in zip(first, expected, strict=True))
    for gradient in first:
        with pytest.raises(RuntimeError, match=twice):
            torch.autograd.grad(gradient.sum(), x, retain_graph=True)

    def loss(x: Tensor) -> Tensor:
        return layer(x).square().sum()

    with pytest.raises(RuntimeError, match=twice):
        grad(lambda x: grad(loss)(x).sum())(x.detach())
