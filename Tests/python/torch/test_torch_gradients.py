# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Forward and backward of an adapted layer against float64 formulas written out from the definitions."""

from __future__ import annotations

import pytest
import torch
from lowrank_swift import Factors
from lowrank_swift.torch import LaMDA, LoLDU, OLoRA, PiSSA, adapt, trainable_parameters
from torch import Tensor, nn
from torch_support import (
    LIMIT,
    adapted_linear,
    delta,
    error_ratio,
    every_base,
    every_method,
    magnitude_of,
    only_adapter,
    only_factors,
    shift_parameters,
    square,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def oracle(
    x: Tensor, weight: Tensor, bias: Tensor, start: Factors, now: Factors, grad: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Y = x (W + s B C A - s B0 C0 A0)^T + bias in float64, and its gradients from torch's autograd."""
    leaves = {"x": x, "up": now.up, "down": now.down, "core": square(now.core, now.down.shape[0])}
    leaves = {name: tensor.double().detach().requires_grad_() for name, tensor in leaves.items()}
    trained = now.scale * ((leaves["x"] @ leaves["down"].T) @ leaves["core"].T) @ leaves["up"].T
    y = leaves["x"] @ (weight.double() - delta(start)).T + bias.double() + trained
    y.backward(grad.double())
    return y.detach(), {name: tensor.grad for name, tensor in leaves.items() if tensor.grad is not None}


@every_method
@every_base
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", (0, 1, 17))
def test_forward_and_every_gradient_equal_the_oracle(method, base, dtype, rows):
    m, n, rank = 19, 23, 5
    layer, weight = adapted_linear(method, base, m=m, n=n, rank=rank, dtype=dtype)
    start = only_factors(layer)
    shift_parameters(layer)
    now = only_factors(layer)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, n, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    grad = torch.randn(rows, m, generator=generator, dtype=torch.float64).to(dtype)

    y = layer(x)
    y.backward(grad)
    expected, gradients = oracle(x, weight, layer.bias, start, now, grad)
    _, magnitudes = oracle(x.abs(), weight.abs() * 0, layer.bias, absolute(start, -1), absolute(now), grad.abs())

    eps = torch.finfo(dtype).eps
    bound = magnitude_of(x, weight, start, now)
    assert y.dtype == dtype
    assert error_ratio(y, expected, bound, n, eps) < LIMIT
    input_bound = magnitudes["x"] + grad.double().abs() @ weight.double().abs()
    assert x.grad.dtype == dtype
    assert error_ratio(x.grad, gradients["x"], input_bound, m, eps) < LIMIT
    trained = {name: p for name, p in only_adapter(layer).named_parameters() if p.requires_grad}
    assert trained.keys() == method.trains
    for name, parameter in trained.items():
        wanted, bound = gradients[name], magnitudes[name]
        if name == "core" and parameter.dim() == 1:
            wanted, bound = wanted.diagonal(), bound.diagonal()
        # h is kept in the dtype of the activation, so every gradient has its rounding.
        assert error_ratio(parameter.grad, wanted, bound, max(m, n, rows), eps) < LIMIT, name


def absolute(factors: Factors, sign: int = 1) -> Factors:
    core = None if factors.core is None else factors.core.abs()
    return Factors(method="", up=factors.up.abs(), core=core, down=factors.down.abs(), scale=sign * abs(factors.scale))


@every_method
@every_base
@pytest.mark.parametrize("shape", ((4,), (2, 3), (2, 2, 2)))
def test_gradcheck(method, base, shape):
    layer, _ = adapted_linear(method, base, m=5, n=4, rank=2, dtype=torch.float64)
    shift_parameters(layer)
    x = torch.randn(*shape[:-1], 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    values = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@every_method
@every_base
def test_frozen_activations_get_no_gradient(method, base):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    x = torch.randn(9, 6)
    with_x = torch.autograd.grad(layer(x.clone().requires_grad_()).sum(), trainable_parameters(layer))
    without = torch.autograd.grad(layer(x).sum(), trainable_parameters(layer))
    assert all(torch.equal(a, b) for a, b in zip(with_x, without, strict=True))


@every_method
@every_base
@pytest.mark.parametrize("shape", ((6,), (1, 6), (4, 6), (2, 3, 6), (2, 0, 6), (2, 3, 4, 6)))
def test_leading_shapes(method, base, shape):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 7)
    assert torch.equal(y.reshape(-1, 7), layer(x.reshape(-1, 6)))


@every_method
@every_base
def test_inputs_and_gradients_with_any_strides(method, base):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    whole = torch.randn(6, 12, 4)
    strided = whole[:, ::2].permute(2, 1, 0).requires_grad_()
    plain = strided.detach().contiguous().requires_grad_()
    gradients = []
    for x in (strided, plain):
        for parameter in trainable_parameters(layer):
            parameter.grad = None
        layer(x).sum().backward()  # The gradient of a sum has stride 0.
        gradients.append([x.grad, *(parameter.grad for parameter in trainable_parameters(layer))])
    assert torch.equal(layer(strided), layer(plain))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_in_place_operation_on_the_output():
    layer, _ = adapted_linear(OLoRA, "intact")
    shift_parameters(layer)
    x = torch.randn(2, 5, 6)
    expected = torch.autograd.grad(torch.relu(layer(x)).sum(), trainable_parameters(layer))
    actual = torch.autograd.grad(torch.relu_(layer(x)).sum(), trainable_parameters(layer))
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def one_by_one(method, base, weight: float, x: float, grad: float) -> dict[str, float]:
    """Gradients of a layer of one number with scale 0.5, for one token."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False, dtype=torch.float64))
    model[0].weight.data.fill_(weight)
    adapt(model, method(1, alpha=0.5), targets=["0"], base=base)
    token = torch.full((1, 1), x, dtype=torch.float64, requires_grad=True)
    model(token).backward(torch.full((1, 1), grad, dtype=torch.float64))
    parameters = only_adapter(model[0]).named_parameters()
    return {"x": token.grad.item()} | {name: parameter.grad.item() for name, parameter in parameters}


# W = 2, s = 0.5, x = 3, g = 5. In every case dx = g W = 10, since the layer still computes the pretrained function;
# 15 if an intact base's start were not taken away, 5 if a residual's adapter were left out.
@every_base
def test_one_by_one_olora(base):
    # B = Q = 1, A = R = 2: dB = s g A x, dA = s g B x. Without the scale they would be 30 and 15, and with the
    # frozen start's gradient mixed in 0 and 0.
    assert one_by_one(OLoRA, base, 2, 3, 5) == {"x": 10, "up": 15, "down": 7.5}


@every_base
def test_one_by_one_loldu(base):
    # B = L = 1, d = D = 2, A = U = 1: dd = s g B A x. It would be 15 if d were multiplied in (A = D U), and 0 if the
    # stored deviation, which is 0, stood in for it.
    assert one_by_one(LoLDU, base, 2, 3, 5) == {"x": 10, "core": 7.5}


@every_base
def test_one_by_one_lamda(base):
    # W = -2: B = U = 1, C = S = 2, A = V^T = -1, h = -3: dB = s g C h, dC = s g B h. dB would be 0 if the gradient
    # went to B C - B0 C0 = 0 as though that were C, and -7.5 without the core.
    assert one_by_one(LaMDA, base, -2, 3, 5) == {"x": -10, "up": -15, "core": -7.5}


@every_base
def test_one_by_one_pissa(base):
    # B = A = sqrt(S / s) = 2: dB = s g A x, dA = s g B x. Both would be 7.5 sqrt(2) if S were not divided by s.
    assert one_by_one(PiSSA, base, 2, 3, 5) == pytest.approx({"x": 10, "up": 15, "down": 15}, rel=1e-14, abs=0)
