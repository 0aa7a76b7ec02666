# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Export to plain LoRA."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

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

__all__ = ["export_lora"]


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
    from safetensors.torch import save_file

    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")
    terms: dict[str, list[Term]] = {}
    types: dict[str, LayerType] = {}
    for site in adapted_sites(model):
        assert isinstance(site.module, AdaptedLayer)
        for own_name, adapter in site.module.named_adapters():
            if name is None or own_name == name:
                terms.setdefault(site.name, []).extend(adapter.change())
                types[site.name] = site.layer_type
    if not terms:
        raise ValueError(f"name: expected the name of an adapter of the model or None, got {name!r}")
    rank = max(sum(term.down.shape[0] for term in of_layer) for of_layer in terms.values())
    tensors: dict[str, Tensor] = {}
    with progress_bar("Exporting", len(types), progress) as advance:
        for layer, layer_type in types.items():
            with errors_naming(layer):
                factors = layer_type.lora_factors(*_lora_factors(terms[layer], rank, dtype))
            tensors |= dict(zip(lora_keys(layer, layer_type.lora_factor), factors, strict=True))
            advance()
    fan_in_fan_out = any(layer_type.fan_in_fan_out for layer_type in types.values())
    config = json.dumps(lora_config(list(terms), rank, fan_in_fan_out), indent=2) + "\n"
    with replacing_files(Path(folder), (LORA_TENSORS_FILE, LORA_CONFIG_FILE)) as (tensors_path, config_path):
        save_file(tensors, tensors_path, {"format": "pt"})
        config_path.write_text(config)


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
