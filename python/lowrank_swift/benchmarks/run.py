# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Runs the rows, prints each as it comes, and writes the record."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import adapters, freezing, growth, initializers, models, pissa, wrapping
from .floor import Machine
from .measure import environment
from .table import BenchmarkError, Line, Row, Session, WrongResult

__all__ = ["BenchmarkError", "all_rows", "chosen_rows", "run_rows", "write_record"]

_WIDTHS = (34, 38, 11, 9, 28, 11, 9, 11, 9)
_HEADER = ("row", "what", "ours", "floor", "peer", "its", "ratio", "goal", "err/lim")


def all_rows() -> list[Row]:
    """Return all rows in the order of the table."""
    modules = (initializers, pissa, adapters, models, growth, freezing, wrapping)
    return list(chain.from_iterable(module.rows() for module in modules))


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """Return the rows with the names, all of them for none.

    Raises:
        BenchmarkError: if a name is no row's.
    """
    rows = all_rows()
    known = list(dict.fromkeys(row.name for row in rows))
    for name in names:
        if name not in known:
            raise BenchmarkError(f"rows: expected names among {', '.join(known)}, got {name!r}")
    return [row for row in rows if not names or row.name in names]


def check_build(facts: dict[str, Any]) -> None:
    """Refuse to time a library that was built for debugging.

    Raises:
        BenchmarkError: if it was.
    """
    if facts["build"] != "release":
        raise BenchmarkError("lowrank_swift was built for debugging: its times mean nothing")


def run_rows(rows: Sequence[Row], session: Session, console: Console) -> tuple[list[Line], list[str]]:
    """Run the rows; return their lines, and the rows whose results were wrong, which were not timed."""
    lines: list[Line] = []
    wrong: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redirected output has no bar, which would be one more line for every refresh.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(rows))
        _print(console, _HEADER)
        for row in rows:
            progress.update(task, description=escape(f"{row.name}, {row.what}"))
            try:
                for line in row.run(session):
                    if session.is_quick:  # The goals are those of the full shapes.
                        line = replace(line, goal=None)
                    lines.append(line)
                    _print(console, _cells(line))
                    if line.explanation:
                        console.print(f"    {line.explanation}", style="dim", markup=False, highlight=False)
            except WrongResult as error:
                wrong.append(f"{row.name}: {error}")
                console.print(f"WRONG, not timed: {row.name}: {error}", style="red", markup=False, highlight=False)
            progress.advance(task)
    return lines, wrong


def _cells(line: Line) -> tuple[str, ...]:
    goal = "" if line.goal is None else f"{line.goal}{' ok' if line.is_reached else ' NOT'}"
    return (
        line.row,
        line.what,
        _number(line.ours, line.unit),
        "" if line.floor is None else _number(line.floor, ""),
        line.peer,
        _number(line.theirs, line.unit),
        f"{line.ratio:.3g}",
        goal,
        "" if line.error is None else f"{line.error:.2g}",
    )


def _number(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if unit == "bytes" or abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def _print(console: Console, cells: Sequence[str]) -> None:
    padded = (
        cell.ljust(width) if i in (0, 1, 4) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    console.print(" ".join(padded).rstrip(), markup=False, highlight=False, soft_wrap=True)


def write_record(
    folder: Path, facts: dict[str, Any], session: Session, lines: Sequence[Line], wrong: list[str]
) -> Path:
    """Write ``bench.json``, and ``growth.png`` where growth was measured; return the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "environment": facts,
        "machine": session.machine.record(),
        "quick": session.is_quick,
        "repetitions": session.repetitions,
        "wrong": wrong,
        "lines": [line.record() for line in lines],
    }
    path = folder / ("bench-quick.json" if session.is_quick else "bench.json")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    growth.draw(lines, path.with_name(path.stem.replace("bench", "growth") + ".png"))
    return path


def bench(
    names: Sequence[str], out: Path | None, console: Console, *, quick: bool, repetitions: int, seconds: float
) -> int:
    """Run the benchmark; 0, or 1 where a result was wrong.

    Raises:
        BenchmarkError: if a row is unknown or lacks what it needs, or the library is a debug build.
    """
    rows = chosen_rows(names)
    facts = environment()
    check_build(facts)
    for row in rows:
        row.needs()
    session = Session(Machine.measured(quick=quick), repetitions, seconds, quick)
    machine = session.machine
    console.print(
        f"{facts['cpu']}, {facts['instruction_set']}; threads: {facts['torch_threads']} (torch), {facts['threads']} "
        f"({facts['thread_team']}); {facts['blas']}\n"
        f"copy {machine.bytes_per_second / 1e9:.1f} GB/s, sgemm {machine.flops_per_second / 1e9:.0f} GFLOP/s; "
        f"lowrank_swift {facts['lowrank_swift']}, torch {facts['torch']}, PEFT {facts['peft']}\n"
        "ratio: how many times longer the peer takes; of overheads, bytes, updates (M: 1e6), errors and losses: ours "
        "over the peer's",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    lines, wrong = run_rows(rows, session, console)
    reached = [line.is_reached for line in lines if line.goal is not None]
    console.print(f"{sum(map(bool, reached))} of {len(reached)} goals reached, {len(wrong)} rows wrong", markup=False)
    if out is not None:
        console.print(f"wrote {write_record(out, facts, session, lines, wrong)}", markup=False, highlight=False)
    return int(bool(wrong))
