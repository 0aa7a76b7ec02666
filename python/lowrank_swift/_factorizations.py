# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Truncated factorizations of a weight matrix."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from . import _native
from ._arrays import Array
from ._weights import check_weight

__all__ = ["LDUResult", "QRResult", "SVDResult", "ldu", "qr", "svd"]


class QRResult(NamedTuple):
    """``Q`` of shape ``(m, r)`` and ``R`` of shape ``(r, n)``."""

    Q: Array
    R: Array


class LDUResult(NamedTuple):
    """``L`` of shape ``(m, r)``, ``D`` ``(r,)``, ``U`` ``(r, n)`` and ``perm`` ``(m,)``, with ``W[perm] = L D U``."""

    L: Array
    D: Array
    U: Array
    perm: Array


class _Triplets(NamedTuple):
    U: Array
    S: Array
    Vh: Array
    passes: int


class SVDResult(_Triplets):
    """``U`` of shape ``(m, r)``, ``S`` ``(r,)``, ``Vh`` ``(r, n)``, and how often ``W`` was multiplied with a block.

    Beside these four, which the tuple holds, two attributes say what was kept:

    Attributes:
        tol: The tolerance: the caller's, or 10 times the rounding unit of the working precision where that is more (for
            float64 weights what can be reached, which may be some ten units).
        residual: The largest of all ``||W v - s u||`` and ``||W^T u - s v||`` that were measured, over ``S[0]``.
    """

    tol: float
    residual: float

    def __new__(
        cls, U: Array, S: Array, Vh: Array, passes: int, tol: float = math.nan, residual: float = math.nan
    ) -> SVDResult:
        """Make a result; `tol` and `residual` are NaN where nothing was measured."""
        result = super().__new__(cls, U, S, Vh, passes)
        result.tol = tol
        result.residual = residual
        return result


def qr(weight: Array, rank: int, *, dtype: Any | None = None) -> QRResult:
    """Factor ``W = Q R`` and return the first `rank` columns of ``Q`` and rows of ``R``.

    They depend on the first `rank` columns of ``W`` alone, so no full factorization is made. Signs are LAPACK's.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        dtype: Of the result; by default float32, or float64 for a float64 weight.

    Returns:
        QRResult: ``Q`` ``(m, rank)`` with orthonormal columns and ``R`` ``(rank, n)``, upper trapezoidal.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if the shape or the rank is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a result does not fit `dtype`.

    Reference:
        G. H. Golub and C. F. Van Loan, Matrix Computations, 4th edition, section 5.2.
    """
    checked = check_weight(weight, rank, dtype)
    rank = checked.rank
    result = QRResult(Q=checked.empty(checked.rows, rank), R=checked.empty(rank, checked.columns))
    _native.qr(checked.shared, rank, *result)
    return QRResult(*map(checked.returned, result))


def ldu(weight: Array, rank: int, *, dtype: Any | None = None) -> LDUResult:
    """Factor ``W[perm] = L D U`` and return the first `rank` columns of ``L``, entries of ``D`` and rows of ``U``.

    Rows are pivoted by size. A pivot of at most ``eps * max|W[:, :rank]|`` counts as zero: its entry of ``D`` is 0 and
    its row of ``U`` a row of the identity.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        dtype: Of ``L``, ``D`` and ``U``; by default float32, or float64 for a float64 weight.

    Returns:
        LDUResult: ``L`` ``(m, rank)`` unit lower trapezoidal, ``D`` ``(rank,)``, ``U`` ``(rank, n)`` unit upper
        trapezoidal and ``perm`` ``(m,)`` of int64.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if the shape or the rank is out of range, or an entry that is read is a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a result does not fit `dtype`.

    Reference:
        G. H. Golub and C. F. Van Loan, Matrix Computations, 4th edition, section 3.4.
    """
    checked = check_weight(weight, rank, dtype)
    rank = checked.rank
    result = LDUResult(
        L=checked.empty(checked.rows, rank),
        D=checked.empty(rank),
        U=checked.empty(rank, checked.columns),
        perm=checked.empty(checked.rows, dtype="int64"),
    )
    _native.ldu(checked.shared, rank, *result)
    return LDUResult(*map(checked.returned, result))


def svd(weight: Array, rank: int, *, tol: float = 1e-4, seed: int = 0, dtype: Any | None = None) -> SVDResult:
    """Compute the leading `rank` singular triplets of ``W`` to a stated tolerance.

    The way there is chosen by its cost. A block Krylov space takes products of ``W^T W`` with 16 vectors each,
    reading ``W`` once, until the triplets have converged; the leading eigenvectors of ``W^T W`` in float64 serve
    small weights, long ones and large ranks; LAPACK's SVD of a copy serves the smallest, ranks above half of
    ``min(m, n)``, and tolerances near rounding. All end with the same check by products with ``W``.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        tol: Bound of ``||W v - s u||`` and ``||W^T u - s v||`` for each triplet, as a share of the largest singular
            value. One below 10 times the rounding unit of the working precision (1.2e-6 in float32, 2.2e-15 in float64)
            is raised to that, and the result's ``tol`` says so.
        seed: ``0 <= seed < 2**64``. The result is the same for the same seed.
        dtype: Of the result; by default float32, or float64 for a float64 weight.

    Returns:
        SVDResult: ``U`` ``(m, rank)``, ``S`` ``(rank,)`` in descending order, ``Vh`` ``(rank, n)`` and ``passes``; as
        attributes ``tol`` and ``residual``. The entry of largest magnitude in each column of ``U`` is positive.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if the residuals stay above `tol` (the message says how far they came), or a result does not fit
            `dtype`.

    Reference:
        G. H. Golub and R. Underwood, The block Lanczos method for computing eigenvalues, 1977; restarted as in K. Wu
        and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, 2000.
    """
    checked = check_weight(weight, rank, dtype)
    rank = checked.rank
    left, values, right = checked.empty(checked.rows, rank), checked.empty(rank), checked.empty(rank, checked.columns)
    passes, kept, residual = _native.svd(checked.shared, rank, tol, seed, left, values, right)
    triplets = checked.returned(left), checked.returned(values), checked.returned(right)
    return SVDResult(*triplets, passes, kept, residual)
