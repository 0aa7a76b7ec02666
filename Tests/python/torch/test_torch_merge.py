# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Merging, unmerging, disabling and removing adapters: which function the model computes, and all or nothing."""

from __future__ import annotations

import copy
import pickle

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift import LinAlgError
from lowrank_swift.torch import (
    LoLDU,
    OLoRA,
    PiSSA,
    adapt,
    disabled,
    merge,
    named_adapters,
    trainable_parameters,
    unadapt,
    unmerge,
)
from lowrank_swift.torch._layer import AdaptedLayer
from torch import nn
from torch_support import (
    LIMIT,
    adapted_linear,
    blocks,
    delta,
    error_ratio,
    every_base,
    every_method,
    magnitude_of,
    only_factors,
    shift_parameters,
    train,
)

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
EPS = torch.finfo(torch.float32).eps
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)


def trained_blocks(method, base) -> tuple[nn.Module, nn.Module]:
    """A trained model and what it was before it was adapted."""
    pretrained = blocks()
    model = adapt(copy.deepcopy(pretrained), method(3, alpha=5), targets=["query", "value"], base=base)
    train(model)
    return model, pretrained


@every_method
@every_base
@every_dtype
def test_merged_weight(method, base, dtype):
    """Rounded once to the weight's dtype, whatever number of terms was added."""
    layer, weight = adapted_linear(method, base, m=24, n=20, rank=5, dtype=dtype)
    start = only_factors(layer)
    shift_parameters(layer)
    now = only_factors(layer)
    held = layer.base.weight.detach().clone()
    assert merge(layer) is layer
    assert torch.equal(layer.base.weight, held)
    assert layer.weight is layer.merged_weight
    assert layer.weight.dtype is dtype
    exact = weight.double() + delta(now) - delta(start)
    bound = magnitude_of(torch.eye(20), weight, now, start)
    accumulator = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
    roundings = torch.finfo(dtype).eps * (exact.abs() + (0 if base == "intact" else weight.double().abs()))
    error = (layer.weight.double() - exact).abs()
    # The residual was rounded to the base's dtype too, when it was taken.
    slack = torch.finfo(dtype).eps * held.double().abs() if base == "residual" else 0
    assert (error <= LIMIT * 24 * accumulator * bound.max() + roundings + slack).all()
    assert (error > 0).any()
    x = torch.randn(3, 20, dtype=torch.float64).to(dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.merged_weight, layer.bias))


@every_method
@every_base
def test_merge_and_unmerge(method, base):
    model, _ = trained_blocks(method, base)
    before, state = model(X), copy.deepcopy(model.state_dict())
    assert merge(model) is model
    merged = model(X)
    assert error_ratio(merged, before, before, 8, EPS) < LIMIT
    assert not torch.equal(merged, before)
    assert model.state_dict().keys() == state.keys()
    assert unmerge(model) is model
    assert torch.equal(model(X), before)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


@every_method
@every_base
def test_disabled(method, base):
    model, pretrained = trained_blocks(method, base)
    expected, trained = pretrained(X), model(X)

    def check() -> None:
        if base == "intact":
            assert torch.equal(model(X), expected)
        else:
            assert error_ratio(model(X), expected, expected, 8, EPS) < LIMIT

    assert error_ratio(trained, expected, expected, 8, EPS) > LIMIT
    with disabled(model) as inside:
        assert inside is model
        check()
        with disabled(model):
            check()
        check()
        merge(model)
        check()
    assert error_ratio(model(X), trained, trained, 8, EPS) < LIMIT
    with disabled(model):
        check()
        unmerge(model)
        check()
    assert torch.equal(model(X), trained)


def test_disabled_ends_with_an_exception():
    model, _ = trained_blocks(OLoRA, "intact")
    before = model(X)
    with pytest.raises(KeyboardInterrupt), disabled(model):
        raise KeyboardInterrupt
    assert torch.equal(model(X), before)


@every_method
@every_base
def test_gradients_pass_through_disabled_and_merged_layers(method, base):
    model, pretrained = trained_blocks(method, base)

    def gradient(module: nn.Module) -> torch.Tensor:
        x = X.clone().requires_grad_()
        module(x).square().sum().backward()
        return x.grad

    expected, trained = gradient(pretrained), gradient(model)
    with disabled(model):
        assert error_ratio(gradient(model), expected, expected, 64, EPS) < LIMIT
    merge(model)
    assert error_ratio(gradient(model), trained, trained, 64, EPS) < LIMIT
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(X).sum().backward()


@every_method
@every_base
@pytest.mark.parametrize("merged", (False, True))
def test_unadapt(method, base, merged):
    model, pretrained = trained_blocks(method, base)
    if merged:
        merge(model)
    assert unadapt(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in pretrained.modules()]
    assert not any(p.requires_grad for p in model.parameters())
    for (name, ours), (other, theirs) in zip(model.named_parameters(), pretrained.named_parameters(), strict=True):
        assert name == other
        if base == "intact":
            assert torch.equal(ours, theirs), name
        else:
            assert error_ratio(ours, theirs, theirs, 8, EPS) < LIMIT, name
    if base == "intact":
        assert torch.equal(model(X), pretrained(X))


@every_method
@every_base
def test_unadapt_follows_the_training_mode(method, base):
    model, _ = trained_blocks(method, base)
    assert not any(module.training for module in unadapt(model.eval()).modules())


@every_method
@every_base
def test_merge_without_a_base_to_return_to(method, base):
    model, pretrained = trained_blocks(method, base)
    before = model(X)
    merge(model, keep_base=False)
    assert error_ratio(model(X), before, before, 8, EPS) < LIMIT
    assert [type(m) for m in model.modules()] == [type(m) for m in pretrained.modules()]
    assert list(model.state_dict()) == list(pretrained.state_dict())
    for call in (merge, unmerge, unadapt):
        with pytest.raises(ValueError, match="model: expected adapted layers, got a model without any"):
            call(model)


def test_several_adapters():
    pretrained = blocks()
    model = adapt(copy.deepcopy(pretrained), LoLDU(2), targets=["query"])
    adapt(model, OLoRA(3), targets=["0.query", "value"], name="second")
    train(model)
    before = model(X)
    merge(model)
    assert error_ratio(model(X), before, before, 8, EPS) < LIMIT
    with disabled(model):
        assert torch.equal(model(X), pretrained(X))
    unmerge(model)
    assert torch.equal(model(X), before)
    assert torch.equal(unadapt(model)(X), pretrained(X))


@pytest.mark.parametrize("keep_base", (True, False))
def test_a_tied_weight_stays_as_it_is(keep_base):
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    tied = model[0].weight.detach().clone()
    adapt(model, OLoRA(2), targets=["1"])
    shift_parameters(model)
    merge(model, keep_base=keep_base)
    assert torch.equal(model[0].weight, tied)
    assert not torch.equal(model[1].weight, tied)
    if keep_base:
        unadapt(model)
        assert model[1].weight is model[0].weight


@every_base
@pytest.mark.parametrize("keep_base", (True, False))
def test_merging_is_all_or_nothing(base, keep_base):
    model, _ = trained_blocks(OLoRA, base)
    trainable_parameters(model)[-1].data[0, 0] = torch.inf
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^1\.value: down: expected finite"):
        merge(model, keep_base=keep_base)
    assert sum(isinstance(module, AdaptedLayer) for module in model.modules()) == 4
    assert all(layer.merged_weight is None for layer in model.modules() if isinstance(layer, AdaptedLayer))
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize("call", (unadapt, lambda model: merge(model, keep_base=False)), ids=("unadapt", "merge"))
def test_what_an_interrupt_left_is_done_by_another_call(call, monkeypatch):
    model, _ = trained_blocks(OLoRA, "residual")
    expected = call(copy.deepcopy(model)).state_dict()
    original, calls = lrs.merge_, []

    def interrupted(weight, factors):
        calls.append(weight)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return original(weight, factors)

    with monkeypatch.context() as patch:
        patch.setattr(lrs, "merge_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(model)
    assert sum(isinstance(module, AdaptedLayer) for module in model.modules()) == 2
    call(model)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_unadapt_is_all_or_nothing(dtype):
    """The last layer's restored weight does not fit; the first ones are not restored either."""
    model = adapt(blocks().to(dtype), OLoRA(3), targets=["query", "value"], base="residual")
    model[1].value.adapters["default"].start_up.fill_(torch.finfo(dtype).max)
    model[1].value.adapters["default"].start_down.fill_(2)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(LinAlgError, match=r"^1\.value: "):
        unadapt(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("dtype", "message"),
    (
        (torch.float16, r"^0: weight: expected a sum with the adapter that fits torch\.float16"),
        (torch.float32, r"^0: scale: expected entries W \+ scale \* B C A within the range of float32"),
    ),
)
def test_a_merged_weight_that_does_not_fit(dtype, message):
    model = adapt(nn.Sequential(nn.Linear(4, 4)).to(dtype), OLoRA(2), targets=["0"])
    with torch.no_grad():
        trainable_parameters(model)[0].fill_(torch.finfo(dtype).max)
        trainable_parameters(model)[1].fill_(2)
    with pytest.raises(LinAlgError, match=message):
        merge(model)
    assert model[0].merged_weight is None


def test_entries_that_were_not_finite_pass_through():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[2] = torch.tensor([0.0, 0.0, torch.inf, torch.nan])
        model[0].weight[0, 0] = 1e3
    merge(adapt(model, LoLDU(1), targets=["0"]))
    assert model[0].weight.isfinite().sum() == 14


@every_method
@every_base
def test_copies_of_a_merged_model(method, base):
    model, _ = trained_blocks(method, base)
    before = model(X)
    merge(model)
    merged = model(X)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(X), merged)
        unmerge(clone)
        assert torch.equal(clone(X), before)
    assert torch.equal(model(X), merged)


@every_method
@every_base
def test_casting_a_merged_model(method, base):
    model, pretrained = trained_blocks(method, base)
    merge(model).double()
    merged = model(X.double())
    assert merged.dtype is torch.float64
    unmerge(model)
    assert error_ratio(model(X.double()), merged, merged, 8, EPS) < LIMIT
    with disabled(model):
        expected = pretrained.double()(X.double())
        assert error_ratio(model(X.double()), expected, expected, 8, EPS) < LIMIT


def test_a_merged_model_refuses_what_would_make_it_wrong():
    model, _ = trained_blocks(LoLDU, "intact")
    state = model.state_dict()
    merge(model)
    with pytest.raises(ValueError, match=r"expected layers that are not merged, got a merged one at '0\.query'"):
        merge(model)
    with pytest.raises(ValueError, match=r"expected layers that are not merged, got a merged one at '0\.query'"):
        adapt(model, OLoRA(2), targets=["query"], name="second")
    with pytest.raises(RuntimeError, match=r"0\.query\.merged_weight: expected a layer that is not merged"):
        model.load_state_dict(state)
    unmerge(model).load_state_dict(state)
    with pytest.raises(ValueError, match="model: expected merged layers, got none"):
        unmerge(model)


def test_bad_models():
    layer, _ = adapted_linear(PiSSA, "residual")
    for call in (merge, unmerge, unadapt, lambda model: disabled(model).__enter__()):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got NoneType"):
            call(None)
        with pytest.raises(ValueError, match="model: expected adapted layers, got a model without any"):
            call(nn.Linear(2, 2))
    for call in (unadapt, lambda model: merge(model, keep_base=False)):
        with pytest.raises(ValueError, match="model: expected a model that holds adapted layers, got an adapted layer"):
            call(layer)
    assert len(list(named_adapters(layer))) == 1


@every_method
@every_base
def test_disabled_and_merged_layers_compile(method, base):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    x = torch.randn(5, 6)
    torch.compiler.reset()  # The limit of recompilations is one for all layers of a process.
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    with disabled(layer):
        assert torch.equal(compiled(x), layer(x))
    merge(layer)
    assert torch.equal(compiled(x), layer(x))
