# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA's gradual freezing: the schedule, what an optimizer may not move, and what is released."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, _ops, adapt, trainable_parameters
from torch import nn
from torch.optim import optimizer as optimizer_module
from torch_support import every_base

RANK, STEPS = 5, 30
OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def lamda(base: str = "intact", seed: int = 0, rank: int = RANK) -> nn.Module:
    torch.manual_seed(seed)
    return adapt(nn.Sequential(nn.Linear(6, 8)), LaMDA(rank, alpha=2 * rank), targets=["0"], base=base)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, freeze: GradualFreeze, number: int) -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    freeze.step()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def due(t: int, total: int, fraction: float, rank: int = RANK) -> int:
    return min(rank, (rank * t) // max(1, round(fraction * total)))


@every_base
@every_optimizer
@pytest.mark.parametrize("fraction", (0.3, 0.35, 0.45, 1.0, 0.01))
def test_schedule_and_frozen_bits(base, make_optimizer, fraction):
    model = lamda(base)
    adapter = model[0].adapters["default"]
    optimizer = make_optimizer(trainable_parameters(model))
    freeze = GradualFreeze(model, STEPS, fraction, optimizer)
    frozen_at: dict[int, bytes] = {}
    assert adapter.frozen_columns.dtype is torch.int64
    for t in range(1, STEPS + 1):
        before = adapter.up.detach().clone()
        core = adapter.core.detach().clone()
        previous = due(t - 1, STEPS, fraction)
        step(model, optimizer, freeze, t)
        count = due(t, STEPS, fraction)
        assert adapter.frozen_columns.item() == count
        for column, value in frozen_at.items():
            assert bits(adapter.up[:, column]) == value
        for column in range(previous, RANK):
            assert not torch.equal(adapter.up[:, column], before[:, column])
        frozen_at |= {column: bits(adapter.up[:, column]) for column in range(previous, count)}
        assert not torch.equal(adapter.core, core)
        if previous < RANK:
            grad = before if adapter.up.grad is None else adapter.up.grad
            assert (count == RANK) == (adapter.up.grad is None)
            assert count == RANK or not grad[:, :previous].any()
        assert adapter.up.requires_grad == (count < RANK)
        assert (adapter.up in optimizer.state) == (count < RANK)
        assert adapter.core in optimizer.state
    assert len(frozen_at) == RANK


@pytest.mark.parametrize(
    ("total", "fraction", "counts"),
    (
        (10, 0.35, [1, 2, 3, 5, 5]),  # F = round(3.5) = 4: halves go to the even number
        (10, 0.45, [1, 2, 3, 5, 5]),  # F = round(4.5) = 4
        (10, 1.0, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (3, 0.1, [5, 5]),  # F = max(1, 0)
    ),
)
def test_counts_written_out(total, fraction, counts):
    model = lamda()
    freeze = GradualFreeze(model, total, fraction)
    seen = []
    for _ in counts:
        freeze.step()
        seen.append(model[0].adapters["default"].frozen_columns.item())
    assert seen == counts


def test_momentum_and_decay_would_move_frozen_columns():
    """What the restoring is for: without it the same run ends elsewhere."""
    model = lamda()
    up = model[0].adapters["default"].up
    optimizer = OPTIMIZERS["AdamW"](trainable_parameters(model))
    freeze = GradualFreeze(model, STEPS, 1.0, optimizer)
    for t in range(1, 10):
        step(model, optimizer, freeze, t)
    frozen = bits(up[:, 0])
    assert freeze._columns[0].count > 0
    optimizer.step()
    assert bits(up[:, 0]) != frozen
    freeze.step()
    assert bits(up[:, 0]) == frozen


def test_fraction_zero_freezes_at_once():
    model = lamda()
    adapter = model[0].adapters["default"]
    before = bits(adapter.up)
    optimizer = OPTIMIZERS["AdamW"](trainable_parameters(model))
    freeze = GradualFreeze(model, STEPS, 0, optimizer)
    assert adapter.frozen_columns.item() == RANK
    assert trainable_parameters(model) == [adapter.core]
    step(model, optimizer, freeze, 1)
    assert bits(adapter.up) == before
    assert adapter.up not in optimizer.state


@every_optimizer
def test_without_an_optimizer_the_next_that_holds_the_parameter_releases_it(make_optimizer):
    hooks = optimizer_module._global_optimizer_post_hooks
    others = set(hooks)
    model = lamda()
    up = model[0].adapters["default"].up
    other = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    optimizer = make_optimizer(trainable_parameters(model))
    freeze = GradualFreeze(model, 3, 1.0)
    for t in (1, 2, 3):
        step(model, optimizer, freeze, t)
    assert not up.requires_grad
    assert up in optimizer.state
    assert len(set(hooks) - others) == 1
    later = optimizer_module.register_optimizer_step_post_hook(lambda *_: None)
    other.step()
    assert up in optimizer.state
    frozen = bits(up)
    step(model, optimizer, freeze, 4)
    later.remove()
    assert up not in optimizer.state
    assert set(hooks) == others
    assert bits(up) == frozen


def test_waiting_for_an_optimizer_keeps_no_parameter_alive():
    model = lamda()
    up = weakref.ref(model[0].adapters["default"].up)
    freeze = GradualFreeze(model, 3, 0)
    assert not up().requires_grad
    del model, freeze
    gc.collect()
    assert up() is None
    torch.optim.SGD([nn.Parameter(torch.zeros(1))]).step()


def test_every_lamda_layer_freezes_by_its_own_rank():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 6))
    adapt(model, LaMDA({"0": 2, "1": 6}), targets=["0", "1"])
    adapt(model, LoLDU(2), targets=["2"])
    freeze = GradualFreeze(model, 10, 1.0)
    for _ in range(4):
        freeze.step()
    counts = [model[i].adapters["default"].frozen_columns.item() for i in (0, 1)]
    assert counts == [due(4, 10, 1.0, 2), due(4, 10, 1.0, 6)] == [0, 2]


def test_the_state_needs_its_model():
    model = lamda()
    freeze = GradualFreeze(model, 4, 1.0)
    with pytest.raises(ValueError, match="expected 2 frozen columns after 2 steps, got 0; load the model's state_dict"):
        freeze.load_state_dict({"steps": 2, "total_steps": 4, "fraction": 1.0})
    with pytest.raises(ValueError, match="state: expected the entries"):
        freeze.load_state_dict({"steps": 2})


def test_distributed_training_keeps_the_gradient_and_the_bits():
    """DistributedDataParallel waits for a gradient of every Parameter that it was made with."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = lamda()
        up = model[0].adapters["default"].up
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = OPTIMIZERS["AdamW"](trainable_parameters(model))
        freeze = GradualFreeze(parallel, 4, 0.5, optimizer)
        for t in (1, 2):
            step(parallel, optimizer, freeze, t)
        frozen = bits(up)
        for t in (3, 4, 5):
            step(parallel, optimizer, freeze, t)
            assert bits(up) == frozen
            assert up.requires_grad
            assert not up.grad.any()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"total_steps": 0}, ValueError, "total_steps: expected at least 1, got 0"),
        ({"total_steps": 1.5}, TypeError, "total_steps: expected an int"),
        ({"fraction": -0.1}, ValueError, r"fraction: expected a number in \[0, 1\], got -0.1"),
        ({"fraction": 1.1}, ValueError, "fraction: expected"),
        ({"fraction": "0.3"}, TypeError, r"fraction: expected a number, got '0\.3'"),
        ({"fraction": None}, TypeError, "fraction: expected a number, got None"),
        ({"fraction": float("nan")}, ValueError, "fraction: expected"),
        ({"optimizer": "AdamW"}, TypeError, r"optimizer: expected a torch\.optim\.Optimizer"),
    ),
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GradualFreeze(lamda(), **({"total_steps": 10} | arguments))


def test_a_model_with_nothing_to_freeze():
    model = adapt(nn.Sequential(nn.Linear(4, 4)), LoLDU(2), targets=["0"])
    with pytest.raises(ValueError, match="expected an adapter that trains up and core"):
        GradualFreeze(model, 10)


def test_steps_taken_before_count():
    """A training continued without the schedule's state: the count is given, and what the model has frozen stays."""
    model = lamda(rank=6)
    ((_, adapter),) = model[0].named_adapters()
    GradualFreeze(model, total_steps=18, fraction=0.5, steps=4)
    assert int(adapter.frozen_columns) == 6 * 4 // 9 == 2
    GradualFreeze(model, total_steps=40, fraction=0.5, steps=4)
    assert int(adapter.frozen_columns) == 2
    for steps, error in ((-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="steps: expected"):
            GradualFreeze(model, total_steps=20, steps=steps)


@pytest.mark.parametrize("method", ["product", "both"])
@pytest.mark.parametrize("count", range(RANK + 1))
def test_a_count_on_a_device_clears_the_same_columns(count, method, monkeypatch):
    """As on a CUDA device, where the host must not wait for the count."""
    gradients = []
    for is_on_host in (True, False):
        if not is_on_host:
            monkeypatch.setattr(_ops, "_frozen_on_host", lambda _: 0)
            monkeypatch.setattr(_ops, "_clear_frozen", lambda matrix, frozen: _ops._clear_columns(matrix, frozen))
        generator = torch.Generator().manual_seed(count)
        up, core, h, grad = (
            torch.randn(*shape, generator=generator) for shape in ((8, RANK), (RANK, RANK), (7, RANK), (7, 8))
        )
        grad_up, grad_core = torch.full_like(up, torch.nan), torch.full_like(core, torch.nan)
        frozen = torch.tensor(count)
        if method == "product":
            _ops.effective_up_backward_(torch.randn(8, RANK, generator=generator), up, core, frozen, grad_up, grad_core)
        else:
            tensors = (grad, None, h, torch.randn(RANK, 6, generator=generator), core, up, 0.5, frozen)
            _ops.adapter_backward_(*tensors, None, None, grad_core, grad_up)
        gradients.append((grad_up, grad_core))
        assert torch.equal(grad_up == 0, (torch.arange(RANK) < count).expand(8, -1))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=30 * RANK * torch.finfo(torch.float32).eps, atol=0)
