# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift info`."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import lowrank_swift

__all__ = ["collect_info", "info"]

_LIBRARIES = ("numpy", "torch", "peft", "transformers", "safetensors")
_VARIABLES = ("LOWRANK_ISA", "LOWRANK_THREADS", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_WIDTH = 120  # of output that isn't a terminal's


def collect_info() -> dict[str, Any]:
    """Return what a report of a problem should hold, as JSON values; imports none of the libraries that it names."""
    native = lowrank_swift.show_config("dicts")
    assert native is not None
    return {
        "lowrank_swift": native.pop("version"),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "processors": len(os.sched_getaffinity(0)),
        **native,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of a table.")] = False,
) -> None:
    """Show versions, CPU, instruction set, BLAS and threads: what to add to a report of a problem.

    Threads are those of this process, which does not load torch; in a process that does, its OpenMP threads are used.
    """
    facts = collect_info()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(facts):
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False).print(table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table: a row for each fact, nested ones under names of their own."""
    rows = []
    for name, value in facts.items():
        label = name.replace("_", " ") if name != "lowrank_swift" else name
        if name == "libraries":
            rows += [(library, version or "not installed") for library, version in value.items()]
        elif name == "environment":
            rows += [(variable, setting) for variable, setting in value.items()]
        else:
            text = ", ".join(value) if isinstance(value, list) else "not in use" if value is None else str(value)
            rows.append((label, text))
    return rows


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Return the CPU's name as the kernel knows it; not every architecture's kernel tells one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
