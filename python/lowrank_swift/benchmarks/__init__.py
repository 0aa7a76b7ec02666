# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift bench`: this package beside PEFT and torch, every result checked before it is timed."""

from __future__ import annotations
