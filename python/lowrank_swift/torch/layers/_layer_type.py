# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What a type of layer has to say, so that adapters, merging, files and export know no types.

Letters as everywhere: W [m, n] = [out, in], down A [r, n], core C [r] or [r, r] or none, up B [m, r]. What a layer
computes is linear in its weight, so h, the down-projection of the input, is what it would compute with A as its weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_swift import Factors

from .._format import LORA_FACTOR
from .._ops import adapter_backward_, adapter_forward_
from .._precision import working_dtype

__all__ = ["LayerType", "ProjectingLayerType", "TermGradients"]


class TermGradients(NamedTuple):
    """The gradients of a term that are to be computed, None where not needed: of ``core`` and ``up`` to be written."""

    down: bool
    core: Tensor | None
    up: Tensor | None


@dataclass(frozen=True)
class LayerType(ABC):
    """How one layer's weight is a matrix ``[out, in]``, and what the layer computes with it.

    Attributes:
        name (str): of the type, in adapter files.
        lora_factor (str): PEFT's key of A and B after the layer's name.
        fan_in_fan_out (bool): what PEFT's configuration calls a weight that is stored ``[in, out]``.
    """

    name: ClassVar[str]
    lora_factor: ClassVar[str] = LORA_FACTOR
    fan_in_fan_out: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def of(cls, layer: nn.Module) -> LayerType:
        """Describe a layer.

        Raises:
            ValueError: if it has an option that an adapter does not fit.
        """

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as a matrix ``[out, in]``: a view wherever its strides allow it."""

    @abstractmethod
    def weight(self, matrix: Tensor) -> Tensor:
        """Return a matrix ``[out, in]`` of any number of rows as the layer's weight has it: a view."""

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """Return an input as :meth:`operate` takes it.

        Raises:
            ValueError: if it has another shape than the layer takes.
        """

    @abstractmethod
    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return what :meth:`operate` made of an input in the shape of the layer's output."""

    @abstractmethod
    def unfinish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the layer's output for an input as :meth:`operate` makes it: :meth:`finish` undone."""

    @abstractmethod
    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what a layer of this type computes for a prepared input."""

    @abstractmethod
    def input_gradient(self, grad: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return the gradient of a prepared input of a size."""

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer computes without adapters."""
        return self.finish(self.operate(self.prepare(x), weight, bias), x)

    @abstractmethod
    def add_term(self, x: Tensor, down: Tensor, core: Tensor | None, up: Tensor, scale: float, out: Tensor) -> Tensor:
        """Add ``scale * (h C^T) B^T`` to an output in place and return h, of the output's dtype."""

    @abstractmethod
    def term_gradients(
        self,
        grad: Tensor,
        x: Tensor | None,
        h: Tensor | None,
        down: Tensor,
        core: Tensor | None,
        up: Tensor,
        scale: float,
        frozen_columns: Tensor | None,
        grad_x: Tensor | None,
        gradients: TermGradients,
    ) -> Tensor | None:
        """Write the gradients of ``core`` and ``up``, add to that of the input, and return that of ``down``."""

    def add_change(
        self, x: Tensor, down: Tensor, up: Tensor, start_down: Tensor, start_up: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        """Add ``scale * x (B A - B0 A0)^T`` to an output in place and return h, of the output's dtype."""
        h = self.add_term(x, down, None, up, scale, out)
        self.add_term(x, start_down, None, start_up, -scale, out)
        return h

    def change_gradients(
        self,
        grad: Tensor,
        x: Tensor | None,
        h: Tensor | None,
        down: Tensor,
        up: Tensor,
        start_down: Tensor,
        start_up: Tensor,
        scale: float,
        grad_x: Tensor | None,
        gradients: TermGradients,
    ) -> Tensor | None:
        """Write the gradient of ``up``, add to that of the input, and return that of ``down``."""
        grad_down = self.term_gradients(grad, x, h, down, None, up, scale, None, grad_x, gradients)
        if grad_x is not None:
            frozen = TermGradients(False, None, None)
            self.term_gradients(grad, None, None, start_down, None, start_up, -scale, None, grad_x, frozen)
        return grad_down

    def start(self, factors: Factors) -> Factors:
        """Return the starting factors as the layer can take them."""
        return factors

    @torch.no_grad()
    def change_(self, weight: Tensor, change: Callable[[Tensor], object]) -> None:
        """Let a function change the matrix of a weight in place."""
        matrix = self.matrix(weight)
        change(matrix)
        if matrix.data_ptr() != weight.data_ptr():
            weight.copy_(self.weight(matrix))

    def lora_factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A [r, n] and B [m, r] in the shapes that PEFT's LoRA has for this type.

        Raises:
            ValueError: for a layer beside which PEFT's LoRA computes something else.
        """
        return a, b


class ProjectingLayerType(LayerType):
    """A type that makes h itself, with torch, and leaves what follows to the operators that start from h."""

    @abstractmethod
    def weight_gradient(self, grad: Tensor, x: Tensor, size: torch.Size) -> Tensor:
        """Return the gradient of a weight of a size."""

    @abstractmethod
    def rows(self, out: Tensor) -> Tensor:
        """Return an output of :meth:`operate` with its channels last: a view ``[T, m]`` or ``[N, T, m]``."""

    @abstractmethod
    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return a matrix ``[T, r]`` as an output of :meth:`operate` with the positions of another: a view."""

    def project(self, x: Tensor, down: Tensor, dtype: torch.dtype) -> Tensor:
        """Return h in a dtype, which it is computed in where it is computed at all."""
        return self.operate(x.to(dtype), self.weight(down).to(dtype), None)

    def add_term(self, x: Tensor, down: Tensor, core: Tensor | None, up: Tensor, scale: float, out: Tensor) -> Tensor:
        """Project, in float32 where ``down`` is more precise, and add the rest of the term in our operator."""
        h = self.project(x, down, torch.promote_types(out.dtype, down.dtype)).to(out.dtype)
        adapter_forward_(self.rows(h), None, core, up, scale, self.rows(out), None)
        return h

    def add_change(
        self, x: Tensor, down: Tensor, up: Tensor, start_down: Tensor, start_up: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        """Add the change as ``(h - h0) B^T + h0 (B - B0)^T``, which is zero, to the last bit, where nothing changed."""
        dtype = torch.promote_types(out.dtype, down.dtype)
        h, start = self.project(x, down, dtype), self.project(x, start_down, dtype)
        for part, factor in ((h - start, up), (start, up - start_up)):
            adapter_forward_(self.rows(part.to(out.dtype)), None, None, factor, scale, self.rows(out), None)
        return h.to(out.dtype)

    def term_gradients(
        self,
        grad: Tensor,
        x: Tensor | None,
        h: Tensor | None,
        down: Tensor,
        core: Tensor | None,
        up: Tensor,
        scale: float,
        frozen_columns: Tensor | None,
        grad_x: Tensor | None,
        gradients: TermGradients,
    ) -> Tensor | None:
        """Go back to h in our operator, and from there to ``down`` and the input."""
        needs_h = gradients.down or grad_x is not None
        if not needs_h and gradients.core is None and gradients.up is None:
            return None
        rows = self.rows(grad).flatten(0, -2)
        h = None if h is None else self.rows(h).flatten(0, -2)
        dtype = working_dtype(grad.dtype)
        grad_h = rows.new_zeros(rows.shape[0], up.shape[1], dtype=dtype) if needs_h else None
        adapter_backward_(
            rows, None, h, None, core, up, scale, frozen_columns, grad_h, None, gradients.core, gradients.up
        )
        if grad_h is None:
            return None
        grad_h, weight = self.from_rows(grad_h, grad), self.weight(down)
        if grad_x is not None:
            grad_x += self.input_gradient(grad_h, weight.to(dtype), grad_x.shape)
        if not gradients.down:
            return None
        assert x is not None
        x = x.to(dtype) if x.is_floating_point() else x
        return self.matrix(self.weight_gradient(grad_h, x, weight.shape)).to(down.dtype)
