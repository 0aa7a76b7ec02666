# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Which layers of a model PEFT may be given adapters for, and how their weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lowrank_swift.torch._calls import is_bare
from lowrank_swift.torch.layers import SUPPORTED_LAYERS, LayerType, is_supported, layer_type_of
from lowrank_swift.torch.layers.conv2d import Conv2d
from lowrank_swift.torch.layers.linear import Linear

from ._weight import dequantized

__all__ = ["BaseLayer", "check_parent"]


@dataclass(frozen=True)
class BaseLayer:
    """What a layer is to an adapter.

    Attributes:
        layer_type (LayerType): how its weight is a matrix, and what it computes with it.
        quantized (bool): whether its weight has to be dequantized to be read.
    """

    layer_type: LayerType
    quantized: bool

    @classmethod
    def of(cls, layer: nn.Module) -> BaseLayer:
        """Describe a layer.

        Raises:
            ValueError: if it is of a type that can't be adapted, or has an option that an adapter does not fit.
        """
        if is_supported(layer):
            return cls(layer_type_of(layer), quantized=False)
        if isinstance(layer, nn.Linear):
            return cls(Linear(layer.in_features), quantized=type(layer.weight) is not nn.Parameter)
        raise ValueError(f"target_modules: expected {SUPPORTED_LAYERS} modules, got a {type(layer).__name__}")

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a linear one."""
        return isinstance(self.layer_type, Linear)

    @property
    def takes_dropout(self) -> bool:
        """Whether the layer's input is of numbers, and not of indices."""
        return isinstance(self.layer_type, Linear | Conv2d)

    def is_plain(self, layer: nn.Module) -> bool:
        """Return whether the layer computes what its type says, and nothing watches or replaces its call."""
        return is_supported(layer) and is_bare(layer)

    def weight(self, layer: nn.Module) -> Tensor:
        """Return the weight's values as the layer has them, dequantized if need be."""
        return dequantized(layer) if self.quantized else cast(Tensor, layer.weight).detach()

    def frozen_dtype(self, layer: nn.Module) -> torch.dtype:
        """Return the dtype for frozen factors: float32 over a quantized base, else the weight's."""
        return torch.float32 if self.quantized else cast(Tensor, layer.weight).dtype

    def matrix_shape(self, layer: nn.Module) -> tuple[int, int]:
        """Return the outputs and inputs of the weight's matrix."""
        if self.quantized:
            return cast(int, layer.out_features), cast(int, layer.in_features)
        rows, columns = self.layer_type.matrix(cast(Tensor, layer.weight).detach()).shape
        return rows, columns


def check_parent(parent: nn.Module) -> None:
    """Refuse the layers of a module that reads their weights without calling them.

    Raises:
        ValueError: naming the module.
    """
    if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        raise ValueError(
            f"target_modules: expected layers that their parent calls, got one of a torch.nn.{type(parent).__name__}, "
            "which reads the weights itself"
        )
