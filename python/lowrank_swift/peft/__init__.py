# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""This package in PEFT: PEFT's own OLoRA and PiSSA made fast."""

from __future__ import annotations

from ._fast_init import fast_init, install, uninstall

__all__ = ["fast_init", "install", "uninstall"]
