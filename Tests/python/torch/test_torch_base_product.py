# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The frozen layer's product by OpenBLAS: what it computes, eagerly and in torch's transformations."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import lowrank_swift as lrs
import pytest
import torch
from base_product_support import linear, operators_of, step
from lowrank_swift.torch import OLoRA, adapt, disabled, trainable_parameters, unadapt
from lowrank_swift.torch._base_product import OpenBLASLinear
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from torch_support import (
    LIMIT,
    blocks,
    delta,
    error_ratio,
    every_base,
    every_method,
    magnitude_of,
    only_factors,
    shift_parameters,
)


@every_method
@every_base
@pytest.mark.parametrize("bias", (True, False))
def test_no_product_of_torch_runs(method, base, bias):
    for base_product, products in (("openblas", 2), ("torch", 0)):
        model = adapt(linear(bias=bias), method(3), targets=["0"], base=base, base_product=base_product)
        operators = operators_of(lambda model=model: step(model, torch.randn(5, 6)))
        assert operators.ours == products
        assert bool(operators.torchs) == (base_product == "torch"), operators.torchs


@every_method
@every_base
@pytest.mark.parametrize("shape", ((6,), (1, 6), (0, 6), (5, 6), (2, 3, 6), (2, 0, 6)), ids=str)
def test_output_and_gradient_of_x(method, base, shape):
    model = adapt(linear(), method(3, alpha=5.0), targets=["0"], base=base, base_product="openblas")
    layer = model[0]
    start = only_factors(layer)
    shift_parameters(model)
    now = only_factors(layer)
    weight = layer.base_weight.double() + delta(now) - (delta(start) if base == "intact" else 0)
    x, grad = torch.randn(shape), torch.randn(*shape[:-1], 7)
    y, grad_x, *_ = step(model, x, grad)
    expected = x.double() @ weight.T + layer.bias.double()
    bound = magnitude_of(x.reshape(-1, 6), layer.base_weight, start, now) + layer.bias.double().abs()
    bound = bound if bound.numel() else torch.ones(1)
    assert y.dtype is torch.float32 and y.shape == expected.shape
    assert error_ratio(y, expected, bound, 7, torch.finfo(torch.float32).eps) < LIMIT
    bound = magnitude_of(grad.reshape(-1, 7), layer.base_weight.T) + 10 * grad.abs().sum()
    bound = bound if bound.numel() else torch.ones(1)
    assert error_ratio(grad_x, grad.double() @ weight, bound, 7, torch.finfo(torch.float32).eps) < LIMIT


@every_method
@every_base
def test_the_step_is_torchs_to_rounding(method, base):
    """Of a layer large enough for several slices, with an input and a gradient that are not contiguous."""
    models = [
        adapt(linear(300, 520), method(8), targets=["0"], base=base, base_product=base_product)
        for base_product in ("torch", "openblas")
    ]
    for model in models:
        shift_parameters(model)
    x, grad = torch.randn(520, 180).T, torch.randn(300, 180).T
    results = [step(model, x, grad) for model in models]
    for expected, actual in zip(*results, strict=True):
        assert error_ratio(actual, expected, expected, 520, torch.finfo(torch.float32).eps) < LIMIT
    assert not all(torch.equal(*pair) for pair in zip(*results, strict=True)), "both are torch's"
    expanded = [step(model, x.contiguous(), torch.ones(1, 1).expand(180, 300)) for model in models]
    assert error_ratio(expanded[1][1], expanded[0][1], expanded[0][1], 520, torch.finfo(torch.float32).eps) < LIMIT


def test_analytic_gradient():
    """One by one: y = (w + s b a) x + c and dx = w + s b a; without the base's part dx would be s b a alone."""
    model = adapt(linear(1, 1), OLoRA(1), targets=["0"], base="residual", base_product="openblas")
    with torch.no_grad():
        model[0].base.weight.fill_(3.0)
        model[0].base.bias.fill_(0.5)
        for parameter in trainable_parameters(model):
            parameter.fill_(2.0)
    y, grad_x, *grads = step(model, torch.tensor([[4.0]]))
    assert y.item() == (3 + 4) * 4 + 0.5 and grad_x.item() == 7
    assert sorted(grad.item() for grad in grads) == [8, 8]


@every_method
def test_start_over_an_intact_base(method):
    pretrained = linear(64, 48)
    model = adapt(copy.deepcopy(pretrained), method(8), targets=["0"], base_product="openblas")
    x = torch.randn(20, 48)
    expected = pretrained(x)
    assert error_ratio(model(x), expected, magnitude_of(x, pretrained[0].weight), 48, torch.finfo(x.dtype).eps) < LIMIT
    with disabled(model):
        assert torch.equal(model(x), expected)
    assert torch.equal(unadapt(model)(x), expected)


def test_bits_do_not_depend_on_the_number_of_threads(threads: None):
    model = adapt(linear(300, 520), OLoRA(8), targets=["0"], base_product="openblas")
    shift_parameters(model)
    x, grad = torch.randn(180, 520), torch.randn(180, 300)
    lrs.set_num_threads(1)
    expected = step(model, x, grad)
    for count in (2, 3, 4):
        lrs.set_num_threads(count)
        assert all(torch.equal(*pair) for pair in zip(step(model, x, grad), expected, strict=True)), count


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    lrs.set_num_threads(0)


@every_base
def test_compiled_in_one_graph(base):
    torch._dynamo.reset()
    model = adapt(blocks(), OLoRA(3), targets=["query", "value"], base=base, base_product="openblas")
    shift_parameters(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for rows in (5, 9, 3):
        x = torch.randn(2, rows, 8)
        actual, expected = (
            [y := call(x), *torch.autograd.grad(y.square().sum(), trainable_parameters(model))]
            for call in (compiled, model)
        )
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    assert counter.frame_count == 2
    assert all("base_product_" in graph.print_readable(print_output=False) for graph in counter.graphs)
    torch._dynamo.reset()


def test_compiled_with_a_number_of_rows_to_choose_by():
    torch._dynamo.reset()
    model = adapt(linear(64, 48), OLoRA(3), targets=["0"], base="residual", base_product="openblas")
    model[0].layer_type = OpenBLASLinear(48, rows=16, entries=64 * 1024)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for rows in (5, 40, 9, 17):
        x = torch.randn(rows, 48)
        assert operators_of(lambda x=x: model(x)).ours == int(rows >= 16)
        assert all(torch.equal(*pair) for pair in zip(step(compiled, x), step(model, x), strict=True))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own
def test_exported():
    model = adapt(blocks(), OLoRA(3), targets=["query", "value"], base_product="openblas")
    x = torch.randn(5, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    for batch in (x, torch.randn(9, 8)):
        assert torch.equal(program.module()(batch), model(batch))
    assert operators_of(lambda: program.module()(x)).ours == 4


def test_functional_gradients_and_checkpoints():
    model = adapt(linear(), OLoRA(3), targets=["0"], base_product="openblas")
    shift_parameters(model)
    x = torch.randn(5, 6)
    y, grad_x, *grads = step(model, x)
    found = torch.func.grad(lambda x: model(x).sum())(x)
    assert torch.equal(found, grad_x)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    by_parameter = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(parameters)
    assert all(torch.equal(*pair) for pair in zip(by_parameter.values(), grads, strict=True))
    leaf = x.clone().requires_grad_()
    recomputed = torch.autograd.grad(checkpoint(model, leaf, use_reentrant=False).sum(), leaf)[0]
    assert torch.equal(recomputed, grad_x)
    with torch.inference_mode():
        assert torch.equal(model(x), y)


def test_an_input_without_gradient_has_one_product():
    model = adapt(linear(), OLoRA(3), targets=["0"], base_product="openblas")
    operators = operators_of(lambda: model(torch.randn(5, 6)).sum().backward())
    assert operators.ours == 1 and not operators.torchs
