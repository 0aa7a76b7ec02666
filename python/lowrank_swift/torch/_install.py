# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Putting finished adapters into a model: all of them or, after an exception, none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import Factors

from ._adapter import Adapter
from ._base_product import BaseProduct, with_base_product
from ._errors import errors_naming
from ._layer import AdaptedLayer, adapted_layers
from ._sums import surely_fits
from ._targets import Site

__all__ = ["install"]


def install(
    model: nn.Module, sites: Sequence[Site], adapters: Sequence[Adapter], name: str, base_product: BaseProduct
) -> None:
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
            _check_residual(site, adapter)
    _subtract_starts(residual)
    own = {id(parameter) for _, layer in adapted_layers(model) for parameter in layer.adapters.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in own:
            parameter.requires_grad_(False)
    for site, adapter in zip(sites, adapters, strict=True):
        layer = site.module if isinstance(site.module, AdaptedLayer) else AdaptedLayer(site.layer)
        layer.layer_type = with_base_product(layer.layer_type, site.weight, base_product)
        layer.adapters[name] = adapter.train(layer.training)
        setattr(site.parent, site.attribute, layer)


def _check_residual(site: Site, adapter: Adapter) -> None:
    """Refuse a residual that does not fit, before any is written. Only where a bound does not tell is it computed."""
    start = adapter.start()
    if not surely_fits(site.weight, [start]):
        lrs.unmerge_(site.matrix.clone(), start.factors())


def _subtract_starts(pairs: Sequence[tuple[Site, Adapter]]) -> None:
    """Make every weight W the residual W - s B C A; what was done is undone if it can't be done for all."""
    done: list[tuple[Site, Adapter]] = []
    try:
        for site, adapter in pairs:
            _change(site, lrs.unmerge_, adapter)
            done.append((site, adapter))
    except BaseException:
        for site, adapter in done:
            _change(site, lrs.merge_, adapter)
        raise


def _change(site: Site, change: Callable[[Tensor, Factors], object], adapter: Adapter) -> None:
    start = adapter.start().factors()
    site.layer_type.change_(site.weight, lambda matrix: change(matrix, start))
