# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The one form that all adapters have."""

from __future__ import annotations

from typing import NamedTuple

from . import _native
from ._arrays import Array, framework_of, matrix_shape

__all__ = ["Factors", "shared_factors"]


class Factors(NamedTuple):
    """An adapter ``delta W = scale * up @ core @ down`` of a weight of shape ``(m, n)``.

    Attributes:
        method (str): Name of the method that the factors come from, such as ``"olora"``.
        up (Tensor): Shape ``(m, r)``.
        core (Tensor | None): None for the identity, shape ``(r,)`` for a diagonal, ``(r, r)`` for a square core.
        down (Tensor): Shape ``(r, n)``.
        scale (float): Factor of the product.
    """

    method: str
    up: Array
    core: Array | None
    down: Array
    scale: float

    def __repr__(self) -> str:
        """Name the method and the shapes; the numbers would fill the screen."""
        up, core, down = (_shape(array) for array in (self.up, self.core, self.down))
        return f"Factors(method={self.method!r}, up={up}, core={core}, down={down}, scale={self.scale})"

    def __eq__(self, other: object) -> bool:
        """Compare by identity, since tensors compare by element."""
        return self is other

    def __ne__(self, other: object) -> bool:
        """Compare by identity; a tuple has its own, which ``__eq__`` does not replace."""
        return self is not other

    def __hash__(self) -> int:
        """Hash by identity."""
        return id(self)

    def delta(self) -> Array:
        """Return ``scale * up @ core @ down`` as a new matrix.

        Returns:
            Tensor: Shape ``(m, n)``, of the framework, dtype and device of ``up``.

        Raises:
            TypeError: if a factor is no tensor of a supported dtype.
            ValueError: if the shapes don't fit, or a factor holds a NaN or an infinity.
            LinAlgError: if an entry is beyond the range of the dtype.
        """
        down, core, up = shared_factors(self)
        rows, _ = matrix_shape(up, "up")
        _, columns = matrix_shape(down, "down")
        framework = framework_of(self.up, "up")
        dtype = framework.dtype_name(up.dtype)
        if dtype not in framework.floating:
            raise TypeError(f"up: expected one of {', '.join(framework.floating)}, got {dtype}")
        _native.borrow(up, "up")  # Where it can't be, the result on its device can't be filled either.
        result = framework.zeros((rows, columns), dtype, like=up)
        _native.merge(result, down, core, up, self.scale)
        return framework.returned(result)


def _shape(array: Array | None) -> tuple[int, ...] | str | None:
    """Return the shape for a printed form, or the type's name where an array does not tell its shape."""
    if array is None:
        return None
    return tuple(array.shape) if hasattr(array, "shape") else type(array).__name__


def shared_factors(factors: Factors) -> tuple[Array, Array | None, Array]:
    """Return down, core and up as the native functions take them.

    Raises:
        TypeError: if `factors` or one of its parts is of another type.
    """
    if not isinstance(factors, Factors):
        raise TypeError(f"factors: expected a lowrank_swift.Factors, got {type(factors).__name__}")
    down, core, up = factors.down, factors.core, factors.up
    return (
        framework_of(down, "down").shared(down, "down"),
        None if core is None else framework_of(core, "core").shared(core, "core"),
        framework_of(up, "up").shared(up, "up"),
    )
