# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""torch.nn.Linear, and Conv1D of transformers, which is the same with its weight stored ``[in, out]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .._ops import adapter_backward_, adapter_forward_, change_backward_, change_forward_
from ._layer_type import LayerType, TermGradients

__all__ = ["Conv1D", "Linear"]


@dataclass(frozen=True)
class Linear(LayerType):
    """A ``torch.nn.Linear``. All of an adapter runs in one operator, which makes h itself.

    Attributes:
        in_features (int): size of the input's last dimension.
    """

    name: ClassVar[str] = "Linear"

    in_features: int

    @classmethod
    def of(cls, layer: nn.Module) -> LayerType:
        """Describe a layer; it has no option that an adapter does not fit."""
        assert isinstance(layer.weight, Tensor)
        return cls(layer.weight.shape[1])

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight

    def weight(self, matrix: Tensor) -> Tensor:
        """Return the matrix."""
        return matrix

    def prepare(self, x: Tensor) -> Tensor:
        """Return an input ``(..., in)`` as a matrix."""
        self._check(x)
        return x if x.dim() == 2 else x.reshape(-1, self.in_features)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return an output with the leading dimensions of its input."""
        return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[-1])

    def unfinish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return an output as a matrix."""
        return out.reshape(-1, out.shape[-1])

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer computes without adapters, from an input of any shape."""
        self._check(x)
        return self.operate(x, weight, bias)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x W^T + bias``."""
        return nn.functional.linear(x, self.matrix(weight), bias)

    def input_gradient(self, grad: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return ``g W``."""
        return grad @ self.matrix(weight)

    def add_term(self, x: Tensor, down: Tensor, core: Tensor | None, up: Tensor, scale: float, out: Tensor) -> Tensor:
        """Project and add in one operator."""
        h = out.new_empty(x.shape[0], down.shape[0])
        adapter_forward_(x, down, core, up, scale, out, h)
        return h

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
        """Go all the way back in one operator."""
        grad_down = torch.empty_like(down) if gradients.down else None
        x = x if gradients.down else None
        _, grad_core, grad_up = gradients
        adapter_backward_(grad, x, h, down, core, up, scale, frozen_columns, grad_x, grad_down, grad_core, grad_up)
        return grad_down

    def add_change(
        self, x: Tensor, down: Tensor, up: Tensor, start_down: Tensor, start_up: Tensor, scale: float, out: Tensor
    ) -> Tensor:
        """Project and add in one operator."""
        h = out.new_empty(x.shape[0], down.shape[0])
        change_forward_(x, down, up, start_down, start_up, scale, out, h)
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
        """Go all the way back in one operator."""
        grad_down = torch.empty_like(down) if gradients.down else None
        x = x if gradients.down else None
        change_backward_(grad, x, h, down, up, start_down, start_up, scale, grad_x, grad_down, gradients.up)
        return grad_down

    def _check(self, x: Tensor) -> None:
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected a last dimension of {self.in_features}, got shape {list(x.shape)}")


@dataclass(frozen=True)
class Conv1D(Linear):
    """A ``Conv1D`` of transformers (GPT-2 and its kind): the weight is ``[in, out]``, its matrix a transposed view."""

    name: ClassVar[str] = "Conv1D"
    fan_in_fan_out: ClassVar[bool] = True

    @classmethod
    def of(cls, layer: nn.Module) -> LayerType:
        """Describe a layer; it has no option that an adapter does not fit."""
        assert isinstance(layer.weight, Tensor)
        return cls(layer.weight.shape[0])

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the transposed view."""
        return weight.T

    def weight(self, matrix: Tensor) -> Tensor:
        """Return the transposed view."""
        return matrix.T
