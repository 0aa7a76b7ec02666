# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Export to plain LoRA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_swift import LinAlgError
from lowrank_swift._atomic import replacing_files
from lowrank_swift._progress import progress_bar

from ._adapter import Term
from ._errors import errors_naming
from ._format import LORA_CONFIG_FILE, LORA_TENSORS_FILE, lora_config, lora_keys
from ._layer import AdaptedLayer
from ._ops import effective_up
from ._precision import working_dtype
from ._targets import adapted_sites
from .layers import LayerType

__all__ = ["LayerChange", "export_lora", "write_lora"]


def export_lora(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool | None = None,
) -> None:
    """Save what the adapters have changed as plain LoRA over the pretrained model, for PEFT and LoRA servers.

    The pretrained model with this LoRA computes what ``model`` does, to rounding, in a process without this package;
    that goes for the residual form too, whose residual is not needed. All is in the factors A and B: the scale is 1 and
    the rank one for all layers, smaller ones being filled up with zeros. An adapter whose ``down`` is frozen keeps its
    rank r, one whose ``down`` trains takes 2 r, and several on a layer take the sum.

    Args:
        model (torch.nn.Module): an adapted model, named as the pretrained one. Not modified.
        folder (str | os.PathLike): where ``adapter_config.json`` and ``adapter_model.safetensors`` go; made if need be.
        name (str | None): the adapter to export; None means all, together.
        dtype (torch.dtype): of A and B.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.

    Raises:
        TypeError: if ``model`` is no module or ``dtype`` no floating-point dtype.
        ValueError: if the model has no adapted layer, is one itself, or has no adapter of this name; if a convolution
            has a dilation or a padding mode that PEFT's LoRA leaves out.
        LinAlgError: if a factor is not finite in ``dtype``.
        OSError: if the files can't be written.
    """
    changes: dict[str, LayerChange] = {}
    for site in adapted_sites(model):
        assert isinstance(site.module, AdaptedLayer)
        adapters = [adapter for own_name, adapter in site.module.named_adapters() if name in (None, own_name)]
        if adapters:
            changes[site.name] = LayerChange(site.layer_type, [term for each in adapters for term in each.change()])
    if not changes:
        raise ValueError(f"name: expected the name of an adapter of the model or None, got {name!r}")
    write_lora(changes, folder, dtype=dtype, progress=progress)


class LayerChange(NamedTuple):
    """What adapters have changed in a layer."""

    layer_type: LayerType
    terms: Sequence[Term]


def write_lora(
    changes: Mapping[str, LayerChange],
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    progress: bool | None,
    tensors: Mapping[str, Tensor] = MappingProxyType({}),
    config: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write changes of layers, by the layers' names, as plain LoRA; further tensors and entries of the configuration.

    Raises:
        TypeError: if ``dtype`` is no floating-point dtype.
        ValueError: if PEFT's LoRA computes something else for one of the layers.
        LinAlgError: if a factor is not finite in ``dtype``.
        OSError: if the files can't be written.
    """
    from safetensors.torch import save_file

    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")
    rank = max(sum(term.down.shape[0] for term in change.terms) for change in changes.values())
    tensors = dict(tensors)
    with progress_bar("Exporting", len(changes), progress) as advance:
        for name, (layer_type, terms) in changes.items():
            with errors_naming(name):
                factors = layer_type.lora_factors(*_lora_factors(terms, rank, dtype))
            tensors |= dict(zip(lora_keys(name, layer_type.lora_factor), factors, strict=True))
            advance()
    fan_in_fan_out = any(change.layer_type.fan_in_fan_out for change in changes.values())
    entries = {**lora_config(list(changes), rank, fan_in_fan_out), **config}
    with replacing_files(Path(folder), (LORA_TENSORS_FILE, LORA_CONFIG_FILE)) as (tensors_path, config_path):
        save_file(tensors, tensors_path, {"format": "pt"})
        config_path.write_text(json.dumps(entries, indent=2) + "\n")


@torch.no_grad()
def _lora_factors(terms: Sequence[Term], rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A [rank, n] and B [m, rank] whose product is the sum of the terms."""
    working = working_dtype(dtype, *(tensor.dtype for term in terms for tensor in (term.up, term.down)))
    (rows, _), (_, columns) = terms[0].up.shape, terms[0].down.shape
    a, b = torch.zeros(rank, columns, dtype=dtype), torch.zeros(rows, rank, dtype=dtype)
    begin = 0
    for term in terms:
        factors = term.factors(working)
        end = begin + factors.down.shape[0]
        a[begin:end] = factors.down
        b[:, begin:end] = factors.scale * effective_up(factors.up, factors.core, None)
        begin = end
    for factor, letter in ((a, "A"), (b, "B")):
        if not factor.isfinite().all():
            raise LinAlgError(f"{letter}: expected numbers that are finite in {dtype}, got others")
    return a, b
