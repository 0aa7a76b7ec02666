# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""PEFT's initializers under install(): PEFT itself is the oracle, and where it is wrong, the pretrained function."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from lowrank_swift.peft import fast_init, install, uninstall
from lowrank_swift.peft._fast_init import _reason_against
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from support import LIMIT, SVD_LIMIT, float64, ratio, weight
from torch import nn
from transformers.pytorch_utils import Conv1D

pytestmark = pytest.mark.peft

EPS = torch.finfo(torch.float32).eps
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def linear(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(columns, rows, dtype=dtype))
    model[0].weight.data = weight(rows, columns, dtype)
    return model


def decaying(rows: int, columns: int) -> torch.Tensor:
    """A weight whose leading singular subspaces are well determined."""
    u, _, vh = torch.linalg.svd(weight(rows, columns, torch.float64), full_matrices=False)
    return ((u * 0.7 ** torch.arange(u.shape[1])) @ vh).float()


def wrap(model: nn.Module, init: str, rank: int = 6, alpha: float = 9.0, **options):
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], init_lora_weights=init, **options)
    return get_peft_model(model, config)


def parts(model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layer = model.base_model.model[0]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((24, 24), (40, 24), (24, 40)), ids=str)
@pytest.mark.parametrize("name", ("olora", "OLoRA"))
def test_olora_is_what_peft_computes(shape, dtype, name):
    model = linear(*shape, dtype)
    theirs = wrap(copy.deepcopy(model), name)
    with fast_init():
        ours = wrap(model, name)
    for own, expected in zip(parts(ours), parts(theirs), strict=True):
        assert (own.dtype, own.shape, own.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert own.requires_grad == expected.requires_grad
        error, size = own.detach().double() - expected.detach().double(), expected.detach().double()
        if dtype is torch.float32:
            assert ratio(error.numpy(), float(size.norm()), EPS) < LIMIT
        else:  # The same numbers, rounded: one unit in the last place at most.
            assert error.abs().max() <= torch.finfo(dtype).eps * size.abs().max()
        assert size.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", (False, True), ids=("Linear", "Conv1D"))
def test_pissa_is_what_peft_computes(dtype, transposed):
    w = decaying(40, 24)
    model = nn.Sequential(Conv1D(40, 24) if transposed else nn.Linear(24, 40)).to(dtype)
    model[0].weight.data = (w.T.contiguous() if transposed else w).to(dtype)
    theirs = wrap(copy.deepcopy(model), "pissa", fan_in_fan_out=transposed)
    with fast_init():
        ours = wrap(model, "pissa", fan_in_fan_out=transposed)
    (a, b, base), (expected_a, expected_b, expected_base) = parts(ours), parts(theirs)
    assert (a.dtype, b.dtype, base.dtype) == (expected_a.dtype, expected_b.dtype, expected_base.dtype)
    assert (a.shape, b.shape, base.shape) == (expected_a.shape, expected_b.shape, expected_base.shape)
    unit = max(EPS, torch.finfo(dtype).eps)
    for own, expected in ((b @ a, expected_b @ expected_a), (base, expected_base)):
        assert ratio(float64(own) - float64(expected), float(w.norm()), unit) < SVD_LIMIT


@pytest.mark.parametrize("init", ("olora", "pissa", "pissa_niter_4"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", (False, True), ids=("Linear", "Conv1D"))
def test_the_function_is_the_pretrained_one(init, dtype, transposed):
    """Also where PEFT's own OLoRA is not: Conv1D, which it takes for its transpose."""
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(40, 24) if transposed else nn.Linear(24, 40)).to(dtype)
    pretrained = copy.deepcopy(model[0].weight.detach()).double()
    with fast_init():
        a, b, base = (tensor.detach() for tensor in parts(wrap(model, init, fan_in_fan_out=transposed)))
    delta = 1.5 * b.double() @ a.double()
    total = base.double() + (delta.T if transposed else delta)
    scale = float(pretrained.norm()) + float(b.double().norm() * a.double().norm())
    assert ratio(float64(total - pretrained), scale, max(EPS, torch.finfo(dtype).eps)) < LIMIT
    assert not torch.equal(base.double(), pretrained)


def test_memory_is_changed_as_peft_changes_it():
    for init, dtype, same in (
        ("olora", torch.float32, True),
        ("olora", torch.bfloat16, False),
        ("pissa", torch.float32, False),
    ):
        for install_first in (False, True):
            model = linear(24, 24, dtype)
            parameter, data = model[0].weight, model[0].weight.data
            before = data.clone()
            if install_first:
                with fast_init():
                    wrapped = wrap(model, init)
            else:
                wrapped = wrap(model, init)
            assert parts(wrapped)[2] is parameter
            assert (parameter.data_ptr() == data.data_ptr()) == same
            assert torch.equal(data, before) != same


def test_install_and_uninstall_put_peft_back():
    olora, pissa = LoraLayer.olora_init, LoraLayer.pissa_init
    uninstall()
    install()
    install()
    assert LoraLayer.olora_init is not olora
    with fast_init():
        pass
    assert LoraLayer.olora_init is not olora
    uninstall()
    assert (LoraLayer.olora_init, LoraLayer.pissa_init) == (olora, pissa)
    with pytest.raises(KeyError), fast_init():
        raise KeyError
    assert (LoraLayer.olora_init, LoraLayer.pissa_init) == (olora, pissa)


def test_what_was_replaced_since_is_not_undone(monkeypatch):
    install()
    ours = LoraLayer.olora_init
    try:
        with monkeypatch.context() as patch:
            patch.setattr(LoraLayer, "olora_init", lambda self, adapter_name: None)
            with pytest.raises(RuntimeError, match="another's"):
                uninstall()
        assert LoraLayer.olora_init is ours
    finally:
        uninstall()


@pytest.mark.parametrize("init", ("olora", "pissa"))
def test_a_rank_over_the_layer_is_an_error(init):
    model = linear(20, 4)
    before = model[0].weight.detach().clone()
    with fast_init(), pytest.raises(ValueError, match=r"r: expected 1 <= r <= min\(m, n\) = 4 .* got 8"):
        wrap(model, init, rank=8)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("init", ("olora", "pissa"))
def test_a_nan_is_an_error(init):
    model = linear(20, 14)
    model[0].weight.data[0, 0] = torch.nan
    with fast_init(), pytest.raises(ValueError, match="finite"):
        wrap(model, init)


@pytest.mark.parametrize("init", ("olora", "pissa"))
@pytest.mark.parametrize("low_cpu_mem_usage", (False, True))
def test_a_saved_adapter_reloads(init, low_cpu_mem_usage, tmp_path):
    """PEFT's own initializers fail with low_cpu_mem_usage; the base has to get its residual there too."""
    pretrained = linear(20, 14)
    x = torch.randn(5, 14)
    with fast_init():
        model = wrap(copy.deepcopy(pretrained), init)
        with torch.no_grad():
            model.base_model.model[0].lora_B["default"].weight += 0.1
            trained = model(x)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(
            copy.deepcopy(pretrained), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage
        )
    with torch.no_grad():
        assert torch.equal(loaded(x), trained)
        assert not torch.equal(pretrained(x), trained)


@pytest.mark.parametrize(
    ("device", "hip", "is_served"), [("cuda:1", None, True), ("cuda:1", "6.2", False), ("xpu:0", None, False)]
)
def test_devices(monkeypatch, device, hip, is_served):
    """Which weights are served; the computation itself is not for a machine without the device."""
    layer = wrap(linear(24, 40), "gaussian").base_model.model[0]
    monkeypatch.setattr(nn.Parameter, "device", property(lambda _: torch.device(device)), raising=False)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert _reason_against(layer) == (None if is_served else f"the weight is on {device}")


def test_a_base_on_the_meta_device_is_an_error():
    with fast_init(), pytest.raises(ValueError, match="meta device"):
        wrap(nn.Sequential(nn.Linear(20, 14, device="meta")), "olora")


def test_what_is_not_served_is_left_to_peft_with_a_warning():
    message = "leaves the initialisation to PEFT: the weight is float64"
    refused = pytest.raises(TypeError, match="Unsupported data type")
    with fast_init(), pytest.warns(RuntimeWarning, match=message), refused:
        wrap(linear(20, 14, torch.float64), "olora")


def test_a_further_adapter_warns_that_the_base_changes_under_the_first():
    with fast_init():
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            model = wrap(linear(20, 14), "olora")
        with pytest.warns(RuntimeWarning, match="changes base weights that default was made for"):
            model.add_adapter("second", LoraConfig(r=2, target_modules=["0"], init_lora_weights="olora"))


def test_an_unknown_spelling_is_refused_by_peft():
    with fast_init(), pytest.raises(ValueError, match="pissa_niter_"):
        wrap(linear(20, 14), "pissa_fast")
