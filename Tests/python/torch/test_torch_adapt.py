# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapting models: the function before training, what changes and what does not, copies, and bad input."""

from __future__ import annotations

import copy
import pickle

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift import Factors, LinAlgError
from lowrank_swift.torch import LaMDA, LoLDU, OLoRA, PiSSA, adapt, named_adapters, trainable_parameters
from lowrank_swift.torch._linear import AdaptedLinear
from torch import nn
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
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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


def snapshot(model: nn.Module) -> dict[str, tuple[type, bool, bytes]]:
    """Everything that a failed call must leave alone."""
    modules = {name: type(module) for name, module in model.named_modules()}
    return {
        name: (modules[name.rpartition(".")[0]], p.requires_grad, p.detach().view(torch.uint8).numpy().tobytes())
        for name, p in model.named_parameters()
    }


def train(model: nn.Module, steps: int = 3, **options) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2, **options)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@every_method
@every_base
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_pretrained_function_is_unchanged(method, base, dtype):
    layer, weight = adapted_linear(method, base, m=40, n=24, rank=8, dtype=dtype)
    x = torch.randn(11, 24, dtype=torch.float64).to(dtype)
    before = nn.functional.linear(x, weight, layer.bias)
    after = layer(x)
    if base == "intact" and method in (LoLDU, LaMDA):
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
    assert not torch.equal(residual, weight)


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
    assert (name, live.method, live.scale) == ("", method.__name__.lower(), 1.7)
    parameters = dict(only_adapter(layer).named_parameters())
    assert live.up is parameters.get("up", live.up)
    assert live.down is parameters.get("down", live.down)


def test_the_factors_are_those_of_the_framework_free_functions():
    weight = torch.randn(9, 7)
    cases = (
        (OLoRA(3, alpha=6), lrs.olora(weight, 3, scale=2.0)),
        (LoLDU(3, diagonal="normal", seed=5), lrs.loldu(weight, 3, diagonal="normal", seed=5)),
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
        for term in adapter.terms():
            core = torch.eye(term.down.shape[0]) if term.core is None else torch.diag(term.core)
            expected = expected + term.scale * x @ (term.up @ core @ term.down).T
    assert error_ratio(layer(x), expected, expected, 8, torch.finfo(torch.float32).eps) < LIMIT
    (gradient,) = torch.autograd.grad(layer(x).sum(), layer.adapters["default"].core)
    assert gradient.abs().min() > 0


@every_method
@every_base
def test_copies(method, base):
    model = adapt(blocks(), method(3), targets=["query"], base=base)
    train(model)
    x = torch.randn(5, 8)
    before = model(x)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(x), before)
        train(clone)
        assert not torch.equal(clone(x), before)
        assert torch.equal(model(x), before)


@every_method
@every_base
def test_state_dict_round_trip(method, base):
    model = adapt(blocks(), method(3), targets=["query"], base=base)
    train(model)
    other = adapt(blocks(seed=1), method(3), targets=["query"], base=base)
    assert not torch.equal(other[0].query.weight, model[0].query.weight)
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 8)
    assert torch.equal(other(x), model(x))
    for (_, ours), (_, theirs) in zip(named_adapters(other), named_adapters(model), strict=True):
        assert torch.equal(ours.up, theirs.up)
        assert torch.equal(ours.down, theirs.down)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"targets": []}, ValueError, "targets: expected at least one"),
        ({"targets": ["query", ""]}, ValueError, "targets: expected at least one"),
        ({"targets": "query"}, TypeError, "targets: expected a sequence"),
        ({"targets": ["query", "key"]}, ValueError, "'key', which none has"),
        ({"targets": ["uery"]}, ValueError, "'uery', which none has"),
        ({"targets": ["norm"]}, ValueError, r"expected torch.nn.Linear modules, got LayerNorm at '0.norm'"),
        ({"targets": ["0"]}, ValueError, r"expected torch.nn.Linear modules, got Block at '0'"),
        ({"base": "copy"}, ValueError, 'base: expected "intact" or "residual", got \'copy\''),
        ({"name": "a.b"}, ValueError, "name: expected"),
        ({"name": ""}, ValueError, "name: expected"),
        ({"name": "keys"}, ValueError, "name: expected"),
        ({"method": OLoRA}, TypeError, "method: expected a method"),
        ({"method": OLoRA(9)}, ValueError, r"0\.query: rank: expected 1 <= rank <= min\(m, n\) = 8, got 9"),
        ({"method": OLoRA({"0.query": 2})}, ValueError, "got none for '1.query'"),
        ({"method": OLoRA({"0.query": 2, "1.query": 2, "2": 2})}, ValueError, "rank: expected only names .* got '2'"),
        ({"method": LoLDU(2, diagonal="two")}, ValueError, r"0\.query: diagonal"),
        ({"method": PiSSA(2, alpha=-1)}, ValueError, r"0\.query: .*scale"),
        ({"method": LaMDA(2, tol=-1)}, ValueError, r"0\.query: .*tol"),
    ),
)
@every_base
def test_bad_arguments_leave_the_model_alone(arguments, error, message, base):
    model = blocks()
    before = snapshot(model)
    arguments = {"method": OLoRA(2), "targets": ["query"], "base": base} | arguments
    with pytest.raises(error, match=message):
        adapt(model, arguments.pop("method"), **arguments)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"rank": 0}, ValueError, "rank: expected at least 1, got 0"),
        ({"rank": {"a": -1}}, ValueError, "rank: expected at least 1, got -1"),
        ({"rank": 2.0}, TypeError, "rank: expected an int"),
        ({"rank": True}, TypeError, "rank: expected an int"),
        ({"rank": 2, "alpha": 0}, ValueError, "alpha: expected a finite number"),
        ({"rank": 2, "alpha": float("nan")}, ValueError, "alpha: expected a finite number"),
    ),
)
@every_method
def test_bad_method_options(method, options, error, message):
    with pytest.raises(error, match=message):
        method(**options)


def test_model_that_is_none():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        adapt(None, OLoRA(2), targets=["query"])


@every_method
@every_base
def test_a_bad_weight_leaves_the_model_alone(method, base):
    model = blocks()
    model[1].query.weight.data[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"^1\.query: "):
        adapt(model, method(2), targets=["query"], base=base)
    assert snapshot(model) == before


@every_base
def test_an_unsupported_dtype(base):
    model = blocks()
    model[1].query.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int32), requires_grad=False)
    with pytest.raises(TypeError, match=r"^1\.query: "):
        adapt(model, OLoRA(2), targets=["query"], base=base)


def test_a_factor_that_does_not_fit_the_base_dtype():
    """The first row of U is w / pivot = 60000 / 2^-14, far above float16's largest number."""
    model = nn.Sequential(nn.Linear(2, 2)).half()
    model[0].weight.data.copy_(torch.tensor([[2**-14, 60000], [2**-14, 0]]))
    with pytest.raises(LinAlgError, match=r"^0: down: expected values that fit torch\.float16"):
        adapt(model, LoLDU(1), targets=["0"])
    assert type(model[0]) is nn.Linear


def test_a_residual_that_does_not_fit_the_base_dtype():
    model = nn.Sequential(nn.Linear(4, 4)).half()
    before = snapshot(model)
    with pytest.raises(LinAlgError, match=r"^0: scale: expected a residual"):
        adapt(model, OLoRA(2, alpha=1e7), targets=["0"], base="residual")
    assert snapshot(model) == before


def test_an_interrupted_subtraction_is_undone(monkeypatch):
    model = blocks()
    weights = [block.query.weight.detach().clone() for block in model[:2]]
    original, calls = lrs.unmerge_, []

    def interrupted(weight: torch.Tensor, factors: Factors) -> torch.Tensor:
        calls.append(weight)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(weight, factors)

    monkeypatch.setattr(lrs, "unmerge_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt(model, OLoRA(3), targets=["query"], base="residual")
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    for block, weight in zip(model[:2], weights, strict=True):
        assert error_ratio(block.query.weight, weight, weight, 8, torch.finfo(torch.float32).eps) < LIMIT


def test_shared_modules_and_weights():
    shared = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="shared as 0, 1"):
        adapt(nn.Sequential(shared, shared), OLoRA(2), targets=["0"])
    with pytest.raises(ValueError, match=r"shared as 0\.0, 1\.0"):
        block = nn.Sequential(nn.Linear(4, 4))
        adapt(nn.Sequential(block, block), OLoRA(2), targets=["1.0"])

    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight
    before = snapshot(tied)
    with pytest.raises(ValueError, match=r"'1\.weight', which shares its memory with 0\.weight"):
        adapt(tied, OLoRA(2), targets=["1"], base="residual")
    assert snapshot(tied) == before

    fused = torch.randn(8, 4)
    parts = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parts[0].weight, parts[1].weight = nn.Parameter(fused[:4]), nn.Parameter(fused[4:])
    parts.register_buffer("last_row", fused[-1])
    adapt(parts, OLoRA(2), targets=["0"], base="residual")
    with pytest.raises(ValueError, match="shares its memory with last_row"):
        adapt(parts, OLoRA(2), targets=["1"], base="residual")
    adapt(tied, OLoRA(2), targets=["1"])


def test_layers_whose_forward_is_not_their_own():
    with pytest.raises(ValueError, match="meta device at '0'"):
        adapt(nn.Sequential(nn.Linear(4, 4, device="meta")), OLoRA(2), targets=["0"])
    hooked = nn.Sequential(nn.Linear(4, 4))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without hooks"):
        adapt(hooked, OLoRA(2), targets=["0"])
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="got ParametrizedLinear at '0'"):
        adapt(normed, OLoRA(2), targets=["0"])
    encoder = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    with pytest.raises(ValueError, match=r"NonDynamicallyQuantizableLinear at 'self_attn.out_proj'"):
        adapt(encoder, OLoRA(2), targets=["out_proj"])
    with pytest.raises(ValueError, match="'linear1'; in eval mode"):
        adapt(encoder, OLoRA(2), targets=["linear1"])


def test_a_second_adapter_needs_a_free_name_and_an_intact_base():
    model = adapt(blocks(), LoLDU(2), targets=["query"])
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"name: expected one that is free, got 'default', which '0.query' has"):
        adapt(model, OLoRA(2), targets=["query"])
    with pytest.raises(ValueError, match=r"got \"residual\" at '0.query'"):
        adapt(model, OLoRA(2), targets=["query"], name="second", base="residual")
    with pytest.raises(ValueError, match="'base', which none has"):
        adapt(model, OLoRA(2), targets=["base"], name="second")
    assert snapshot(model) == before
    residual = adapt(blocks(), LoLDU(2), targets=["query"], base="residual")
    with pytest.raises(ValueError, match=r"got \"residual\" at '0.query'"):
        adapt(residual, OLoRA(2), targets=["query"], name="second")


def test_calls_with_bad_input():
    layer, _ = adapted_linear(LoLDU, "intact")
    with pytest.raises(ValueError, match=r"x: expected a last dimension of 6, got shape \[3, 2\]"):
        layer(torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"x: expected a last dimension of 6, got shape \[\]"):
        layer(torch.tensor(1.0))
    layer.base.bias.requires_grad_()
    with pytest.raises(ValueError, match="base: expected frozen parameters"):
        layer(torch.randn(3, 6))


def test_progress_bar(capfd):
    adapt(blocks(), LoLDU(2), targets=["query"], progress=True)
    assert "2/2" in capfd.readouterr().err
    for quiet in (None, False):  # stderr is no terminal here
        adapt(blocks(), LoLDU(2), targets=["query"], progress=quiet)
        assert capfd.readouterr() == ("", "")
