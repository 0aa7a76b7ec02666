# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The picture of a rank allocation."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any

from lowrank_swift._allocation import LayerSpectrum

__all__ = ["draw_ranks", "grid_of"]

_COLOURS = "viridis"
_MOST_NUMBERS_IN_CELLS = 600


def grid_of(names: Sequence[str]) -> tuple[list[str], list[str], dict[str, tuple[int, int]]]:
    """Arrange layers in a grid: a row for each block, a column for each kind of module in it.

    The block is the first number in a name and what stands before it, the module what stands behind it. Layers without
    a number make up the last row.

    Args:
        names: Of the layers, in order.

    Returns:
        The rows' labels, the columns' labels, and the (row, column) of each layer.
    """
    split = {}
    for name in names:
        match = re.fullmatch(r"(?:(.*?)\.)??(\d+)(?:\.(.*))?", name)
        split[name] = (match[1] or "", match[2], match[3] or "") if match else ("", "", name)
    stacks = dict.fromkeys(stack for stack, number, _ in split.values() if number)
    blocks = list(dict.fromkeys((stack, number) for stack, number, _ in split.values() if number))
    blocks += [("", "")] if any(not number for _, number, _ in split.values()) else []
    modules = list(dict.fromkeys(module for _, number, module in split.values() if number))
    modules += dict.fromkeys(module for _, number, module in split.values() if not number and module not in modules)
    labels = [number if len(stacks) == 1 or not number else f"{stack}.{number}" for stack, number in blocks]
    cells = {
        name: (blocks.index((stack, number) if number else ("", "")), modules.index(module))
        for name, (stack, number, module) in split.items()
    }
    return labels, modules, cells


def draw_ranks(ranks: Mapping[str, int], spectra: Mapping[str, LayerSpectrum], file: IO[bytes]) -> None:
    """Draw the ranks as a heat map of blocks and modules, and how the energy of each weight decays, as a PNG.

    Both are coloured by rank; the dots show where each layer's rank ends.

    Args:
        ranks: By layer, at least one.
        spectra: By layer, known as far as its rank at least.
        file: Receives the image.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns, cells = grid_of(list(ranks))
    width, height = max(3.0, 0.55 * len(columns)) + 7.0, min(16.0, max(5.0, 0.3 * len(rows) + 2.4))
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(max(3.0, 0.55 * len(columns)), 5.0))
    left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    image = _draw_map(left, ranks, rows, columns, cells)
    ticks = MaxNLocator(integer=True)
    figure.colorbar(image, ax=left, location="left", label="rank", fraction=0.05, pad=0.02, ticks=ticks)
    _draw_spectra(right, ranks, spectra, image)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    mean = sum(ranks.values()) / len(ranks)
    least, most = min(ranks.values()), max(ranks.values())
    figure.suptitle(f"{len(ranks)} layers, ranks from {least} to {most}, {mean:.1f} on average", fontsize=11)
    figure.savefig(file, format="png")


def _draw_map(
    axes: Any,
    ranks: Mapping[str, int],
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[str, tuple[int, int]],
) -> Any:
    values = [[math.nan] * len(columns) for _ in rows]
    for name, (row, column) in cells.items():
        values[row][column] = ranks[name]
    image = axes.imshow(values, cmap=_COLOURS, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    every = max(1, math.ceil(len(rows) / 60))
    axes.set_yticks(range(0, len(rows), every), [label or "-" for label in rows[::every]], fontsize=8)
    axes.set_ylabel("block")
    axes.set_facecolor("#eeeeee")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(cells) <= _MOST_NUMBERS_IN_CELLS:
        for name, (row, column) in cells.items():
            colour = "black" if image.norm(ranks[name]) > 0.6 else "white"
            axes.text(column, row, str(ranks[name]), ha="center", va="center", color=colour, fontsize=7.5)
    return image


def _draw_spectra(axes: Any, ranks: Mapping[str, int], spectra: Mapping[str, LayerSpectrum], image: Any) -> None:
    longest = max(2 * max(ranks.values()), 8)
    for name in sorted(ranks, key=lambda name: ranks[name]):
        spectrum, rank = spectra[name], ranks[name]
        if spectrum.norm == 0:
            continue
        squares = ((value / spectrum.norm) ** 2 for value in spectrum.values[:longest])
        left = [1.0, *(max(0.0, 1.0 - share) for share in itertools.accumulate(squares))]
        colour = image.cmap(image.norm(rank))
        axes.plot(range(len(left)), left, color=colour, linewidth=1.0, alpha=0.7)
        axes.plot([rank], [left[rank]], "o", color=colour, markersize=4, markeredgecolor="black", markeredgewidth=0.4)
    axes.set_xlim(0, longest)
    axes.set_ylim(0, 1)
    axes.set_xlabel("k")
    axes.set_ylabel("share of ||W||² beyond the first k singular values")
    axes.set_title("decay of each layer's spectrum; the dot is its rank", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
