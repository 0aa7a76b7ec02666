# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Starting factors of the methods, from a factorization of the pretrained weight."""

from __future__ import annotations

from typing import Any

from . import _native
from ._arrays import Array
from ._factors import Factors
from ._weights import check_weight

__all__ = ["lamda", "lamda_", "loldu", "loldu_", "lora_xs", "olora", "olora_", "pissa", "pissa_"]

_TOL = 1e-4
_DIAGONAL = "ldu"


def _initialize(
    method: str,
    weight: Array,
    rank: int,
    *,
    core_dimensions: int,
    scale: float,
    dtype: Any | None,
    in_place: bool,
    tol: float = _TOL,
    seed: int = 0,
    diagonal: str = _DIAGONAL,
) -> Factors:
    """Allocate the factors and have them computed.

    Args beyond those of the public functions: `core_dimensions`, 0 for no core, 1 for a diagonal, 2 for a square one.
    """
    checked = check_weight(weight, rank, dtype)
    rank = checked.rank
    up, down = checked.empty(checked.rows, rank), checked.empty(rank, checked.columns)
    core = checked.empty(*[rank] * core_dimensions) if core_dimensions else None
    _native.initialize(method, checked.shared, rank, scale, in_place, tol, seed, diagonal, up, core, down)
    if in_place:
        checked.framework.mark_written(weight)
    return Factors(method, checked.returned(up), checked.returned(core), checked.returned(down), float(scale))


def olora(weight: Array, rank: int, *, scale: float = 1.0, dtype: Any | None = None) -> Factors:
    """Return OLoRA's starting factors: of ``W = Q R``, the first columns of ``Q`` and rows of ``R``.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        scale: ``s`` of ``delta W = s * up @ down``; the factors do not depend on it.
        dtype: Of the factors; by default float32, or float64 for a float64 weight.

    Returns:
        Factors: ``up`` ``(m, rank)`` with orthonormal columns, no core, ``down`` ``(rank, n)``.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a factor does not fit `dtype`.

    Reference:
        K. Büyükakyüz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, 2024,
        https://arxiv.org/abs/2406.01775.
    """
    return _initialize("olora", weight, rank, core_dimensions=0, scale=scale, dtype=dtype, in_place=False)


def olora_(weight: Array, rank: int, *, scale: float = 1.0, dtype: Any | None = None) -> Factors:
    """Return OLoRA's starting factors and subtract them: `weight` becomes ``W - scale * up @ down``.

    Args, results and errors are those of :func:`olora`. The factors are subtracted as stored in `dtype`. A failure
    leaves `weight` as it was.

    Raises:
        BufferError: also if `weight` is read-only or overlaps itself.
        LinAlgError: also if an entry of the residual would leave the range of the weight's dtype.
    """
    return _initialize("olora", weight, rank, core_dimensions=0, scale=scale, dtype=dtype, in_place=True)


def loldu(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    diagonal: str = _DIAGONAL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return LoLDU's starting factors: of ``W = P L D U``, the first columns of ``P L``, of ``D`` and rows of ``U``.

    Only the first `rank` columns and the `rank` pivot rows of ``W`` are read.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        scale: ``s`` of ``delta W = s * up @ diag(core) @ down``; the factors do not depend on it.
        diagonal: Where the core starts: ``"ldu"`` at ``D``, ``"ones"``, ``"zeros"``, ``"mean"`` at the mean of ``D``,
            ``"uniform"`` within half of its magnitude, ``"normal"`` with the mean and standard deviation of ``D``.
        seed: ``0 <= seed < 2**64``, for ``"uniform"`` and ``"normal"``.
        dtype: Of the factors; by default float32, or float64 for a float64 weight.

    Returns:
        Factors: ``up`` ``(m, rank)``, ``core`` ``(rank,)``, ``down`` ``(rank, n)`` unit upper trapezoidal.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or an entry that is read is a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a factor does not fit `dtype`.

    Reference:
        Y. Shi et al., LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient
        Fine-Tuning, 2024, https://arxiv.org/abs/2410.13618.
    """
    return _initialize(
        "loldu",
        weight,
        rank,
        core_dimensions=1,
        scale=scale,
        dtype=dtype,
        in_place=False,
        seed=seed,
        diagonal=diagonal,
    )


def loldu_(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    diagonal: str = _DIAGONAL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return LoLDU's starting factors and subtract them: `weight` becomes ``W - scale * up @ diag(core) @ down``.

    Args, results and errors are those of :func:`loldu`. The factors are subtracted as stored in `dtype`. A failure
    leaves `weight` as it was.

    Raises:
        BufferError: also if `weight` is read-only or overlaps itself.
        LinAlgError: also if an entry of the residual would leave the range of the weight's dtype.
    """
    return _initialize(
        "loldu",
        weight,
        rank,
        core_dimensions=1,
        scale=scale,
        dtype=dtype,
        in_place=True,
        seed=seed,
        diagonal=diagonal,
    )


def lamda(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    tol: float = _TOL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return LaMDA's starting factors: of ``W = U S V^T``, the leading ``U``, ``diag(S)`` as a square core and ``V^T``.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        scale: ``s`` of ``delta W = s * up @ core @ down``; the factors do not depend on it.
        tol: Tolerance of the singular triplets, as in :func:`svd`.
        seed: ``0 <= seed < 2**64``. The result is the same for the same seed.
        dtype: Of the factors; by default float32, or float64 for a float64 weight.

    Returns:
        Factors: ``up`` ``(m, rank)`` and ``down`` ``(rank, n)`` orthonormal, ``core`` ``(rank, rank)`` diagonal.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a factor does not fit `dtype`.

    Reference:
        S. Azizi et al., LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation, 2024,
        https://arxiv.org/abs/2406.12832.
    """
    return _initialize(
        "lamda", weight, rank, core_dimensions=2, scale=scale, dtype=dtype, in_place=False, tol=tol, seed=seed
    )


def lamda_(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    tol: float = _TOL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return LaMDA's starting factors and subtract them: `weight` becomes ``W - scale * up @ core @ down``.

    Args, results and errors are those of :func:`lamda`. The factors are subtracted as stored in `dtype`. A failure
    leaves `weight` as it was.

    Raises:
        BufferError: also if `weight` is read-only or overlaps itself.
        LinAlgError: also if an entry of the residual would leave the range of the weight's dtype.
    """
    return _initialize(
        "lamda", weight, rank, core_dimensions=2, scale=scale, dtype=dtype, in_place=True, tol=tol, seed=seed
    )


def pissa(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    tol: float = _TOL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return PiSSA's starting factors: of ``W = U S V^T``, the leading ``U sqrt(S / s)`` and ``sqrt(S / s) V^T``.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        scale: ``s > 0`` of ``delta W = s * up @ down``, divided out of the factors.
        tol: Tolerance of the singular triplets, as in :func:`svd`.
        seed: ``0 <= seed < 2**64``. The result is the same for the same seed.
        dtype: Of the factors; by default float32, or float64 for a float64 weight.

    Returns:
        Factors: ``up`` ``(m, rank)``, no core, ``down`` ``(rank, n)``.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a factor does not fit `dtype`.

    Reference:
        F. Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models, 2024,
        https://arxiv.org/abs/2404.02948.
    """
    return _initialize(
        "pissa", weight, rank, core_dimensions=0, scale=scale, dtype=dtype, in_place=False, tol=tol, seed=seed
    )


def pissa_(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    tol: float = _TOL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return PiSSA's starting factors and subtract them: `weight` becomes ``W - scale * up @ down``.

    Args, results and errors are those of :func:`pissa`. The factors are subtracted as stored in `dtype`. A failure
    leaves `weight` as it was.

    Raises:
        BufferError: also if `weight` is read-only or overlaps itself.
        LinAlgError: also if an entry of the residual would leave the range of the weight's dtype.
    """
    return _initialize(
        "pissa", weight, rank, core_dimensions=0, scale=scale, dtype=dtype, in_place=True, tol=tol, seed=seed
    )


def lora_xs(
    weight: Array,
    rank: int,
    *,
    scale: float = 1.0,
    tol: float = _TOL,
    seed: int = 0,
    dtype: Any | None = None,
) -> Factors:
    """Return LoRA-XS's starting factors: of ``W = U S V^T``, the leading ``U S`` and ``V^T`` around a core of zeros.

    Their product is zero, so there is no residual to subtract and no in-place form.

    Args:
        weight (Tensor): Shape ``(m, n)``, float32, float64, bfloat16 or float16, any strides. Not modified.
        rank (int): ``1 <= rank <= min(m, n)``.
        scale: ``s`` of ``delta W = s * up @ core @ down``; the factors do not depend on it.
        tol: Tolerance of the singular triplets, as in :func:`svd`.
        seed: ``0 <= seed < 2**64``. The result is the same for the same seed.
        dtype: Of the factors; by default float32, or float64 for a float64 weight.

    Returns:
        Factors: ``up`` ``(m, rank)``, ``core`` ``(rank, rank)`` of zeros, ``down`` ``(rank, n)`` orthonormal.

    Raises:
        TypeError: if the type of an argument or the dtype is not supported.
        ValueError: if an argument is out of range, or ``W`` holds a NaN or an infinity.
        BufferError: if the tensor is neither on the CPU nor on a CUDA device.
        LinAlgError: if finite entries overflow on the way, or a factor does not fit `dtype`.

    Reference:
        K. Bałazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, 2024,
        https://arxiv.org/abs/2405.17604; there the core starts near zero.
    """
    return _initialize(
        "lora_xs", weight, rank, core_dimensions=2, scale=scale, dtype=dtype, in_place=False, tol=tol, seed=seed
    )
