# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The opening of every factorization: the weight checked, and its results allocated."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from . import _native
from ._arrays import Array, Framework, framework_of

__all__ = ["Weight", "check_weight"]


class Weight(NamedTuple):
    """A weight of shape ``(rows, columns)`` and a rank that it can be factored to."""

    framework: Framework
    shared: Array
    rows: int
    columns: int
    rank: int
    dtype: str

    def empty(self, *shape: int, dtype: str | None = None) -> Array:
        """Return a new array beside the weight, by default of the dtype of the factors."""
        return self.framework.empty(shape, dtype or self.dtype, like=self.shared)

    def returned(self, array: Array | None) -> Array | None:
        """Return an array made by `empty`, and filled since, as the caller's kind."""
        return None if array is None else self.framework.returned(array)


def check_weight(weight: Array, rank: int, dtype: Any | None) -> Weight:
    """Check what opens every factorization, before anything is allocated.

    Args:
        weight: The caller's matrix.
        rank: The caller's rank.
        dtype: What the caller asked for as the dtype of the factors: a dtype of the framework, its name, or None for
            float64 from a float64 weight and float32 from all others.

    Raises:
        TypeError: if the weight, the rank or the dtype is of a wrong type.
        ValueError: if the weight is no matrix, or the rank is not within it.
        BufferError: if the weight can't be shared through DLPack.
    """
    framework = framework_of(weight, "weight")
    shared = framework.shared(weight, "weight")
    rows, columns, weight_dtype = _native.check_weight(shared, rank)
    if dtype is None:
        name = "float64" if weight_dtype == "float64" else "float32"
    else:
        name = dtype if isinstance(dtype, str) else framework.dtype_name(dtype)
    if name not in framework.floating:
        raise TypeError(f"dtype: expected one of {', '.join(framework.floating)}, got {name}")
    return Weight(framework, shared, rows, columns, operator.index(rank), name)
