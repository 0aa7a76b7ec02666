# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Bases that bitsandbytes has quantized, on the CPU."""

from __future__ import annotations

import pytest
import torch
from lowrank_swift.peft import LoLDUConfig, export_lora
from peft import PeftModel, get_peft_model
from peft_support import close, every_config, output, train
from torch import nn

bitsandbytes = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.peft

every_base = pytest.mark.parametrize("kind", ("Linear4bit", "Linear8bitLt"))


def quantized(kind: str) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
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
    with pytest.raises(ValueError, match="expected a base that is not quantized"):
        model.merge_adapter()
    assert torch.equal(output(model, x()), now)
    assert torch.equal(output(model.unload(), x()), expected)


@every_base
def test_a_small_checkpoint(kind, tmp_path):
    model = get_peft_model(quantized(kind), LoLDUConfig(r=4, target_modules=["0"], save_projection=False))
    train(model, x())
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(quantized(kind), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(output(loaded, x()), output(model, x()))
