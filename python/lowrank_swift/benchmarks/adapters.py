# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: a step through an adapted layer beside the frozen layer alone, and what it keeps for the backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_swift.demo.metrics import bytes_kept
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, adapt, named_adapters

from . import peers
from .floor import Work
from .measure import Run, time_side_by_side
from .table import OURS, Goal, Line, Row, Session, check, in_limit, matrix
from .verify import error_ratio

__all__ = ["adapted", "frozen_linear", "layer_errors", "rows"]

BARE, PEFT, ADDMM = "bare Linear", "PEFT LoRA", "torch addmm_"
OPENBLAS = "OLoRA residual, openblas"

# Name, method, form of the base, further options of `adapt`, and the largest share of PEFT's overhead that will do.
OUR_LAYERS: tuple[tuple[str, Any, str, Mapping[str, Any], float], ...] = (
    ("OLoRA residual", OLoRA, "residual", {}, 1 / 2),
    ("OLoRA intact", OLoRA, "intact", {}, 1),
    ("LoLDU intact", LoLDU, "intact", {}, 1 / 3),
    ("LaMDA residual, B frozen", LaMDA, "residual", {}, 1 / 3),
    ("LaMDA intact, B frozen", LaMDA, "intact", {}, 1 / 2),
)


def frozen_linear(weight: Tensor) -> nn.Linear:
    """Return a frozen layer without a bias on the memory of `weight`."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def adapted(weight: Tensor, method: Any, rank: int, base: str, **options: Any) -> nn.Module:
    """Return a model of one layer on the memory of `weight`, or of a copy for a residual base; LaMDA's B frozen."""
    model = nn.Sequential(frozen_linear(weight.clone() if base == "residual" else weight))
    adapt(model, method(rank), targets=["0"], base=base, progress=False, **options)
    if method is LaMDA:
        GradualFreeze(model, total_steps=1, fraction=0)
    return model


def layer_errors(model: nn.Module, weight: Tensor, x: Tensor, grad: Tensor) -> dict[str, float]:
    """Return the errors of an adapted layer at its start, over their limits: output and gradients against float64."""
    ((_, factors),) = named_adapters(model)
    up, down = factors.up.detach().double(), factors.down.detach().double()
    rank = up.shape[1]
    core = torch.eye(rank, dtype=up.dtype, device=up.device) if factors.core is None else factors.core.detach().double()
    is_diagonal = core.ndim == 1
    core = torch.diag(core) if is_diagonal else core
    wide_x, wide_grad, wide = x.detach().double(), grad.double(), weight.double()
    h, p = wide_x @ down.T, factors.scale * wide_grad @ up
    expected = {
        "up": factors.scale * wide_grad.T @ (h @ core.T),
        "core": (p * h).sum(0) if is_diagonal else p.T @ h,
        "down": (p @ core).T @ wide_x,
    }
    output = model(x)
    output.backward(grad)
    dtype = x.dtype
    assert x.grad is not None
    errors = {
        "output": _ratio(output.detach(), wide_x @ wide.T, dtype),
        "gradient of x": _ratio(x.grad, wide_grad @ wide, dtype),
    }
    for name, parameter in model.named_parameters():
        part = name.rpartition(".")[2]
        # Frozen columns of an up-projection have no gradient.
        if parameter.grad is not None and part in expected and parameter.grad.any():
            errors[f"gradient of {part}"] = _ratio(parameter.grad, expected[part], dtype)
    clear(model, x)
    return errors


def _ratio(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    return in_limit(error_ratio(found.double() - expected, expected, dtype))


def clear(model: nn.Module, x: Tensor) -> None:
    """Drop the gradients."""
    x.grad = None
    model.zero_grad(set_to_none=True)


def _our_layers(weight: Tensor, rank: int) -> dict[str, nn.Module]:
    layers = {name: adapted(weight, method, rank, base, **options) for name, method, base, options, _ in OUR_LAYERS}
    if weight.dtype == torch.float32:
        layers[OPENBLAS] = adapted(weight, OLoRA, rank, "residual", base_product="openblas")
    return layers


def _work(tokens: int, side: int, rank: int, dtype: torch.dtype) -> Work:
    """Beside the base: y and the gradient of x are read and written once more, x and the gradient of y read."""
    return Work(6 * tokens * side * dtype.itemsize, 4 * 2 * tokens * side * rank)


def _step(tokens: int, side: int, rank: int, dtype: torch.dtype) -> Row:
    name = str(dtype).removeprefix("torch.")

    def run(session: Session) -> Iterator[Line]:
        t, n, r = session.side(tokens), session.side(side), session.rank(rank)
        what = f"T={t} {n}x{n} r={r} {name}"
        weight, x, grad = matrix(n, n, dtype), matrix(t, n, dtype), matrix(t, n, dtype)
        x.requires_grad_()
        ours = _our_layers(weight, r)
        errors = {}
        for layer, model in ours.items():
            found = layer_errors(model, weight, x, grad)
            errors[layer] = check(what, {f"{OURS}, {layer}, {part}": error for part, error in found.items()})
        layers = {
            BARE: nn.Sequential(frozen_linear(weight)),
            PEFT: peers.peft_lora(frozen_linear(weight), r),
            ADDMM: peers.AddmmLinear(frozen_linear(weight), r),
            **ours,
        }

        def step(model: nn.Module) -> None:
            model(x).backward(grad)
            clear(model, x)

        contenders: dict[str, Run] = {key: lambda model=model: step(model) for key, model in layers.items()}  # type: ignore[misc]
        timings = time_side_by_side(
            contenders, before=lambda: None, repetitions=2 * session.repetitions, seconds_each=2 * session.seconds_each
        )
        bare, peft = timings[BARE], timings[PEFT]
        floor = session.machine.milliseconds(_work(t, n, r, dtype))
        overhead = {key: timing.excess_over(bare) for key, timing in timings.items()}
        goals = {key: Goal(share, at_most=True) for key, _, _, _, share in OUR_LAYERS}
        for layer in (ADDMM, *ours):
            detail = {"ours": timings[layer].record(), "peft": peft.record(), "bare": bare.record()}
            if layer == OPENBLAS:
                ratio = bare.ratio_to(timings[layer])
                own = timings[layer].median
                yield Line(
                    f"step, {layer}", what, own, "ms", floor, BARE, bare.median, ratio, Goal(1), errors[layer], detail
                )
                continue
            ratio = overhead[layer] / overhead[PEFT] if overhead[PEFT] > 0 else float("nan")
            yield Line(
                f"overhead, {layer}",
                what,
                overhead[layer],
                "ms",
                floor,
                PEFT,
                overhead[PEFT],
                ratio,
                goals.get(layer),
                errors.get(layer),
                detail,
            )

    return Row("adapters", f"T={tokens} {side}x{side} r={rank} {name}", run)


def _kept_bytes(model: nn.Module, x: Tensor) -> int:
    return bytes_kept(model, lambda: model(x))


def _kept(tokens: int, side: int, rank: int, dtype: torch.dtype) -> Row:
    name = str(dtype).removeprefix("torch.")

    def run(session: Session) -> Iterator[Line]:
        t, n, r = session.side(tokens), session.side(side), session.rank(rank)
        what = f"T={t} {n}x{n} r={r} {name}"
        weight, x = matrix(n, n, dtype), matrix(t, n, dtype).requires_grad_()
        theirs = _kept_bytes(peers.peft_lora(frozen_linear(weight), r), x)
        least = t * r * dtype.itemsize
        for layer, model in _our_layers(weight, r).items():
            if layer == OPENBLAS:
                continue
            kept = _kept_bytes(model, x)
            goal = None if layer.startswith("OLoRA") else Goal(least / theirs, at_most=True)
            yield Line(f"kept, {layer}", what, kept, "bytes", least, PEFT, theirs, kept / theirs, goal)

    return Row("kept", f"T={tokens} {side}x{side} r={rank} {name}", run)


def rows() -> Iterator[Row]:
    """Yield the rows."""
    for dtype in (torch.float32, torch.bfloat16):
        yield _step(1024, 4096, 32, dtype)
        yield _step(512, 2048, 16, dtype)
    for dtype in (torch.float32, torch.bfloat16):
        yield _kept(1024, 4096, 32, dtype)
