# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapters in PyTorch models: frozen layers that compute with factors of their own pretrained weight."""

from __future__ import annotations

from ._adapt import adapt, named_adapters, trainable_parameters
from ._disable import disabled
from ._export import export_lora
from ._files import load_adapter, save_adapter
from ._freeze import GradualFreeze
from ._merge import merge, unadapt, unmerge
from ._ranks import allocate_ranks
from ._summary import print_trainable_parameters
from .methods import LaMDA, LoLDU, LoRAXS, OLoRA, PiSSA

__all__ = [
    "GradualFreeze",
    "LaMDA",
    "LoLDU",
    "LoRAXS",
    "OLoRA",
    "PiSSA",
    "adapt",
    "allocate_ranks",
    "disabled",
    "export_lora",
    "load_adapter",
    "merge",
    "named_adapters",
    "print_trainable_parameters",
    "save_adapter",
    "trainable_parameters",
    "unadapt",
    "unmerge",
]
