# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapted layers on a CUDA device train as on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_support import DEVICE, METHODS, TARGETS, assert_close, indices, network, pair, train
from lowrank_swift.torch import (
    GradualFreeze,
    LaMDA,
    LoLDU,
    OLoRA,
    PiSSA,
    adapt,
    allocate_ranks,
    disabled,
    export_lora,
    load_adapter,
    merge,
    named_adapters,
    save_adapter,
    unadapt,
    unmerge,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("base", ["residual", "intact"])
@pytest.mark.parametrize("method", METHODS)
def test_training(method: Any, base: str) -> None:
    host, model = pair(method, base)
    assert_close(model(indices().to(DEVICE)).detach(), host(indices()).detach())
    for got, expected in zip(train(model, 4), train(host, 4), strict=True):
        assert_close(got, expected, limit=1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models(dtype: torch.dtype) -> None:
    host, model = pair(OLoRA, "intact", dtype)
    assert_close(model(indices().to(DEVICE)).detach(), host(indices()).detach())
    assert all(torch.isfinite(loss) for loss in train(model, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_autocast(method: Any, dtype: torch.dtype) -> None:
    host, model = pair(method, "residual")
    with torch.autocast(DEVICE.type, dtype):
        y = model(indices().to(DEVICE))
    assert y.dtype is dtype
    assert_close(y.detach(), host(indices()).detach().to(dtype))
    losses = train(model, 6, autocast=dtype)
    assert losses[-1] < losses[0]


def test_scaled_losses() -> None:
    """Float16 with a GradScaler, which skips steps without harm."""
    _, model = pair(LaMDA, "intact")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, scaler = torch.optim.AdamW(parameters, lr=1e-2), torch.amp.GradScaler(DEVICE.type)
    freeze, losses = GradualFreeze(model, total_steps=8, fraction=0.5, optimizer=optimizer), []
    for _ in range(8):
        with torch.autocast(DEVICE.type, torch.float16):
            loss = model(indices().to(DEVICE)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        freeze.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]
    frozen = [buffer for name, buffer in model.named_buffers() if name.endswith("frozen_columns")]
    assert len(frozen) == len(TARGETS)
    assert all(buffer.device.type == DEVICE.type and int(buffer) == 4 for buffer in frozen)


def test_gradual_freezing() -> None:
    """Frozen columns stay bit for bit what they are, and the rest trains as on the CPU."""
    host, model = pair(LaMDA, "residual")
    schedules = [GradualFreeze(each, total_steps=10, fraction=1.0) for each in (host, model)]
    for schedule in schedules:
        for _ in range(5):
            schedule.step()
    before = [factors.up.detach().clone() for _, factors in named_adapters(model)]
    for got, expected in zip(train(model, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)
    for (_, factors), start in zip(named_adapters(model), before, strict=True):
        assert torch.equal(factors.up[:, :2], start[:, :2]) and not torch.equal(factors.up[:, 2:], start[:, 2:])


def test_disabled_and_removed() -> None:
    plain = network().to(DEVICE)(indices().to(DEVICE)).detach().cpu()
    for base in ("intact", "residual"):
        _, model = pair(LoLDU, base)
        train(model, 2)
        assert not torch.equal(model(indices().to(DEVICE)).detach().cpu(), plain)
        with disabled(model):
            assert_close(model(indices().to(DEVICE)).detach(), plain)
        assert_close(unadapt(model)(indices().to(DEVICE)).detach(), plain)


def test_several_adapters() -> None:
    host, model = pair(LoLDU, "intact")
    for each in (host, model):
        adapt(each, OLoRA(2), targets=TARGETS, name="second")
    for got, expected in zip(train(model, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)


def test_embeddings() -> None:
    host, model = network(), network().to(DEVICE)
    for each in (host, model):
        adapt(each, OLoRA(4), targets=["embedding", "linear"])
    for got, expected in zip(train(model, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)


def test_ranks() -> None:
    host, model = network(), network().to(DEVICE)
    ranks = [dict(allocate_ranks(each, TARGETS, 4, progress=False)) for each in (host, model)]
    assert ranks[0] == ranks[1]


def test_conversions() -> None:
    """To 16 bits and to other devices, with the function kept."""
    _, model = pair(LaMDA, "intact")
    plain = network().to(DEVICE, torch.bfloat16)
    y = model.to(torch.bfloat16)(indices().to(DEVICE)).detach()
    assert_close(y, plain(indices().to(DEVICE)).detach().cpu())
    assert torch.equal(model.to("cpu").to(DEVICE)(indices().to(DEVICE)), y)


def test_merging() -> None:
    _, model = pair(LoLDU, "residual")
    train(model, 2)
    before = model(indices().to(DEVICE)).detach()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    merge(model)
    assert_close(model(indices().to(DEVICE)).detach(), before.cpu())
    unmerge(model)
    for name, value in model.state_dict().items():
        assert_close(value, weights[name].cpu())


def test_files(tmp_path: Path) -> None:
    _, model = pair(PiSSA, "residual")
    train(model, 2)
    save_adapter(model, tmp_path)
    other = network().to(DEVICE)
    load_adapter(other, tmp_path)
    assert_close(other(indices().to(DEVICE)).detach(), model(indices().to(DEVICE)).detach().cpu())


def test_states(tmp_path: Path) -> None:
    """Of a device, read on another, and copied."""
    host, model = pair(LaMDA, "residual")
    train(model, 2)
    expected = model(indices().to(DEVICE)).detach()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    host.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu"))
    assert_close(expected, host(indices()).detach())
    assert torch.equal(copy.deepcopy(model)(indices().to(DEVICE)), expected)
    torch.save(model, tmp_path / "model.pt")
    whole = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(whole(indices().to(DEVICE)), expected)


def test_export(tmp_path: Path) -> None:
    host, model = pair(OLoRA, "intact")
    for name, each in (("host", host), ("device", model)):
        train(each, 2)
        export_lora(each, tmp_path / name)
    got, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("device", "host"))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(got[key].to(DEVICE), value, limit=1000)


def test_moved_models() -> None:
    """A model adapted on the CPU and moved then."""
    host, _ = pair(OLoRA, "residual")
    moved = copy.deepcopy(host).to(DEVICE)
    for got, expected in zip(train(moved, 3), train(host, 3), strict=True):
        assert_close(got, expected, limit=1000)
