# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Which layers of a model get an adapter, and whether they can."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lowrank_swift._targets import check_targets, names_meant

from ._calls import is_bare
from ._errors import errors_naming
from ._layer import AdaptedLayer, adapted_layers
from .layers import SUPPORTED_LAYERS, LayerType, is_supported, layer_type_of

__all__ = [
    "Site",
    "adapted_sites",
    "check_name",
    "check_site",
    "check_unshared",
    "find_sites",
    "require_adapted",
    "sites_named",
]


@dataclass(frozen=True)
class Site:
    """A module of a model, where its parent holds it."""

    name: str
    parent: nn.Module
    attribute: str
    module: nn.Module

    @property
    def layer(self) -> nn.Module:
        """The layer to adapt."""
        return self.module.base if isinstance(self.module, AdaptedLayer) else self.module

    @property
    def layer_type(self) -> LayerType:
        """What describes the layer, which :func:`check_site` makes sure that something does."""
        return layer_type_of(self.layer)

    @property
    def weight(self) -> Tensor:
        """The weight's values, as the layer has them."""
        return cast(Tensor, self.layer.weight).detach()

    @property
    def matrix(self) -> Tensor:
        """The weight's values as a matrix ``[out, in]``, to be read."""
        return self.layer_type.matrix(self.weight)


def _walk(module: nn.Module, prefix: str = "") -> Iterator[Site]:
    """Yield all descendants, one site for each name that they have; adapted layers are leaves."""
    for attribute, child in module._modules.items():
        if child is not None:
            name = f"{prefix}{attribute}"
            yield Site(name, module, attribute, child)
            if not isinstance(child, AdaptedLayer):
                yield from _walk(child, f"{name}.")


def find_sites(model: nn.Module, targets: Sequence[str]) -> list[Site]:
    """Return the modules whose name equals a target or ends with ".target", in the model's order.

    Raises:
        TypeError: if the targets are no sequence.
        ValueError: if there is none, or one matches nothing, or a module that has several names.
    """
    check_targets(targets, "module name")
    sites = list(_walk(model))
    return _chosen(sites, names_meant(targets, [site.name for site in sites], "modules of the model"))


def sites_named(model: nn.Module, names: Collection[str]) -> list[Site]:
    """Return the modules with these qualified names, in the model's order.

    Raises:
        ValueError: if there is none of a name, or the module has several names.
    """
    sites = list(_walk(model))
    missing = set(names) - {site.name for site in sites}
    if missing:
        raise ValueError(f"model: expected a module {min(missing)!r}, got none of this name")
    return _chosen(sites, names)


def require_adapted(model: nn.Module) -> list[tuple[str, AdaptedLayer]]:
    """Return the adapted layers of a model by qualified name.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = list(adapted_layers(model))
    if not layers:
        raise ValueError("model: expected adapted layers, got a model without any")
    return layers


def adapted_sites(model: nn.Module) -> list[Site]:
    """Return where the adapted layers of a model are held.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has none, or is one itself, which nothing holds.
    """
    require_adapted(model)
    if isinstance(model, AdaptedLayer):
        raise ValueError("model: expected a model that holds adapted layers, got an adapted layer")
    return [site for site in _walk(model) if isinstance(site.module, AdaptedLayer)]


def _chosen(sites: Sequence[Site], wanted: Collection[str]) -> list[Site]:
    names_by_module: dict[int, list[str]] = {}
    for site in sites:
        names_by_module.setdefault(id(site.module), []).append(site.name)
    chosen = [site for site in sites if site.name in wanted]
    for site in chosen:
        shared = names_by_module[id(site.module)]
        if len(shared) > 1:
            raise ValueError(f"targets: expected modules with one name, got one that is shared as {', '.join(shared)}")
    return chosen


def check_name(name: object) -> None:
    """Refuse what can't be an adapter's name.

    Raises:
        ValueError: naming it.
    """
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"name: expected a name without a dot that torch.nn.ModuleDict leaves free, got {name!r}")


def check_site(site: Site, adapter_name: str, intact: bool) -> None:
    """Refuse a layer that an adapter does not fit, or whose weight something else computes with, leaving it out.

    Raises:
        ValueError: naming the layer.
    """
    layer = site.layer
    if not is_supported(layer):
        raise ValueError(f"targets: expected {SUPPORTED_LAYERS} modules, got {type(layer).__name__} at {site.name!r}")
    if isinstance(site.parent, nn.TransformerEncoderLayer):
        raise ValueError(
            f"targets: expected a layer that its parent calls, got {site.name!r}; in eval mode a "
            "torch.nn.TransformerEncoderLayer reads the weights itself"
        )
    if not is_bare(layer) or "weight" not in layer._parameters:
        raise ValueError(f"targets: expected layers without hooks or a replaced forward, got one at {site.name!r}")
    if site.weight.is_meta:
        raise ValueError(f"model: expected materialised weights, got one on the meta device at {site.name!r}")
    with errors_naming(site.name):
        layer_type_of(layer)
    if isinstance(site.module, AdaptedLayer):
        if site.module.merged_weight is not None:
            raise ValueError(f"model: expected layers that are not merged, got a merged one at {site.name!r}")
        others = dict(site.module.named_adapters())
        if adapter_name in others:
            raise ValueError(f"name: expected one that is free, got {adapter_name!r}, which {site.name!r} has")
        if not intact or not all(adapter.intact for adapter in others.values()):
            raise ValueError(
                f'base: expected "intact" for several adapters of a layer, got "residual" at {site.name!r}'
            )


def check_unshared(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse to change a weight whose memory is shared, by another parameter or buffer of the model or by itself.

    Raises:
        ValueError: naming the layer and what it is shared with.
    """
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    spans = {name: _span(tensor) for name, tensor in tensors.items() if tensor.layout is torch.strided}
    for site in sites:
        own = f"{site.name}.weight"
        begin, end = spans[own]
        if end - begin < site.weight.nbytes:
            raise ValueError(f'base: expected "intact" for a weight that overlaps itself, got "residual" for {own!r}')
        shared = [name for name, (first, last) in spans.items() if name != own and first < end and begin < last]
        if shared:
            raise ValueError(
                f'base: expected "intact" for a shared weight, got "residual" for {own!r}, which shares its memory '
                f"with {', '.join(shared)}"
            )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first address of a tensor's memory and the one after the last; an empty range where it has none."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0, 0
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()
