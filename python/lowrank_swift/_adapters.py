# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Forward and backward of an adapter, and merging it into its weight."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from . import _native
from ._arrays import Array, flatten_leading, framework_of, matrix_shape
from ._factors import Factors, shared_factors

__all__ = ["AdapterGradients", "adapter_backward", "adapter_forward", "merge_", "unmerge_"]


class AdapterGradients(NamedTuple):
    """Gradients of an adapter with the shapes and dtypes of what they belong to; None where not computed."""

    x: Array | None
    down: Array | None
    core: Array | None
    up: Array | None


def adapter_forward(x: Array, factors: Factors, out: Array) -> Array:
    """Add an adapter's output: ``out += scale * ((x @ down.T) @ core.T) @ up.T``.

    Products accumulate in float32, or in float64 where an operand is float64.

    Args:
        x (Tensor): Shape ``(..., n)``, leading dimensions that flatten to one without a copy. Not modified.
        factors (Factors): ``up`` ``(m, r)``, ``core``, ``down`` ``(r, n)``.
        out (Tensor): Shape ``(..., m)``, changed in place.

    Returns:
        Tensor: ``h = x @ down.T`` of shape ``(..., r)`` and the dtype of `x`, all that the backward needs unless
        ``down`` trains.

    Raises:
        TypeError: if the type of an argument or a dtype is not supported.
        ValueError: if the shapes don't fit, or leading dimensions can't be flattened without a copy.
        BufferError: if `out` is read-only or overlaps an input, or the tensors are not all on the CPU or one CUDA
            device.
    """
    framework = framework_of(x, "x")
    x = framework.shared(x, "x")
    down, core, up = shared_factors(factors)
    flat_x = flatten_leading(x, "x")
    flat_out = _flatten_like(out, "out", x, "x")
    rank, _ = matrix_shape(down, "down")
    h = framework.empty((*x.shape[:-1], rank), framework.dtype_name(x.dtype), like=x)
    _native.adapter_forward(flat_x, down, core, up, factors.scale, flat_out, flatten_leading(h, "h"))
    framework_of(out, "out").mark_written(out)
    return framework.returned(h)


def adapter_backward(
    grad: Array,
    x: Array | None,
    h: Array,
    factors: Factors,
    *,
    need: Collection[str] | None = None,
    frozen_columns: int = 0,
) -> AdapterGradients:
    """Compute the gradients of :func:`adapter_forward` for an upstream gradient.

    Args:
        grad (Tensor): Gradient of `out`, shape ``(..., m)``. Not modified.
        x (Tensor | None): The input of the forward, shape ``(..., n)``; only the gradient of ``down`` needs it.
        h (Tensor): What the forward returned, shape ``(..., r)``. Not modified.
        factors (Factors): Those of the forward.
        need: Which gradients to compute, among ``"x"``, ``"down"``, ``"core"`` and ``"up"``; by default all that are
            possible: ``"core"`` if there is one, ``"down"`` if `x` is given.
        frozen_columns: The first columns of ``up`` that do not train; their gradient is zero and not computed.

    Returns:
        AdapterGradients: ``x`` of the dtype of `grad`, the others of the dtypes of the factors; None where not needed.

    Raises:
        TypeError: if the type of an argument or a dtype is not supported.
        ValueError: if the shapes don't fit, `need` names something else or what is not possible, or leading dimensions
            can't be flattened without a copy.
        BufferError: if the tensors are not all on the CPU or one CUDA device.

    Reference:
        With ``g`` for `grad` and ``p = g @ up``: ``d up = s g^T (h core^T)``, ``d core = s p^T h``,
        ``d down = s (p core)^T x`` and ``d x = s p core down``.
    """
    framework = framework_of(grad, "grad")
    grad = framework.shared(grad, "grad")
    down, core, up = shared_factors(factors)
    names = _names_needed(need, x, core)
    flat_grad = flatten_leading(grad, "grad")
    flat_x = None if x is None else _flatten_like(x, "x", grad, "grad")
    flat_h = _flatten_like(h, "h", grad, "grad")
    _, columns = matrix_shape(down, "down")

    grad_x = None
    if "x" in names:
        grad_x = framework.zeros((*grad.shape[:-1], columns), framework.dtype_name(grad.dtype), like=grad)
    gradients = AdapterGradients(
        x=grad_x,
        down=_empty_like(down, "down") if "down" in names else None,
        core=_empty_like(core, "core") if "core" in names else None,
        up=_empty_like(up, "up") if "up" in names else None,
    )
    _native.adapter_backward(
        flat_grad,
        flat_x,
        flat_h,
        down,
        core,
        up,
        factors.scale,
        frozen_columns,
        None if grad_x is None else flatten_leading(grad_x, "grad"),
        gradients.down,
        gradients.core,
        gradients.up,
    )
    return AdapterGradients(
        x=None if gradients.x is None else framework.returned(gradients.x),
        down=_returned_like(factors.down, gradients.down),
        core=_returned_like(factors.core, gradients.core),
        up=_returned_like(factors.up, gradients.up),
    )


def merge_(weight: Array, factors: Factors) -> Array:
    """Add an adapter to its weight: `weight` becomes ``W + scale * up @ core @ down``.

    Args:
        weight (Tensor): Shape ``(m, n)``, changed in place; unchanged after a failure.
        factors (Factors): ``up`` ``(m, r)``, ``core``, ``down`` ``(r, n)``.

    Returns:
        Tensor: `weight`.

    Raises:
        TypeError: if the type of an argument or a dtype is not supported.
        ValueError: if the shapes don't fit, or a factor holds a NaN or an infinity.
        BufferError: if `weight` is read-only, overlaps itself or a factor, or the tensors are not all on the CPU or one
            CUDA device.
        LinAlgError: if a finite entry of `weight` would leave the range of its dtype.
    """
    return _merge(weight, factors, sign=1)


def unmerge_(weight: Array, factors: Factors) -> Array:
    """Subtract an adapter from its weight: `weight` becomes ``W - scale * up @ core @ down``.

    It undoes :func:`merge_` to rounding, not bit for bit. Args, results and errors are those of :func:`merge_`.
    """
    return _merge(weight, factors, sign=-1)


def _merge(weight: Array, factors: Factors, *, sign: int) -> Array:
    framework = framework_of(weight, "weight")
    down, core, up = shared_factors(factors)
    try:
        scale = sign * factors.scale
    except TypeError:
        raise TypeError(f"scale: expected a float, got {type(factors.scale).__name__}") from None
    _native.merge(framework.shared(weight, "weight"), down, core, up, scale)
    framework.mark_written(weight)
    return weight


def _names_needed(need: Collection[str] | None, x: Array | None, core: Array | None) -> Collection[str]:
    """Return the names of the gradients to compute, checked against what is possible."""
    impossible = {
        **({"down": "needs x, which is None"} if x is None else {}),
        **({"core": "does not exist in these factors"} if core is None else {}),
    }
    if need is None:
        return [name for name in AdapterGradients._fields if name not in impossible]
    if isinstance(need, str) or not isinstance(need, Collection):
        raise TypeError(f"need: expected a collection of names, got {type(need).__name__}")
    for name in need:
        if name not in AdapterGradients._fields:
            raise ValueError(f"need: expected names among {', '.join(AdapterGradients._fields)}, got {name!r}")
        if name in impossible:
            raise ValueError(f"need: {name!r} {impossible[name]}")
    return need


def _flatten_like(array: Array, name: str, like: Array, like_name: str) -> Array:
    """Flatten the leading dimensions of an array, which must be those of another."""
    shared = framework_of(array, name).shared(array, name)
    flat = flatten_leading(shared, name)
    expected, leading = list(like.shape[:-1]), list(shared.shape[:-1])
    if leading != expected:
        raise ValueError(f"{name}: expected the leading dimensions {expected} of {like_name}, got {leading}")
    return flat


def _empty_like(array: Array, name: str) -> Array:
    framework = framework_of(array, name)
    return framework.empty(tuple(array.shape), framework.dtype_name(array.dtype), like=array)


def _returned_like(factor: Array | None, gradient: Array | None) -> Array | None:
    return None if gradient is None else framework_of(factor, "factors").returned(gradient)
