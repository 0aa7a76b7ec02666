# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Merging adapters into weights, and taking them away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import lowrank_swift as lrs
from lowrank_swift import LinAlgError

from ._adapter import Term
from ._errors import errors_naming
from ._precision import working_dtype
from ._targets import Site, adapted_sites, require_adapted

__all__ = ["merge", "unadapt", "unmerge"]


def merge(model: nn.Module, *, keep_base: bool = True) -> nn.Module:
    """Make every adapted layer compute with one weight: the base's plus all of its adapters.

    The sum is taken in float32 (float64 over a float64 base) and rounded once. All layers are merged or, after an
    exception, none: all weights are computed before the first is used, which takes memory for a copy of the adapted
    weights, also without ``keep_base``. A weight that the layer shares with another one stays as it is there.

    Args:
        model (torch.nn.Module): an adapted model. Modified.
        keep_base (bool): True keeps base and adapters beside the merged weight, so that :func:`unmerge` restores the
            model bit for bit; they are what ``state_dict``, :func:`save_adapter` and :func:`export_lora` hold. What
            the adapters learn while the layer is merged has no effect, and they get no gradient. False leaves plain
            ``torch.nn.Linear`` layers, frozen, without adapters: save or export them first.

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
    weights = []
    for name, layer in layers:
        with errors_naming(name):
            weights.append(_with_terms(layer.base.weight, layer.terms()))
    for (_, layer), weight in zip(layers, weights, strict=True):
        if keep_base:
            layer.merged_weight = weight
        else:
            layer.base.weight = nn.Parameter(weight, requires_grad=False)
    _replace_by_base(sites)
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


def unadapt(model: nn.Module) -> nn.Module:
    """Remove all adapters: the model gets its own layers back, which compute the pretrained function.

    Over an intact base that is bit for bit; a residual gets back what was subtracted, which restores it to rounding.
    The Parameters stay frozen. Either all layers are restored or, after an exception, none.

    Args:
        model (torch.nn.Module): an adapted model, merged or not. Modified.

    Returns:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no adapted layer, or is one itself.
        LinAlgError: if a restored weight does not fit the base's dtype.
    """
    sites = adapted_sites(model)
    restored = []
    for name, layer in require_adapted(model):
        terms = layer.pretrained_terms()
        if terms:
            with errors_naming(name):
                restored.append((layer, _with_terms(layer.base.weight, terms)))
    for layer, weight in restored:
        layer.base.weight = nn.Parameter(weight, requires_grad=False)
    _replace_by_base(sites)
    return model


@torch.no_grad()
def _with_terms(weight: Tensor, terms: Sequence[Term]) -> Tensor:
    """Return the weight plus terms as a new tensor of the weight's dtype.

    Raises:
        LinAlgError: if a finite entry becomes one that is not.
    """
    total = weight.detach().to(working_dtype(weight.dtype), copy=True)
    for term in terms:
        lrs.merge_(total, term.factors())
    result = total.to(weight.dtype)
    if not (result.isfinite() | ~weight.isfinite()).all():
        raise LinAlgError(f"weight: expected a sum with the adapter that fits {weight.dtype}, got one that does not")
    return result


def _replace_by_base(sites: Sequence[Site]) -> None:
    for site in sites:
        setattr(site.parent, site.attribute, site.linear)
