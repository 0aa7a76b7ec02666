# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The command line's commands, one module each, and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

import lowrank_swift
from lowrank_swift.cli.bench import bench
from lowrank_swift.cli.demo import demo
from lowrank_swift.cli.info import info
from lowrank_swift.cli.ranks import ranks

__all__ = ["app"]

app = typer.Typer(
    help="Fine-tuning with the factors of the pretrained weight itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(bench)
app.command()(demo)
app.command()(info)
app.command()(ranks)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowrank_swift {lowrank_swift.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tuning with the factors of the pretrained weight itself."""
