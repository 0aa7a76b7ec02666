# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Putting finished adapters into a model: all of them or, after an exception, none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import lowrank_swift as lrs

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
    """Refuse a residual that does not fit, before any is written. Only where a bound does not tell is it computed."""
    start = adapter.start().factors()
    bound = abs(start.scale) * start.down.shape[0] ** 2
    for factor in (start.up, start.core, start.down):
        bound *= 1.0 if factor is None else float(torch.linalg.vector_norm(factor, torch.inf))
    if not bound + float(torch.linalg.vector_norm(weight, torch.inf)) < torch.finfo(weight.dtype).max / 2:
        lrs.unmerge_(weight.detach().clone(), start)


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
