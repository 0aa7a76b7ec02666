# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rows: how the cost grows with the rank and with the size, and their plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .initializers import TRUNCATED, olora_in_place_case
from .table import Line, Row, Session, time_case

__all__ = ["draw", "rows"]

RANKS = (4, 8, 16, 32, 64, 128, 256)
SIDES = (512, 1024, 2048, 4096, 8192, 16384)
BY_RANK, BY_SIZE = "olora_ by rank", "olora_ by size"


def _points(name: str, points: Sequence[tuple[int, int]]) -> Row:
    def run(session: Session) -> Iterator[Line]:
        for side, rank in points:
            n = session.side(side)
            case = olora_in_place_case(n, n, min(rank, n), torch.float32, with_peft=False)
            what = f"{n}x{n} r={min(rank, n)} float32"
            for line in time_case(session, name, what, case, {}):
                line.detail["side"], line.detail["rank"] = n, min(rank, n)  # type: ignore[index]
                yield line

    return Row("growth", name, run)


def rows() -> Iterator[Row]:
    """Yield the rows."""
    yield _points(BY_RANK, [(4096, rank) for rank in RANKS])
    yield _points(BY_SIZE, [(side, 32) for side in SIDES])


def draw(lines: Sequence[Line], path: Path) -> None:
    """Plot the growth that was measured, if it was."""
    curves = {name: [line for line in lines if line.row == name] for name in (BY_RANK, BY_SIZE)}
    if not any(curves.values()):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, points), (key, label) in zip(
        figure.subplots(1, 2), curves.items(), (("rank", "rank r"), ("side", "rows and columns n")), strict=True
    ):
        where = [line.detail[key] for line in points]
        axes.loglog(where, [line.theirs for line in points], "o-", label=TRUNCATED, color="tab:orange")
        axes.loglog(where, [line.ours for line in points], "o-", label="lowrank_swift", color="tab:blue")
        floors = [line.floor for line in points if line.floor is not None]
        axes.loglog(where, floors, "--", label="floor", color="gray")
        axes.set_title(name)
        axes.set_xticks(where, [str(each) for each in where])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("milliseconds")
        axes.legend()
    figure.savefig(path, dpi=150)
