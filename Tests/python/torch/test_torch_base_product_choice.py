# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Who computes the frozen layer's product: where torch does whatever was asked for, and what chooses."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from base_product_support import OURS, Operators, adapted_as_torch, linear, operators_of, step
from lowrank_swift import _native
from lowrank_swift.torch import LoLDU, OLoRA, adapt, disabled, load_adapter, merge, save_adapter
from torch import Tensor, nn
from torch_support import LIMIT, error_ratio, magnitude_of, shift_parameters


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_another_dtype_is_torchs(dtype):
    model, expected = adapted_as_torch(dtype)
    x = torch.randn(5, 6).to(dtype)
    operators = operators_of(lambda: step(model, x))
    assert operators.ours == 0 and operators.torchs
    assert all(torch.equal(*pair) for pair in zip(step(model, x), step(expected, x), strict=True))
    late = adapt(linear(dtype=dtype).append(nn.Linear(7, 7)), OLoRA(3), targets=["0", "1"], base_product="openblas")
    assert operators_of(lambda: late.float()(x.float())).ours == 2, "a layer that was converted later"
    back = model.float()
    assert operators_of(lambda: step(back, x.float())).ours == 2


def test_input_of_another_dtype_is_torchs_error():
    model, expected = adapted_as_torch(torch.float32)
    for dtype in (torch.float64, torch.bfloat16):
        errors = []
        for each in (model, expected):
            with pytest.raises(RuntimeError) as error:
                each(torch.randn(5, 6, dtype=dtype))
            errors.append(str(error.value))
        assert errors[0] == errors[1]


def test_autocast_is_torchs():
    model, expected = adapted_as_torch(torch.float32)
    x = torch.randn(5, 6)

    def run(each: nn.Module) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return step(each, x)

    assert operators_of(lambda: run(model)).ours == 0
    results = run(model)
    assert results[0].dtype is torch.bfloat16
    assert all(torch.equal(*pair) for pair in zip(results, run(expected), strict=True))
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert operators_of(lambda: step(model, x)).ours == 2


class Wrapped(torch.Tensor):
    """A tensor that wraps another, as quantized weights do: it says float32 and computes in its own way."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert str(function) != OURS, "the product of a wrapped weight is its own"
        unwrapped = torch.utils._pytree.tree_map_only(Wrapped, lambda tensor: tensor.inner, args)
        return function(*unwrapped, **(kwargs or {}))


def test_wrapped_weights_compute_in_their_own_way():
    model, expected = adapted_as_torch(torch.float32)
    x = torch.randn(5, 6)
    weight = model[0].base_weight.detach()
    del model[0].base.weight
    model[0].base.weight = Wrapped(weight)
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


def test_plain_subclass_as_input():
    model, expected = adapted_as_torch(torch.float32)
    x = torch.randn(5, 6)
    y = model(x.as_subclass(Plain))
    assert torch.equal(y.as_subclass(Tensor), model(x))
    assert error_ratio(y.detach().as_subclass(Tensor), expected(x), expected(x), 6, torch.finfo(x.dtype).eps) < LIMIT


def test_layers_of_other_types_are_torchs():
    from transformers.pytorch_utils import Conv1D

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), Conv1D(8, 6))

    adapted = [
        adapt(model(), LoLDU(3), targets=["0", "1", "2"], base_product=base_product)
        for base_product in ("openblas", "torch")
    ]
    x = torch.tensor([1, 4, 4])
    operators = operators_of(lambda: adapted[0](x))
    assert operators.ours == 1 and len(operators.torchs) == 1
    image = adapt(nn.Sequential(nn.Conv2d(3, 4, 2)), LoLDU(3), targets=["0"], base_product="auto")
    assert operators_of(lambda: image(torch.randn(1, 3, 5, 5))).ours == 0


def test_merged_layers_are_torchs():
    model, _ = adapted_as_torch(torch.float32)
    x = torch.randn(5, 6)
    trained = model(x)
    merge(model)
    assert operators_of(lambda: model(x)).ours == 0
    assert error_ratio(model(x), trained, trained, 6, torch.finfo(x.dtype).eps) < LIMIT


def test_a_residual_is_disabled_over_the_same_product():
    pretrained = linear()
    model = adapt(copy.deepcopy(pretrained), OLoRA(3), targets=["0"], base="residual", base_product="openblas")
    shift_parameters(model)
    x = torch.randn(5, 6)
    with disabled(model):
        assert operators_of(lambda: model(x)).ours == 1
        assert error_ratio(model(x), pretrained(x), magnitude_of(x, pretrained[0].weight), 6, 2**-23) < LIMIT


@pytest.mark.parametrize("bad", ("mkl", "", "OpenBLAS", None, 0, True, ["torch"], torch.ones(2)), ids=repr)
def test_choices(bad):
    model = linear()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r'^base_product: expected "torch", "openblas" or "auto", got ') as error:
        adapt(model, OLoRA(3), targets=["0"], base="residual", base_product=bad)
    assert str(error.value).endswith(repr(bad))
    assert isinstance(model[0], nn.Linear) and model[0].weight.requires_grad
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("layer", "what"),
    (
        (lambda: nn.Linear(6, 6, dtype=torch.bfloat16), "Linear of bfloat16 on cpu"),
        (lambda: nn.Linear(6, 6, dtype=torch.float64), "Linear of float64 on cpu"),
        (lambda: nn.Embedding(6, 6), "Embedding of float32 on cpu"),
        (lambda: nn.Conv2d(6, 6, 1), "Conv2d of float32 on cpu"),
    ),
)
def test_openblas_where_no_layer_can(layer, what):
    model = nn.Sequential(layer())
    with pytest.raises(ValueError, match=rf"^base_product: expected .*, got none; '0' is a {what}$"):
        adapt(model, OLoRA(3), targets=["0"], base_product="openblas")
    assert type(model[0]).__name__ == what.split()[0]
    mixed = nn.Sequential(layer(), nn.Linear(6, 6))
    adapt(mixed, OLoRA(3), targets=["0", "1"], base_product="openblas")
    assert operators_of(lambda: mixed[1](torch.randn(5, 6))).ours == 1
    adapt(model, OLoRA(3), targets=["0"], base_product="auto")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine another one."""

    def become(vendor: str, core: str, processors: int = 2, mkl: bool = True) -> None:
        config = {**json.loads(_native.config()), "cpu_vendor": vendor, "blas_core": core}
        monkeypatch.setattr("lowrank_swift.torch._base_product._native.config", lambda: json.dumps(config))
        monkeypatch.setattr("os.cpu_count", lambda: processors)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)

    return become


def products(m: int, n: int, rows: int) -> tuple[int, int]:
    """How many of the forward's and the backward's products are OpenBLAS's."""
    layer = nn.Linear(n, m, bias=False)
    nn.init.eye_(layer.weight)
    model = adapt(nn.Sequential(layer), LoLDU(1), targets=["0"], base_product="auto", progress=False)
    x = torch.zeros(rows, n, requires_grad=True)
    with Operators() as forward:
        y = model(x)
    with Operators() as backward:
        y.backward(torch.zeros_like(y))
    return forward.ours, backward.ours


def test_the_table(machine):
    """Vendor and kernels; sides, rows and processors. Nothing is timed: the same machine always chooses the same."""
    machine("amd", "Zen")
    assert products(2048, 2048, 16) == (1, 1)
    assert products(2048, 2048, 15) == (0, 0)
    assert products(2047, 2048, 64) == (0, 0)
    assert products(2048, 2047, 64) == (0, 0)
    machine("amd", "Zen", processors=4)
    assert products(2048, 2048, 64) == (0, 0)
    assert products(4096, 2048, 64) == (1, 0)
    assert products(2048, 2048, 2048) == (1, 1)
    for core in ("SkylakeX", "Cooperlake"):
        machine("amd", core, processors=4)
        assert products(1024, 1024, 16) == (1, 1)
        machine("intel", core)
        assert products(2048, 2048, 64) == (0, 0)
    for vendor, core in (("other", "Zen"), ("amd", "Haswell"), ("intel", "Haswell"), ("other", "NEOVERSEN1")):
        machine(vendor, core)
        assert products(2048, 2048, 64) == (0, 0)
    machine("amd", "Zen", mkl=False)
    assert products(2048, 2048, 64) == (0, 0)


def test_the_machine_tells_its_vendor():
    config = lrs.show_config("dicts")
    assert config is not None and config["cpu_vendor"] in ("amd", "intel", "other")


def test_saved_adapters_do_not_hold_it(tmp_path):
    pretrained = linear()
    folders = {name: tmp_path / name for name in ("torch", "openblas")}
    for name, folder in folders.items():
        model = adapt(copy.deepcopy(pretrained), OLoRA(3), targets=["0"], base_product=name)
        shift_parameters(model)
        save_adapter(model, folder)
    contents = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders.values()]
    assert contents[0] == contents[1]
    x = torch.randn(5, 6)
    for base_product, count in (("torch", 0), ("openblas", 1)):
        loaded = load_adapter(copy.deepcopy(pretrained), folders["torch"], base_product=base_product)
        assert operators_of(lambda loaded=loaded: loaded(x)).ours == count
    assert operators_of(lambda: load_adapter(copy.deepcopy(pretrained), folders["torch"])(x)).ours == 0
    with pytest.raises(ValueError, match=r"^base_product: expected"):
        load_adapter(copy.deepcopy(pretrained), folders["torch"], base_product="mkl")


def test_the_choice_made_last_holds():
    model = adapt(linear(), OLoRA(3), targets=["0"], base_product="openblas")
    x = torch.randn(5, 6)
    assert operators_of(lambda: model(x)).ours == 1
    adapt(model, LoLDU(3), targets=["0"], name="second")
    assert operators_of(lambda: model(x)).ours == 0
    adapt(model, LoLDU(3), targets=["0"], name="third", base_product="openblas")
    assert operators_of(lambda: model(x)).ours == 1


def test_copies_and_pickles_keep_it():
    model = adapt(linear(), OLoRA(3), targets=["0"], base_product="openblas")
    x = torch.randn(5, 6)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert operators_of(lambda each=each: each(x)).ours == 1
        assert torch.equal(each(x), model(x))
