# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""This package in the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowrank_swift.torch import GradualFreeze
from lowrank_swift.torch._freeze import check_fraction

__all__ = ["GradualFreezeCallback"]


class GradualFreezeCallback(TrainerCallback):
    """LaMDA's gradual freezing in a Trainer: :class:`lowrank_swift.torch.GradualFreeze` with the Trainer's own counts.

    Optimizer steps, also under gradient accumulation, and their number come from the Trainer. A resumed training goes
    on where its checkpoint stands: the counts of frozen columns are saved with the adapter.

    Args:
        fraction (float): eta in [0, 1], the part of the training after which ``up`` is wholly frozen.

    Raises:
        TypeError: if ``fraction`` is no number.
        ValueError: if ``fraction`` is out of range; when the training begins, if no adapter of the model trains ``up``
            and ``core``.

    Example:
        >>> trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[GradualFreezeCallback()])
    """

    def __init__(self, fraction: float = 0.3) -> None:
        """Note the fraction; the rest comes from the Trainer."""
        check_fraction(fraction)
        self.fraction = fraction
        self.freeze: GradualFreeze | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin, or go on where the Trainer's state stands."""
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        self.freeze = GradualFreeze(model, state.max_steps, self.fraction, optimizer, steps=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze what is due after an optimizer step."""
        if self.freeze is not None:
            self.freeze.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the model."""
        self.freeze = None
