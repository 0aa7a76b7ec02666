# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""torch.nn.Embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_swift import Factors

from .._format import LORA_EMBEDDING_FACTOR
from ._layer_type import LayerType, ProjectingLayerType

__all__ = ["Embedding"]


@dataclass(frozen=True)
class Embedding(ProjectingLayerType):
    """A ``torch.nn.Embedding``, a linear layer of one-hot inputs: its matrix is the weight's transpose ``[dim, num]``.

    The row at ``padding_idx`` does not train, as in torch: the column of ``down`` that belongs to it is zero and gets
    no gradient. ``sparse`` concerns the gradient of the weight, which is frozen; that of ``down`` is dense.

    Attributes:
        padding_idx (int | None): the row that does not train.
        scale_grad_by_freq (bool): whether the gradient of ``down`` is divided by how often an index occurs.
    """

    name: ClassVar[str] = "Embedding"
    lora_factor: ClassVar[str] = LORA_EMBEDDING_FACTOR

    padding_idx: int | None
    scale_grad_by_freq: bool

    @classmethod
    def of(cls, layer: nn.Module) -> LayerType:
        """Describe a layer, which must not change its own weight."""
        assert isinstance(layer, nn.Embedding)
        if layer.max_norm is not None:
            raise ValueError(
                "max_norm: expected None, since a norm that is enforced changes the frozen weight in every forward, "
                f"got {layer.max_norm}"
            )
        return cls(layer.padding_idx, layer.scale_grad_by_freq)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the transposed view."""
        return weight.T

    def weight(self, matrix: Tensor) -> Tensor:
        """Return the transposed view."""
        return matrix.T

    def prepare(self, x: Tensor) -> Tensor:
        """Return indices of any shape as a vector."""
        return x.reshape(-1)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the rows with the dimensions of their indices."""
        return out.view(*x.shape, out.shape[-1])

    def unfinish(self, out: Tensor, x: Tensor) -> Tensor:
        """Return an output as a matrix."""
        return out.reshape(-1, out.shape[-1])

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the rows of a weight at the indices; there is no bias."""
        return nn.functional.embedding(x, weight)

    def project(self, x: Tensor, down: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the columns of ``down`` at the indices."""
        return self.operate(x, self.weight(down), None).to(dtype)

    def input_gradient(self, grad: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Refuse: indices have no gradient."""
        raise TypeError(f"x: expected indices, got {size}")

    def weight_gradient(self, grad: Tensor, x: Tensor, size: torch.Size) -> Tensor:
        """Return the sums of the gradient's rows by index."""
        padding = -1 if self.padding_idx is None else self.padding_idx
        sums: Tensor = torch.ops.aten.embedding_dense_backward(grad, x, size[0], padding, self.scale_grad_by_freq)
        return sums

    def rows(self, out: Tensor) -> Tensor:
        """Return the output, which is a matrix."""
        return out

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return the rows, which are an output."""
        return rows

    def start(self, factors: Factors) -> Factors:
        """Return factors that leave the padding row alone."""
        if self.padding_idx is not None:
            factors.down[:, self.padding_idx] = 0
        return factors
