# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The caller's framework: what this package asks of it, without importing it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from . import _native

__all__ = ["Array", "Framework", "device_of", "flatten_leading", "framework_of", "matrix_shape"]

Array = Any
"""On the CPU or a CUDA device: a ``torch.Tensor``, a ``numpy.ndarray``, or any other object with ``__dlpack__``."""


_CPU = (1, 0)
"""DLPack's name of the CPU."""

_CUDA = 2
"""DLPack's number of CUDA devices."""


class Framework(Protocol):
    """What the functions of this package need from a framework."""

    floating: tuple[str, ...]
    """Names of the dtypes that a factor may have."""

    def dtype_name(self, dtype: Any) -> str:
        """Return the name of one of the framework's dtypes."""

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        """Return a new uninitialised array on the device of `like`."""

    def zeros(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        """Return a new array of zeros on the device of `like`."""

    def shared(self, array: Array, name: str) -> Array:
        """Return the array as an object with a shape and a dtype that DLPack can share, over the same memory."""

    def as_matrix(self, shared: Array) -> Array | None:
        """Return a view with all dimensions but the last made one, or None where that needs a copy."""

    def mark_written(self, array: Array) -> None:
        """Tell the framework that the memory of `array` was changed."""

    def returned(self, array: Array) -> Array:
        """Return an array made by `empty` or `zeros`, and filled since, as the caller's kind."""


class _Torch:
    floating: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16")

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def dtype_name(self, dtype: Any) -> str:
        if not isinstance(dtype, self._torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype or its name, got {type(dtype).__name__}")
        return str(dtype).removeprefix("torch.")

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=like.device)

    def zeros(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device=like.device)

    def shared(self, array: Array, name: str) -> Array:
        # Torch exports the memory of such a view without its sign.
        if array.is_neg():
            raise BufferError(f"{name}: expected a tensor without the negative bit, which `resolve_neg()` removes")
        # Before torch 2.10 only the Python side of DLPack is there, and that refuses a tensor that requires grad.
        if array.requires_grad and not hasattr(type(array), "__dlpack_c_exchange_api__"):
            return array.detach()
        return array

    def as_matrix(self, shared: Array) -> Array | None:
        try:
            return shared.view(_flattened(shared.shape))
        except RuntimeError:
            return None

    def mark_written(self, array: Array) -> None:
        if not array.is_inference():
            self._torch.autograd.graph.increment_version(array)

    def returned(self, array: Array) -> Array:
        return array


class _NumPy:
    floating: tuple[str, ...] = ("float32", "float64", "float16")

    def __init__(self, numpy: Any) -> None:
        self._numpy = numpy

    def dtype_name(self, dtype: Any) -> str:
        try:
            return str(self._numpy.dtype(dtype).name)
        except (TypeError, ValueError):
            raise TypeError(f"dtype: expected a numpy dtype or its name, got {type(dtype).__name__}") from None

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        return self._numpy.empty(shape, dtype=dtype)

    def zeros(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        return self._numpy.zeros(shape, dtype=dtype)

    def shared(self, array: Array, name: str) -> Array:
        return array

    def as_matrix(self, shared: Array) -> Array | None:
        result = shared.reshape(_flattened(shared.shape))
        return result if result.size == 0 or self._numpy.may_share_memory(result, shared) else None

    def mark_written(self, array: Array) -> None:
        pass

    def returned(self, array: Array) -> Array:
        return array


class _DLPack:
    """Objects of which only ``__dlpack__`` is known; new arrays are our own until they are returned."""

    floating: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16")

    def __init__(self, namespace: Any | None) -> None:
        self._namespace = namespace

    def dtype_name(self, dtype: Any) -> str:
        # NumPy's dtypes have a name, JAX's a __name__; others say it in their text.
        name = getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)
        return str(name).rpartition(".")[2]

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        return _native.Tensor(tuple(shape), dtype, device_of(like))

    zeros = empty

    def shared(self, array: Array, name: str) -> Array:
        return array if isinstance(array, _native.Tensor) else _native.borrow(array, name)

    def as_matrix(self, shared: Array) -> Array | None:
        return shared._as_matrix()

    def mark_written(self, array: Array) -> None:
        pass

    def returned(self, array: Array) -> Array:
        return array if self._namespace is None else self._namespace.from_dlpack(array)


def _flattened(shape: Sequence[int]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


def framework_of(array: Array, name: str) -> Framework:
    """Return the framework that an array belongs to.

    Args:
        array: Any object.
        name: The argument's name, for the message.

    Raises:
        TypeError: if it has no ``__dlpack__``.
    """
    # An array of a framework can't exist before the framework is imported.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _Torch(torch)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, numpy.ndarray):
        return _NumPy(numpy)
    if hasattr(type(array), "__dlpack__"):
        # The array API standard's way from an array to its library.
        namespace = getattr(array, "__array_namespace__", None)
        return _DLPack(None if namespace is None else namespace())
    raise TypeError(
        f"{name}: expected a torch.Tensor, a numpy.ndarray or another array with __dlpack__, got {type(array).__name__}"
    )


def device_of(array: Array) -> tuple[int, int]:
    """Return the DLPack device that a ``Tensor`` beside an array is made on: the array's, or the CPU."""
    method = getattr(array, "__dlpack_device__", None)
    kind, index = _CPU if method is None else method()
    return (_CUDA, int(index)) if kind == _CUDA else _CPU


def matrix_shape(array: Array, name: str) -> tuple[int, int]:
    """Return the shape of a matrix.

    Raises:
        ValueError: if the array hasn't two dimensions.
    """
    if len(array.shape) != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got {len(array.shape)} (shape {list(array.shape)})")
    return int(array.shape[0]), int(array.shape[1])


def flatten_leading(array: Array, name: str) -> Array:
    """Return an array of shape ``(..., k)`` as a matrix ``(T, k)`` over the same memory, ready to be shared.

    Raises:
        TypeError: if it has no ``__dlpack__``.
        BufferError: if it can't be shared.
        ValueError: if it has no dimension, or if its leading dimensions can't be one without a copy.
    """
    framework = framework_of(array, name)
    shared = framework.shared(array, name)
    try:
        shape = tuple(shared.shape)
    except RuntimeError as error:  # as a nested tensor of torch
        raise BufferError(f"{name}: expected a tensor with a shape: {error}") from error
    if not shape:
        raise ValueError(f"{name}: expected at least 1 dimension, got 0")
    result = framework.as_matrix(shared)
    if result is None:
        raise ValueError(
            f"{name}: expected leading dimensions that can be flattened without a copy, got shape {list(shape)} "
            "with other strides; pass a contiguous copy"
        )
    return result
