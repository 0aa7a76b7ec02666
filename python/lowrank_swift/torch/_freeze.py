# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""LaMDA's gradual freezing of ``up``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ._adapter import UpCoreAdapter

__all__ = ["GradualFreeze", "check_fraction"]


def check_fraction(fraction: object) -> None:
    """Refuse what is no part of a training.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is out of range.
    """
    if not isinstance(fraction, Real):
        raise TypeError(f"fraction: expected a number, got {fraction!r}")
    if not 0 <= float(fraction) <= 1:
        raise ValueError(f"fraction: expected a number in [0, 1], got {fraction}")


class GradualFreeze:
    """Freeze the columns of ``up`` step by step, from the largest singular value on.

    With T = ``total_steps`` and F = max(1, round(fraction * T)), after optimizer step t the first
    ``min(r, r * t // F)`` columns of every ``up`` that trains beside a core are frozen; with a fraction of 0 all are
    from the start, for which ``LaMDA(core_only=True)`` is the better way: it needs no schedule and stores what the core
    has changed. A frozen column gets no gradient and is bit for bit what it was, whatever momentum or weight decay the
    optimizer has. When an ``up`` is wholly frozen it stops requiring a gradient and its optimizer state is released.
    Where ``torch.distributed`` is initialised it goes on requiring one, which is zero, and keeps its state: the other
    processes wait for a gradient.

    Every call of :meth:`step` counts, also after an optimizer step that a ``GradScaler`` skipped.

    To continue a training, load the model's ``state_dict`` first and this object's after it.

    Args:
        model (torch.nn.Module): a model with adapters of this package, put there by :func:`adapt` or by PEFT. Those
            whose core trains are frozen.
        total_steps (int): T, optimizer steps (not micro-batches) in the whole training, at least 1.
        fraction (float): eta in [0, 1], the part of the training after which ``up`` is wholly frozen.
        optimizer (torch.optim.Optimizer | None): whose state is released. None means the optimizer that holds the
            Parameter when next it steps.
        steps (int): optimizer steps that were taken before, where a training is continued without this object's state.
            What the model says is frozen stays frozen.

    Raises:
        TypeError: if ``total_steps`` or ``steps`` is not an int, ``fraction`` no number or ``optimizer`` no optimizer.
        ValueError: if a number is out of range, or no adapter of the model trains ``up`` and ``core``.

    Example:
        >>> freeze = GradualFreeze(model, total_steps=1000)
        >>> for batch in batches:
        ...     loss(model, batch).backward()
        ...     optimizer.step()
        ...     freeze.step()
        ...     optimizer.zero_grad()

    Reference:
        LaMDA, https://arxiv.org/abs/2406.12832. The authors' code only zeroes gradients, so momentum and weight decay
        move its frozen columns, and it freezes at most 3 columns at this fraction.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        fraction: float = 0.3,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        steps: int = 0,
    ) -> None:
        if isinstance(total_steps, bool) or not isinstance(total_steps, int):
            raise TypeError(f"total_steps: expected an int, got {total_steps!r}")
        if total_steps < 1:
            raise ValueError(f"total_steps: expected at least 1, got {total_steps}")
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"steps: expected an int, got {steps!r}")
        if steps < 0:
            raise ValueError(f"steps: expected at least 0, got {steps}")
        check_fraction(fraction)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
        self.total_steps = total_steps
        self.fraction = fraction
        self.optimizer = optimizer
        self._steps = steps
        self._releases: list[_StateRelease] = []
        self._columns = [
            _FrozenColumns(module)
            for module in model.modules()
            if isinstance(module, UpCoreAdapter) and module.core.requires_grad
        ]
        if not self._columns:
            raise ValueError("model: expected an adapter that trains up and core, such as LaMDA's, got none")
        self._freeze()

    def step(self) -> None:
        """Restore what is frozen and freeze what is due. To be called after every ``optimizer.step()``."""
        for columns in self._columns:
            columns.restore()
        self._releases = [release for release in self._releases if not release.finish()]
        self._steps += 1
        self._freeze()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule and where it stands; the counts and the frozen values are in the model's."""
        return {"steps": self._steps, "total_steps": self.total_steps, "fraction": self.fraction}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that :meth:`state_dict` returned, after the model's was loaded.

        Raises:
            ValueError: if an entry is missing or unknown, or the model's frozen columns are not those of this state.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"state: expected the entries {sorted(self.state_dict())}, got {sorted(state)}")
        for columns in self._columns:
            frozen, due = int(columns.adapter.frozen_columns), self._due(columns.rank, **state)
            if frozen != due:
                raise ValueError(
                    f"model: expected {due} frozen columns after {state['steps']} steps, got {frozen}; load the "
                    "model's state_dict before this one"
                )
        self._steps, self.total_steps, self.fraction = state["steps"], state["total_steps"], state["fraction"]
        self._columns = [_FrozenColumns(columns.adapter) for columns in self._columns]
        self._freeze()

    @staticmethod
    def _due(rank: int, steps: int, total_steps: int, fraction: float) -> int:
        if fraction == 0:
            return rank
        return min(rank, rank * steps // max(1, round(fraction * total_steps)))

    def _freeze(self) -> None:
        retired = []
        for columns in self._columns:
            if columns.freeze(max(columns.at_start, self._due(columns.rank, **self.state_dict()))):
                retired.append(columns.adapter.up)
        if retired and self.optimizer is None:
            self._releases.append(_StateRelease(retired))
        elif self.optimizer is not None:
            for parameter in retired:
                self.optimizer.state.pop(parameter, None)


class _FrozenColumns:
    """The leading columns of one adapter's ``up`` that are frozen, and a copy of them."""

    def __init__(self, adapter: UpCoreAdapter) -> None:
        self.adapter = adapter
        self.rank = adapter.up.shape[1]
        self.at_start = int(adapter.frozen_columns)
        self.count = 0
        self.copy: Tensor | None = None

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what an optimizer did to the frozen columns without a gradient."""
        if self.copy is not None:
            self.adapter.up[:, : self.count].copy_(self.copy[:, : self.count])

    @torch.no_grad()
    def freeze(self, count: int) -> bool:
        """Freeze the first ``count`` columns, at least what is frozen; True when the Parameter has just retired."""
        up = self.adapter.up
        if count > self.count:
            if self.copy is None or self.copy.dtype is not up.dtype:
                self.copy = up.clone()  # The model may have been converted since.
            self.copy[:, self.count : count].copy_(up[:, self.count : count])
            self.count = count
            self.adapter.frozen_columns.fill_(count)
        if self.count < self.rank or not up.requires_grad or _is_distributed():
            return False
        up.requires_grad_(False)
        self.adapter.up_retired = True
        up.grad = None
        self.copy = None
        return True


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _StateRelease:
    """Drops the state of retired parameters in the optimizer that next steps with them. Keeps no parameter alive."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._waiting = [weakref.ref(parameter) for parameter in parameters]
        self._handle = register_optimizer_step_post_hook(self)

    def __call__(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for reference in list(self._waiting):
            parameter = reference()
            if parameter is not None and id(parameter) in held:
                optimizer.state.pop(parameter, None)
            if parameter is None or id(parameter) in held:
                self._waiting.remove(reference)

    def finish(self) -> bool:
        """Remove the hook if it has done its work. Not for the hook itself to do: torch is iterating over all then."""
        if not self._waiting:
            self._handle.remove()
        return not self._waiting
