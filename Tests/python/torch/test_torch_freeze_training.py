# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Frozen means frozen in the ways people train: any optimizer, accumulation, groups, loss scaling, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_swift.torch import GradualFreeze, LaMDA, adapt, load_adapter, save_adapter, trainable_parameters
from lowrank_swift.torch._adapter import UpCoreAdapter
from torch import Tensor, nn
from torch_support import blocks, every_base

STEPS, FRACTION = 24, 0.5
RANKS = {"0.query": 2, "1.query": 5}

Optimizers = Callable[[list[Any]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "AdamW-foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, foreach=True),
    "AdamW-fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=True),
    "AMSGrad": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def lamda(base: str = "intact", seed: int = 0) -> nn.Module:
    return adapt(blocks(seed), LaMDA(RANKS, alpha=6), targets=["query"], base=base)


def batch(number: int, rows: int = 7) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(number))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def lamda_adapters(model: nn.Module) -> Iterator[UpCoreAdapter]:
    yield from (module for module in model.modules() if isinstance(module, UpCoreAdapter))


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def due(t: int, rank: int) -> int:
    return min(rank, rank * t // max(1, round(FRACTION * STEPS)))


@dataclass
class Watch:
    """Checks after every step that the due columns are frozen, that frozen bits stay, and that the rest moves."""

    model: nn.Module
    steps: int = 0
    frozen: dict[tuple[int, int], bytes] = field(default_factory=dict)
    moving: dict[int, Tensor] = field(default_factory=dict)

    def begin(self) -> None:
        self.moving = {i: adapter.up.detach().clone() for i, adapter in enumerate(lamda_adapters(self.model))}

    def end(self, *, moved: bool = True) -> None:
        self.steps += 1
        for i, adapter in enumerate(lamda_adapters(self.model)):
            rank = adapter.up.shape[1]
            before, now = due(self.steps - 1, rank), due(self.steps, rank)
            assert adapter.frozen_columns.item() == now
            assert adapter.up.requires_grad == (now < rank)
            for column in range(rank):
                value = bits(adapter.up[:, column])
                changed = value != bits(self.moving[i][:, column])
                assert changed == (moved and column >= before), (self.steps, i, column)
                if column < now:
                    assert self.frozen.setdefault((i, column), value) == value


@every_optimizer
def test_any_optimizer(make_optimizer):
    model = lamda()
    optimizer = make_optimizer(trainable_parameters(model))
    freeze = GradualFreeze(model, STEPS, FRACTION, optimizer)
    watch = Watch(model)
    for t in range(STEPS):
        watch.begin()
        optimizer.zero_grad()
        loss(model, batch(t)).backward()
        optimizer.step()
        freeze.step()
        watch.end()
    assert set(optimizer.state) == set(trainable_parameters(model))


@every_base
def test_gradient_accumulation_counts_optimizer_steps(base):
    """Two halves of a batch are the batch, also where the gradient is kept instead of set to None."""
    model, whole = lamda(base), lamda(base)
    optimizer, other = (OPTIMIZERS["AdamW"](trainable_parameters(m)) for m in (model, whole))
    freeze = GradualFreeze(model, STEPS, FRACTION, optimizer)
    other_freeze = GradualFreeze(whole, STEPS, FRACTION, other)
    watch = Watch(model)
    for t in range(STEPS):
        watch.begin()
        x = batch(t, rows=6)
        optimizer.zero_grad(set_to_none=t % 2 == 0)
        for part in (x[:2], x[2:]):
            loss(model, part).backward()
        other.zero_grad()
        loss(whole, x).backward()
        for ours, theirs in zip(trainable_parameters(model), trainable_parameters(whole), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=64 * 2**-23 * theirs.grad.abs().max().item())
            theirs.grad.copy_(ours.grad)
        for each, schedule in ((optimizer, freeze), (other, other_freeze)):
            each.step()
            schedule.step()
        watch.end()
    assert all(bits(a) == bits(b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("give_optimizer", (False, True))
def test_parameter_groups_and_several_optimizers(give_optimizer):
    """Learning rates and decay of their own for up and core, a head in another optimizer, gradients clipped."""
    model = lamda()
    model[2].requires_grad_()
    ups = [adapter.up for adapter in lamda_adapters(model)]
    cores = [adapter.core for adapter in lamda_adapters(model)]
    groups = [
        {"params": ups[:1], "lr": 3e-2, "weight_decay": 0.5},
        {"params": ups[1:], "lr": 1e-2, "weight_decay": 0.0, "betas": (0.5, 0.9)},
        {"params": cores, "weight_decay": 0.0},
    ]
    optimizer = OPTIMIZERS["AdamW"](groups)
    head = OPTIMIZERS["SGD"](list(model[2].parameters()))
    freeze = GradualFreeze(model, STEPS, FRACTION, optimizer if give_optimizer else None)
    watch = Watch(model)
    for t in range(STEPS):
        watch.begin()
        model.zero_grad()
        loss(model, batch(t)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        head.step()
        optimizer.step()
        freeze.step()
        watch.end()
    assert set(optimizer.state) == set(cores)
    assert set(head.state) == set(model[2].parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 2]


@pytest.mark.parametrize("optimizer_name", ("AdamW", "SGD"))
def test_loss_scaling(optimizer_name):
    """A power of two scales exactly, so both trainings are one; a step that is skipped moves nothing."""
    model, plain = lamda(), lamda()
    optimizer, other = (OPTIMIZERS[optimizer_name](trainable_parameters(m)) for m in (model, plain))
    freeze = GradualFreeze(model, STEPS, FRACTION, optimizer)
    other_freeze = GradualFreeze(plain, STEPS, FRACTION, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
    watch = Watch(model)
    for t in range(STEPS):
        overflows = t in (3, 9, 20)
        watch.begin()
        optimizer.zero_grad()
        scaler.scale(loss(model, batch(t)) * (torch.inf if overflows else 1.0)).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < scale) == overflows
        freeze.step()
        watch.end(moved=not overflows)
        if not overflows:
            other.zero_grad()
            loss(plain, batch(t)).backward()
            other.step()
        other_freeze.step()
    assert all(bits(a) == bits(b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_autocast_with_loss_scaling():
    model = lamda()
    optimizer = OPTIMIZERS["AdamW"](trainable_parameters(model))
    freeze = GradualFreeze(model, STEPS, FRACTION, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    watch = Watch(model)
    for t in range(STEPS):
        watch.begin()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss(model, batch(t).mul(0.1))
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        freeze.step()
        watch.end()


@every_base
@pytest.mark.parametrize("optimizer_name", ("AdamW", "SGD"))
@pytest.mark.parametrize("stop", (5, 11, 12, 17))
def test_a_continued_training_is_the_same_training(base, optimizer_name, stop, tmp_path):
    """Model, optimizer, learning rate, scaler and schedule go through a file, into a model of other weights."""

    def training(seed: int) -> dict[str, Any]:
        model = lamda(base, seed)
        adapters = list(lamda_adapters(model))
        groups = [
            {"params": [adapter.up for adapter in adapters], "weight_decay": 0.3},
            {"params": [adapter.core for adapter in adapters]},
        ]
        optimizer = OPTIMIZERS[optimizer_name](groups)
        return {
            "model": model,
            "optimizer": optimizer,
            "rate": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=4),
            "freeze": GradualFreeze(model, STEPS, FRACTION, optimizer),
        }

    def step(parts: dict[str, Any], t: int) -> None:
        parts["optimizer"].zero_grad()
        parts["scaler"].scale(loss(parts["model"], batch(t))).backward()
        parts["scaler"].step(parts["optimizer"])
        parts["scaler"].update()
        parts["rate"].step()
        parts["freeze"].step()

    original = training(0)
    for t in range(stop):
        step(original, t)
    file = tmp_path / "checkpoint.pt"
    torch.save({name: part.state_dict() for name, part in original.items()}, file)
    resumed = training(1)
    for name, state in torch.load(file, weights_only=True).items():
        resumed[name].load_state_dict(state)
    for t in range(stop, STEPS):
        step(original, t)
        step(resumed, t)
        tensors = zip(original["model"].state_dict().values(), resumed["model"].state_dict().values(), strict=True)
        assert all(bits(a) == bits(b) for a, b in tensors), t
    assert resumed["freeze"].state_dict() == original["freeze"].state_dict()
    for parts in (original, resumed):
        assert set(parts["optimizer"].state) == {adapter.core for adapter in lamda_adapters(parts["model"])}


@pytest.mark.parametrize("stop", (5, 17))
def test_continued_from_adapter_files(stop, tmp_path: Path):
    """The adapter's files instead of the model's state_dict; without an optimizer's state SGD has nothing to lose."""

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(trainable_parameters(model), lr=1e-3, weight_decay=0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, freeze: GradualFreeze, t: int) -> None:
        optimizer.zero_grad()
        loss(model, batch(t)).backward()
        optimizer.step()
        freeze.step()

    model = lamda()
    optimizer = optimizer_of(model)
    freeze = GradualFreeze(model, STEPS, FRACTION, optimizer)
    for t in range(stop):
        step(model, optimizer, freeze, t)
    save_adapter(model, tmp_path)
    loaded = load_adapter(blocks(), tmp_path)
    other = optimizer_of(loaded)
    continued = GradualFreeze(loaded, STEPS, FRACTION, other)
    continued.load_state_dict(freeze.state_dict())
    for t in range(stop, STEPS):
        step(model, optimizer, freeze, t)
        step(loaded, other, continued, t)
    assert all(bits(a) == bits(b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_a_model_converted_between_two_steps(dtype):
    """Columns that freeze later are kept in the new dtype, not in that of the first ones."""
    model = lamda()
    freeze = GradualFreeze(model, STEPS, FRACTION)
    for _ in range(6):
        freeze.step()
    model.to(dtype)
    frozen: dict[tuple[int, int], Tensor] = {}
    for t in range(7, STEPS):
        with torch.no_grad():  # What an optimizer with momentum does, more and less.
            for adapter in lamda_adapters(model):
                adapter.up += torch.randn(adapter.up.shape, dtype=dtype)
        before = [adapter.up.detach().clone() for adapter in lamda_adapters(model)]
        if due(t - 1, 5) == 5:
            break
        freeze.step()
        for i, adapter in enumerate(lamda_adapters(model)):
            rank = adapter.up.shape[1]
            for column in range(due(t - 1, rank), rank):
                assert torch.equal(adapter.up[:, column], before[i][:, column])
            for column in range(due(6, rank), due(t, rank)):
                assert torch.equal(adapter.up[:, column], frozen.setdefault((i, column), before[i][:, column]))
    assert len(frozen) == 1 + 3
