# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: PEFT's get_peft_model and a step through a wrapped model, with this package's methods and with PEFT's."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lowrank_swift.demo.metrics import bytes_kept
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig, fast_init

from . import peers
from .measure import time_side_by_side
from .networks import linear_layers, llama
from .table import Line, Row, Session, WrongResult, matrix

__all__ = ["rows"]

LORA, PEFT_OLORA = "PEFT LoRA", "PEFT OLoRA"
UP_FROZEN = "LaMDA, up frozen"
METHODS: dict[str, Any] = {
    "LoLDU": LoLDUConfig,
    "LaMDA": LaMDAConfig,
    UP_FROZEN: LaMDAConfig,
    "OLoRA intact": OLoRAConfig,
}
RANK = 32


def _model(session: Session, layers: int, vocabulary: int, dtype: torch.dtype) -> Any:
    """Return a Llama of TinyLlama's shapes, which has 1.1e9 parameters with 22 layers."""
    heads, key_heads = (8, 2) if session.is_quick else (32, 4)
    return llama(
        width=session.side(2048),
        inner=session.side(5632),
        layers=min(2, layers) if session.is_quick else layers,
        heads=heads,
        key_heads=key_heads,
        vocabulary=vocabulary,
        dtype=dtype,
    )


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _unwrap(model: nn.Module) -> None:
    """Put the base layers back; their values have changed, which times don't depend on."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "base_layer"):
                setattr(module, name, child.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _peft_seconds(rows: int, columns: int, rank: int) -> float:
    """Return how long PEFT's OLoRA takes for one matrix.

    Raises:
        WrongResult: if it and this package leave different residuals, by more than a rounding of the largest number.
    """
    layers: list[Any] = [nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16) for _ in range(2)]
    for layer in layers:
        layer.weight.data.copy_(matrix(rows, columns, torch.bfloat16))
    theirs, ours = (nn.Sequential(layer) for layer in layers)
    taken = _seconds(lambda: peers.peft_model(theirs, rank, ["0"], init_lora_weights="olora"))
    with fast_init():
        peers.peft_model(ours, rank, ["0"], init_lora_weights="olora")
    expected, found = (layer.weight.float() for layer in layers)
    error = ((found - expected).abs().max() / expected.abs().max()).item() / torch.finfo(torch.bfloat16).eps
    if not error <= 1:
        raise WrongResult(f"{rows}x{columns}: the residual differs from PEFT's by {error:.3g} roundings")
    return taken


def _wrapping(session: Session) -> Iterator[Line]:
    rank = session.rank(RANK)
    base = _model(session, 22, 32000, torch.bfloat16)
    shapes = Counter((layer.out_features, layer.in_features) for layer in linear_layers(base).values())
    what = f"{sum(shapes.values())} layers, {session.side(2048)} wide, r={rank} bfloat16"
    one = {shape: _peft_seconds(*shape, rank) for shape in shapes}
    plain = _seconds(lambda: peers.peft_model(base, rank))
    _unwrap(base)
    theirs = plain + sum(one[shape] * count for shape, count in shapes.items())
    with fast_init():
        own = _seconds(lambda: peers.peft_model(base, rank, init_lora_weights="olora"))
    _unwrap(base)
    detail = {
        "peft": "one matrix of each shape, times their number, and plain LoRA's wrapping",
        "plain_lora_seconds": plain,
        "peft_seconds_of_one": {f"{m}x{n}": taken for (m, n), taken in one.items()},
    }
    yield Line("wrapping, OLoRA, fast_init", what, own, "s", None, PEFT_OLORA, theirs, theirs / own, detail=detail)
    contenders: dict[str, Callable[[], object]] = {LORA: lambda: peers.peft_model(base, rank)}
    for name in ("LoLDU", "OLoRA intact"):
        contenders[name] = lambda config=METHODS[name]: peers.peft_model(base, rank, config=config)  # type: ignore[misc]
    timings = time_side_by_side(
        contenders,
        before=lambda: _unwrap(base),
        repetitions=session.repetitions,
        seconds_each=session.seconds_each,
    )
    lora = timings.pop(LORA)
    for name, timing in timings.items():
        detail = {"ours": timing.record(), "theirs": lora.record()}
        ratio = lora.ratio_to(timing)
        yield Line(f"wrapping, {name}", what, timing.median, "ms", None, LORA, lora.median, ratio, detail=detail)


def _adapted(base: nn.Module, method: str, rank: int, targets: Any = "all-linear") -> nn.Module:
    """Return a copy of a model with adapters of a method."""
    config = {} if method == LORA else {"config": METHODS[method]}
    model = peers.peft_model(copy.deepcopy(base), rank, targets, **config)
    if method == UP_FROZEN:
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.requires_grad_(False)
    return model.train()


def _kept_by_layer(base: nn.Module, method: str, rank: int, tokens: int) -> dict[str, int]:
    """Return the bytes that one layer of each shape keeps."""
    kept: dict[str, int] = {}
    for layer in linear_layers(base).values():
        shape = f"{layer.out_features}x{layer.in_features}"
        if shape not in kept:
            x = torch.randn(tokens, layer.in_features, dtype=layer.weight.dtype, requires_grad=True)
            model = _adapted(nn.Sequential(layer), method, rank, ["0"])
            kept[shape] = bytes_kept(model, lambda model=model, x=x: model(x))  # type: ignore[misc]
    return kept


def _step(session: Session) -> Iterator[Line]:
    rank, tokens = session.rank(RANK), session.side(512)
    # Few words, so that the head, which no method touches, does not hide what differs.
    base = _model(session, 2, 1000, torch.float32)
    what = f"2 layers, {session.side(2048)} wide, r={rank} T={tokens}"
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    models = {name: _adapted(base, name, rank) for name in (LORA, *METHODS)}

    def loss(model: nn.Module) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, labels=ids).loss
        return found

    def step(model: nn.Module) -> None:
        loss(model).backward()  # type: ignore[no-untyped-call, unused-ignore]
        model.zero_grad()

    with torch.no_grad():
        expected = loss(base).double()
        for name, model in models.items():
            error = (loss(model).double() - expected).abs() / expected.abs() / torch.finfo(torch.float32).eps
            if not error <= session.side(2048):
                raise WrongResult(f"{what}, {name}: the loss is {error:.3g} roundings from that of the base")
    kept = {name: bytes_kept(model, lambda model=model: loss(model)) for name, model in models.items()}  # type: ignore[misc]
    by_layer = {name: _kept_by_layer(base, name, rank, tokens) for name in models}
    timings = time_side_by_side(
        {name: lambda model=model: step(model) for name, model in models.items()},  # type: ignore[misc]
        before=lambda: None,
        repetitions=session.repetitions,
        seconds_each=session.seconds_each,
    )
    lora = timings[LORA]
    trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}
    for name in METHODS:
        own = timings[name]
        detail: dict[str, Any] = {"ours": own.record(), "theirs": lora.record(), "trained": trained[name]}
        ratio = lora.ratio_to(own)
        yield Line(f"wrapping, step, {name}", what, own.median, "ms", None, LORA, lora.median, ratio, detail=detail)
        detail = {"by_layer": {"ours": by_layer[name], "theirs": by_layer[LORA]}}
        ratio = kept[name] / kept[LORA]
        yield Line(f"wrapping, kept, {name}", what, kept[name], "bytes", None, LORA, kept[LORA], ratio, detail=detail)


def rows() -> Iterator[Row]:
    """Yield the rows."""
    yield Row("wrapping", "get_peft_model of 1.1e9 parameters, bfloat16, r=32", _wrapping)
    yield Row("wrapping", "a step through 2 layers, float32, r=32", _step)
