# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The methods, one small file each."""

from __future__ import annotations

from ._method import Method, Option, check_alpha, check_rank
from .lamda import LaMDA
from .loldu import LoLDU
from .lora_xs import LoRAXS
from .olora import OLoRA
from .pissa import PiSSA

__all__ = ["LaMDA", "LoLDU", "LoRAXS", "Method", "OLoRA", "Option", "PiSSA", "check_alpha", "check_rank"]
