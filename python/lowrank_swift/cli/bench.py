# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift bench`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["bench"]

_LIBRARIES = ("torch", "numpy", "peft", "transformers", "matplotlib")
_SKEWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_WIDTH = 160  # of output that isn't a terminal's


def bench(
    rows: Annotated[
        str, typer.Option(help="Comma-separated names of rows, such as olora_, freezing or wrapping; empty for all.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, to see that everything works.")] = False,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of each contender.")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="Time after which a contender is run no more.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch and of lowrank_swift.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and growth.png.")] = None,
) -> None:
    """Time this package beside PEFT and torch, and check every result against float64 first.

    Prints a row for each comparison as it comes, with the time that memory bandwidth or arithmetic alone would take.
    """
    _restart_without(_SKEWING)
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        _stop(f'The benchmark needs {", ".join(missing)}; install with: pip install "lowrank_swift[demo]"', code=1)
    from lowrank_swift.benchmarks.measure import use_threads
    from lowrank_swift.benchmarks.run import BenchmarkError
    from lowrank_swift.benchmarks.run import bench as run_bench

    if threads is not None:
        use_threads(threads)
    names = [name.strip() for name in rows.split(",") if name.strip()]
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    try:
        status = run_bench(names, out, console, quick=quick, repetitions=repetitions, seconds=seconds)
    except BenchmarkError as error:
        _stop(str(error), code=2)
    raise typer.Exit(status)


def _restart_without(variables: tuple[str, ...]) -> None:
    """Run this process anew where OpenBLAS, which is loaded by now, was told to take another CPU's kernels."""
    found = [name for name in variables if name in os.environ]
    if found:
        typer.echo(f"{' and '.join(found)} would make OpenBLAS run as on another CPU: unset for this run", err=True)
        environment = {name: value for name, value in os.environ.items() if name not in variables}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _stop(message: str, *, code: int) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(code)
