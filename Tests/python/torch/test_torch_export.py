# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Export to plain LoRA: its factors against the original weights, and vanilla PEFT as the judge of the files."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from lowrank_swift import LinAlgError
from lowrank_swift.torch import LaMDA, LoLDU, LoRAXS, OLoRA, PiSSA, adapt, export_lora, merge, trainable_parameters
from safetensors import safe_open
from safetensors.torch import load_file
from support import run_python
from torch import nn
from torch_support import (
    BASES,
    LIMIT,
    METHODS,
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

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
EPS = torch.finfo(torch.float32).eps


@every_method
@every_base
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_the_product_is_what_has_changed(method, base, dtype, tmp_path):
    """B A = s (B C A - B0 C0 A0), against the original weight in both forms."""
    layer, weight = adapted_linear(method, base, m=20, n=24, rank=5, dtype=dtype)
    start = only_factors(layer)
    shift_parameters(layer)
    now = only_factors(layer)
    precise = torch.float64 if dtype is torch.float64 else torch.float32
    export_lora(nn.Sequential(layer), tmp_path, dtype=precise)
    tensors = load_file(tmp_path / TENSORS)
    a, b = (tensors[f"base_model.model.0.lora_{letter}.weight"] for letter in "AB")
    rank = 10 if method in (OLoRA, PiSSA) else 5
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((rank, 24), (20, rank), precise, precise)
    exact = delta(now) - delta(start)
    bound = magnitude_of(torch.eye(24), torch.zeros_like(weight), now, start)
    assert error_ratio(b.double() @ a.double(), exact, bound, 24, torch.finfo(precise).eps) < LIMIT
    assert exact.abs().max() > 0.1


@every_method
@every_base
def test_nothing_has_changed_before_training(method, base, tmp_path):
    """Exactly nothing for a frozen down; else the two halves cancel."""
    model = adapt(blocks(), method(3, alpha=5), targets=["query"], base=base)
    export_lora(model, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    for block in "01":
        a, b = (tensors[f"base_model.model.{block}.query.lora_{letter}.weight"] for letter in "AB")
        if method in (LoLDU, LaMDA, LoRAXS):
            assert not b.any()
        else:
            assert torch.equal(b[:, :3], -b[:, 3:])
            assert torch.equal(a[:3], a[3:])


def test_the_files(tmp_path):
    model = adapt(blocks(), LoLDU({"0.query": 2, "1.query": 5}, alpha=4), targets=["query"])
    adapt(model, OLoRA(3), targets=["0.query", "value"], name="second")
    train(model)
    export_lora(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, TENSORS]
    config = json.loads((tmp_path / CONFIG).read_text())
    modules = ["0.query", "0.value", "1.query", "1.value"]
    expected = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_rslora": False, "bias": "none"}
    expected |= {"target_modules": modules, "fan_in_fan_out": False, "init_lora_weights": True, "inference_mode": True}
    expected |= {"use_dora": False, "modules_to_save": None}
    assert config.items() >= expected.items()
    assert not any("pattern" in key for key in config)
    with safe_open(tmp_path / TENSORS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tensors = load_file(tmp_path / TENSORS)
    assert set(tensors) == {f"base_model.model.{m}.lora_{letter}.weight" for m in modules for letter in "AB"}
    for module, own in zip(modules, (8, 6, 5, 6), strict=True):
        a, b = (tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
        assert a.shape == (8, 8)
        assert a[:own].any(dim=1).all()
        assert not a[own:].any()
        assert not b[:, own:].any()
    export_lora(model, tmp_path / "one", name="default")
    assert json.loads((tmp_path / "one" / CONFIG).read_text())["target_modules"] == ["0.query", "1.query"]
    assert load_file(tmp_path / "one" / TENSORS)["base_model.model.0.query.lora_A.weight"].shape == (5, 8)
    merge(model)
    export_lora(model, tmp_path / "merged")
    assert (tmp_path / "merged" / TENSORS).read_bytes() == (tmp_path / TENSORS).read_bytes()


def test_bad_input(tmp_path):
    layer, _ = adapted_linear(OLoRA, "intact")
    model = nn.Sequential(layer)
    for dtype in (torch.int32, "float32"):
        with pytest.raises(TypeError, match=r"dtype: expected a floating-point torch\.dtype"):
            export_lora(model, tmp_path / "none", dtype=dtype)
    with pytest.raises(ValueError, match="name: expected the name of an adapter of the model or None, got 'other'"):
        export_lora(model, tmp_path / "none", name="other")
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got NoneType"):
        export_lora(None, tmp_path / "none")
    with pytest.raises(ValueError, match="expected adapted layers"):
        export_lora(blocks(), tmp_path / "none")
    with pytest.raises(ValueError, match="got an adapted layer"):
        export_lora(layer, tmp_path / "none")
    with torch.no_grad():
        trainable_parameters(model)[0][0, 0] = 1e5
    with pytest.raises(LinAlgError, match=r"^0: B: expected numbers that are finite in torch\.float16"):
        export_lora(model, tmp_path / "none", dtype=torch.float16)
    with torch.no_grad():
        trainable_parameters(model)[1][0, 0] = torch.nan
    with pytest.raises(LinAlgError, match=r"^0: A: expected numbers that are finite in torch\.float32"):
        export_lora(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


PEFT_PROCESS = """
import sys, pathlib, warnings
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
warnings.simplefilter("error")
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.query = torch.nn.Linear(8, 8)
        self.value = torch.nn.Linear(8, 8, bias=False)
        self.norm = torch.nn.LayerNorm(8)
    def forward(self, x):
        return self.norm(x + self.query(x).tanh() * self.value(x))
for folder in sorted(pathlib.Path({root!r}).iterdir()):
    model = torch.nn.Sequential(Block(), Block(), torch.nn.Linear(8, 3))
    model.load_state_dict(torch.load(folder / "pretrained.pt"))
    model = PeftModel.from_pretrained(model, folder)
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    torch.save((model(torch.load(folder / "x.pt")).detach(), len(adapted)), folder / "outputs.pt")
assert "lowrank_swift" not in sys.modules
"""


@pytest.mark.peft
def test_vanilla_peft_computes_the_same(tmp_path):
    pretrained = blocks()
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
    models = {}
    for method in METHODS:
        for base in BASES:
            targets = ["query", "1.value"]
            options = dict.fromkeys(("0.query", "1.query", "1.value"), 3) | {"1.query": 5}
            model = adapt(copy.deepcopy(pretrained), method(options, alpha=5), targets=targets, base=base)
            models[f"{method.__name__}-{base}"] = model
    several = adapt(copy.deepcopy(pretrained), LoLDU(2, rslora=True), targets=["query"])
    models["several"] = adapt(several, LaMDA(8), targets=["0.query", "1.value"], name="second")
    for name, model in models.items():
        train(model)
        export_lora(model, tmp_path / name)
        torch.save(pretrained.state_dict(), tmp_path / name / "pretrained.pt")
        torch.save(x, tmp_path / name / "x.pt")
    run_python(PEFT_PROCESS.format(root=str(tmp_path)))
    before = pretrained(x)
    for name, model in models.items():
        outputs, adapted = torch.load(tmp_path / name / "outputs.pt")
        expected = model(x)
        assert adapted == 3, name
        assert error_ratio(outputs, expected, expected, 8, EPS) < LIMIT, name
        assert error_ratio(expected, before, before, 8, EPS) > LIMIT, name
