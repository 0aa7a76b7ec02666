# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Putting finished adapters into a model: all of them or, after an exception, none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import LinAlgError

from ._adapter import Adapter
from ._errors import errors_naming
from ._linear import AdaptedLinear, adapted_layers
from ._targets import Site

__all__ = ["install"]


def install(model: nn.Module, sites: Sequence[Site], adapters: Sequence[Adapter], name: str) -> None:
    """Subtract the starts of adapters in residual form, freeze what the model had, and put adapted layers in place.

    The sites are checked. If an interrupt or a lack of memory stops the subtraction, what was subtracted is added
    again, which restores those weights to rounding.

    Raises:
        ValueError: if a start is not finite.
        LinAlgError: if a residual does not fit the base's dtype.
    """
    residual = [(site, adapter) for site, adapter in zip(sites, adapters, strict=True) if not adapter.intact]
    for site, adapter in residual:
        with errors_naming(site.name):
            _check_residual(site.weight, adapter)
    _subtract_starts([(site.weight, adapter) for site, adapter in residual])
    own = {id(parameter) for _, layer in adapted_layers(model) for parameter in layer.adapters.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in own:
            parameter.requires_grad_(False)
    for site, adapter in zip(sites, adapters, strict=True):
        layer = site.module if isinstance(site.module, AdaptedLinear) else AdaptedLinear(site.linear)
        layer.adapters[name] = adapter.train(layer.training)
        setattr(site.parent, site.attribute, layer)


def _check_residual(weight: Tensor, adapter: Adapter) -> None:
    """Refuse what does not fit; only the range of float16 is so small that a residual may leave it."""
    if weight.dtype is not torch.float16:
        return
    residual = lrs.unmerge_(weight.clone(), adapter.start().factors())
    if not residual.isfinite().all():
        raise LinAlgError("scale: expected a residual W - s B C A that fits float16, got one that does not")


def _subtract_starts(pairs: Sequence[tuple[Tensor, Adapter]]) -> None:
    """Make every weight W the residual W - s B C A; what was done is undone if it can't be done for all."""
    done: list[tuple[Tensor, Adapter]] = []
    try:
        for weight, adapter in pairs:
            lrs.unmerge_(weight, adapter.start().factors())
            done.append((weight, adapter))
    except BaseException:
        for weight, adapter in done:
            lrs.merge_(weight, adapter.start().factors())
        raise
