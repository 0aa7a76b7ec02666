# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""OLoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors

from ._method import Method

__all__ = ["OLoRA"]


@dataclass(frozen=True)
class OLoRA(Method):
    """OLoRA (arXiv 2406.01775): ``up`` and ``down`` start as the leading factors of W = Q R, and both train."""

    trains: ClassVar[frozenset[str]] = frozenset({"up", "down"})

    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return up = Q[:, :r], down = R[:r]."""
        return lrs.olora(weight, rank, scale=self.scale(rank))
