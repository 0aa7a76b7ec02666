# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Errors of results against float64, without a unit: ``||error|| / (max(m, n) * ||A|| * eps)``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lowrank_swift import Factors, LDUResult, QRResult

__all__ = ["LIMIT", "error_ratio", "ldu_error", "qr_error", "residual_error", "svd_error"]

LIMIT = 30.0
"""LAPACK's, for the ratios of QR and LU in its own tests."""

_ROWS = 1024  # widened at a time


def error_ratio(error: Tensor, reference: Tensor, dtype: torch.dtype) -> float:
    """Return ``||error||`` over the larger side, the norm of the reference, and the epsilon of a dtype."""
    norm = float(reference.double().norm())
    size = float(error.double().norm())
    if size == 0:
        return 0.0
    return size / (max(error.shape) * norm * torch.finfo(dtype).eps)


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS):
        yield slice(start, min(start + _ROWS, rows))


def _precision(*tensors: Tensor) -> torch.dtype:
    """Return the coarsest dtype, whose rounding nobody can be blamed for."""
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: torch.finfo(dtype).eps)


def residual_error(before: Tensor, after: Tensor, factors: Factors) -> float:
    """Return the error of ``W - s B C A``, computed from the factors as they are."""
    up, down = factors.up.double(), factors.down.double()
    if factors.core is not None:
        up = up * factors.core.double() if factors.core.ndim == 1 else up @ factors.core.double()
    squares = norms = 0.0
    for rows in _blocks(before.shape[0]):
        wide = before[rows].double()
        error = after[rows].double() + factors.scale * (up[rows] @ down) - wide
        squares, norms = squares + float(error.square().sum()), norms + float(wide.square().sum())
    eps = torch.finfo(_precision(before, factors.up)).eps
    return math.sqrt(squares / norms) / (max(before.shape) * eps)


def qr_error(weight: Tensor, result: QRResult) -> float:
    """Return the largest error of ``Q^T Q = I``, of ``Q R = W`` in the first columns, and of ``R = Q^T W``."""
    q, r = result.Q.double(), result.R.double()
    rank, dtype = q.shape[1], _precision(result.Q)
    identity = torch.eye(rank, dtype=torch.float64)
    product, norms = torch.zeros_like(r), 0.0
    for rows in _blocks(weight.shape[0]):
        wide = weight[rows].double()
        product += q[rows].T @ wide
        norms += float(wide.square().sum())
    eps = torch.finfo(dtype).eps
    panel = weight[:, :rank].double()
    return max(
        float((q.T @ q - identity).norm() / (q.shape[0] * eps)),
        error_ratio(q @ r[:, :rank] - panel, panel, dtype),
        float((r - product).norm() / (max(weight.shape) * math.sqrt(norms) * eps)),
    )


def ldu_error(weight: Tensor, result: LDUResult) -> float:
    """Return the error of ``L D U = W[perm]`` in the first columns and rows."""
    lower, upper = result.L.double() * result.D.double(), result.U.double()
    rank, dtype = lower.shape[1], _precision(result.L)
    permuted = weight[result.perm]
    columns = permuted[:, :rank].double()
    rows = permuted[:rank].double()
    return max(
        error_ratio(lower @ upper[:, :rank] - columns, columns, dtype),
        error_ratio(lower[:rank] @ upper - rows, rows, dtype),
    )


def svd_error(weight: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> float:
    """Return the largest residual norm of a singular triplet over the largest singular value."""
    left, right, values = u.double(), vh.double().T, s.double()
    product = torch.zeros_like(right)
    squares = torch.zeros_like(values)
    for rows in _blocks(weight.shape[0]):
        wide = weight[rows].double()
        squares += (wide @ right - left[rows] * values).square().sum(0)
        product += wide.T @ left[rows]
    other = (product - right * values).square().sum(0)
    return float(torch.maximum(squares, other).max().sqrt() / values[0])
