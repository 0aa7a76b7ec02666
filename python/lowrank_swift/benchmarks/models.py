# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: the linear layers of a whole model, with one matrix of each shape in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

import lowrank_swift as lrs
from lowrank_swift import QRResult

from . import peers
from .initializers import PEFT, in_place_work
from .table import OURS, Goal, Line, Row, Session, check, in_limit, matrix
from .verify import qr_error, residual_error

__all__ = ["rows"]

LAYERS = 32
SVD_TOLERANCE = 1e-4
"""Residuals that the spectra are computed to, over the largest singular value."""
# Of each layer of a Llama-2-7B: how many, rows, columns.
SHAPES = ((4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008))


def _seconds_of(run: object) -> float:
    begin = time.perf_counter()
    assert callable(run)
    run()
    return time.perf_counter() - begin


def _llama(session: Session) -> Iterator[Line]:
    rank, layers, dtype = session.rank(32), 1 if session.is_quick else LAYERS, torch.bfloat16
    what = f"{7 * layers} matrices of a Llama-2-7B r={rank} bfloat16"
    ours = theirs = floor = error = 0.0
    for count, rows, columns in SHAPES:
        original = matrix(session.side(rows), session.side(columns), dtype)
        weight = original.clone()
        factors = lrs.olora_(weight, rank)
        errors = {
            OURS: in_limit(residual_error(original, weight, factors)),
            f"{OURS}, factors": in_limit(qr_error(original, QRResult(factors.up, factors.down))),
        }
        peft = peers.peft_initializer(original.clone(), rank, "olora")
        begin = time.perf_counter()
        result = peft()
        once = time.perf_counter() - begin
        errors[PEFT] = in_limit(residual_error(original, *result))
        error = max(error, check(what, errors))
        theirs += layers * count * once
        for _ in range(layers * count):
            weight.copy_(original)
            ours += _seconds_of(lambda w=weight: lrs.olora_(w, rank))
        floor += (
            layers
            * count
            * session.machine.milliseconds(in_place_work(weight.shape[0], weight.shape[1], rank, dtype, reads=1))
        )
    detail = {"peft": "one matrix of each shape, times their number"}
    yield Line("model", what, ours, "s", floor / 1e3, PEFT, theirs, theirs / ours, Goal(120), error, detail)


def _ranks(session: Session) -> Iterator[Line]:
    """LaMDA++'s ranks, whose time is that of the spectra, beside all singular values by torch."""
    mean_rank, layers, dtype = session.rank(32), 1 if session.is_quick else LAYERS, torch.bfloat16
    what, peer = f"{7 * layers} matrices of a Llama-2-7B mean r={mean_rank}", "torch.linalg.svdvals"
    weights: dict[str, torch.Tensor] = {}
    error = theirs = 0.0
    for count, rows, columns in SHAPES:
        weight = matrix(session.side(rows), session.side(columns), dtype, decay=True)
        wide = weight.float()
        begin = time.perf_counter()
        exact = torch.linalg.svdvals(wide)[:mean_rank].double()
        theirs += layers * count * (time.perf_counter() - begin)
        values = lrs.spectrum(weight, mean_rank).singular_values.double()
        error = max(error, check(what, {OURS: float((values - exact).abs().max() / exact[0]) / SVD_TOLERANCE}))
        names = [f"{layer}.{rows}x{columns}.{i}" for layer in range(layers) for i in range(count)]
        weights |= dict.fromkeys(names, weight)
    ours = _seconds_of(lambda: lrs.allocate_ranks(weights, mean_rank, progress=False))
    detail = {peer: "one matrix of each shape in float32, times their number"}
    yield Line("model, ranks", what, ours, "s", None, "3 minutes", 180.0, 180.0 / ours, Goal(1), error, detail)
    yield Line("model, ranks", what, ours, "s", None, peer, theirs, theirs / ours, None, error, detail)


def rows() -> Iterator[Row]:
    """Yield the rows."""
    yield Row("model", "the 224 matrices of a Llama-2-7B, bfloat16, r=32", _llama)
    yield Row("model", "LaMDA++'s ranks of the 224 matrices", _ranks)
