# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What PEFT promises for every method, with LoLDU, LaMDA and OLoRA."""

from __future__ import annotations

import copy
import pickle
import warnings

import lowrank_swift.peft
import pytest
import torch
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig
from lowrank_swift.peft._layer import LowRankLayer
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, adapt
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import PeftType
from peft_support import (
    MODELS,
    PEFT_VERSION,
    base_state,
    close,
    every_config,
    every_model,
    mlp,
    output,
    rows,
    train,
    trained,
)
from torch import nn

pytestmark = pytest.mark.peft


def wrapped(name: str, config, **options) -> tuple[PeftModel, nn.Module, dict]:
    """A small transformer with adapters, the one without, and a batch."""
    case = MODELS[name]
    options = {"r": 4, "target_modules": list(case.targets), "task_type": case.task} | options
    return get_peft_model(case.model(), config(**options)), case.model(), case.batch()


def layers(model: nn.Module) -> dict[str, LowRankLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


@every_model
@every_config
@pytest.mark.parametrize("targets", ("some", "all-linear"))
def test_it_starts_at_the_pretrained_function_and_trains(name, config, targets):
    options = {} if targets == "some" else {"target_modules": targets}
    model, pretrained, batch = wrapped(name, config, **options)
    expected = output(pretrained, batch)
    assert torch.equal(output(model, batch), expected)
    before = base_state(model)
    train(model, batch)
    assert not close(output(model, batch), expected)
    after = base_state(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all("modules_to_save" in key for key in changed)


@every_model
@every_config
def test_merge_unmerge_and_unload(name, config):
    model, pretrained, batch = wrapped(name, config)
    train(model, batch)
    expected, before = output(model, batch), base_state(model)
    model.merge_adapter()
    assert close(output(model, batch), expected)
    with model.disable_adapter():
        pass
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(output(model, batch), expected)
    assert all(torch.equal(value, before[key]) for key, value in base_state(model).items())
    unloaded = copy.deepcopy(model).unload()
    if MODELS[name].task != "SEQ_CLS":  # whose head has been trained
        assert torch.equal(output(unloaded, batch), output(pretrained, batch))
    merged = model.merge_and_unload()
    assert not layers(merged)
    assert type(merged) is type(pretrained)
    assert close(output(merged, batch), expected)


@every_model
@every_config
def test_disable_adapter_is_the_pretrained_function_bit_for_bit(name, config):
    model, pretrained, batch = wrapped(name, config)
    train(model, batch)
    trained_output = output(model, batch)
    if MODELS[name].task == "SEQ_CLS":
        pretrained.classifier = copy.deepcopy(model.base_model.model.classifier.original_module)
    with model.disable_adapter():
        assert torch.equal(output(model, batch), output(pretrained, batch))
    assert torch.equal(output(model, batch), trained_output)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(output(model, batch), output(pretrained, batch))


@every_config
def test_the_factors_are_those_of_adapt(config):
    """And so is what the layers compute: one implementation."""
    method = {LoLDUConfig: LoLDU, LaMDAConfig: LaMDA, OLoRAConfig: OLoRA}[config]
    for options, same in (({}, {}), ({"lora_alpha": 6, "use_rslora": True}, {"alpha": 6, "rslora": True})):
        model = get_peft_model(mlp(), config(r=4, target_modules=["lin0", "lin1"], **options))
        other = adapt(mlp(), method(4, **same), targets=["lin0", "lin1"])
        for name in ("lin0", "lin1"):
            ((_, ours),) = getattr(model.base_model.model, name).named_adapters()
            ((_, theirs),) = getattr(other, name).named_adapters()
            assert ours.scale == theirs.scale
            assert ours.options == theirs.options
            state = theirs.state_dict()
            assert state.keys() == ours.state_dict().keys()
            assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
        assert torch.equal(output(model, rows()), output(other, rows()))


@every_config
def test_several_adapters(config):
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0", "lin1"]))
    pretrained = output(mlp(), rows())
    train(model, rows())
    first = output(model, rows())
    model.add_adapter("second", config(r=2, target_modules=["lin1"]))
    assert torch.equal(output(model, rows()), first)
    model.set_adapter("second")
    assert all(".second." in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert close(output(model, rows()), pretrained)
    train(model, rows())
    second = output(model, rows())
    assert not close(second, pretrained)
    model.set_adapter("default")
    assert torch.equal(output(model, rows()), first)
    model.base_model.set_adapter(["default", "second"])
    assert not close(output(model, rows()), first)
    model.merge_adapter()
    assert [layer.merged_adapters for layer in layers(model).values()] == [["default"], ["default", "second"]]
    model.unmerge_adapter()
    model.set_adapter("default")
    with pytest.raises(ValueError, match=r"does not exist|not found"):
        model.delete_adapter("third")
    model.delete_adapter("second")
    assert torch.equal(output(model, rows()), first)
    assert not any("second" in key for key in model.state_dict())


@every_config
def test_the_sum_of_active_adapters_is_the_sum_of_their_deltas(config):
    model = get_peft_model(mlp(torch.float64), config(r=4, target_modules=["lin0"], init_weights=False))
    model.add_adapter("second", config(r=3, target_modules=["lin0"], init_weights=False))
    model.base_model.set_adapter(["default", "second"])
    layer = model.base_model.model.lin0
    delta = layer.get_delta_weight("default") + layer.get_delta_weight("second")
    expected = nn.functional.linear(rows(torch.float64), layer.weight + delta, layer.bias)
    assert close(output(layer, rows(torch.float64)), expected, torch.finfo(torch.float64).eps)
    before = layer.weight.clone()
    expected_weight = before + delta
    layer.merge()
    assert close(layer.base_layer.weight, expected_weight, torch.finfo(torch.float64).eps)
    assert not torch.equal(expected_weight, before)


@every_config
def test_ranks_alphas_and_layers_by_pattern(config):
    model, _, _ = wrapped(
        "llama",
        config,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        alpha_pattern={"v_proj": 8},
        layers_to_transform=[1],
    )
    found = {name.split("layers.")[1]: next(layer.named_adapters())[1] for name, layer in layers(model).items()}
    assert {name: (adapter.down.shape[0], adapter.scale) for name, adapter in found.items()} == {
        "1.self_attn.q_proj": (2, 1.0),
        "1.self_attn.v_proj": (4, 2.0),
        "1.mlp.down_proj": (6, 1.0),
    }
    model, _, _ = wrapped("llama", config, target_modules="all-linear", exclude_modules=["v_proj", "k_proj"])
    assert {name.rsplit(".", 1)[1] for name in layers(model)} == {
        "q_proj", "o_proj", "up_proj", "gate_proj", "down_proj",
    }  # fmt: skip
    model.add_adapter("second", config(r=2, target_modules="all-linear"))
    assert sum("second" in layer.adapters for layer in layers(model).values()) == 14


@every_config
def test_no_targets_takes_what_lora_takes(config):
    model, _, _ = wrapped("llama", config, target_modules=None)
    assert {name.rsplit(".", 1)[1] for name in layers(model)} == {"q_proj", "v_proj"}


@every_config
def test_modules_to_save_train_and_are_saved(config, tmp_path):
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0"], modules_to_save=["head"]))
    train(model, rows())
    expected = output(model, rows())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.equal(output(loaded, rows()), expected)
    head = loaded.base_model.model.head
    assert not torch.equal(head.modules_to_save["default"].weight, head.original_module.weight)


@pytest.mark.skipif(PEFT_VERSION < (0, 21), reason="older PEFTs tell adapters by the name")
def test_a_module_with_a_name_like_an_adapters_stays_frozen():
    model = nn.Sequential()
    model.lowrank_loldu_head, model.lin = nn.Linear(10, 10), nn.Linear(10, 10)
    model = get_peft_model(model, LoLDUConfig(r=4, target_modules=["lin"]))
    assert [p.shape for p in trained(model)] == [(4,)]


def test_only_the_adapters_train():
    model = get_peft_model(mlp(), LoLDUConfig(r=4, target_modules=["lin0", "lin1"]))
    assert [p.shape for p in trained(model)] == [(4,), (4,)]
    model = get_peft_model(mlp(), LaMDAConfig(r=4, target_modules=["lin0", "lin1"]))
    assert [p.shape for p in trained(model)] == [(20, 4), (4, 4)] * 2
    model = get_peft_model(mlp(), OLoRAConfig(r=4, target_modules=["lin0", "lin1"]))
    assert [p.shape for p in trained(model)] == [(20, 4), (4, 10), (20, 4), (4, 20)]


@every_config
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_dtypes(config, dtype):
    """What trains is float32 over a 16-bit base, unless PEFT is told not to cast."""
    model = get_peft_model(mlp(dtype), config(r=4, target_modules=["lin0"]))
    precise = torch.float64 if dtype is torch.float64 else torch.float32
    assert {parameter.dtype for parameter in trained(model)} == {precise}
    assert output(model, rows(dtype)).dtype is dtype
    train(model, rows(dtype))
    expected = output(model, rows(dtype))
    merged = copy.deepcopy(model).merge_and_unload()
    assert merged.lin0.weight.dtype is dtype
    assert close(output(merged, rows(dtype)).double(), expected.double(), torch.finfo(dtype).eps)
    plain = get_peft_model(mlp(dtype), config(r=4, target_modules=["lin0"]), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in trained(plain)} == {dtype}
    assert close(output(plain, rows(dtype)).double(), output(mlp(dtype), rows(dtype)).double(), torch.finfo(dtype).eps)
    train(plain, rows(dtype))


@every_config
def test_dropout_acts_on_what_trains_alone(config):
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0"], lora_dropout=0.5, init_weights=False))
    layer = model.base_model.model.lin0
    expected = output(layer, rows())
    assert close(expected, nn.functional.linear(rows(), layer.weight + layer.get_delta_weight("default"), layer.bias))
    layer.train()
    torch.manual_seed(5)
    dropped = layer.dropouts["default"](rows())
    torch.manual_seed(5)
    actual = layer(rows())
    trained_term, *others = layer.adapters["default"].change()
    assert len(others) == (config is OLoRAConfig)
    result = nn.functional.linear(rows(), layer.weight, layer.bias)
    for term, x in ((trained_term, dropped), *((other, rows()) for other in others)):
        result = result + term.scale * x @ (term.factors().up @ dense(term) @ term.factors().down).T
    assert close(actual, result)
    assert not close(actual, expected)
    actual.sum().backward()
    assert all(parameter.grad.any() for parameter in trained(model))


def dense(term) -> torch.Tensor:
    core = term.factors().core
    if core is None:
        return torch.eye(term.down.shape[0])
    return torch.diag(core) if core.dim() == 1 else core


@every_config
@pytest.mark.parametrize("dropout", (0.0, 0.5))
def test_gradcheck(config, dropout):
    model = get_peft_model(
        mlp(torch.float64), config(r=3, target_modules=["lin0"], lora_dropout=dropout, init_weights=False)
    )
    layer = model.base_model.model.lin0.train()
    parameters = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}

    def function(x, *values):
        torch.manual_seed(1)  # the same mask every time
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    x = rows(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


@every_config
def test_a_base_that_is_hooked_is_called(config):
    """A hook that accelerate or a user has set runs, and the adapter is added to what it makes."""
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0"], init_weights=False))
    expected = output(model, rows())
    layer = model.base_model.model.lin0
    calls = []
    handle = layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
    assert close(output(model, rows()), expected)
    assert calls
    handle.remove()
    original = layer.base_layer.forward
    layer.base_layer.forward = lambda x: original(x) + 1
    assert not close(output(model, rows()), expected)


@every_config
def test_a_base_that_accelerate_has_placed_is_not_called(config):
    """Its hook only brings the input to the layer's device, and the adapter's pass over the output is saved."""
    accelerate = pytest.importorskip("accelerate")
    models = []
    for base in (accelerate.dispatch_model(mlp(), {"": "cpu"}, force_hooks=True), mlp()):
        torch.manual_seed(0)
        models.append(get_peft_model(base, config(r=4, target_modules=["lin0"], init_weights=False)))
    model, expected = models[0], output(models[1], rows())
    layer = model.base_model.model.lin0
    calls = []
    layer.base_layer._hf_hook.pre_forward = lambda *_: calls.append(1)
    assert torch.equal(output(model, rows()), expected)
    assert not calls


@every_config
def test_a_subclass_of_linear_keeps_its_own_forward(config):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Doubled(10, 8)).eval()
    expected = output(model, rows())
    adapted = get_peft_model(model, config(r=4, target_modules=["0"]))
    assert close(output(adapted, rows()), expected)


@every_config
def test_a_shared_weight_stays_what_it_is_elsewhere(config):
    """Tied embeddings: the head is adapted and merged, the embedding is not changed with it."""
    case = MODELS["opt"]
    model = case.model()
    embedding = model.model.decoder.embed_tokens.weight
    assert model.lm_head.weight is embedding
    before = embedding.detach().clone()
    adapted = get_peft_model(model, config(r=4, target_modules=["lm_head"], init_weights=False))
    expected = output(adapted, case.batch())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        adapted.merge_adapter()
    assert torch.equal(embedding, before)
    assert close(output(adapted, case.batch()), expected)
    adapted.unmerge_adapter()
    assert model.lm_head.base_layer.weight is embedding


def test_what_freezing_has_retired_stays_frozen():
    """PEFT makes all parameters of an adapter trainable whenever it is enabled."""
    model = get_peft_model(mlp(), LaMDAConfig(r=4, target_modules=["lin0"]))
    up = model.base_model.model.lin0.adapters["default"].up
    GradualFreeze(model, total_steps=10, fraction=0)
    assert not up.requires_grad
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    assert not up.requires_grad
    assert model.base_model.model.lin0.adapters["default"].core.requires_grad
    assert [p.shape for p in trained(model)] == [(4, 4)]


def test_an_inactive_adapter_is_not_frozen():
    model = get_peft_model(mlp(), LaMDAConfig(r=4, target_modules=["lin0"]))
    model.add_adapter("second", LaMDAConfig(r=4, target_modules=["lin0"]))
    GradualFreeze(model, total_steps=10, fraction=0)
    adapters = model.base_model.model.lin0.adapters
    assert (int(adapters["default"].frozen_columns), int(adapters["second"].frozen_columns)) == (4, 0)


@every_config
def test_configurations_copy_and_pickle(config, tmp_path):
    original = config(r=5, target_modules=["a", "b"], lora_alpha=3, rank_pattern={"a": 2}, modules_to_save=["c"])
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other == original
    original.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == original
    assert original.peft_type == f"LOWRANK_{config.__name__.removesuffix('Config').upper()}"
    assert original.peft_type in list(PeftType)
    assert PeftType[original.peft_type.name] is original.peft_type


@every_config
def test_models_copy(config):
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0"], init_weights=False))
    expected = output(model, rows())
    model.merge_adapter()
    other = copy.deepcopy(model)
    other.unmerge_adapter()
    assert torch.equal(output(other, rows()), expected)
    assert torch.equal(output(pickle.loads(pickle.dumps(other)), rows()), expected)


@every_config
def test_converting_the_model(config):
    """A model that is cast while merged gets back its weight in the new dtype."""
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0"], init_weights=False))
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert model.base_model.model.lin0.base_layer.weight.dtype is torch.bfloat16
    unit = torch.finfo(torch.bfloat16).eps
    assert close(model.base_model.model.lin0.weight.float(), mlp().lin0.weight, unit, size=1)
    assert output(model, rows(torch.bfloat16)).dtype is torch.bfloat16


def test_importing_twice_registers_once():
    import importlib

    importlib.reload(lowrank_swift.peft)
