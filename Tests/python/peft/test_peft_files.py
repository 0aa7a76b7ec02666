# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints: PEFT's own files, in two sizes, here and in other processes, with and without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig, export_lora
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft_support import MODELS, PEFT_VERSION, close, every_config, every_model, mlp, output, rows, train, trained
from safetensors.torch import load_file, save_file
from support import run_python

pytestmark = pytest.mark.peft

WEIGHTS = "adapter_model.safetensors"


def trained_mlp(config, **options) -> PeftModel:
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0", "lin1"], **options))
    train(model, rows())
    return model


@every_model
@every_config
@pytest.mark.parametrize("low_cpu_mem_usage", (False, True))
def test_a_saved_adapter_reloads(name, config, low_cpu_mem_usage, tmp_path):
    case = MODELS[name]
    model = get_peft_model(case.model(), config(r=4, target_modules=list(case.targets), task_type=case.task))
    train(model, case.batch())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(output(loaded, case.batch()), output(model, case.batch()))
    assert not trained(loaded)
    again = PeftModel.from_pretrained(case.model(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage)
    expected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == set(expected)
    train(again, case.batch())


@every_config
def test_an_auto_model_reloads(config, tmp_path):
    case = MODELS["llama"]
    base = case.model()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = get_peft_model(base, config(r=4, task_type="CAUSAL_LM"))
    train(model, case.batch())
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(output(loaded, case.batch()), output(model, case.batch()))


@every_config
def test_a_second_adapter_is_loaded_beside_the_first(config, tmp_path):
    model = trained_mlp(config)
    model.save_pretrained(tmp_path)
    other = get_peft_model(mlp(), config(r=2, target_modules=["lin0"]))
    before = output(other, rows())
    other.load_adapter(tmp_path, "loaded")
    assert torch.equal(output(other, rows()), before)
    other.set_adapter("loaded")
    assert torch.equal(output(other, rows()), output(model, rows()))


@every_config
def test_transformers_loads_and_adds_adapters_itself(config, tmp_path):
    if PEFT_VERSION < (0, 20):
        pytest.skip("this transformers asks for a newer PEFT")
    case = MODELS["llama"]
    model = get_peft_model(case.model(), config(r=4, target_modules=list(case.targets), init_weights=False))
    model.save_pretrained(tmp_path)
    direct = case.model()
    direct.load_adapter(str(tmp_path))
    assert torch.equal(output(direct, case.batch()), output(model, case.batch()))
    added = case.model()
    added.add_adapter(config(r=4, target_modules=list(case.targets)))
    train(added, case.batch())
    trained_output = output(added, case.batch())
    added.disable_adapters()
    assert torch.equal(output(added, case.batch()), output(case.model(), case.batch()))
    added.enable_adapters()
    export_lora(added, tmp_path / "lora")
    plain = PeftModel.from_pretrained(case.model(), tmp_path / "lora")
    assert close(output(plain, case.batch()), trained_output)


@every_config
def test_another_process_loads_it(config, tmp_path):
    model = trained_mlp(config)
    model.save_pretrained(tmp_path)
    torch.save((mlp().state_dict(), rows(), output(model, rows())), tmp_path / "expected.pt")
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch, lowrank_swift.peft
from peft import PeftModel
from peft_support import MLP, output
state, x, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = MLP(); model.load_state_dict(state)
print(torch.equal(output(PeftModel.from_pretrained(model, {str(tmp_path)!r}), x), expected))
"""
    assert run_python(code).split()[-1] == "True"


@every_config
def test_without_this_package_the_error_and_the_card_say_what_is_missing(config, tmp_path):
    trained_mlp(config).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode != 0
    assert f"LOWRANK_{config.__name__.removesuffix('Config').upper()}" in result.stderr.splitlines()[-1]
    card = (tmp_path / "README.md").read_text()
    assert card.count("import lowrank_swift.peft") == 1
    trained_mlp(config).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().count("import lowrank_swift.peft") == 1


def test_what_is_in_a_checkpoint(tmp_path):
    sizes = {
        LoLDUConfig: {"core": [4], "start_core": [4], "up": [20, 4], "down": [4, 10]},
        LaMDAConfig: {
            "core": [4, 4], "up": [20, 4], "down": [4, 10], "start_product": [20, 4], "frozen_columns": [],
        },
        OLoRAConfig: {"up": [20, 4], "down": [4, 10], "start_up": [20, 4], "start_down": [4, 10]},
    }  # fmt: skip
    for config, expected in sizes.items():
        model = trained_mlp(config)
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / WEIGHTS)
        prefix = f"base_model.model.lin0.{config().peft_type.value.lower()}_adapter."
        assert {k.removeprefix(prefix): list(v.shape) for k, v in state.items() if "lin0" in k} == expected
        assert len(state) == 2 * len(expected)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == config().peft_type.value


@pytest.mark.parametrize("low_cpu_mem_usage", (False, True))
@pytest.mark.parametrize("diagonal", ("ldu", "normal"))
def test_a_small_checkpoint_has_r_numbers_for_each_layer(low_cpu_mem_usage, diagonal, tmp_path):
    model = trained_mlp(LoLDUConfig, save_projection=False, diagonal=diagonal)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    assert {(key.rpartition(".")[2], value.numel()) for key, value in state.items()} == {
        ("core", 4), ("base_fingerprint", 32),
    }  # fmt: skip
    loaded = PeftModel.from_pretrained(mlp(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(output(loaded, rows()), output(model, rows()))
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    loaded.set_adapter("second")
    assert torch.equal(output(loaded, rows()), output(model, rows()))


@pytest.mark.parametrize("low_cpu_mem_usage", (False, True))
def test_a_small_checkpoint_refuses_another_base(low_cpu_mem_usage, tmp_path):
    trained_mlp(LoLDUConfig, save_projection=False).save_pretrained(tmp_path)
    for other in (mlp(seed=1), mlp().bfloat16(), nudged(mlp())):
        with pytest.raises(RuntimeError, match=r"lin0.*base_fingerprint: expected the base weight .* got another"):
            PeftModel.from_pretrained(other, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


def nudged(model):
    """One entry differs by one unit in the last place, in a column that LoLDU does not even read."""
    with torch.no_grad():
        model.lin0.weight[3, 9] = torch.nextafter(model.lin0.weight[3, 9], torch.tensor(9.0))
    return model


@every_config
def test_factors_keep_their_dtype_over_another_base(config, tmp_path):
    """An adapter made over a float32 base computes the same change over that base in 16 bits."""
    model = trained_mlp(config)
    model.save_pretrained(tmp_path)
    delta = model.base_model.model.lin0.get_delta_weight("default")
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(mlp(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded.base_model.model.lin0.get_delta_weight("default"), delta)


@every_config
def test_a_checkpoint_that_does_not_fit_is_an_error(config, tmp_path):
    trained_mlp(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    key = next(key for key in state if key.endswith("core" if config is not OLoRAConfig else "up"))
    save_file({**state, key: torch.zeros(7)}, tmp_path / WEIGHTS)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(mlp(), tmp_path)


@every_config
@pytest.mark.parametrize("name", ("gpt2", "llama", "bert", "t5"))
def test_the_export_is_plain_lora(name, config, tmp_path):
    case = MODELS[name]
    options = {"rank_pattern": {case.targets[0]: 2}, "lora_alpha": 6, "use_rslora": True}
    model = get_peft_model(case.model(), config(r=4, target_modules=list(case.targets), task_type=case.task, **options))
    train(model, case.batch())
    expected = output(model, case.batch())
    export_lora(model, tmp_path)
    entries = json.loads((tmp_path / "adapter_config.json").read_text())
    rank = 8 if config is OLoRAConfig else 4
    assert (entries["peft_type"], entries["r"], entries["lora_alpha"], entries["bias"]) == ("LORA", rank, rank, "none")
    assert entries["fan_in_fan_out"] == (name == "gpt2")
    assert "rank_pattern" not in entries
    plain = PeftModel.from_pretrained(case.model(), tmp_path)
    assert plain.peft_config["default"].peft_type == "LORA"
    assert close(output(plain, case.batch()), expected)
    assert not close(output(case.model(), case.batch()), expected)


@every_config
def test_the_export_is_exact(config, tmp_path):
    """B A is the delta to the rounding of one product, and nothing is exported before the training."""
    model = get_peft_model(mlp(), config(r=4, target_modules=["lin0"]))
    export_lora(model, tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    b, a = (state[f"base_model.model.lin0.lora_{letter}.weight"] for letter in "BA")
    if config is OLoRAConfig:
        assert torch.equal(b[:, :4], -b[:, 4:])
        assert torch.equal(a[:4], a[4:])
    else:
        assert not b.any()
    train(model, rows())
    export_lora(model, tmp_path, dtype=torch.float64)
    state = load_file(tmp_path / WEIGHTS)
    b, a = (state[f"base_model.model.lin0.lora_{letter}.weight"] for letter in "BA")
    delta = model.base_model.model.lin0.get_delta_weight("default").double()
    unit = float((b.abs() @ a.abs()).max()) * torch.finfo(torch.float32).eps
    assert (b @ a - delta).abs().max() <= 8 * unit
    assert delta.abs().max() > 100 * unit


def test_the_export_of_several_adapters_is_their_sum(tmp_path):
    model = trained_mlp(LoLDUConfig)
    model.add_adapter("second", LoLDUConfig(r=3, target_modules=["lin1"], init_weights=False))
    model.base_model.set_adapter(["default", "second"])
    expected = output(model, rows())
    export_lora(model, tmp_path)
    assert close(output(PeftModel.from_pretrained(mlp(), tmp_path), rows()), expected)
    export_lora(model, tmp_path, adapter_name="second")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["lin1"]
    model.set_adapter("second")
    assert close(output(PeftModel.from_pretrained(mlp(), tmp_path), rows()), output(model, rows()))


def test_what_the_export_refuses(tmp_path):
    model = trained_mlp(LoLDUConfig)
    with pytest.raises(ValueError, match=r"adapter_name: expected one of \['default'\] or None, got 'other'"):
        export_lora(model, tmp_path, adapter_name="other")
    with pytest.raises(ValueError, match=r"model: expected layers with adapters of lowrank_swift.peft"):
        export_lora(mlp(), tmp_path)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        export_lora({}, tmp_path)
    with pytest.raises(TypeError, match="dtype: expected a floating-point"):
        export_lora(model, tmp_path, dtype=torch.int8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("low_cpu_mem_usage", (False, True))
def test_core_only_lamda(low_cpu_mem_usage, tmp_path):
    model = trained_mlp(LaMDAConfig, core_only=True)
    assert [tuple(parameter.shape) for parameter in trained(model)] == [(4, 4)] * 2
    with model.disable_adapter():
        assert torch.equal(output(model, rows()), output(mlp(), rows()))
    model.save_pretrained(tmp_path / "own")
    loaded = PeftModel.from_pretrained(mlp(), tmp_path / "own", low_cpu_mem_usage=low_cpu_mem_usage)
    assert loaded.peft_config["default"].core_only
    assert torch.equal(output(loaded, rows()), output(model, rows()))
    export_lora(model, tmp_path / "lora")
    plain = PeftModel.from_pretrained(mlp(), tmp_path / "lora")
    assert close(output(plain, rows()), output(model, rows()))
    with pytest.raises(TypeError, match="core_only: expected a bool"):
        LaMDAConfig(core_only="yes")
