# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What allocating ranks takes and returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ._arrays import Array

__all__ = ["RankAllocation", "Weights"]

Weights = Mapping[str, Array] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Matrices by name, or safetensors files that hold them."""


class RankAllocation(dict[str, int]):
    """Ranks by layer, as :class:`lowrank_swift.torch.LaMDA` takes them.

    Attributes:
        unspent (int): what is left of the budget: rank steps for ``mean_rank``, numbers for ``parameters``.
    """

    unspent: int = 0
