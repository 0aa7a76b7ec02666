# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The frozen layer's product by OpenBLAS: what it computes, where torch computes it instead, and what chooses."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift import _native
from lowrank_swift.torch import (
    LoLDU,
    OLoRA,
    adapt,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    unadapt,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch_support import (
    LIMIT,
    blocks,
    delta,
    error_ratio,
    every_base,
    every_method,
    magnitude_of,
    only_factors,
    shift_parameters,
)

OURS = "lowrank_swift.base_product_.default"
TORCHS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.matmul", "aten.linear", "mkldnn")


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    @property
    def ours(self) -> int:
        return self.names.count(OURS)

    @property
    def torchs(self) -> list[str]:
        return [name for name in self.names if name.startswith(TORCHS)]


def linear(m: int = 7, n: int = 6, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n, m, bias=bias, dtype=dtype))


def step(model: nn.Module, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """Output and gradients of x and of what trains."""
    x = x.clone().requires_grad_()
    y = model(x)
    grad = torch.ones_like(y) if grad is None else grad
    return [y.detach(), *torch.autograd.grad(y, (x, *trainable_parameters(model)), grad)]


def operators_of(call: Callable[[], object]) -> Operators:
    with Operators() as operators:
        call()
    return operators


@every_method
@every_base
@pytest.mark.parametrize("bias", (True, False))
def test_no_product_of_torch_runs(method, base, bias):
    for base_product, products in (("openblas", 2), ("torch", 0)):
        model = adapt(linear(bias=bias), method(3), targets=["0"], base=base, base_product=base_product)
        operators = operators_of(lambda model=model: step(model, torch.randn(5, 6)))
        assert operators.ours == products
        assert bool(operators.torchs) == (base_product == "torch"), operators.torchs


@every_method
@every_base
@pytest.mark.parametrize("shape", ((6,), (1, 6), (0, 6), (5, 6), (2, 3, 6), (2, 0, 6)), ids=str)
def test_output_and_gradient_of_x(method, base, shape):
    model = adapt(linear(), method(3, alpha=5.0), targets=["0"], base=base, base_product="openblas")
    layer = model[0]
    start = only_factors(layer)
    shift_parameters(model)
    now = only_factors(layer)
    weight = layer.base_weight.double() + delta(now) - (delta(start) if base == "intact" else 0)
    x, grad = torch.randn(shape), torch.randn(*shape[:-1], 7)
    y, grad_x, *_ = step(model, x, grad)
    expected = x.double() @ weight.T + layer.bias.double()
    bound = magnitude_of(x.reshape(-1, 6), layer.base_weight, start, now) + layer.bias.double().abs()
    bound = bound if bound.numel() else torch.ones(1)
    assert y.dtype is torch.float32 and y.shape == expected.shape
    assert error_ratio(y, expected, bound, 7, torch.finfo(torch.float32).eps) < LIMIT
    bound = magnitude_of(grad.reshape(-1, 7), layer.base_weight.T) + 10 * grad.abs().sum()
    bound = bound if bound.numel() else torch.ones(1)
    assert error_ratio(grad_x, grad.double() @ weight, bound, 7, torch.finfo(torch.float32).eps) < LIMIT


@every_method
@every_base
def test_the_step_is_torchs_to_rounding(method, base):
    """Of a layer large enough for several slices, with an input and a gradient that are not contiguous."""
    models = [
        adapt(linear(300, 520), method(8), targets=["0"], base=base, base_product=base_product)
        for base_product in ("torch", "openblas")
    ]
    for model in models:
        shift_parameters(model)
    x, grad = torch.randn(520, 180).T, torch.randn(300, 180).T
    results = [step(model, x, grad) for model in models]
    for expected, actual in zip(*results, strict=True):
        assert error_ratio(actual, expected, expected, 520, torch.finfo(torch.float32).eps) < LIMIT
    assert not all(torch.equal(*pair) for pair in zip(*results, strict=True)), "both are torch's"
    expanded = [step(model, x.contiguous(), torch.ones(1, 1).expand(180, 300)) for model in models]
    assert error_ratio(expanded[1][1], expanded[0][1], expanded[0][1], 520, torch.finfo(torch.float32).eps) < LIMIT


def test_analytic_gradient():
    """One by one: y = (w + s b a) x + c and dx = w + s b a; without the base's part dx would be s b a alone."""
    model = adapt(linear(1, 1), OLoRA(1), targets=["0"], base="residual", base_product="openblas")
    with torch.no_grad():
        model[0].base.weight.fill_(3.0)
        model[0].base.bias.fill_(0.5)
        for parameter in trainable_parameters(model):
            parameter.fill_(2.0)
    y, grad_x, *grads = step(model, torch.tensor([[4.0]]))
    assert y.item() == (3 + 4) * 4 + 0.5 and grad_x.item() == 7
    assert sorted(grad.item() for grad in grads) == [8, 8]


@every_method
def test_start_over_an_intact_base(method):
    pretrained = linear(64, 48)
    model = adapt(copy.deepcopy(pretrained), method(8), targets=["0"], base_product="openblas")
    x = torch.randn(20, 48)
    expected = pretrained(x)
    assert error_ratio(model(x), expected, magnitude_of(x, pretrained[0].weight), 48, torch.finfo(x.dtype).eps) < LIMIT
    with disabled(model):
        assert torch.equal(model(x), expected)
    assert torch.equal(unadapt(model)(x), expected)


def test_bits_do_not_depend_on_the_number_of_threads(threads: None):
    model = adapt(linear(300, 520), OLoRA(8), targets=["0"], base_product="openblas")
    shift_parameters(model)
    x, grad = torch.randn(180, 520), torch.randn(180, 300)
    lrs.set_num_threads(1)
    expected = step(model, x, grad)
    for count in (2, 3, 4):
        lrs.set_num_threads(count)
        assert all(torch.equal(*pair) for pair in zip(step(model, x, grad), expected, strict=True)), count


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    lrs.set_num_threads(0)


def adapted_as_torch(dtype: torch.dtype, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A model that was adapted for OpenBLAS and converted, and the same for torch."""
    pair = [
        adapt(linear(**options), OLoRA(3), targets=["0"], base_product=base_product)
        for base_product in ("openblas", "torch")
    ]
    for model in pair:
        shift_parameters(model)
    return pair[0].to(dtype), pair[1].to(dtype)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_another_dtype_is_torchs(dtype):
    model, expected = adapted_as_torch(dtype)
    x = torch.randn(5, 6).to(dtype)
    operators = operators_of(lambda: step(model, x))
    assert operators.ours == 0 and operators.torchs
    assert all(torch.equal(*pair) for pair in zip(step(model, x), step(expected, x), strict=True))
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


@every_base
def test_compiled_in_one_graph(base):
    torch._dynamo.reset()
    model = adapt(blocks(), OLoRA(3), targets=["query", "value"], base=base, base_product="openblas")
    shift_parameters(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for rows in (5, 9, 3):
        x = torch.randn(2, rows, 8)
        actual, expected = (
            [y := call(x), *torch.autograd.grad(y.square().sum(), trainable_parameters(model))]
            for call in (compiled, model)
        )
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    assert counter.frame_count == 2
    assert all("base_product_" in graph.print_readable(print_output=False) for graph in counter.graphs)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own
def test_exported():
    model = adapt(blocks(), OLoRA(3), targets=["query", "value"], base_product="openblas")
    x = torch.randn(5, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    for batch in (x, torch.randn(9, 8)):
        assert torch.equal(program.module()(batch), model(batch))
    assert operators_of(lambda: program.module()(x)).ours == 4


def test_functional_gradients_and_checkpoints():
    model = adapt(linear(), OLoRA(3), targets=["0"], base_product="openblas")
    shift_parameters(model)
    x = torch.randn(5, 6)
    y, grad_x, *grads = step(model, x)
    found = torch.func.grad(lambda x: model(x).sum())(x)
    assert torch.equal(found, grad_x)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    by_parameter = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(parameters)
    assert all(torch.equal(*pair) for pair in zip(by_parameter.values(), grads, strict=True))
    leaf = x.clone().requires_grad_()
    recomputed = torch.autograd.grad(checkpoint(model, leaf, use_reentrant=False).sum(), leaf)[0]
    assert torch.equal(recomputed, grad_x)
    with torch.inference_mode():
        assert torch.equal(model(x), y)


def test_an_input_without_gradient_has_one_product():
    model = adapt(linear(), OLoRA(3), targets=["0"], base_product="openblas")
    operators = operators_of(lambda: model(torch.randn(5, 6)).sum().backward())
    assert operators.ours == 1 and not operators.torchs
