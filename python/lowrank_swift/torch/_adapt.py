# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Putting adapters into a model, and finding them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lowrank_swift import Factors, _native
from lowrank_swift._progress import progress_bar

from ._adapter import make_adapter
from ._base_product import BaseProduct, check_base_product
from ._errors import errors_naming
from ._install import install
from ._layer import adapted_layers
from ._targets import check_name, check_site, check_unshared, find_sites
from .methods import Method

__all__ = ["adapt", "named_adapters", "trainable_parameters"]


def adapt(
    model: nn.Module,
    method: Method,
    *,
    targets: Sequence[str],
    base: str = "intact",
    base_product: BaseProduct = "torch",
    name: str = "default",
    progress: bool | None = None,
) -> nn.Module:
    """Replace layers by the same layers with an adapter made from their own weight.

    The model computes what it computed before, exactly (LoLDU, LaMDA and LoRA-XS over an intact base) or to rounding,
    until the adapters' Parameters are trained. Every Parameter that the model had is frozen (``requires_grad=False``),
    those of earlier adapters excepted; a new head is to be made trainable afterwards.

    An adapted model can be converted (``half()``, ``bfloat16()``, ``double()``, ``to(dtype)``): base, frozen and
    trained factors take the new dtype, and what does not fit it becomes infinite, as in torch. LaMDA's B0 C0 stays
    float32 in 16 bits. Converted before training, LoLDU and LaMDA over an intact base still compute exactly what the
    converted pretrained model does; everything else is preserved to rounding. Trained factors are then 16-bit too,
    which loses small updates: a model that is converted before ``adapt`` has them in float32.

    Either all layers are adapted or, after an exception, none: everything that can fail is done first, and only then
    are residuals subtracted and layers replaced. If an interrupt or a lack of memory stops the subtraction itself, what
    was subtracted is added again, which restores those weights to rounding.

    Args:
        model (torch.nn.Module): on the CPU or CUDA devices; weights float32, float64, bfloat16 or float16.
            Modified.
        method (Method): :class:`OLoRA`, :class:`LoLDU`, :class:`LaMDA`, :class:`PiSSA` or :class:`LoRAXS` with its
            rank.
        targets (Sequence[str]): qualified names of modules, or their last parts: "query" stands for every module whose
            name is "query" or ends with ".query". The modules are ``torch.nn.Linear``, ``torch.nn.Embedding`` (its
            padding row stays as it is), ``torch.nn.Conv2d`` of one group, or ``Conv1D`` of transformers.
        base (str): "intact" leaves the base weights untouched, bit for bit. "residual" subtracts the start from them:
            W - s B C A, with the factors as stored.
        base_product (str): who computes the frozen product ``x W^T`` and its gradient ``g W``: "torch"; "openblas" on
            this package's threads, for ``torch.nn.Linear`` with float32 weight and input on the CPU and without
            autocast, torch for all else; or "auto": OpenBLAS where a fixed table of CPUs and shapes expects it to be
            faster. A merged or disabled layer computes with torch. How, not what: outputs agree to rounding, and
            :func:`save_adapter` does not save it. A layer that has adapters takes on the choice made last.
        name (str): the adapter's name; a layer can hold several, if all are "intact".
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.

    Returns:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if an argument or a weight's dtype has the wrong type.
        ValueError: if a target names nothing or a module of another type; a convolution has groups, or an embedding a
            ``max_norm``; a rank is missing or does not fit; a weight is not finite, not materialised or (for
            "residual") shared; the name is taken; a layer is merged; no layer can have its product from OpenBLAS.
        LinAlgError: if a factorisation fails, or a factor or residual does not fit the base's dtype.

    Example:
        >>> model = adapt(model, LoLDU(rank=64, alpha=64), targets=["query", "value"])
        >>> optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    """
    _check_arguments(model, method, base)
    check_name(name)
    intact = base == "intact"
    sites = find_sites(model, targets)
    ranks = [method.rank_of(site.name) for site in sites]
    _check_no_other_ranks(method, {site.name for site in sites})
    for site, rank in zip(sites, ranks, strict=True):
        check_site(site, name, intact)
        with errors_naming(site.name):
            _native.check_weight(site.matrix, rank)
    check_base_product(base_product, sites)
    if not intact:
        check_unshared(model, sites)

    adapters = []
    with progress_bar("Factorising", len(sites), progress) as advance:
        for site, rank in zip(sites, ranks, strict=True):
            with errors_naming(site.name):
                factors = site.layer_type.start(method.initialize(site.matrix, rank))
                adapter = make_adapter(factors, method.trains, intact=intact, frozen_dtype=site.weight.dtype)
            adapter.options = method.options()
            adapters.append(adapter)
            advance()
    install(model, sites, adapters, name, base_product)
    return model


def named_adapters(model: nn.Module) -> Iterator[tuple[str, Factors]]:
    """Yield the adapters of a model as live factors.

    Args:
        model (torch.nn.Module): an adapted model.

    Yields:
        tuple[str, Factors]: the layer's qualified name, and ``up``, ``core``, ``down`` and ``scale`` as the forward
        uses them; ``core`` is the value that the method means, not a stored deviation. Several adapters of one layer
        follow each other under the same name.
    """
    for name, layer in adapted_layers(model):
        for _, adapter in layer.named_adapters():
            yield name, adapter.factors()


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the adapters' Parameters that train, in the order of the model's layers.

    Args:
        model (torch.nn.Module): an adapted model.
    """
    return [
        parameter
        for _, layer in adapted_layers(model)
        for parameter in layer.adapters.parameters()
        if parameter.requires_grad
    ]


def _check_arguments(model: object, method: object, base: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(method, Method):
        raise TypeError(f"method: expected a method such as LoLDU(rank=64), got {method!r}")
    if base not in ("intact", "residual"):
        raise ValueError(f'base: expected "intact" or "residual", got {base!r}')


def _check_no_other_ranks(method: Method, names: set[str]) -> None:
    others = [] if isinstance(method.rank, int) else [name for name in method.rank if name not in names]
    if others:
        raise ValueError(f"rank: expected only names of modules that the targets name, got {others[0]!r}")
