# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""How the numbers of the table are defined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["bytes_kept", "steps_to", "wilson_interval"]

_Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95% score interval of a proportion.

    Args:
        correct: Successes, `0 <= correct <= total`.
        total: Trials, at least 1.

    Raises:
        ValueError: if the counts are out of range.

    Reference: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"correct, total: expected 0 <= correct <= total and total >= 1, got {correct}, {total}")
    share, weight = correct / total, _Z95**2 / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def steps_to(goal: float, steps: Sequence[int], losses: Sequence[float]) -> int | None:
    """The first of `steps` whose loss is at most `goal`, None if there is none."""
    return next((step for step, loss in zip(steps, losses, strict=True) if loss <= goal), None)


def bytes_kept(model: nn.Module, compute_loss: Callable[[], torch.Tensor]) -> int:
    """Bytes of the unique storages that one forward saves for the backward, parameters and buffers left out.

    Args:
        model: Owner of the parameters and buffers.
        compute_loss: Runs the forward and returns what would be differentiated.
    """
    from torch.autograd.graph import saved_tensors_hooks

    own = {tensor.untyped_storage().data_ptr() for tensor in chain(model.parameters(), model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding the storages keeps their addresses from being used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        compute_loss()
    return sum(storage.nbytes() for storage in kept.values())
