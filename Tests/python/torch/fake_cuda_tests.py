# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapted layers on CUDA tensors without memory: devices, dtypes and shapes, and that nothing asks for a value.

torch's FakeTensors go through its dispatcher, autograd, autocast and compiler as CUDA tensors do, and through our
operators to the native calls, which a recorder takes. What is computed, and when, they do not show.
test_torch_fake_cuda.py runs this file with fake_cuda.cpp loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from layer_cases import TYPES, LayerCase, adapted, every_type
from lowrank_swift import Factors, _native
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, adapt, disabled
from lowrank_swift.torch import _ops as ops
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch_support import BASES

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

every_base = pytest.mark.parametrize("base", BASES)
every_device = pytest.mark.parametrize("device", ("cuda:0", "cuda:1"))
every_method = pytest.mark.parametrize("method", (OLoRA, LoLDU, LaMDA), ids=lambda method: method.__name__)


class Native:
    """Takes the calls of the operators, as far as their arguments tell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        signature = inspect.signature(getattr(_native, name))

        def call(*arguments: Any) -> None:
            signature.bind(*arguments)
            tensors = [each for each in arguments if isinstance(each, Tensor)]
            assert {tensor.device for tensor in tensors} == {self.device}
            assert all(tensor.dim() <= 2 for tensor in tensors)
            self.calls.append(name)

        return call


class Watch(TorchDispatchMode):
    """Expects every tensor of every operation on one device, and goes through our operators as a device would."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        assert all(tensor.device == self.device for tensor in tensors), func
        self.names.append(func.name())
        if func.namespace == "lowrank_swift":
            kernel = getattr(ops, f"_{func.name().removeprefix('lowrank_swift::').rstrip('_')}")
            with self:
                kernel(*args)
        return result


class Fake:
    """Fake copies on a device, and what runs there."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.mode, self.watch, self.native = FakeTensorMode(), Watch(self.device), Native(self.device)

    def copy(self, tensor: Tensor) -> Tensor:
        made = self.mode.from_tensor(tensor.detach())
        with self.mode:
            return made.to(self.device)

    def move(self, module: nn.Module) -> nn.Module:
        """Moves a module as ``to`` does."""
        return module._apply(self.copy)

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch, self.mode, self.watch:
            patch.setattr(ops, "_native", self.native)
            return call(*arguments)


@pytest.fixture
def fake(device: str) -> Fake:
    return Fake(device)


@pytest.fixture
def autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch asks a device before it casts for it."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


def described(tensor: Tensor, layout: bool) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride() if layout else None


def step(layer: nn.Module, x: Tensor, context: Any = None) -> list[Tensor]:
    """The output, and the gradients of the input and of what trains."""
    x = x.detach().requires_grad_() if x.is_floating_point() else x
    with context or nullcontext():
        y = layer(x)
    leaves = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
    return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def expect_like_the_cpu(fake: Fake, got: list[Tensor], expected: list[Tensor], case: LayerCase) -> None:
    # A convolution chooses the memory format of its output by device.
    layout = case.name != "Conv2d"
    assert [described(each, layout) for each in got] == [described(each, layout) for each in expected]
    assert {each.device for each in got} == {fake.device}


@every_type
@every_method
@every_base
@every_device
def test_steps(fake, case, method, base):
    """Eager, of every dtype, as on the CPU and through the native calls that a step needs."""
    for dtype in DTYPES if fake.device.index == 1 else DTYPES[:1]:
        layer, _ = adapted(case, method, base, dtype)
        x = case.inputs(dtype)
        expected = step(layer, x)
        fake.native.calls.clear()
        fake.move(layer)
        x = fake.copy(x)
        expect_like_the_cpu(fake, fake.run(step, layer, x), expected, case)
        assert {"adapter_forward", "change_forward"} & set(fake.native.calls)
        assert {"adapter_backward", "change_backward"} & set(fake.native.calls)
        with torch.no_grad():
            y = fake.run(layer.eval(), x)
        assert described(y, case.name != "Conv2d") == described(expected[0], case.name != "Conv2d")


@every_type
@every_method
@every_base
@pytest.mark.parametrize("device", ("cuda:1",))
@pytest.mark.usefixtures("autocast")
def test_autocast(fake, case, method, base):
    for dtype in (torch.bfloat16, torch.float16):
        layer, _ = adapted(case, method, base)
        x = case.inputs()
        expected = step(layer, x, torch.autocast("cpu", dtype))
        fake.move(layer)
        x = fake.copy(x)
        got = fake.run(step, layer, x, torch.autocast("cuda", dtype))
        expect_like_the_cpu(fake, got, expected, case)
        assert got[0].dtype is (torch.float32 if case.name == "Embedding" else dtype)


@every_base
@every_device
def test_frozen_columns_stay_on_the_device(fake, base):
    """A step neither reads their number nor leaves the gradient of frozen columns as it is."""
    case = TYPES[0]
    layer, _ = adapted(case, LaMDA, base)
    freeze = GradualFreeze(nn.Sequential(layer), total_steps=10, fraction=1.0)
    for _ in range(4):
        freeze.step()
    x = fake.copy(case.inputs())
    fake.move(layer)
    got = fake.run(step, layer, x)
    assert len(got) == 4 and fake.watch.names.count("aten::masked_fill_.Scalar") == 1
    with fake.mode, pytest.raises(DataDependentOutputException):
        int(layer.adapters["default"].frozen_columns)
    layer.adapters["default"].up.requires_grad_(False)
    assert len(fake.run(step, layer, x)) == 3
    assert fake.watch.names.count("aten::masked_fill_.Scalar") == 1


@every_type
@every_base
@every_device
def test_recomputed_activations(fake, case, base):
    layer, _ = adapted(case, LaMDA, base)
    x = case.inputs()
    expected = step(layer, x)
    fake.move(layer)
    x = fake.copy(x)

    def recomputing(x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)

    holder = nn.Module()
    holder.layer, holder.forward = layer, recomputing
    expect_like_the_cpu(fake, fake.run(step, holder, x), expected, case)
    calls = fake.native.calls.copy()
    fake.native.calls.clear()
    fake.run(step, layer, x)
    assert calls.count("adapter_forward") == 2 * fake.native.calls.count("adapter_forward") > 0


@every_device
def test_several_adapters_disabled_and_pretrained(fake):
    case = TYPES[0]
    layer, _ = adapted(case, OLoRA, "intact")
    adapt(nn.Sequential(layer), LaMDA(2), targets=["0"], name="second")
    x = fake.copy(case.inputs())
    fake.move(layer)
    assert len(fake.run(step, layer, x)) == 6
    for base in BASES:
        layer, _ = adapted(case, LoLDU, base)
        fake.move(layer)
        with disabled(layer), torch.no_grad():
            assert fake.run(layer, x).device == fake.device


@every_base
@every_device
def test_a_layer_on_another_device_than_its_input(fake, base):
    """As accelerate places layers for a device_map; without it, it is an error."""
    hooks = pytest.importorskip("accelerate.hooks")
    other = Fake(f"cuda:{1 - fake.device.index}").device
    for placed in (True, False):
        model = nn.Sequential(nn.Linear(6, 7))
        if placed:
            hooks.add_hook_to_module(model[0], hooks.AlignDevicesHook("cpu"))
        adapt(model, LaMDA(2), targets=["0"], base=base)
        fake.move(model)
        x = fake.copy(torch.randn(5, 6))
        with fake.mode:
            x = x.to(other)
            with nullcontext() if placed else pytest.raises(RuntimeError, match="same device"):
                y, grad_x, *rest = step(model, x)
    assert (y.device, grad_x.device) == (fake.device, other)
    assert {each.device for each in rest} == {fake.device}


@every_method
@every_base
@every_device
def test_adapting_a_model_on_a_device(fake, method, base, monkeypatch):
    """What is made for a layer is made where its weight is."""
    names = {OLoRA: "olora", LoLDU: "loldu", LaMDA: "lamda"}

    def factors(weight: Tensor, rank: int, scale: float, **_: Any) -> Factors:
        (m, n), core = weight.shape, {OLoRA: None, LoLDU: [rank], LaMDA: [rank, rank]}[method]
        return Factors(
            names[method], weight.new_empty(m, rank), core and weight.new_empty(core), weight.new_empty(rank, n), scale
        )

    monkeypatch.setattr(lrs, names[method], factors)
    monkeypatch.setattr(_native, "check_weight", lambda *_: None)
    monkeypatch.setattr("lowrank_swift.torch._install._subtract_starts", lambda _: None)
    monkeypatch.setattr("lowrank_swift.torch._install._check_residual", lambda *_: None)
    monkeypatch.setattr("lowrank_swift.torch._adapt.check_unshared", lambda *_: None)
    with fake.mode, fake.device:
        model = nn.Sequential(nn.Linear(6, 7), nn.Embedding(9, 5), nn.Conv2d(3, 4, 2))
    fake.run(lambda: adapt(model, method(2), targets=["0", "1", "2"], base=base))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.device == fake.device, name


@pytest.mark.parametrize("hooked", (False, True), ids=("plain", "hooked"))
@every_device
def test_peft(fake, hooked):
    """With dropout, and beside a base that is called for its hooks."""
    peft = pytest.importorskip("peft")
    from lowrank_swift.peft import OLoRAConfig

    base = nn.Sequential(nn.Linear(6, 7))
    if hooked:
        base[0].register_forward_hook(lambda *_: None)
    model = peft.get_peft_model(base, OLoRAConfig(r=2, target_modules=["0"], lora_dropout=0.5))
    x = fake.copy(torch.randn(5, 6))
    fake.move(model)
    for training in (True, False):
        got = fake.run(step, model.train(training), x)
        assert [each.shape for each in got[:2]] == [(5, 7), (5, 6)] and len(got) == 4
        assert {each.device for each in got} == {fake.device}
    with model.disable_adapter(), torch.no_grad():
        assert fake.run(model, x).device == fake.device


def inspected(graphs: list[torch.fx.GraphModule]) -> Any:
    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


@pytest.mark.parametrize("case", (TYPES[0], *TYPES[2:]), ids=lambda case: case.name)
@pytest.mark.parametrize("method", (OLoRA, LaMDA), ids=lambda method: method.__name__)
@pytest.mark.parametrize("device", ("cuda:1",))
def test_compiled(fake, case, method):
    """One graph each for forward and backward, of which every value is on the device."""
    layer, _ = adapted(case, method, "intact")
    x = case.inputs()
    expected = step(layer, x)
    fake.move(layer)
    x = fake.copy(x)
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(layer, backend=inspected(graphs), fullgraph=True)
    with fake.mode:
        expect_like_the_cpu(fake, step(compiled, x), expected, case)
    assert len(graphs) == 2
    for graph in graphs:
        text = graph.print_readable(print_output=False)
        assert "torch.ops.lowrank_swift." in text and "device_put" not in text and "_local_scalar" not in text
        for node in graph.graph.nodes:
            for value in tree_leaves(node.meta.get("val")):
                assert not isinstance(value, Tensor) or value.device == fake.device, node


@every_type
@pytest.mark.parametrize("device", ("cuda:1",))
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own
def test_exported(fake, case):
    layer, _ = adapted(case, LaMDA, "intact")
    x = fake.copy(case.inputs())
    fake.move(layer)
    with fake.mode, torch.no_grad():
        program = torch.export.export(layer.eval(), (x,))
    values = [value for node in program.graph.nodes for value in tree_leaves(node.meta.get("val"))]
    assert {value.device for value in values if isinstance(value, Tensor)} == {fake.device}


@every_device
def test_a_tensor_left_behind_is_seen(fake):
    """The watch itself."""
    case = TYPES[0]
    layer, _ = adapted(case, LoLDU, "intact")
    x = fake.copy(case.inputs())
    fake.move(layer)
    adapter = layer.adapters["default"]
    adapter.register_buffer("down", fake.mode.from_tensor(torch.zeros(3, 6)))
    with pytest.raises(AssertionError, match="adapter_forward_"):
        fake.run(layer, x)
