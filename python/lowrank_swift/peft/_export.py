# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Export of PEFT models to plain LoRA."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from lowrank_swift.torch._export import LayerChange, write_lora

from ._config import LowRankConfig
from ._layer import LowRankLayer

__all__ = ["export_lora"]


def export_lora(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    adapter_name: str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool | None = None,
) -> None:
    """Save what adapters have changed as plain LoRA over the pretrained model, for PEFT and LoRA servers.

    The same as :func:`lowrank_swift.torch.export_lora`, for a model of ``get_peft_model`` or one that transformers'
    ``add_adapter`` has put adapters into: exact but for rounding, without an SVD, with a scale of 1 and one rank for
    all layers; r for LoLDU and LaMDA, 2 r for OLoRA, and the sum for several adapters. What ``modules_to_save`` names
    is saved too, which servers may refuse.

    Args:
        model (torch.nn.Module): with adapters of this package, merged or not. Not modified.
        folder (str | os.PathLike): where ``adapter_config.json`` and ``adapter_model.safetensors`` go; made if need be.
        adapter_name (str | None): the adapter to export; None means the active ones, together.
        dtype (torch.dtype): of A and B.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.

    Raises:
        TypeError: if ``model`` is no module or ``dtype`` no floating-point dtype.
        ValueError: if the model has no adapter of this package and name; if a convolution has a dilation or a padding
            mode that PEFT's LoRA leaves out.
        LinAlgError: if a factor is not finite in ``dtype``.
        OSError: if the files can't be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = {name: module for name, module in root.named_modules() if isinstance(module, LowRankLayer)}
    if not layers:
        raise ValueError("model: expected layers with adapters of lowrank_swift.peft, got a model without any")
    changes: dict[str, LayerChange] = {}
    names: list[str] = []
    for layer_name, layer in layers.items():
        own = dict(layer.named_adapters(layer.active_adapters if adapter_name is None else [adapter_name]))
        if own:
            terms = [term for adapter in own.values() for term in adapter.change()]
            changes[layer_name] = LayerChange(layer.layer_type, terms)
            names.extend(name for name in own if name not in names)
    if not changes:
        expected = sorted({name for layer in layers.values() for name in layer.adapters})
        raise ValueError(f"adapter_name: expected one of {expected} or None, got {adapter_name!r}")
    config = cast(dict[str, LowRankConfig], root.peft_config)[names[0]]
    write_lora(
        changes,
        folder,
        dtype=dtype,
        progress=progress,
        tensors=_other_tensors(model, names, next(iter(layers.values()))),
        config={
            "base_model_name_or_path": config.base_model_name_or_path,
            "modules_to_save": _sorted(config.modules_to_save),
            "task_type": config.task_type,
        },
    )


def _other_tensors(model: nn.Module, adapter_names: Sequence[str], layer: LowRankLayer) -> dict[str, Tensor]:
    """Return what PEFT saves besides the adapters: ``modules_to_save`` and resized embeddings.

    Raises:
        ValueError: if several adapters have some, which one LoRA can't have.
    """
    found: dict[str, Tensor] = {}
    for name in adapter_names:
        state = get_peft_model_state_dict(model, adapter_name=name)
        own = {key: value for key, value in state.items() if f".{layer.adapters_key}." not in key}
        if found and own:
            raise ValueError("adapter_name: expected one of the adapters that have modules_to_save, got None")
        found |= own
    return {key if key.startswith("base_model.") else f"base_model.model.{key}": value for key, value in found.items()}


def _sorted(names: Sequence[str] | None) -> list[str] | None:
    return sorted(names) if names else None
