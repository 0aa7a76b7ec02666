# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Merging adapters into weights, and taking them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from lowrank_swift._progress import progress_bar

from ._adapter import Term
from ._errors import errors_naming
from ._layer import AdaptedLayer
from ._sums import surely_fits, with_terms
from ._targets import Site, adapted_sites, require_adapted

__all__ = ["merge", "unadapt", "unmerge"]


def merge(model: nn.Module, *, keep_base: bool = True, progress: bool | None = None) -> nn.Module:
    """Make every adapted layer compute with one weight: the base's plus all of its adapters.

    The sum is taken in float32 (float64 over a float64 base) and rounded once. All layers are merged or, after an
    error, none. A weight that the layer shares with another one stays as it is there.

    Args:
        model (torch.nn.Module): an adapted model. Modified.
        keep_base (bool): True keeps base and adapters beside the merged weight, so that :func:`unmerge` restores the
            model bit for bit; they are what ``state_dict``, :func:`save_adapter` and :func:`export_lora` hold. What
            the adapters learn while the layer is merged has no effect, and they get no gradient. False leaves plain
            layers, frozen, without adapters: save or export them first. It takes memory for one layer at a time; if an
            interrupt or a lack of memory stops it between two layers, each is merged or as it was, which computes the
            same, and another call merges the rest.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.

    Returns:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no adapted layer, or merged ones already; if it is one itself and ``keep_base`` is False;
            if a factor is not finite.
        LinAlgError: if a merged weight does not fit the base's dtype.
    """
    layers = require_adapted(model)
    sites = [] if keep_base else adapted_sites(model)
    merged = [name for name, layer in layers if layer.merged_weight is not None]
    if merged:
        raise ValueError(f"model: expected layers that are not merged, got a merged one at {merged[0]!r}")
    if not keep_base:
        _replace_by_base(sites, AdaptedLayer.terms, "Merging", progress)
        return model
    weights = []
    with progress_bar("Merging", len(layers), progress) as advance:
        for name, layer in layers:
            with errors_naming(name):
                weights.append(with_terms(layer.layer_type, layer.base_weight, layer.terms()))
            advance()
    for (_, layer), weight in zip(layers, weights, strict=True):
        layer.merged_weight = weight
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Undo :func:`merge`: the layers compute with base and adapters again, which are bit for bit what they were.

    Args:
        model (torch.nn.Module): a model that was merged with ``keep_base=True``. Modified.

    Returns:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no merged layer, as after ``merge(model, keep_base=False)``.
    """
    merged = [layer for _, layer in require_adapted(model) if layer.merged_weight is not None]
    if not merged:
        raise ValueError("model: expected merged layers, got none")
    for layer in merged:
        layer.merged_weight = None
    return model


def unadapt(model: nn.Module, *, progress: bool | None = None) -> nn.Module:
    """Remove all adapters: the model gets its own layers back, which compute the pretrained function.

    Over an intact base that is bit for bit; a residual gets back what was subtracted, which restores it to rounding.
    The Parameters stay frozen. Either all layers are restored or, after an error, none; if an interrupt or a lack of
    memory stops it between two layers, another call restores the rest.

    Args:
        model (torch.nn.Module): an adapted model, merged or not. Modified.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.

    Returns:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no adapted layer, or is one itself.
        LinAlgError: if a restored weight does not fit the base's dtype.
    """
    _replace_by_base(adapted_sites(model), AdaptedLayer.pretrained_terms, "Restoring", progress)
    return model


def _replace_by_base(
    sites: Sequence[Site],
    terms_of: Callable[[AdaptedLayer], Sequence[Term]],
    description: str,
    progress: bool | None,
) -> None:
    """Put the bases in place of the adapted layers, with terms added to their weights: none if one does not fit."""
    layers = [cast(AdaptedLayer, site.module) for site in sites]
    for site, layer in zip(sites, layers, strict=True):
        terms = terms_of(layer)
        with errors_naming(site.name):
            if terms and not surely_fits(layer.base_weight, terms):
                with_terms(layer.layer_type, layer.base_weight, terms)
    with progress_bar(description, len(sites), progress) as advance:
        for site, layer in zip(sites, layers, strict=True):
            terms = terms_of(layer)
            if terms:
                weight = with_terms(layer.layer_type, layer.base_weight, terms)
                layer.base.weight = nn.Parameter(weight, requires_grad=False)
            setattr(site.parent, site.attribute, layer.base)
            advance()
