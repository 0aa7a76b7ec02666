# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Whether a result is right: residuals without a unit, in float64, from the arguments as they were before the call.

Each check takes the arguments as float64 copies (`old`), the arguments after the call (`new`) and the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from support import LIMIT, SVD_LIMIT, float64

# Beyond this, sums in float32 may overflow, and a result need not be a number.
SAFE = 1e15


def info(array: Any) -> Any:
    """The limits of an array's dtype."""
    return torch.finfo(array.dtype) if isinstance(array, torch.Tensor) else np.finfo(array.dtype)


def precision(*arrays: Any, computed: Any = None) -> tuple[float, float]:
    """The coarsest rounding unit and the largest smallest number of results and of the sums behind them.

    Sums are in float64 where `computed`, or else all of the arrays, are float64, in float32 otherwise.
    """
    infos = [info(array) for array in arrays if array is not None]
    in_float64 = all(i.bits == 64 for i in infos) if computed is None else info(computed).bits == 64
    if not in_float64:
        infos.append(np.finfo(np.float32))
    return max(float(i.eps) for i in infos), max(float(i.tiny) for i in infos)


def require_small(error: np.ndarray, norm: float, limits: tuple[float, float], what: str, limit: float = LIMIT) -> None:
    """Require ``||error|| <= limit * max(m, n) * (unit * norm + smallest)``."""
    if error.size == 0:
        return
    size = float(np.linalg.norm(error))
    bound = limit * max(error.shape) * (limits[0] * norm + limits[1])
    assert np.isfinite(size) and size <= bound, f"{what}: {size} is beyond {bound}"


def unscaled(*arrays: np.ndarray) -> list[np.ndarray]:
    """Divide by the power of two of the first array's largest entry, so that squares neither overflow nor vanish."""
    largest = float(np.abs(arrays[0]).max(initial=0))
    exponent = int(np.frexp(largest)[1])
    return [np.ldexp(array, -exponent) for array in arrays] + [np.ldexp(1.0, np.clip(-exponent, -1000, 1000))]


def require_orthonormal(columns: Any, unit: float, what: str) -> None:
    matrix = float64(columns)
    error = matrix.T @ matrix - np.eye(matrix.shape[1])
    require_small(error, max(matrix.shape[0] / matrix.shape[1], 1.0), (unit, 0.0), f"{what} is orthonormal")


def require_shapes(result: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    for name, (array, shape) in result.items():
        assert tuple(array.shape) == shape, f"{name}: shape {tuple(array.shape)}, not {shape}"


def check_qr(weight: Any, rank: int, q: Any, r: Any, array: Any) -> None:
    """``W[:, :r] = Q R[:, :r]``, ``R = Q^T W`` with zeros below the diagonal."""
    require_shapes({"Q": (q, (weight.shape[0], rank)), "R": (r, (rank, weight.shape[1]))})
    unit, smallest = precision(q, r, computed=array)
    matrix, upper, scale = unscaled(weight, float64(r))
    left = float64(q)
    limits = unit, smallest * float(scale)
    require_orthonormal(left, unit, "Q")
    require_small(matrix[:, :rank] - left @ upper[:, :rank], float(np.linalg.norm(matrix)), limits, "W - Q R")
    require_small(upper - left.T @ matrix, float(np.linalg.norm(matrix)), limits, "R - Q^T W")
    assert not np.tril(upper, -1).any(), "R below its diagonal"


def check_ldu(weight: Any, rank: int, lower: Any, d: Any, upper: Any, permutation: Any, array: Any) -> None:
    """``W[perm] = L D U`` in the first columns, and in the pivot rows where no pivot was taken as zero."""
    rows, columns = weight.shape
    require_shapes({"L": (lower, (rows, rank)), "D": (d, (rank,)), "U": (upper, (rank, columns))})
    order = np.asarray(permutation)
    assert sorted(order.tolist()) == list(range(rows)), "perm is no permutation"
    unit, smallest = precision(lower, d, upper, computed=array)
    left, right = float64(lower), float64(upper)
    assert (np.abs(left) <= 1 + unit).all() and not np.triu(left[:rank], 1).any() and (np.diag(left) == 1).all(), "L"
    assert not np.tril(right[:, :rank], -1).any() and (np.diag(right) == 1).all(), "U"
    matrix, diagonal, scale = unscaled(weight[order], float64(d))
    with np.errstate(all="ignore"):
        middle = diagonal[:, None] * right
        # A rounding error of D is multiplied by U, which can be large.
        spread = float(np.linalg.norm(right)) * float(scale)
        norm = float(np.linalg.norm(left)) * float(np.linalg.norm(middle)) + float(np.linalg.norm(matrix[:, :rank]))
    if not np.isfinite(norm + spread):
        return
    limits = unit, smallest * max(spread, float(scale))
    error = matrix[:, :rank] - left @ middle[:, :rank]
    for i in np.flatnonzero(diagonal == 0):
        error[i, i + 1 :] = 0  # The row of a zero pivot is replaced by a unit row.
    require_small(error, norm, limits, "W - L D U, panel")
    if diagonal.all():
        require_small(matrix[:rank] - left[:rank] @ middle, norm, limits, "W - L D U, pivot rows")


def check_svd(weight: Any, rank: int, tol: float, u: Any, s: Any, vh: Any, array: Any) -> None:
    """Orthonormal factors, descending values near the true ones, and residuals of each triplet within the tolerance."""
    rows, columns = weight.shape
    require_shapes({"U": (u, (rows, rank)), "S": (s, (rank,)), "Vh": (vh, (rank, columns))})
    unit, smallest = precision(u, s, vh, computed=array)
    matrix, found, scale = unscaled(weight, float64(s))
    left, right = float64(u), float64(vh).T
    require_orthonormal(left, unit, "U")
    require_orthonormal(right, unit, "Vh")
    assert (np.diff(found) <= 0).all() and (found >= 0).all(), "S descends"
    exact = np.linalg.svd(matrix, compute_uv=False)[:rank]
    bound = float(tol) * float(exact[0]) + SVD_LIMIT * max(rows, columns) * (
        unit * float(exact[0]) + smallest * float(scale)
    )
    for name, error in (
        ("W v - s u", np.linalg.norm(matrix @ right - left * found, axis=0)),
        ("W^T u - s v", np.linalg.norm(matrix.T @ left - right * found, axis=0)),
        ("S", np.abs(found - exact)),
    ):
        assert float(error.max()) <= bound, f"{name}: {error.max()} is beyond {bound}"


def dense(core: Any, rank: int) -> np.ndarray:
    """A core as a matrix."""
    core = np.eye(rank) if core is None else float64(core)
    return np.diag(core) if core.ndim == 1 else core


def is_tame(*arrays: Any, scale: float = 1.0) -> bool:
    """Whether sums of products of such numbers stay numbers."""
    largest = max(1.0, abs(scale))
    for array in arrays:
        if array is not None:
            largest *= float(np.abs(float64(array)).max(initial=1))
    return largest < SAFE


def check_sum(after: Any, before: np.ndarray, delta: np.ndarray, size: float, arrays: list[Any], what: str) -> None:
    """``after = before + delta`` up to the rounding of sums whose terms are of `size`, and of storing the result."""
    unit, smallest = precision(*arrays, after)
    expected = before + delta
    if np.abs(expected).max(initial=0) > float(info(after).max) / 2:
        return
    norm = float(np.linalg.norm(before)) + size
    require_small(float64(after) - expected, norm, (unit, smallest * (1 + size)), what)
