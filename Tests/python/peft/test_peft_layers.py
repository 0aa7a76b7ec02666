# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Every type of layer that takes adapters, in PEFT's hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from lowrank_swift.peft import LoLDUConfig, export_lora
from lowrank_swift.peft._layer import LowRankLinear
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft_support import close, every_config, output, train
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

pytestmark = pytest.mark.peft


@dataclass(frozen=True)
class Layer:
    make: Callable[[], nn.Module]
    x: Callable[[], Tensor]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(self.make()).eval()


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


LAYERS = {
    "Linear": Layer(lambda: nn.Linear(12, 8), lambda: numbers(3, 5, 12)),
    "Linear, one vector": Layer(lambda: nn.Linear(12, 8, bias=False), lambda: numbers(12)),
    "Conv1D": Layer(lambda: Conv1D(8, 12), lambda: numbers(3, 5, 12)),
    "Embedding": Layer(lambda: nn.Embedding(20, 8), lambda: torch.tensor([[3, 1, 4], [1, 5, 9]])),
    "Conv2d": Layer(lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), lambda: numbers(2, 3, 9, 8)),
    "Conv2d, one image": Layer(lambda: nn.Conv2d(3, 8, (1, 3)), lambda: numbers(3, 9, 8)),
}

every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
@every_config
def test_pefts_own_conversion_to_lora(name, config):
    """PEFT takes every layer for a linear one; what it would lose is refused."""
    conversion = pytest.importorskip("peft.tuners.lora.conversion")
    model = get_peft_model(LAYERS[name].model(), config(r=2, target_modules=["0"], init_weights=False))
    is_linear = name.startswith(("Linear", "Conv1D"))
    assert model.supports_lora_conversion() == is_linear
    if is_linear:
        converted, state = conversion.convert_to_lora(model, rank=4, progressbar=False)
        lora = get_peft_model(LAYERS[name].model(), converted)
        set_peft_model_state_dict(lora, state)
        assert close(output(lora, LAYERS[name].x()), output(model, LAYERS[name].x()), size=256)
    else:
        with pytest.raises(TypeError, match=r"do not support LoRA conversion: .*LowRankLayer"):
            conversion.convert_to_lora(model, rank=4, progressbar=False)


@every_layer
@every_config
def test_the_life_of_an_adapter(name, config, tmp_path):
    case = LAYERS[name]
    x, expected = case.x(), output(case.model(), case.x())
    model = get_peft_model(case.model(), config(r=4, target_modules=["0"]))
    assert torch.equal(output(model, x), expected)
    train(model, x)
    now = output(model, x)
    assert not close(now, expected)
    with model.disable_adapter():
        assert torch.equal(output(model, x), expected)
    model.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    export_lora(model, tmp_path / "lora")
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(case.model(), tmp_path / "own", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(output(loaded, x), now)
    assert close(output(PeftModel.from_pretrained(case.model(), tmp_path / "lora"), x), now)
    model.merge_adapter()
    assert close(output(model, x), now)
    model.unmerge_adapter()
    assert torch.equal(output(model, x), now)
    merged = model.merge_and_unload()
    assert type(merged[0]) is type(case.model()[0])
    assert close(output(merged, x), now)


@every_layer
@every_config
def test_the_delta_is_in_the_layout_of_the_weight(name, config):
    case = LAYERS[name]
    model = get_peft_model(case.model(), config(r=4, target_modules=["0"], init_weights=False))
    now = output(model, case.x())
    layer = model.base_model.model[0]
    delta = layer.get_delta_weight("default")
    plain = case.model()
    assert delta.shape == plain[0].weight.shape
    plain[0].weight.data += delta
    assert close(output(plain, case.x()), now)
    assert not close(output(case.model(), case.x()), now)


@every_layer
@every_config
def test_dropout(name, config):
    """Indices are not dropped."""
    case = LAYERS[name]
    model = get_peft_model(case.model(), config(r=4, target_modules=["0"], lora_dropout=0.5, init_weights=False))
    now = output(model, case.x())
    model.train()
    torch.manual_seed(4)
    dropped = model(case.x())
    assert dropped.shape == now.shape
    assert close(dropped, now) == (name == "Embedding")
    dropped.sum().backward()


@every_layer
def test_a_small_checkpoint(name, tmp_path):
    case = LAYERS[name]
    model = get_peft_model(case.model(), LoLDUConfig(r=4, target_modules=["0"], save_projection=False))
    train(model, case.x())
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(case.model(), tmp_path)
    assert torch.equal(output(loaded, case.x()), output(model, case.x()))


def test_peft_finds_linear_layers_that_have_adapters():
    assert {
        name: isinstance(
            get_peft_model(case.model(), LoLDUConfig(r=2, target_modules=["0"])).base_model.model[0], LowRankLinear
        )
        for name, case in LAYERS.items()
    } == {name: name.startswith(("Linear", "Conv1D")) for name in LAYERS}
