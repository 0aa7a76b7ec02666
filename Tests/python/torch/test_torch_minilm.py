# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The real all-MiniLM-L6-v2: its weights, adapted by every method in both forms of the base."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lowrank_swift.torch import (
    LaMDA,
    LoLDU,
    adapt,
    disabled,
    export_lora,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    unmerge,
)
from lowrank_swift.torch._layer import adapted_layers
from torch_support import LIMIT, delta, error_ratio, every_base, every_method, magnitude_of, only_factors

TARGETS = ("query", "key", "value", "dense")
RANKS = {"OLoRA": 16, "LoLDU": 96, "LaMDA": 32, "PiSSA": 16, "LoRAXS": 32}


@pytest.fixture(scope="module")
def pretrained() -> Any:
    pytest.importorskip("transformers")
    from lowrank_swift.demo.model import load_model, locate_model
    from lowrank_swift.demo.settings import DemoError

    try:
        return load_model(locate_model(None)).encoder
    except DemoError as error:
        pytest.skip(str(error))


@every_method
@every_base
def test_minilm_computes_the_same_until_it_is_trained(pretrained, method, base):
    model = copy.deepcopy(pretrained)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(tokens).last_hidden_state
    adapt(model, method(RANKS[method.__name__]), targets=TARGETS, base=base)
    layers = dict(adapted_layers(model))
    assert len(layers) == 36
    after = model(tokens).last_hidden_state
    if base == "intact" and method in (LoLDU, LaMDA):
        assert torch.equal(after, before)
    eps = torch.finfo(torch.float32).eps
    for name, layer in layers.items():
        weight, factors = weights[f"{name}.weight"], only_factors(layer)
        x = torch.randn(5, layer.in_features)
        exact = x.double() @ weight.double().T + layer.bias.double()
        bound = magnitude_of(x, weight, factors)
        assert error_ratio(layer(x), exact, bound, max(weight.shape), eps) < LIMIT, name
        if base == "intact":
            assert torch.equal(layer.weight, weight), name
        else:
            restored = layer.weight.double() + delta(factors)
            bound = magnitude_of(torch.eye(weight.shape[1]), weight, factors)
            assert error_ratio(restored, weight, bound, max(weight.shape), eps) < LIMIT, name

    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-3, weight_decay=0.1)
    after[:, 0].square().sum().backward()
    optimizer.step()
    trained = model(tokens).last_hidden_state
    assert error_ratio(trained, before, before, 1536, eps) > LIMIT
    if base == "intact":
        assert all(torch.equal(layer.weight, weights[f"{name}.weight"]) for name, layer in layers.items())


@every_base
def test_minilm_merged_saved_and_disabled(pretrained, base, tmp_path):
    tokens = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(0))
    eps = torch.finfo(torch.float32).eps

    def outputs(model: torch.nn.Module) -> torch.Tensor:
        return model(tokens).last_hidden_state.detach()

    before = outputs(pretrained)
    model = adapt(copy.deepcopy(pretrained), LoLDU(96), targets=TARGETS, base=base)
    train_a_little(model)
    trained = outputs(model)
    save_adapter(model, tmp_path)
    assert torch.equal(outputs(load_adapter(copy.deepcopy(pretrained), tmp_path)), trained)
    merge(model)
    assert error_ratio(outputs(model), trained, trained, 1536, eps) < LIMIT
    with disabled(model):
        if base == "intact":
            assert torch.equal(outputs(model), before)
        assert error_ratio(outputs(model), before, before, 1536, eps) < LIMIT
    assert torch.equal(outputs(unmerge(model)), trained)
    assert error_ratio(trained, before, before, 1536, eps) > LIMIT


@pytest.mark.peft
def test_minilm_exported_to_peft(pretrained, tmp_path):
    from peft import PeftModel

    tokens = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(0))
    before = pretrained(tokens).last_hidden_state
    model = adapt(copy.deepcopy(pretrained), LaMDA(32), targets=TARGETS, base="residual")
    train_a_little(model)
    export_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(pretrained), tmp_path)
    trained, exported = (each(tokens).last_hidden_state for each in (model, loaded))
    eps = torch.finfo(torch.float32).eps
    assert error_ratio(exported, trained, trained, 1536, eps) < LIMIT
    assert error_ratio(trained, before, before, 1536, eps) > LIMIT


def train_a_little(model: torch.nn.Module) -> None:
    tokens = torch.randint(1000, 20000, (2, 12), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    model(tokens).last_hidden_state[:, 0].square().sum().backward()
    optimizer.step()
