# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA++ over models, core-only LaMDA, LoRA-XS, and what LaMDA's freezing releases."""

from __future__ import annotations

import copy

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift.torch import (
    GradualFreeze,
    LaMDA,
    LoRAXS,
    adapt,
    allocate_ranks,
    export_lora,
    load_adapter,
    named_adapters,
    save_adapter,
    trainable_parameters,
    unadapt,
)
from torch import nn
from torch_support import blocks, every_base, only_adapter, shift_parameters

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))


def uneven() -> nn.Module:
    """Blocks whose weights have spectra of different shapes."""
    model = blocks()
    with torch.no_grad():
        for i in range(2):
            u, _, vh = torch.linalg.svd(model[i].query.weight)
            model[i].query.weight.copy_(u * torch.tensor([0.5, 0.9][i]) ** torch.arange(8) @ vh)
    return model


def test_ranks_of_a_model_feed_adapt_and_are_saved(tmp_path):
    model = uneven()
    before = model(X)
    ranks = allocate_ranks(model, ["query", "value"], 3)
    weights = {f"{i}.{name}": getattr(model[i], name).weight for i in (0, 1) for name in ("query", "value")}
    assert ranks == lrs.allocate_ranks(weights, 3)
    assert list(ranks) == list(weights)
    assert sum(ranks.values()) == 12
    assert ranks["0.query"] < ranks["1.query"]
    adapt(model, LaMDA(rank=ranks, alpha=4), targets=["query", "value"])
    assert torch.equal(model(X), before)
    assert {name: factors.up.shape[1] for name, factors in named_adapters(model)} == ranks
    shift_parameters(model)
    save_adapter(model, tmp_path)
    loaded = load_adapter(uneven(), tmp_path)
    assert {name: factors.up.shape[1] for name, factors in named_adapters(loaded)} == ranks
    assert torch.equal(loaded(X), model(X))


def test_the_options_reach_the_rule(tmp_path):
    model = uneven()
    everything = {"parameters": 110, "rank_min": 2, "rank_max": 4, "tol": 1e-3, "seed": 7, "cache": tmp_path / "c.json"}
    ranks = allocate_ranks(model, ["query", "2"], **everything, progress=False)
    weights = {"0.query": model[0].query.weight, "1.query": model[1].query.weight, "2": model[2].weight}
    assert ranks == lrs.allocate_ranks(weights, **{**everything, "cache": None})
    assert (min(ranks.values()), max(ranks.values())) == (2, 3)
    assert ranks.unspent == 110 - sum(rank * sum(weights[name].shape) for name, rank in ranks.items())
    assert max(allocate_ranks(model, ["query", "2"], **{**everything, "parameters": 1000}).values()) == 4
    assert (tmp_path / "c.json").exists()


def test_progress_of_ranks(capfd):
    allocate_ranks(blocks(), ["query"], 2, progress=True)
    assert "2/2" in capfd.readouterr().err
    allocate_ranks(blocks(), ["query"], 2)
    assert capfd.readouterr().err == ""


def test_models_without_ranks():
    model = blocks()
    for bad in (None, 3, model[0].query.weight):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
            allocate_ranks(bad, ["query"], 2)
    with pytest.raises(TypeError, match="targets: expected a sequence of module names, got 'query'"):
        allocate_ranks(model, "query", 2)
    with pytest.raises(ValueError, match="targets: expected at least one module name"):
        allocate_ranks(model, [], 2)
    with pytest.raises(ValueError, match="got 'key', which none has"):
        allocate_ranks(model, ["key"], 2)
    with pytest.raises(ValueError, match=r"targets: expected torch\.nn\.Linear.* modules, got Block at '0'"):
        allocate_ranks(model, ["0"], 2)
    with pytest.raises(ValueError, match=r"modules, got LayerNorm at '0\.norm'"):
        allocate_ranks(model, ["norm"], 2)
    with pytest.raises(ValueError, match=r"meta device at '0.query'"):
        allocate_ranks(copy.deepcopy(model).to("meta"), ["query"], 2)
    with pytest.raises(ValueError, match="exactly one of the two"):
        allocate_ranks(model, ["query"])


def core_methods():
    return pytest.mark.parametrize("method", (LaMDA(3, core_only=True), LoRAXS(3)), ids=("core-only LaMDA", "LoRA-XS"))


@core_methods()
@every_base
def test_only_the_core_trains(method, base):
    model = adapt(blocks(), method, targets=["query"], base=base)
    assert [tuple(parameter.shape) for parameter in trainable_parameters(model)] == [(3, 3), (3, 3)]
    model(X).sum().backward()
    for parameter in trainable_parameters(model):
        assert parameter.grad.abs().max() > 0
        assert (parameter.grad != 0).all(), "the whole square trains, not its diagonal alone"


@core_methods()
def test_weight_decay_pulls_an_intact_core_to_the_pretrained_model(method):
    """The core is stored as its deviation, which starts at zero; decay of zero is nothing."""
    model = blocks()
    before = model(X)
    adapt(model, method, targets=["query"])
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=0.1, weight_decay=0.5)
    for parameter in trainable_parameters(model):
        assert not parameter.any()
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model(X), before)


def test_a_core_that_is_kept_by_the_schedule_decays_and_one_that_is_stored_as_a_deviation_does_not():
    """Why core-only LaMDA is an option and not a schedule with a fraction of 0."""
    changes = []
    for method, scheduled in ((LaMDA(3), True), (LaMDA(3, core_only=True), False)):
        model = blocks()
        before = model(X)
        adapt(model, method, targets=["query"])
        if scheduled:
            GradualFreeze(model, total_steps=1, fraction=0)
        with torch.no_grad():
            for parameter in trainable_parameters(model):
                parameter.mul_(0.5)
        changes.append((model(X) - before).abs().max().item())
    assert changes[0] > 1e-3
    assert changes[1] == 0


def test_core_only_lamda_computes_what_lamda_with_a_frozen_up_does():
    models = []
    for method in (LaMDA(3), LaMDA(3, core_only=True)):
        model = adapt(nn.Sequential(nn.Linear(8, 7)).double(), method, targets=["0"])
        models.append(model)
    weight = torch.randn(7, 8, dtype=torch.float64)
    shift = torch.randn(3, 3, dtype=torch.float64)
    gradients = []
    for method in (LaMDA(3), LaMDA(3, core_only=True)):
        model = nn.Sequential(nn.Linear(8, 7, bias=False)).double()
        model[0].weight.data.copy_(weight)
        adapt(model, method, targets=["0"])
        with torch.no_grad():
            only_adapter(model[0]).core += shift
        output = model(X.double())
        output.square().sum().backward()
        gradients.append((output, only_adapter(model[0]).core.grad, next(named_adapters(model))[1].core))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_core_only_is_a_bool():
    with pytest.raises(TypeError, match="core_only: expected a bool, got int"):
        LaMDA(3, core_only=1)
    assert LaMDA(3, core_only=True) != LaMDA(3)
    assert copy.deepcopy(LaMDA(3, core_only=True)).trains == {"core"}
    assert LaMDA(3).trains == LaMDA.trains == {"up", "core"}


def test_gradual_freezing_of_a_core_alone_is_an_error():
    model = adapt(blocks(), LaMDA(3, core_only=True), targets=["query"])
    with pytest.raises(ValueError, match="expected an adapter that trains up and core"):
        GradualFreeze(model, total_steps=10)


@core_methods()
@every_base
def test_cores_are_saved_exported_and_taken_away(method, base, tmp_path):
    pretrained = blocks()
    model = adapt(copy.deepcopy(pretrained), method, targets=["query"], base=base)
    shift_parameters(model)
    save_adapter(model, tmp_path / "own")
    loaded = load_adapter(copy.deepcopy(pretrained), tmp_path / "own")
    assert torch.equal(loaded(X), model(X))
    export_lora(model, tmp_path / "lora")
    from safetensors.torch import load_file

    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    plain = copy.deepcopy(pretrained)
    with torch.no_grad():
        for i in (0, 1):
            a, b = (lora[f"base_model.model.{i}.query.lora_{letter}.weight"] for letter in "AB")
            assert a.shape == (3, 8)
            plain[i].query.weight += b @ a
    torch.testing.assert_close(plain(X), model(X), rtol=1e-4, atol=1e-4)
    restored = unadapt(model)
    if base == "intact" or isinstance(method, LoRAXS):
        assert torch.equal(restored(X), pretrained(X))


def test_lora_xs_leaves_a_residual_base_as_it_is():
    model, pretrained = blocks(), blocks()
    adapt(model, LoRAXS(3), targets=["query"], base="residual")
    assert torch.equal(model[0].query.base.weight, pretrained[0].query.weight)
    assert torch.equal(model(X), pretrained(X))


class Trained(nn.Module):
    """Layers of which all but the last are adapted, so that the head is what it was before, during and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    state = (
        tensor for entry in optimizer.state.values() for tensor in entry.values() if isinstance(tensor, torch.Tensor)
    )
    return sum(tensor.nbytes for tensor in state if tensor.dim() > 0)


def numbers_for_the_backward(model: nn.Module, x: torch.Tensor) -> int:
    """Numbers that a forward keeps beside the adapters' own parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(kept.values())


@every_base
def test_what_freezing_releases(base):
    """Adam's two moments of B are gone when B is frozen, its gradient too; the T x r of the layers stay."""
    rank, tokens = 4, 10
    torch.manual_seed(0)
    model = adapt(Trained(), LaMDA(rank), targets=["first", "second"], base=base)
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-3)
    freeze = GradualFreeze(model, total_steps=10, fraction=0.5, optimizer=optimizer)
    x = torch.randn(tokens, 32)
    ups, cores = rank * (48 + 32), 2 * rank * rank
    # h of both layers, and the masks' inputs of the two relus.
    kept_by_layers, kept_by_relus = tokens * 2 * rank, tokens * (48 + 32)
    seen = []
    for step in range(1, 11):
        kept = numbers_for_the_backward(model, x)
        model(x).square().sum().backward()
        gradients = sum(p.grad.numel() for p in trainable_parameters(model) if p.grad is not None)
        optimizer.step()
        updated = sum(p.numel() for p in trainable_parameters(model))
        freeze.step()
        seen.append((step, kept, gradients, updated, optimizer_bytes(optimizer)))
        optimizer.zero_grad()
    for step, kept, gradients, updated, state in seen:
        assert kept == kept_by_layers + kept_by_relus
        assert gradients == updated == (ups if step <= 5 else 0) + cores
        assert state == 2 * 4 * ((ups if step < 5 else 0) + cores)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_model_keeps_less_than_with_a_down_that_trains(dtype):
    """T x r in place of T x n a layer, at every stage of the freezing."""
    from lowrank_swift.torch import PiSSA

    kept = {}
    for method in (LaMDA(4), PiSSA(4), LaMDA(4, core_only=True), LoRAXS(4)):
        model = adapt(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).to(dtype), method, targets=["0", "1"])
        kept[method] = numbers_for_the_backward(model, torch.randn(10, 32, dtype=dtype))
    assert list(kept.values()) == [2 * 10 * 4, 2 * 10 * (32 + 4), 2 * 10 * 4, 2 * 10 * 4]


def test_ranks_of_other_layers_are_those_of_their_matrices():
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.image, self.flat = nn.Embedding(20, 12), nn.Conv2d(3, 8, 3), nn.Linear(12, 9)

    torch.manual_seed(0)
    model = Others()
    ranks = allocate_ranks(model, ["words", "image", "flat"], 4)
    kernels = model.image.weight.detach().flatten(1)
    weights = {"words": model.words.weight, "image": kernels, "flat": model.flat.weight}
    assert ranks == lrs.allocate_ranks(weights, 4)
    adapt(model, LaMDA(ranks), targets=list(ranks))
    assert {name: factors.up.shape[1] for name, factors in named_adapters(model)} == ranks
