# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: the starting factors, the factorisations, and the product that most of their time goes into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors, QRResult

from . import peers
from .floor import Work
from .measure import Run, peak_extra_bytes, time_side_by_side
from .table import OURS, Case, Goal, Line, Row, Session, check, in_limit, matrix, time_case
from .verify import error_ratio, qr_error, residual_error, svd_error

__all__ = ["olora_in_place_case", "rows"]

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
PEFT, TRUNCATED, UPCAST = "PEFT olora_init", "torch, truncated", "torch, upcast"
LU, LU_RESIDUAL = "torch.linalg.lu", "torch.linalg.lu, residual"

InPlace = Callable[[Tensor, int], Factors]


def _what(rows: int, columns: int, rank: int, dtype: torch.dtype = FLOAT32) -> str:
    return f"{rows}x{columns} r={rank} {str(dtype).removeprefix('torch.')}"


def in_place_work(rows: int, columns: int, rank: int, dtype: torch.dtype, reads: int) -> Work:
    """Work of an update by factors that take `reads` passes over the weight: then one more, and one to write."""
    factors = 4 * rank * (rows + columns)
    return Work((reads + 2) * rows * columns * dtype.itemsize + factors, 2 * (reads + 1) * rows * columns * rank)


def _error_in_place(original: Tensor, rank: int, run: InPlace) -> float:
    weight = original.clone()
    return in_limit(residual_error(original, weight, run(weight, rank)))


def olora_in_place_case(rows: int, columns: int, rank: int, dtype: torch.dtype, with_peft: bool) -> Case:
    """OLoRA in place, beside the same in torch and PEFT's."""
    original = matrix(rows, columns, dtype)
    weight = original.clone()
    in_torch: dict[str, InPlace] = {TRUNCATED: peers.torch_olora_}
    if dtype != FLOAT32:
        in_torch[UPCAST] = peers.torch_olora_upcast_
    peft = peers.peft_initializer(weight, rank, "olora") if with_peft else None

    def restore() -> None:
        weight.copy_(original)

    def errors() -> Mapping[str, float]:
        restore()
        factors = lrs.olora_(weight, rank)
        found = {
            OURS: in_limit(residual_error(original, weight, factors)),
            f"{OURS}, factors": in_limit(qr_error(original, QRResult(factors.up, factors.down))),
        }
        found |= {name: _error_in_place(original, rank, run) for name, run in in_torch.items()}
        if peft is not None:
            restore()
            found[PEFT] = in_limit(residual_error(original, *peft()))
        return found

    contenders: dict[str, Run] = {OURS: lambda: lrs.olora_(weight, rank)}
    for name, run in in_torch.items():
        contenders[name] = lambda run=run: run(weight, rank)  # type: ignore[misc]
    if peft is not None:
        contenders[PEFT] = peft
    return Case(contenders, errors, in_place_work(rows, columns, rank, dtype, reads=1), restore)


def _olora_(rows: int, columns: int, rank: int, dtype: torch.dtype, goals: Mapping[str, float]) -> Row:
    def run(session: Session) -> Iterator[Line]:
        m, n, r = session.side(rows), session.side(columns), session.rank(rank)
        case = olora_in_place_case(m, n, r, dtype, with_peft=PEFT in goals)
        yield from time_case(session, "olora_", _what(m, n, r, dtype), case, goals)

    return Row("olora_", _what(rows, columns, rank, dtype), run)


def _peak(rows: int, columns: int, rank: int) -> Row:
    def run(session: Session) -> Iterator[Line]:
        m, n, r = session.side(rows), session.side(columns), session.rank(rank)
        case = olora_in_place_case(m, n, r, BFLOAT16, with_peft=False)
        what = _what(m, n, r, BFLOAT16)
        error = check(what, case.errors())
        size = m * n * BFLOAT16.itemsize
        shares = {}
        for name, contender in case.contenders.items():
            case.before()
            shares[name] = peak_extra_bytes(contender) / size
        own = shares.pop(OURS)
        for peer, share in shares.items():
            goal = Goal(0.05, at_most=True)
            detail = {"bytes_of_the_weight": size, "ratio": "ours: peak of the extra memory over the weight's size"}
            yield Line("olora_ memory", what, own, "x W", None, peer, share, own, goal, error, detail)

    return Row("olora_memory", _what(rows, columns, rank, BFLOAT16), run)


def _loldu(rows: int, columns: int, rank: int, in_place: bool, goal: float) -> Row:
    name, peer = ("loldu_", LU_RESIDUAL) if in_place else ("loldu", LU)
    theirs = peers.torch_lu_ if in_place else peers.torch_lu
    ours: InPlace = lrs.loldu_ if in_place else lrs.loldu

    def run(session: Session) -> Iterator[Line]:
        m, n, r = session.side(rows), session.side(columns), session.rank(rank)
        original = matrix(m, n)
        weight = original.clone()

        def errors() -> Mapping[str, float]:
            if in_place:
                return {OURS: _error_in_place(original, r, ours), peer: _error_in_place(original, r, theirs)}
            return {OURS: _panel_error(original, ours(original, r)), peer: _panel_error(original, theirs(original, r))}

        panels = 4 * r * (m + n)
        work = in_place_work(m, n, r, FLOAT32, reads=0) if in_place else Work(2 * panels, r * r * (m + n))
        contenders: dict[str, Run] = {OURS: lambda: ours(weight, r), peer: lambda: theirs(weight, r)}
        case = Case(contenders, errors, work, (lambda: weight.copy_(original)) if in_place else lambda: None)
        yield from time_case(session, name, _what(m, n, r), case, {peer: goal})

    return Row(name, _what(rows, columns, rank), run)


def _panel_error(weight: Tensor, factors: Factors) -> float:
    rank = factors.up.shape[1]
    panel = weight[:, :rank].double()
    assert factors.core is not None
    product = factors.up.double() * factors.core.double() @ factors.down[:, :rank].double()
    return in_limit(error_ratio(product - panel, panel, FLOAT32))


def _product(rows: int, columns: int, rank: int, goals: Mapping[str, float]) -> Row:
    """``Q^T W``, through the call that computes it alone: the forward of an adapter with one output."""

    def run(session: Session) -> Iterator[Line]:
        m, n, r = session.side(rows), session.side(columns), session.rank(rank)
        weight = matrix(m, n)
        q = torch.linalg.qr(matrix(m, r)).Q
        factors = Factors("product", torch.zeros(1, r), None, q.T.contiguous(), 1.0)
        out = torch.zeros(n, 1)

        def errors() -> Mapping[str, float]:
            found = {OURS: lrs.adapter_forward(weight.T, factors, out).T, "torch.mm": torch.mm(q.T, weight)}
            return {name: in_limit(product_error(weight, q, value)) for name, value in found.items()}

        contenders: dict[str, Run] = {
            OURS: lambda: lrs.adapter_forward(weight.T, factors, out),
            "torch.mm": lambda: torch.mm(q.T, weight),
        }
        work = Work(4 * (m * n + r * (m + n)), 2 * m * n * r)
        yield from time_case(session, "Q^T W", _what(m, n, r), Case(contenders, errors, work), goals)

    return Row("product", f"Q^T W, {_what(rows, columns, rank)}", run)


def product_error(weight: Tensor, q: Tensor, product: Tensor) -> float:
    """Return the error of ``Q^T W``."""
    wide = weight.double()
    error = float((product.double() - q.double().T @ wide).norm())
    return error / (max(weight.shape) * float(wide.norm()) * torch.finfo(FLOAT32).eps)


def _svd(side: int, rank: int, decay: bool, full: bool) -> Row:
    """The truncated SVD of PiSSA and LaMDA, to residuals of 1e-4; those that the peers reach are recorded."""
    spectrum = "decaying" if decay else "flat"

    def run(session: Session) -> Iterator[Line]:
        n, r = session.side(side), session.rank(rank)
        weight = matrix(n, n, decay=decay)
        what = f"{_what(n, n, r)}, {spectrum} spectrum"
        tolerance = 1e-4
        error = check(what, {OURS: svd_error(weight, *lrs.svd(weight, r, tol=tolerance)[:3]) / tolerance})
        contenders: dict[str, Run] = {OURS: lambda: lrs.svd(weight, r, tol=tolerance)}
        residuals = {}
        for iterations in (2, 16):
            name = f"torch.svd_lowrank, niter={iterations}"
            u, s, v = torch.svd_lowrank(weight, q=r, niter=iterations)
            residuals[name] = svd_error(weight, u, s, v.T)
            contenders[name] = lambda i=iterations: torch.svd_lowrank(weight, q=r, niter=i)  # type: ignore[misc]
        if full:
            contenders["torch.linalg.svd"] = lambda: torch.linalg.svd(weight, full_matrices=False)
        timings = time_side_by_side(
            contenders, before=lambda: None, repetitions=session.repetitions, seconds_each=session.seconds_each
        )
        own = timings.pop(OURS)
        passes = lrs.svd(weight, r, tol=tolerance).passes
        floor = session.machine.milliseconds(Work(4.0 * n * n * passes, 2.0 * n * n * r * passes))
        for peer, timing in timings.items():
            detail = {"ours": own.record(), "theirs": timing.record(), "passes": passes}
            if peer in residuals:
                detail["residual_of_the_peer"] = residuals[peer]
            ratio = timing.ratio_to(own)
            yield Line("svd", what, own.median, "ms", floor, peer, timing.median, ratio, None, error, detail)

    return Row("svd", f"{_what(side, side, rank)}, {spectrum} spectrum", run)


def _olora(rows: int, columns: int, rank: int, dtype: torch.dtype) -> Row:
    def run(session: Session) -> Iterator[Line]:
        m, n, r = session.side(rows), session.side(columns), session.rank(rank)
        weight = matrix(m, n, dtype)

        def errors() -> Mapping[str, float]:
            factors = lrs.olora(weight, r)
            return {
                OURS: in_limit(qr_error(weight, QRResult(factors.up, factors.down))),
                TRUNCATED: in_limit(qr_error(weight, QRResult(*peers.torch_qr(weight, r)))),
            }

        contenders: dict[str, Run] = {OURS: lambda: lrs.olora(weight, r), TRUNCATED: lambda: peers.torch_qr(weight, r)}
        work = Work(m * n * dtype.itemsize + 4 * r * (m + n), 2 * m * n * r)
        yield from time_case(session, "olora", _what(m, n, r, dtype), Case(contenders, errors, work), {})

    return Row("olora", _what(rows, columns, rank, dtype), run)


def rows() -> Iterator[Row]:
    """Yield the rows."""
    yield _olora_(4096, 4096, 32, FLOAT32, {PEFT: 200, TRUNCATED: 2.5})
    yield _olora_(11008, 4096, 64, FLOAT32, {PEFT: 120, TRUNCATED: 2})
    yield _olora_(4096, 4096, 32, BFLOAT16, {UPCAST: 8})
    yield _olora_(11008, 4096, 64, BFLOAT16, {UPCAST: 5})
    yield _peak(4096, 4096, 32)
    yield _peak(11008, 4096, 64)
    yield _olora(4096, 4096, 32, FLOAT32)
    yield _olora(4096, 4096, 32, BFLOAT16)
    yield _loldu(4096, 4096, 64, in_place=False, goal=1000)
    yield _loldu(4096, 4096, 64, in_place=True, goal=60)
    yield _product(4096, 4096, 32, {"torch.mm": 2.5, "floor": 1.5})
    yield _svd(2048, 32, decay=False, full=True)
    yield _svd(4096, 32, decay=True, full=False)
    yield _svd(4096, 32, decay=False, full=False)
