# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""This package in PEFT: LoLDU, LaMDA and OLoRA as PEFT methods, and PEFT's own OLoRA and PiSSA made fast.

Importing it makes the three known to PEFT, so every process that loads such an adapter has to.
"""

from __future__ import annotations

from ._config import LaMDAConfig, LoLDUConfig, LowRankConfig, OLoRAConfig
from ._export import export_lora
from ._fast_init import fast_init, install, uninstall
from ._model import LaMDAModel, LoLDUModel, OLoRAModel

__all__ = [
    "LaMDAConfig",
    "LaMDAModel",
    "LoLDUConfig",
    "LoLDUModel",
    "LowRankConfig",
    "OLoRAConfig",
    "OLoRAModel",
    "export_lora",
    "fast_init",
    "install",
    "uninstall",
]
