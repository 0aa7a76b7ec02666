# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Times the initializers beside their peers, checks every result in the same run, and writes JSON.

    python python/benchmarks/run.py --out results.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from initializers import Row, rows
from measure import Timing, environment, time_side_by_side, use_threads
from rich.console import Console
from rich.progress import track
from rich.table import Table

SHAPES = {
    "small": [(384, 384, 16), (1536, 384, 64)],
    "4096": [(4096, 4096, 32)],
    "11008": [(11008, 4096, 64)],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(
    shapes: Annotated[str, typer.Option(help=f"Comma-separated groups of shapes: {', '.join(SHAPES)}.")] = "small,4096",
    dtypes: Annotated[str, typer.Option(help=f"Comma-separated dtypes: {', '.join(DTYPES)}.")] = "float32,bfloat16",
    names: Annotated[str, typer.Option(help="Comma-separated rows, such as olora_; empty for all.")] = "",
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of each contender.")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="Time after which a slow contender is run no more.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of lowrank_swift.")] = torch.get_num_threads(),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the initializers beside their peers."""
    console = Console()
    chosen = [shape for group in _chosen(shapes, SHAPES) for shape in SHAPES[group]]
    wanted = [name for name in names.split(",") if name]
    use_threads(threads)
    facts = environment()
    if facts["build"] != "release":
        raise SystemExit("lowrank_swift was built for debugging: its times mean nothing")
    results = []
    todo = rows(chosen, [DTYPES[name] for name in _chosen(dtypes, DTYPES)])
    for row in track(todo, "Timing", console=Console(stderr=True)):
        if not wanted or row.name in wanted:
            results.append(_result(row, repetitions, seconds))
    if not results:
        raise typer.BadParameter(f"no row is called {names}", param_hint="--names")
    console.print(_table(results))
    record = {"environment": facts, "command": sys.argv, "rows": results}
    if out is not None:
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(out)
        console.print(f"written to {out}")
    if any(result["error"] > result["limit"] for result in results):
        raise SystemExit("a result is not within its limit: its time means nothing")


def _chosen(names: str, known: dict) -> list[str]:
    chosen = [name for name in names.split(",") if name]
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(f"expected names among {', '.join(known)}, got {name!r}")
    return chosen


def _result(row: Row, repetitions: int, seconds: float) -> dict:
    error = row.error()  # Before it is timed.
    timings = time_side_by_side(
        {"lowrank_swift": row.ours, **row.peers}, before=row.before, repetitions=repetitions, seconds_each=seconds
    )
    return {
        "name": row.name,
        "shape": list(row.weight.shape),
        "dtype": str(row.weight.dtype).removeprefix("torch."),
        "rank": row.rank,
        "error": error,
        "limit": row.limit,
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "ratios": {name: timing.median / timings["lowrank_swift"].median for name, timing in timings.items()},
    }


def _table(results: list[dict]) -> Table:
    table = Table(title="Median milliseconds, and how many times longer the peer takes")
    for column, justify in (
        ("call", "left"),
        ("error / limit", "right"),
        ("ms", "right"),
        ("peer", "left"),
        ("its ms", "right"),
        ("ratio", "right"),
    ):
        table.add_column(column, justify=justify, no_wrap=True)
    for result in results:
        timings = {name: Timing(**values) for name, values in result["milliseconds"].items()}
        own = timings.pop("lowrank_swift")
        call = "{} {}x{} r={} {}".format(result["name"], *result["shape"], result["rank"], result["dtype"])
        first = (call, f"{result['error'] / result['limit']:.2g}", f"{own.median:.2f}")
        for peer, timing in timings.items():
            table.add_row(*first, peer, f"{timing.median:.2f}", f"{result['ratios'][peer]:.1f}")
            first = ("", "", "")
        table.add_section()
    return table


if __name__ == "__main__":
    typer.run(main)
