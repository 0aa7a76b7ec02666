# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapting models: the function before training, what changes and what does not, copies, and bad input."""

from __future__ import annotations

import sys

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift import Factors, _progress
from lowrank_swift.torch import LaMDA, LoLDU, LoRAXS, OLoRA, PiSSA, adapt, named_adapters, trainable_parameters
from torch import nn
from torch_support import (
    LIMIT,
    NAMES,
    adapted_linear,
    blocks,
    delta,
    error_ratio,
    every_base,
    every_method,
    magnitude_of,
    only_adapter,
    only_factors,
    shift_parameters,
    train,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@every_method
@every_base
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_pretrained_function_is_unchanged(method, base, dtype):
    layer, weight = adapted_linear(method, base, m=40, n=24, rank=8, dtype=dtype)
    x = torch.randn(11, 24, dtype=torch.float64).to(dtype)
    before = nn.functional.linear(x, weight, layer.bias)
    after = layer(x)
    if base == "intact":
        assert torch.equal(after, before)
        return
    factors = only_factors(layer)
    exact = x.double() @ weight.double().T + layer.bias.double()
    bound = magnitude_of(x, weight, factors)
    assert error_ratio(after, exact, bound, max(weight.shape), torch.finfo(dtype).eps) < LIMIT


@every_method
@every_base
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_factors_have_the_base_dtype_and_trained_ones_the_precise_one(method, base, dtype):
    layer, _ = adapted_linear(method, base, dtype=dtype)
    adapter = only_adapter(layer)
    precise = torch.float64 if dtype is torch.float64 else torch.float32
    trained = {name for name, parameter in adapter.named_parameters()}
    assert trained == method.trains
    for name in ("up", "core", "down"):
        tensor = getattr(adapter, name)
        if tensor is not None:
            assert tensor.dtype == (precise if name in trained else dtype), name
    for name in trained & {"up", "down"} if hasattr(adapter, "start_up") else ():
        # The trained copy starts from the rounded values, or the two terms would not cancel over a 16-bit base.
        assert torch.equal(getattr(adapter, name), getattr(adapter, f"start_{name}").to(precise))


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_uses_the_factors_as_stored(method, dtype):
    """For W of rank r the residual is rounding alone; factors rounded after it was taken would leave eps * ||W||."""
    generator = torch.Generator().manual_seed(0)
    m, n, rank = 24, 20, 4
    low_rank = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
    model = nn.Sequential(nn.Linear(n, m, bias=False)).to(dtype)
    model[0].weight.data.copy_(low_rank)
    weight = model[0].weight.detach().double().clone()
    adapt(model, method(rank), targets=["0"], base="residual")
    residual = model[0].weight.detach().double()
    factors = only_factors(model[0])
    # Two roundings: of the sum in the accumulator's precision, and of the small result in the weight's dtype.
    accumulator = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
    terms = magnitude_of(torch.eye(n), weight, factors).max()
    error = (residual + delta(factors) - weight).abs().max()
    assert error < LIMIT * accumulator * terms + torch.finfo(dtype).eps * residual.abs().max()
    assert torch.equal(residual, weight) == (method is LoRAXS)  # which starts at no change


@every_method
def test_intact_base_is_bit_for_bit_unchanged_by_training(method):
    model = blocks()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapt(model, method(3), targets=["query", "value"])
    train(model, weight_decay=0.1)
    after = {name.replace(".base.", "."): p for name, p in model.named_parameters() if ".adapters." not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@every_method
@every_base
def test_training_changes_the_output(method, base):
    model = adapt(blocks(), method(3), targets=["query", "value"], base=base)
    x = torch.randn(5, 8)
    before = model(x)
    train(model, steps=1)
    assert not torch.allclose(model(x), before, rtol=1e-3)


@every_method
@every_base
def test_named_adapters_holds_what_the_method_means(method, base):
    """W + s (B C A - B0 C0 A0) x is what the layer computes, with the factors before and after training."""
    layer, weight = adapted_linear(method, base, dtype=torch.float64)
    start = only_factors(layer)
    shift_parameters(layer)
    now = only_factors(layer)
    assert not torch.equal(delta(start), delta(now))
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = x @ (weight + delta(now) - delta(start)).T + layer.bias
    assert error_ratio(layer(x), expected, magnitude_of(x, weight, start, now), 7, 2**-52) < LIMIT
    ((name, live),) = named_adapters(layer)
    assert (name, live.method, live.scale) == ("", NAMES[method], 1.7)
    parameters = dict(only_adapter(layer).named_parameters())
    assert live.up is parameters.get("up", live.up)
    assert live.down is parameters.get("down", live.down)


def test_the_factors_are_those_of_the_framework_free_functions():
    weight = torch.randn(9, 7)
    cases = (
        (OLoRA(3, alpha=6), lrs.olora(weight, 3, scale=2.0)),
        (LoLDU(3, diagonal="normal", seed=5), lrs.loldu(weight, 3, diagonal="normal", seed=5)),
        (LoRAXS(3, alpha=6, tol=1e-3, seed=2), lrs.lora_xs(weight, 3, scale=2.0, tol=1e-3, seed=2)),
        (LaMDA(3, alpha=6, core_only=True), lrs.lamda(weight, 3, scale=2.0)),
        (LaMDA(3, alpha=6, rslora=True, seed=1), lrs.lamda(weight, 3, scale=6 / 3**0.5, seed=1)),
        (PiSSA(3, alpha=6, tol=1e-6), lrs.pissa(weight, 3, scale=2.0, tol=1e-6)),
    )
    for method, expected in cases:
        model = nn.Sequential(nn.Linear(7, 9))
        model[0].weight.data.copy_(weight)
        ((_, factors),) = named_adapters(adapt(model, method, targets=["0"]))
        assert factors.scale == expected.scale
        for name in ("up", "core", "down"):
            ours, theirs = getattr(factors, name), getattr(expected, name)
            assert (ours is theirs is None) or torch.equal(ours, theirs), (method, name)


@pytest.mark.parametrize(
    ("method", "options"),
    (
        (OLoRA, {}),
        (LoLDU, {"diagonal": "uniform", "seed": 3}),
        (LaMDA, {"tol": 1e-3, "seed": 3}),
        (PiSSA, {"tol": 1e-3, "seed": 3}),
    ),
)
def test_every_option_reaches_the_factorisation(method, options, monkeypatch):
    name = method.__name__.lower()
    original, calls = getattr(lrs, name), []

    def spy(weight: torch.Tensor, rank: int, **received) -> Factors:
        calls.append((rank, received))
        return original(weight, rank, **received)

    monkeypatch.setattr(lrs, name, spy)
    adapt(nn.Sequential(nn.Linear(6, 5)), method(3, alpha=6, **options), targets=["0"])
    assert calls == [(3, {"scale": 2.0, **options})]


def test_targets_names_and_freezing():
    model = blocks()
    assert adapt(model, LoLDU(rank={"0.query": 2, "1.query": 3, "1.value": 5}), targets=["query", "1.value"]) is model
    assert [name for name, _ in named_adapters(model)] == ["0.query", "1.query", "1.value"]
    assert [p.shape for p in trainable_parameters(model)] == [(2,), (3,), (5,)]
    own = {id(p) for p in trainable_parameters(model)}
    assert all(p.requires_grad == (id(p) in own) for p in model.parameters())
    layer = model[0].query
    assert (layer.in_features, layer.out_features) == (8, 8)
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias
    assert "method=loldu, rank=2, scale=1, base=intact" in repr(model)


def test_training_mode_follows_the_layer():
    model = adapt(blocks().eval(), LoLDU(2), targets=["query"])
    assert not any(module.training for module in model.modules())


def test_several_adapters_add_up():
    model = adapt(blocks(), LoLDU(2), targets=["query"])
    first = trainable_parameters(model)
    adapt(model, OLoRA(3), targets=["0.query", "value"], name="second")
    assert [name for name, _ in named_adapters(model)] == ["0.query", "0.query", "0.value", "1.query", "1.value"]
    assert all(p.requires_grad for p in first)
    layer = model[0].query
    assert list(layer.adapters) == ["default", "second"]
    with torch.no_grad():
        layer.adapters["default"].core += 1
        layer.adapters["second"].up += 1
    x = torch.randn(5, 8)
    expected = x @ layer.weight.T + layer.bias
    for adapter in layer.adapters.values():
        for term in adapter.change():
            core = torch.eye(term.down.shape[0]) if term.core is None else torch.diag(term.core)
            expected = expected + term.scale * x @ (term.up @ core @ term.down).T
    assert error_ratio(layer(x), expected, expected, 8, torch.finfo(torch.float32).eps) < LIMIT
    (gradient,) = torch.autograd.grad(layer(x).sum(), layer.adapters["default"].core)
    assert gradient.abs().min() > 0


def test_progress_bar(capfd):
    adapt(blocks(), LoLDU(2), targets=["query"], progress=True)
    assert "2/2" in capfd.readouterr().err
    for quiet in (None, False):  # stderr is no terminal here
        adapt(blocks(), LoLDU(2), targets=["query"], progress=quiet)
        assert capfd.readouterr() == ("", "")


def test_progress_bar_on_a_terminal_waits(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    adapt(blocks(), LoLDU(2), targets=["query"])
    assert "Factorising" not in capfd.readouterr().err
    monkeypatch.setattr(_progress, "_SECONDS_BEFORE_SHOWN", 0.0)
    adapt(blocks(), LoLDU(2), targets=["query"])
    assert "Factorising" in capfd.readouterr().err
