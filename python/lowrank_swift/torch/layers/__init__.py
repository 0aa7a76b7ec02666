# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The types of layers that take adapters, one small file each."""

from __future__ import annotations

from torch import nn

from ._layer_type import LayerType, TermGradients
from .conv2d import Conv2d
from .embedding import Embedding
from .linear import Conv1D, Linear

__all__ = ["SUPPORTED_LAYERS", "LayerType", "TermGradients", "is_supported", "layer_type_of"]

# By name, so that transformers need not be imported. A subclass may compute anything, so it is none of these.
_TYPES: dict[str, type[LayerType]] = {
    "torch.nn.modules.conv.Conv2d": Conv2d,
    "torch.nn.modules.linear.Linear": Linear,
    "torch.nn.modules.sparse.Embedding": Embedding,
    "transformers.pytorch_utils.Conv1D": Conv1D,
}

SUPPORTED_LAYERS = "torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d or transformers' Conv1D"


def _name(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def is_supported(layer: nn.Module) -> bool:
    """Return whether a layer is of one of the types."""
    return _name(layer) in _TYPES


def layer_type_of(layer: nn.Module) -> LayerType:
    """Return what describes a layer of one of the types.

    Raises:
        ValueError: if it has an option that an adapter does not fit.
    """
    return _TYPES[_name(layer)].of(layer)
