# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The dtype that sums are taken in."""

from __future__ import annotations

import torch

__all__ = ["working_dtype"]


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return float64 if one of the dtypes is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
