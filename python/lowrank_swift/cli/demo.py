# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift demo`."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowrank_swift.demo.methods import METHODS
from lowrank_swift.demo.settings import DemoError, Settings

__all__ = ["demo"]

_DEFAULTS = Settings()
_LIBRARIES = ("torch", "transformers", "peft", "matplotlib")
_WIDTH = 120  # of output that isn't a terminal's


def demo(
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = _DEFAULTS.steps,
    rank: Annotated[int | None, typer.Option(help="One rank for all adapters instead of each method's own.")] = None,
    methods: Annotated[
        str, typer.Option(help=f"Comma-separated, among {', '.join(METHODS)}.", metavar="NAMES")
    ] = ",".join(_DEFAULTS.methods),
    seeds: Annotated[int, typer.Option(help="Number of seeds to run.")] = _DEFAULTS.seeds,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = _DEFAULTS.out,
    model: Annotated[
        str | None, typer.Option(help="Local folder or hub id of an encoder instead of the installed all-MiniLM-L6-v2.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = _DEFAULTS.batch_size,
    max_length: Annotated[int, typer.Option(help="Tokens kept of a text.")] = _DEFAULTS.max_length,
) -> None:
    """Fine-tune a pretrained transformer by several methods and compare what each costs and gives.

    The task is to tell from which package of the Python standard library a docstring comes.
    """
    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    try:
        settings = Settings(steps, rank, names, seeds, out, model, batch_size, max_length)
        missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
        if missing:
            _stop(f'The demo needs {", ".join(missing)}; install with: pip install "lowrank_swift[demo]"', code=1)
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch)\.")  # nothing that the user could act on
        from lowrank_swift.demo.experiment import run_demo

        console = Console(width=None if sys.stdout.isatty() else _WIDTH)
        run_demo(settings, console, ["lowrank-swift", *sys.argv[1:]])
    except DemoError as error:
        _stop(str(error), code=2)


def _stop(message: str, *, code: int) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(code)
