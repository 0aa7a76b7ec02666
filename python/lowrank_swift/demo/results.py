# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What was measured, and the figures that the table shows of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from lowrank_swift.demo.data import Corpus, Split
from lowrank_swift.demo.metrics import steps_to, wilson_interval
from lowrank_swift.demo.model import ModelSource
from lowrank_swift.demo.settings import Settings

__all__ = ["REFERENCE", "Results", "Run", "Summary"]

REFERENCE = "lora"
"""The method whose final training loss the others race to."""


@dataclass(frozen=True, slots=True)
class Run:
    """One method with one seed.

    Args:
        seed: Of the split, the head, the batches.
        initialisation_seconds: To make the encoder trainable, its factorisations included.
        parameters_at_start: Trainable parameters of the encoder (the head apart) at the first step.
        parameters_at_end: The same after the last step.
        updates: Numbers of the encoder with a gradient other than zero, summed over the steps.
        bytes_kept: For the backward, on the widest training batch.
        losses: Of every step, before its update.
        step_seconds: Wall time of every step.
        probe_steps: After how many steps the loss on a fixed sample of the training texts was measured.
        probe_losses: That loss, the training loss by which methods are compared.
        correct: Test texts classified rightly.
        tested: Test texts.
    """

    seed: int
    initialisation_seconds: float
    parameters_at_start: int
    parameters_at_end: int
    updates: int
    bytes_kept: int
    losses: list[float]
    step_seconds: list[float]
    probe_steps: list[int]
    probe_losses: list[float]
    correct: int
    tested: int

    @property
    def accuracy(self) -> float:
        """Share of the test texts classified rightly."""
        return self.correct / self.tested


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the table, over all seeds of a method.

    Args:
        initialisation_seconds: Median over the seeds.
        parameters_at_start: As in `Run`.
        parameters_at_end: As in `Run`.
        updates: Median over the seeds.
        accuracy: Mean over the seeds.
        interval: 95% Wilson interval with one seed; mean minus and plus one standard deviation with several.
        final_loss: Mean over the seeds of the last training loss on the probe.
        steps_to_reference: Median over the seeds of the first measured step at which the training loss on the probe is
            at most the reference's last one; None if there is no reference, or a seed that never got there.
        step_seconds: Median over all steps of all seeds.
        bytes_kept: Largest of the seeds.
    """

    initialisation_seconds: float
    parameters_at_start: int
    parameters_at_end: int
    updates: float
    accuracy: float
    interval: tuple[float, float]
    final_loss: float
    steps_to_reference: float | None
    step_seconds: float
    bytes_kept: int


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that the demo reports.

    Args:
        settings: The options.
        source: The model.
        corpus: The texts.
        split: The first seed's.
        ranks: Of each method, None where it has none.
        runs: Of each method, by seed.
        command: The command line.
    """

    settings: Settings
    source: ModelSource
    corpus: Corpus
    split: Split
    ranks: dict[str, int | None]
    runs: dict[str, list[Run]]
    command: list[str]

    def summary(self, method: str) -> Summary:
        """The method's row of the table."""
        runs = self.runs[method]
        accuracies = [run.accuracy for run in runs]
        accuracy = statistics.fmean(accuracies)
        if len(runs) == 1:
            interval = wilson_interval(runs[0].correct, runs[0].tested)
        else:
            spread = statistics.stdev(accuracies)
            interval = accuracy - spread, accuracy + spread
        return Summary(
            initialisation_seconds=statistics.median(run.initialisation_seconds for run in runs),
            parameters_at_start=runs[0].parameters_at_start,
            parameters_at_end=runs[0].parameters_at_end,
            updates=statistics.median(run.updates for run in runs),
            accuracy=accuracy,
            interval=interval,
            final_loss=statistics.fmean(run.probe_losses[-1] for run in runs),
            steps_to_reference=self._steps_to_reference(runs),
            step_seconds=statistics.median(seconds for run in runs for seconds in run.step_seconds),
            bytes_kept=max(run.bytes_kept for run in runs),
        )

    def _steps_to_reference(self, runs: list[Run]) -> float | None:
        references = self.runs.get(REFERENCE)
        if references is None:
            return None
        steps = []
        for run, reference in zip(runs, references, strict=True):
            reached = steps_to(reference.probe_losses[-1], run.probe_steps, run.probe_losses)
            if reached is None:
                return None
            steps.append(reached)
        return statistics.median(steps)
