# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The plot of the loss curves."""

from __future__ import annotations

import statistics
from typing import IO

from lowrank_swift.demo.methods import METHODS
from lowrank_swift.demo.results import REFERENCE, Results

__all__ = ["draw_losses"]


def draw_losses(results: Results, file: IO[bytes]) -> None:
    """Draw every method's training loss on the probe, the mean over its seeds, and write a PNG.

    Our methods are solid lines, the others dashed.

    Args:
        results: What was measured.
        file: Receives the image.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator

    figure = Figure(figsize=(10, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    order = sorted(results.runs, key=lambda key: results.summary(key).final_loss, reverse=True)
    for key in order:
        curves = [run.probe_losses for run in results.runs[key]]
        mean = [statistics.fmean(losses) for losses in zip(*curves, strict=True)]
        steps = results.runs[key][0].probe_steps
        method, summary = METHODS[key], results.summary(key)
        axes.plot(
            steps,
            mean,
            color=METHODS[key].colour,
            linestyle="-" if method.ours else (0, (5, 2)),
            linewidth=2.2 if method.ours else 1.6,
            label=f"{method.label}\nloss {mean[-1]:.2f}, accuracy {summary.accuracy:.3f}",
        )
        if len(curves) > 1:
            low, high = [min(x) for x in zip(*curves, strict=True)], [max(x) for x in zip(*curves, strict=True)]
            axes.fill_between(steps, low, high, color=METHODS[key].colour, alpha=0.15, linewidth=0)
    if REFERENCE in results.runs:
        goal = results.summary(REFERENCE).final_loss
        axes.axhline(goal, color="#666666", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{METHODS[REFERENCE].label} ends here",
            (0.01, goal),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color="#666666",
            fontsize=9,
        )
    axes.set_title(f"Which package is this docstring from?  {results.source.name}", loc="left", fontsize=11)
    axes.set_xlabel(f"step (batch {results.settings.batch_size})")
    axes.set_yscale("log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FormatStrFormatter("%.2g"))
    axes.set_ylabel("loss on a fixed sample of the training texts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, loc="outside right upper", labelspacing=1.2, title="at the end", alignment="left")
    figure.savefig(file, format="png")
