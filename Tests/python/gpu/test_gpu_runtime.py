# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapted layers under what runs a model on a device: streams, threads, graphs, the compiler, several processes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
import torch.distributed as dist
from gpu_support import DEVICE, METHODS, TARGETS, assert_close, cuda_only, indices, network, pair, train
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, adapt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.gpu


def gradients(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor | None = None) -> list[Tensor]:
    """Of what trains, for a call of the model or of what was made from it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = indices().to(DEVICE) if x is None else x
    return list(torch.autograd.grad(call(x).square().mean(), parameters))


@pytest.mark.parametrize("base", ["residual", "intact"])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_gradients(method: Any, base: str) -> None:
    """One graph; inductor is left out here."""
    _, model = pair(method, base)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for got, expected in zip(gradients(model, compiled), gradients(model, model), strict=True):
        assert_close(got, expected.cpu())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("method", [OLoRA, LaMDA])
def test_compiled_training(method: Any, mode: str) -> None:
    """By inductor, whose second mode captures forward and backward into CUDA graphs."""
    _, model = pair(method, "intact")
    torch._dynamo.reset()
    expected = train(copy.deepcopy(model), 5)
    lrs.warmup(DEVICE) if DEVICE.type == "cuda" else None
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    for got, wanted in zip(train(compiled, 5), expected, strict=True):
        assert_close(got, wanted.cpu(), limit=1000)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_recomputed_activations(method: Any, reentrant: bool) -> None:
    _, model = pair(method, "residual")
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    parameters = [parameter for parameter in model.linear.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(model.linear(x).square().sum(), [x, *parameters])
    checkpoint(model.linear, x, use_reentrant=reentrant).square().sum().backward()
    for leaf, gradient in zip([x, *parameters], expected, strict=True):
        assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("method", METHODS)
def test_repeated_steps_are_equal(method: Any) -> None:
    """Bit for bit: sums have a fixed order."""
    layer = nn.Sequential(nn.Linear(96, 160, dtype=torch.bfloat16)).to(DEVICE)
    adapt(layer, method(8), targets=["0"])
    x = torch.randn(2048, 96, dtype=torch.bfloat16).to(DEVICE).requires_grad_()
    leaves = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
    first = torch.autograd.grad(layer(x).float().square().sum(), leaves)
    for _ in range(3):
        again = torch.autograd.grad(layer(x).float().square().sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@cuda_only
@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_wait(method: Any) -> None:
    """A device that is busy for a second goes on being busy, and torch sees nothing that would wait."""
    _, model = pair(method, "intact")
    x = indices().to(DEVICE)  # The copy from the host waits.
    gradients(model, model, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1 << 31)
        woken = torch.cuda.Event()
        woken.record()
        gradients(model, model, x)
        is_awake = woken.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not is_awake
    torch.cuda.synchronize()


@cuda_only
@pytest.mark.parametrize("method", METHODS)
def test_another_stream(method: Any) -> None:
    """Where the device is busy first, so that work on the wrong stream would be too early."""
    _, model = pair(method, "residual")
    expected = train(copy.deepcopy(model), 3)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1 << 28)
        losses = train(model, 3)
    torch.cuda.current_stream().wait_stream(stream)
    for got, wanted in zip(losses, expected, strict=True):
        assert_close(got, wanted.cpu(), limit=1000)


@cuda_only
def test_threads_with_streams_of_their_own() -> None:
    models = [pair(method, "intact")[1] for method in METHODS]
    expected = [train(copy.deepcopy(model), 4) for model in models]
    torch.cuda.synchronize()

    def run(model: nn.Module) -> list[Tensor]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            losses = train(model, 4)
        stream.synchronize()
        return losses

    with ThreadPoolExecutor(len(models)) as pool:
        results = list(pool.map(run, models))
    for losses, wanted in zip(results, expected, strict=True):
        for got, each in zip(losses, wanted, strict=True):
            assert_close(got, each.cpu(), limit=1000)


@cuda_only
@pytest.mark.parametrize("method", [OLoRA, LoLDU, LaMDA])
def test_memory_kept_for_the_backward(method: Any) -> None:
    """H alone, where the down-projection does not train, and nothing grows from step to step."""
    tokens, side, rank = 8192, 1024, 8
    layer = nn.Sequential(nn.Linear(side, side, bias=False, dtype=torch.bfloat16)).to(DEVICE)
    adapt(layer, method(rank), targets=["0"])
    if method is LaMDA:
        GradualFreeze(layer, total_steps=1, fraction=0)
    x = torch.randn(tokens, side, dtype=torch.bfloat16, device=DEVICE)
    levels = []
    for _ in range(4):
        layer.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        y = layer(x)
        kept = torch.cuda.memory_allocated() - before - y.nbytes
        y.sum().backward()
        del y
        levels.append(torch.cuda.memory_allocated())
    assert kept <= 4 * tokens * rank + (1 << 20)
    assert levels[1:] == levels[1:2] * 3


@cuda_only
@pytest.mark.parametrize("method", METHODS)
def test_graphs(method: Any) -> None:
    """A step in a graph; of LaMDA one whose number of frozen columns changes between two replays."""
    _, model = pair(method, "intact")
    x = indices().to(DEVICE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        model(x).square().mean().backward()

    lrs.warmup(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    captured = [parameter.grad for parameter in parameters]
    for count in (0, 2):
        for name, buffer in model.named_buffers():
            if name.endswith("frozen_columns"):
                buffer.fill_(count)
        graph.replay()
        model.zero_grad()
        step()
        for gradient, parameter in zip(captured, parameters, strict=True):
            assert_close(gradient, parameter.grad.cpu())


@cuda_only
@pytest.mark.parametrize("method", [OLoRA, LoLDU])
def test_graphed_callables(method: Any) -> None:
    """What torch makes of a layer: warmed up and captured on one stream, forward and backward apart."""
    model = nn.Sequential(nn.Linear(48, 64)).to(DEVICE)
    adapt(model, method(8), targets=["0"])
    x = torch.randn(128, 48, device=DEVICE, requires_grad=True)
    plain = copy.deepcopy(model)
    lrs.warmup(DEVICE)
    graphed = torch.cuda.make_graphed_callables(model, (x,))
    for seed in range(3):
        new = torch.randn(128, 48, generator=torch.Generator().manual_seed(seed)).to(DEVICE).requires_grad_()
        results = []
        for call, owner in ((graphed, model), (plain, plain)):
            y = call(new)
            leaves = [new, *(parameter for parameter in owner.parameters() if parameter.requires_grad)]
            results.append([y.detach().clone(), *(each.clone() for each in torch.autograd.grad(y.sum(), leaves))])
        for got, expected in zip(*results, strict=True):
            assert_close(got, expected.cpu())


@cuda_only
def test_many_streams_and_graphs() -> None:
    """More streams than handles are kept for, while graphs on one of them stay as they were captured."""
    _, model = pair(OLoRA, "intact")
    x = indices().to(DEVICE)
    lrs.warmup(DEVICE)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        expected = model(x).clone()
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
        y = model(x)
    for _ in range(40):
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            assert_close(model(x), expected.cpu())
    torch.cuda.synchronize()
    y.zero_()
    graph.replay()
    assert_close(y, expected.cpu())


@pytest.fixture
def process_group() -> Iterator[None]:
    """This process alone, over NCCL where there is a GPU."""
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    backend = "nccl" if DEVICE.type == "cuda" and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_distributed_data_parallel(method: Any, broadcast: bool) -> None:
    _, model = pair(method, "intact")
    expected = train(copy.deepcopy(model), 3)
    devices = [torch.cuda.current_device()] if DEVICE.type == "cuda" else None
    parallel = nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=broadcast)
    for got, wanted in zip(train(parallel, 3), expected, strict=True):
        assert_close(got, wanted.cpu(), limit=1000)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", METHODS)
def test_fully_sharded(method: Any) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("fully_shard came with torch 2.6")
    from torch.distributed.device_mesh import init_device_mesh

    _, model = pair(method, "intact")
    expected = train(copy.deepcopy(model), 3)
    mesh = init_device_mesh(DEVICE.type, (1,))
    for layer in (model.linear, model.head):
        fsdp.fully_shard(layer, mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    for got, wanted in zip(train(model, 3), expected, strict=True):
        assert_close(got, wanted.cpu(), limit=1000)


@pytest.mark.parametrize("base", ["residual", "intact"])
def test_device_map(base: str) -> None:
    """A model that accelerate has dispatched, with its hooks."""
    accelerate = pytest.importorskip("accelerate")
    host, _ = pair(OLoRA, base)
    device = torch.cuda.current_device() if DEVICE.type == "cuda" else "cpu"
    model = accelerate.dispatch_model(network(), {"": device}, main_device=device, force_hooks=True)
    adapt(model, OLoRA(4), targets=TARGETS, base=base)
    for got, expected in zip(train(model, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)


needs_two = pytest.mark.skipif(
    DEVICE.type != "cuda" or torch.cuda.device_count() < 2, reason="about two GPUs, and there is one at most"
)


@needs_two
@pytest.mark.parametrize("method", METHODS)
def test_second_gpu(method: Any) -> None:
    """Not the current device, neither here nor in autograd's threads."""
    host, _ = pair(method, "residual")
    other = network().to("cuda:1")
    adapt(other, method(4), targets=TARGETS, base="residual")
    assert torch.cuda.current_device() == 0
    for got, expected in zip(train(other, 3), train(host, 3), strict=True):
        assert got.device.index == 1
        assert_close(got, expected, limit=1000)
    assert torch.cuda.current_device() == 0


@needs_two
@pytest.mark.parametrize("base", ["residual", "intact"])
def test_a_model_on_two_gpus(base: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    host, _ = pair(LaMDA, base)
    places = {"embedding": 0, "linear": 0, "convolution": 1, "head": 1}
    model = accelerate.dispatch_model(network(), places, main_device=0)
    adapt(model, LaMDA(4), targets=TARGETS, base=base)
    assert model.head.base.weight.device.index == 1
    for got, expected in zip(train(model, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)
