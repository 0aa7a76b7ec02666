# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""torch.compile and torch.export: one graph, the numbers of the uncompiled layer, and how often it is compiled."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from lowrank_swift.torch import GradualFreeze, LaMDA, OLoRA, adapt, disabled, merge, trainable_parameters
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from torch_support import adapted_linear, blocks, every_base, every_method, shift_parameters

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)
BACKENDS = ("aot_eager", pytest.param("inductor", marks=needs_compiler))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def output_and_gradients(call, x: Tensor, model: nn.Module) -> list[Tensor]:
    """The output of a call for x and its gradients by x and by what trains."""
    x = x.clone().requires_grad_()
    y = call(x)
    return [y, *torch.autograd.grad(y.float().square().sum(), (x, *trainable_parameters(model)))]


def same(actual: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = list(zip(actual, expected, strict=True))
    return all(a.dtype is b.dtype and torch.equal(a, b) for a, b in pairs)


@every_method
@every_base
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batch_size_in_one_graph(method, base, backend):
    """The first batch compiles, the second makes its size dynamic, no other does; inference is one graph more."""
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for rows in (5, 9, 3):
        x = torch.randn(2, rows, 6)
        assert same(output_and_gradients(compiled, x, layer), output_and_gradients(layer, x, layer))
    assert counter.frame_count == 2
    with torch.no_grad():
        for rows in (3, 8):
            x = torch.randn(2, rows, 6)
            assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 3


@every_base
def test_disabled_and_merged_layers_compile(base):
    layer, _ = adapted_linear(OLoRA, base)
    shift_parameters(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 6)
    with_adapter = compiled(x)
    with disabled(layer):
        assert torch.equal(compiled(x), layer(x))
        assert not torch.equal(compiled(x), with_adapter)
    assert torch.equal(compiled(x), with_adapter)
    merge(layer)
    assert torch.equal(compiled(x), layer(x))


@every_method
@every_base
def test_compiled_under_autocast(method, base):
    layer, _ = adapted_linear(method, base)
    shift_parameters(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    def under_autocast(call):
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return call(x)

        return run

    x = torch.randn(4, 6)
    actual = output_and_gradients(under_autocast(compiled), x, layer)
    assert actual[0].dtype is torch.bfloat16
    assert same(actual, output_and_gradients(under_autocast(layer), x, layer))


@pytest.mark.parametrize("method", (OLoRA, LaMDA), ids=("OLoRA", "LaMDA"))
def test_compiled_with_activation_checkpointing(method):
    model = adapt(blocks(), method(3), targets=["query", "value"])
    shift_parameters(model)

    def recomputing(x: Tensor) -> Tensor:
        for part in model:
            x = checkpoint(part, x, use_reentrant=False)
        return x

    compiled = torch.compile(recomputing, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 8)
    assert same(output_and_gradients(compiled, x, model), output_and_gradients(model, x, model))


@every_base
def test_a_training_with_gradual_freezing_recompiles_twice(base):
    """Once for the size of the last batch, once when ``up`` is wholly frozen; the counts in between are data."""
    steps = 20

    def training() -> tuple[nn.Module, torch.optim.Optimizer, GradualFreeze]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        adapt(model, LaMDA({"0": 2, "2": 3}), targets=["0", "2"], base=base)
        optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2, weight_decay=0.1)
        return model, optimizer, GradualFreeze(model, steps, 0.5, optimizer)

    plain, reference = training(), training()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(plain[0], backend=counter, fullgraph=True)
    counts = set()
    for t in range(1, steps + 1):
        x = torch.randn(3 if t % 5 == 0 else 7, 8, generator=torch.Generator().manual_seed(t))
        for call, (_, optimizer, freeze) in ((compiled, plain), (reference[0], reference)):
            optimizer.zero_grad()
            call(x).square().sum().backward()
            optimizer.step()
            freeze.step()
        assert same(list(plain[0].parameters()), list(reference[0].parameters()))
        counts.add(plain[0][2].adapters["default"].frozen_columns.item())
    assert counts == {0, 1, 2, 3}
    assert counter.frame_count <= 3


@every_method
@every_base
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own
def test_export(method, base):
    """For inference, as documented: an exported program does not train adapters."""
    model = adapt(blocks(), method(3), targets=["query", "value"], base=base)
    shift_parameters(model)
    x = torch.randn(5, 8)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, program.run_decompositions(), torch.export.load(file)):
        for batch in (x, torch.randn(9, 8)):
            assert torch.equal(exported.module()(batch), model(batch))
