# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Bases that bitsandbytes has quantized, on the CPU."""

from __future__ import annotations

import pytest
import torch
from lowrank_swift.peft import LoLDUConfig, export_lora
from lowrank_swift.peft._weight import dequantized
from peft import PeftModel, get_peft_model
from peft_support import close, every_config, output, train
from torch import nn

bitsandbytes = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.peft

every_base = pytest.mark.parametrize("kind", ("Linear4bit", "Linear8bitLt"))


def quantized(kind: str, weight: torch.Tensor | None = None) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    if weight is not None:
        plain.weight.data = weight
    if kind == "Linear4bit":
        layer = bitsandbytes.nn.Linear4bit(64, 48, quant_type="nf4", compute_dtype=torch.float32)
    else:
        layer = bitsandbytes.nn.Linear8bitLt(64, 48, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    return nn.Sequential(layer.to("cpu")).eval()


def x() -> torch.Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


@every_base
@every_config
def test_the_life_of_an_adapter(kind, config, tmp_path):
    expected = output(quantized(kind), x())
    model = get_peft_model(quantized(kind), config(r=4, target_modules=["0"]))
    assert close(output(model, x()), expected)
    train(model, x())
    now = output(model, x())
    assert not close(now, expected)
    with model.disable_adapter():
        assert torch.equal(output(model, x()), expected)
    model.save_pretrained(tmp_path / "own")
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(quantized(kind), tmp_path / "own", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(output(loaded, x()), now)
    export_lora(model, tmp_path / "lora")
    assert close(output(PeftModel.from_pretrained(quantized(kind), tmp_path / "lora"), x()), now)
    assert torch.equal(output(model.unload(), x()), expected)


@every_base
def test_a_small_checkpoint(kind, tmp_path):
    model = get_peft_model(quantized(kind), LoLDUConfig(r=4, target_modules=["0"], save_projection=False))
    train(model, x())
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(quantized(kind), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(output(loaded, x()), output(model, x()))


@every_base
@every_config
def test_merging_quantizes_the_sum_again(kind, config):
    base = quantized(kind)
    expected = output(base, x())
    model = get_peft_model(base, config(r=4, target_modules=["0"]))
    train(model, x())
    now = output(model, x())
    layer = model.base_model.model[0]
    total = dequantized(layer.get_base_layer()) + layer.get_delta_weight("default")
    afresh = output(quantized(kind, total), x())
    for _ in range(2):
        with pytest.warns(UserWarning, match="quantized again"):
            model.merge_adapter()
        assert close(output(model, x()), afresh)
        model.unmerge_adapter()
        assert torch.equal(output(model, x()), now)
    with model.disable_adapter():
        assert torch.equal(output(model, x()), expected)
    with pytest.warns(UserWarning, match="quantized again"):
        merged = model.merge_and_unload()
    assert type(merged[0]) is type(quantized(kind)[0])
    assert close(output(merged, x()), afresh)
    assert not close(afresh, expected)


@every_base
def test_a_second_adapter_is_merged_with_the_first(kind):
    model = get_peft_model(quantized(kind), LoLDUConfig(r=4, target_modules=["0"]))
    model.add_adapter("second", LoLDUConfig(r=2, target_modules=["0"]))
    for name in ("default", "second"):
        model.set_adapter(name)
        train(model, x())
    layer = model.base_model.model[0]
    total = dequantized(layer.get_base_layer()) + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    now = output(model, x())
    with pytest.warns(UserWarning, match="quantized again"):
        model.merge_adapter(["default"])
        model.merge_adapter(["second"])
    assert close(dequantized(layer.get_base_layer()), dequantized(quantized(kind, total)[0]))
    model.unmerge_adapter()
    assert torch.equal(output(model, x()), now)


@every_base
def test_a_broken_adapter_is_not_merged(kind):
    model = get_peft_model(quantized(kind), LoLDUConfig(r=4, target_modules=["0"]))
    expected = output(quantized(kind), x())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(output(model, x()), expected)
