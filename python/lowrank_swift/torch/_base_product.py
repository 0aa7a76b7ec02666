# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Who computes the products of a frozen linear layer: torch, or OpenBLAS on the threads of this package."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lowrank_swift import _native

from ._ops import base_product_
from ._targets import Site
from .layers import LayerType
from .layers.linear import Linear

__all__ = ["BaseProduct", "check_base_product", "with_base_product"]

BaseProduct = Literal["torch", "openblas", "auto"]


class _Rule(NamedTuple):
    """From where on OpenBLAS is expected to take less time than torch's MKL, by a margin.

    Attributes:
        side: both sides of the weight, at least.
        rows: of the input, at least; for a few of them MKL has kernels of its own.
        share: entries of the result, of at least 1024 rows, for each of the machine's processors: the smaller the
            slices, the more often parts of the operands are copied.
    """

    side: int
    rows: int
    share: int


_SLICE_ROWS = 1024

# What "auto" goes by: the vendor of the CPU and the kernels that OpenBLAS has chosen for it. On all others, such as
# Intel's, MKL is expected to be at least as fast.
_RULES = {
    ("amd", "Zen"): _Rule(side=2048, rows=16, share=1024 * 1024),
    ("amd", "Cooperlake"): _Rule(side=1024, rows=16, share=1024 * 256),
    ("amd", "SkylakeX"): _Rule(side=1024, rows=16, share=1024 * 256),
}


@dataclass(frozen=True)
class OpenBLASLinear(Linear):
    """A ``torch.nn.Linear`` beside whose adapters OpenBLAS computes ``x W^T + bias`` and ``g W``, where it can.

    Attributes:
        rows (int): of the input, from which on it does.
        entries (int): of the result, taken for at least 1024 rows, from which on it does.
    """

    rows: int = 0
    entries: int = 0

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer computes without adapters; that is torch's."""
        return Linear(self.in_features).plain(x, weight, bias)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x W^T + bias``."""
        if not self._takes(x, weight, bias):
            return super().operate(x, weight, bias)
        out = x.new_empty(x.shape[0], weight.shape[0])
        base_product_(x, weight, bias, out)
        return out

    def input_gradient(self, grad: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return ``g W``."""
        if not self._takes(grad, weight, None):
            return super().input_gradient(grad, weight, size)
        out = grad.new_empty(size)
        base_product_(grad, weight.T, None, out)
        return out

    def _takes(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        rows, width = x.shape[0], weight.shape[0] + weight.shape[1] - x.shape[1]
        return (
            rows >= self.rows
            and max(rows, _SLICE_ROWS) * width >= self.entries
            and not torch.is_autocast_enabled("cpu")
            and all(_is_plain(tensor) for tensor in (x, weight, bias) if tensor is not None)
        )


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is float32 memory; a subclass that wraps other tensors computes in its own way."""
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu" and not hasattr(tensor, "__tensor_flatten__")


def check_base_product(base_product: object, sites: Sequence[Site]) -> None:
    """Refuse what is none of the choices, and "openblas" where no layer can use it.

    Raises:
        ValueError: naming the choices, or why a layer can't.
    """
    if not isinstance(base_product, str) or base_product not in get_args(BaseProduct):
        *others, last = (f'"{choice}"' for choice in get_args(BaseProduct))
        raise ValueError(f"base_product: expected {', '.join(others)} or {last}, got {base_product!r}")
    if base_product == "openblas" and not any(_can_serve(site) for site in sites):
        site = sites[0]
        weight = f"{str(site.weight.dtype).removeprefix('torch.')} on {site.weight.device.type}"
        raise ValueError(
            'base_product: expected among the targets for "openblas" a torch.nn.Linear of float32 on the CPU, '
            f"got none; {site.name!r} is a {site.layer_type.name} of {weight}"
        )


def _can_serve(site: Site) -> bool:
    return site.layer_type.name == Linear.name and _is_plain(site.weight)


def with_base_product(layer_type: LayerType, weight: Tensor, base_product: BaseProduct) -> LayerType:
    """Return what describes a layer whose products are computed so, torch's for all types but linear layers."""
    if layer_type.name != Linear.name:
        return layer_type
    columns = weight.shape[1]
    if base_product == "openblas":
        return OpenBLASLinear(columns)
    rule = _rule() if base_product == "auto" else None
    if rule is None or min(weight.shape) < rule.side:
        return Linear(columns)
    return OpenBLASLinear(columns, rule.rows, rule.share * (os.cpu_count() or 1))


def _rule() -> _Rule | None:
    """Return the row of the table for this machine; torch's product is not always MKL's."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    config = json.loads(_native.config())
    return _RULES.get((config["cpu_vendor"], config["blas_core"]))
