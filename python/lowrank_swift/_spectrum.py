# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The singular values of a weight, without its singular vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import _native
from ._arrays import Array
from ._weights import check_weight

__all__ = ["SpectrumResult", "spectrum"]


class SpectrumResult(NamedTuple):
    """``singular_values`` of shape ``(r,)`` and the ``share`` of ``||W||_F^2`` that they carry together."""

    singular_values: Array
    share: float


def spectrum(weight: Array, rank: int, *, tol: float = 1e-4, seed: int = 0, dtype: Any | None = None) -> SpectrumResult:
    """Return the leading singular values of ``W`` and the share of ``||W||_F^2`` that they carry.

    The norm is one pass over ``W`` in float64. Of a weight in at most 32 bits with ``min(m, n) <= 1024``, or where a
    quarter of the values or more is asked for, they are the roots of the eigenvalues of ``W^T W`` in float64; of others
    those of :func:`svd`, to its tolerance.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        tol: Tolerance of the singular triplets, as in :func:`svd`, where they are computed.
        seed: ``0 <= seed < 2**64``. The result is the same for the same seed.
        dtype: Of the values; by default float32, or float64 for a float64 weight.

    Returns:
        SpectrumResult: ``singular_values`` ``(rank,)`` in descending order, and ``share`` in [0, 1]; 1 for ``W = 0``.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a value does not fit `dtype`.

    Reference:
        The normalised energy of LaMDA++, https://arxiv.org/abs/2406.12832.
    """
    checked = check_weight(weight, rank, dtype)
    values = checked.empty(checked.rank)
    _, share = _native.spectrum(checked.shared, checked.rank, tol, seed, values)
    return SpectrumResult(checked.returned(values), share)
