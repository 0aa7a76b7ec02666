# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LoRA-XS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import lowrank_swift as lrs
from lowrank_swift import Factors

from ._method import Method

__all__ = ["LoRAXS"]


@dataclass(frozen=True)
class LoRAXS(Method):
    """LoRA-XS (arXiv 2405.17604): frozen singular vectors of W around a square core, which starts at zero and trains.

    The start changes nothing, so both forms of the base are the same.

    Attributes:
        tol (float): bound on the residual norms of the singular triplets, over the largest singular value.
        seed (int): seed of the factorisation's random start.
    """

    tol: float = 1e-4
    seed: int = 0

    trains: ClassVar[frozenset[str]] = frozenset({"core"})

    def initialize(self, weight: Tensor, rank: int) -> Factors:
        """Return up = U_r diag(S_r), core = 0, down = V_r^T."""
        return lrs.lora_xs(weight, rank, scale=self.scale(rank), tol=self.tol, seed=self.seed)
