# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The weight of a layer that PEFT has given adapters: its values, and the sum with adapters in its place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, cast

from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight, get_bnb_param_type
from torch import Tensor, nn

from lowrank_swift.torch._adapter import Term
from lowrank_swift.torch._sums import with_terms
from lowrank_swift.torch.layers import LayerType

__all__ = ["Weight", "dequantized", "weight_of"]


class Weight(Protocol):
    """A layer's weight, kept apart from the layer."""

    def merged(self, layer_type: LayerType, terms: Sequence[Term]) -> Weight:
        """Return the sum with terms, rounded once.

        Raises:
            ValueError: if a factor is not finite.
            LinAlgError: if the sum does not fit the weight's dtype.
        """
        ...

    def write(self, layer: nn.Module) -> None:
        """Make this the weight of a layer, which may have been moved or converted since."""
        ...


def weight_of(layer: nn.Module, *, quantized: bool) -> Weight:
    """Return the weight that a layer has.

    Raises:
        ValueError: if others than bitsandbytes have quantized it.
    """
    if not quantized:
        return _PlainWeight(cast(nn.Parameter, layer.weight))
    if not _is_bitsandbytes(layer):
        raise ValueError(
            "model: expected a base that is not quantized, or by bitsandbytes, to merge into, "
            f"got a {type(layer).__name__}"
        )
    return _BitsAndBytesWeight(layer)


def dequantized(layer: nn.Module) -> Tensor:
    """Return the values of a quantized layer's weight, without touching its state."""
    if _is_bitsandbytes(layer):
        return _BitsAndBytesWeight(layer).values()
    return dequantize_module_weight(layer).detach()


def _is_bitsandbytes(layer: nn.Module) -> bool:
    return bool(get_bnb_param_type(cast(nn.Parameter, layer.weight)))


class _PlainWeight:
    def __init__(self, weight: nn.Parameter) -> None:
        self._weight = weight

    def merged(self, layer_type: LayerType, terms: Sequence[Term]) -> Weight:
        return _PlainWeight(nn.Parameter(with_terms(layer_type, self._weight, terms), requires_grad=False))

    def write(self, layer: nn.Module) -> None:
        moved = self._weight.detach().to(cast(Tensor, layer.weight))
        is_same = moved.data_ptr() == self._weight.data_ptr()
        layer.weight = self._weight if is_same else nn.Parameter(moved, requires_grad=False)


class _BitsAndBytesWeight:
    def __init__(self, layer: nn.Module) -> None:
        self._weight: Any = layer.weight
        # Linear8bitLt's numbers and scales, and what Linear4bit finds its scales by.
        self._states = {name: getattr(layer, name) for name in ("state", "quant_state") if hasattr(layer, name)}

    def values(self) -> Tensor:
        # PEFT's function for layers registers the parameter again, which loses its 8-bit state and, where accelerate
        # makes parameters on the meta device, the weight itself.
        return dequantize_bnb_weight(self._weight, self._states.get("state")).detach()

    def merged(self, layer_type: LayerType, terms: Sequence[Term]) -> Weight:
        values = with_terms(layer_type, self.values(), terms).cpu()
        warnings.warn(
            "the sum of a quantized weight and adapters is quantized again, which changes outputs", stacklevel=4
        )
        old, other = self._weight, copy.copy(self)
        if "state" in self._states:
            made = type(old)(values, requires_grad=False, has_fp16_weights=old.has_fp16_weights)
            state = copy.copy(self._states["state"])
            state.reset_grads()
            other._states = {"state": state}
        else:
            options = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
            made = type(old)(values, requires_grad=False, **{name: getattr(old, name) for name in options})
        # Moving a new parameter from the CPU, also to the CPU, is what quantizes it.
        other._weight = made.to(old.device)
        if "quant_state" in self._states:
            other._states = {"quant_state": other._weight.quant_state}
        return other

    def write(self, layer: nn.Module) -> None:
        device = cast(Tensor, layer.weight).device
        layer.weight = self._weight
        for name, state in self._states.items():
            setattr(layer, name, state)
        if self._weight.device != device:
            layer.to(device)
