# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Bad configurations, targets and weights: an error that names them, and a model that is what it was."""

from __future__ import annotations

import math

import pytest
import torch
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig
from lowrank_swift.peft._layer import LowRankLayer
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft_support import MODELS, every_config, mlp, output, rows
from torch import nn

pytestmark = pytest.mark.peft


@every_config
@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"r": 0}, ValueError, "r: expected at least 1, got 0"),
        ({"r": -3}, ValueError, "r: expected at least 1, got -3"),
        ({"r": 2.5}, TypeError, "r: expected an int"),
        ({"r": True}, TypeError, "r: expected an int"),
        ({"lora_alpha": 0}, ValueError, "lora_alpha: expected a finite number other than 0"),
        ({"lora_alpha": math.nan}, ValueError, "lora_alpha: expected a finite number other than 0"),
        ({"lora_alpha": "16"}, TypeError, "lora_alpha: expected a number or None, got '16'"),
        ({"rank_pattern": {"lin0": 0}}, ValueError, r"rank_pattern\['lin0'\]: expected at least 1, got 0"),
        ({"rank_pattern": {"lin0": "2"}}, TypeError, r"rank_pattern\['lin0'\]: expected an int, got '2'"),
        ({"alpha_pattern": {"lin0": "4"}}, TypeError, r"alpha_pattern\['lin0'\]: expected a number or None, got '4'"),
        ({"alpha_pattern": {"lin0": math.inf}}, ValueError, r"alpha_pattern\['lin0'\]: expected a finite number"),
        ({"lora_dropout": "0.1"}, TypeError, r"lora_dropout: expected a number, got '0\.1'"),
        ({"rank_pattern": None}, TypeError, "rank_pattern: expected a dict, got None"),
        ({"alpha_pattern": [2]}, TypeError, r"alpha_pattern: expected a dict, got \[2\]"),
        ({"lora_dropout": 1.0}, ValueError, "lora_dropout: expected 0 <= lora_dropout < 1, got 1.0"),
        ({"lora_dropout": -0.1}, ValueError, "lora_dropout: expected 0 <= lora_dropout < 1, got -0.1"),
        ({"target_modules": "a.*", "layers_to_transform": [0]}, ValueError, "layers_to_transform: expected None"),
        ({"target_modules": "a.*", "layers_pattern": "h"}, ValueError, "layers_pattern: expected None"),
        ({"layers_pattern": "h"}, ValueError, "layers_to_transform: expected indices"),
        ({"task_type": "NONSENSE"}, ValueError, "Invalid task type"),
    ),
)
def test_configurations(config, options, error, message):
    with pytest.raises(error, match=message):
        config(**options)


def check_refused(model, config, error, message):
    """The error names what it is about, and the model computes what it did with the layers that it had."""
    state = {key: value.clone() for key, value in model.state_dict().items() if not value.is_meta}
    types = {name: type(module) for name, module in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(error, match=message):
        get_peft_model(model, config)
    assert {name: type(module) for name, module in model.named_modules()} == types
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    now = model.state_dict()
    assert all(torch.equal(value.nan_to_num(7.0), now[key].nan_to_num(7.0)) for key, value in state.items())


@every_config
def test_a_rank_over_the_layer_is_an_error(config):
    message = r"head: r: expected 1 <= r <= min\(m, n\) = 2 for a weight of 2 outputs and 20 inputs, got 3"
    check_refused(mlp(), config(r=3, target_modules="all-linear"), ValueError, message)
    check_refused(mlp(), config(r=2, target_modules=["lin0"], rank_pattern={"lin0": 2**40}), ValueError, "lin0: r: ")


@every_config
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_weight_that_is_not_finite_is_an_error(config, value):
    model = mlp()
    model.lin1.weight.data[:, 0] = value
    check_refused(model, config(r=3, target_modules=["lin0", "lin1"]), ValueError, "lin1: weight: expected finite")


@every_config
def test_unknown_targets_and_layers_of_other_types(config):
    check_refused(mlp(), config(r=3, target_modules=["query"]), ValueError, "Target modules .*query.* not found")
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    check_refused(model, config(r=3, target_modules=["0", "1"]), ValueError, "1: target_modules: expected .* LayerNorm")
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    check_refused(model, config(r=3, target_modules=["0"]), ValueError, "0: groups: expected 1, got 2")
    model = nn.Sequential(nn.Embedding(4, 4, max_norm=1.0))
    check_refused(model, config(r=3, target_modules=["0"]), ValueError, "0: max_norm: expected None")


@every_config
def test_layers_that_their_parent_does_not_call(config):
    """Torch's attention and encoder layers read the weights themselves: an adapter there would do nothing."""
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    check_refused(attention, config(r=3, target_modules=["out_proj"]), ValueError, "torch.nn.MultiheadAttention")
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
    check_refused(encoder, config(r=3, target_modules=["linear1"]), ValueError, "torch.nn.TransformerEncoderLayer")


@every_config
def test_meta_weights_are_an_error(config):
    model = nn.Sequential(nn.Linear(8, 8, device="meta"))
    check_refused(
        model, config(r=3, target_modules=["0"]), ValueError, "0: weight: expected a materialised base weight"
    )


@every_config
def test_integer_weights_are_an_error(config):
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int32), requires_grad=False)
    check_refused(model, config(r=3, target_modules=["0"]), TypeError, "0: weight: expected")


@every_config
def test_a_failed_second_adapter_leaves_the_first(config):
    model = get_peft_model(mlp(), config(r=3, target_modules=["lin0", "lin1"], init_weights=False))
    expected = output(model, rows())
    with pytest.raises(ValueError, match="lin1: r: expected"):
        model.add_adapter("second", config(r=3, target_modules=["lin0", "lin1"], rank_pattern={"lin1": 99}))
    assert torch.equal(output(model, rows()), expected)
    assert list(model.peft_config) == ["default"]
    assert all(list(m.adapters) == ["default"] for m in model.modules() if isinstance(m, LowRankLayer))
    model.add_adapter("second", config(r=2, target_modules=["lin0"]))


@every_config
def test_a_merged_model_takes_no_adapter(config):
    model = get_peft_model(mlp(), config(r=3, target_modules=["lin0"], init_weights=False))
    model.merge_adapter()
    with pytest.raises(ValueError, match="lin0: model: expected layers that are not merged"):
        model.add_adapter("second", config(r=2, target_modules=["lin0"]))


@every_config
def test_a_base_that_trains_is_an_error(config):
    model = get_peft_model(mlp(), config(r=3, target_modules=["lin0"]))
    model.base_model.model.lin0.base_layer.bias.requires_grad_(True)
    with pytest.raises(ValueError, match="base: expected frozen parameters"):
        model(rows())


@every_config
def test_a_sum_that_does_not_fit_is_not_merged(config):
    model = get_peft_model(mlp(torch.float16), config(r=3, target_modules=["lin0"]))
    layer = model.base_model.model.lin0
    for parameter in layer.adapters.parameters():
        parameter.data.fill_(1e6)
    before = layer.base_layer.weight.clone()
    with pytest.raises(RuntimeError, match="weight: expected a sum with the adapter that fits"):
        model.merge_adapter()
    for parameter in layer.adapters.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(ValueError, match="finite"):
        model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged


def test_method_options():
    model = mlp()
    check_refused(
        model, LoLDUConfig(r=3, target_modules=["lin0"], diagonal="no"), ValueError, "lin0: diagonal: expected"
    )
    check_refused(model, LoLDUConfig(r=3, target_modules=["lin0"], seed=-1), ValueError, "lin0: seed: expected")
    check_refused(model, LaMDAConfig(r=3, target_modules=["lin0"], tol=0.0), ValueError, "lin0: tol: expected")
    with pytest.raises(TypeError, match="tol"):
        OLoRAConfig(tol=1.0)


@every_config
def test_unmerging_twice_is_a_warning(config):
    model = get_peft_model(mlp(), config(r=3, target_modules=["lin0"]))
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


@every_config
def test_a_layer_takes_adapters_of_one_type(config):
    """PEFT saves what has the type's prefix, and would lose another type's adapter."""
    other = LaMDAConfig if config is not LaMDAConfig else OLoRAConfig
    for first, second in ((other, config), (LoraConfig, config)):
        model = inject_adapter_in_model(first(r=2, target_modules=["lin0"]), mlp())
        expected = output(model, rows())
        message = r"lin0: target_modules: expected layers without adapters of another type, got a .*(adapter|lora_A)"
        with pytest.raises(ValueError, match=message):
            inject_adapter_in_model(config(r=2, target_modules=["lin1", "lin0"]), model, adapter_name="second")
        assert torch.equal(output(model, rows()), expected)
        assert type(model.lin1) is nn.Linear
        inject_adapter_in_model(second(r=2, target_modules=["lin1"]), model, adapter_name="second")
        assert torch.equal(output(model, rows()), expected)


@every_config
def test_batches_of_several_adapters_are_refused(config):
    case = MODELS["llama"]
    model = get_peft_model(case.model(), config(r=2, target_modules=["q_proj"], task_type=case.task))
    ids = case.batch()["input_ids"]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"adapter_names: expected None.*got \['default', '__base__'\]"):
            call(input_ids=ids, adapter_names=["default", "__base__"])
    model(input_ids=ids, adapter_names=None)
