# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The demo's results as a table, one line in words, a plot and a JSON file."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import platform
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Group
from rich.padding import Padding
from rich.table import Table

from lowrank_swift.demo.data import Corpus, Split
from lowrank_swift.demo.methods import METHODS
from lowrank_swift.demo.model import ModelSource
from lowrank_swift.demo.plot import draw_losses
from lowrank_swift.demo.results import REFERENCE, Results, Summary
from lowrank_swift.demo.settings import DemoError
from lowrank_swift.demo.train import HEAD_LEARNING_RATE

__all__ = ["introduction", "prepare_folder", "table", "updates", "verdict", "write_atomically", "write_files"]

_CAPTION = (
    "adapter params: trainable, the head's apart, first → last step. Steps to LoRA's loss: the first step at which "
    "the loss on 64 training texts is down to LoRA's final one. Kept: unique storages saved for the backward "
    "of the widest batch, parameters and buffers apart."
)
_LIBRARIES = ("torch", "transformers", "peft", "numpy", "matplotlib")


def introduction(source: ModelSource, corpus: Corpus, split: Split, layers: int) -> Group:
    """Model, data and class balance, as printed before the runs."""
    balance = split.balance()
    largest = max(train + test for train, test in balance.values()) / len(corpus.docstrings)
    cells = [f"[bold]{package}[/] {train}/{test}" for package, (train, test) in balance.items()]
    return Group(
        f"[bold]Model[/]  {source.name}, {layers} linear layers adapted",
        f"[bold]Task[/]   Which of {len(corpus.packages)} standard library packages is this docstring from? "
        f"{len(corpus.docstrings)} texts, {len(split.train)} to train, {len(split.test)} to test, "
        "no function in both.",
        f"       The largest class holds {largest:.1%}; {corpus.naming_share:.0%} of the texts name their package. "
        "Texts to train/test:",
        Padding(Columns(cells, equal=True, padding=(0, 2)), (0, 0, 1, 7)),
    )


def table(results: Results) -> Table:
    """One row for each method."""
    several = results.settings.seeds > 1
    title = f"{results.settings.steps} steps of {results.settings.batch_size} texts"
    grid = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=_CAPTION)
    grid.title_justify = grid.caption_justify = "left"
    grid.add_column("method", no_wrap=True)
    grid.add_column("rank", justify="right")
    grid.add_column("adapter\nparams", justify="right")
    grid.add_column("init\ntime", justify="right")
    interval = f"± spread, {results.settings.seeds} seeds" if several else "[95% CI]"
    grid.add_column(f"test accuracy\n{interval.replace('[', chr(92) + '[')}", justify="right")
    grid.add_column("steps to\nLoRA's loss", justify="right")
    grid.add_column("step\ntime", justify="right")
    grid.add_column("kept for\nbackward", justify="right")
    for key in results.runs:
        row = results.summary(key)
        low, high = row.interval
        spread = f"± {(high - low) / 2:.3f}" if several else rf"\[{low:.3f}, {high:.3f}]"
        grid.add_row(
            f"[bold]{METHODS[key].label}[/]" if METHODS[key].ours else METHODS[key].label,
            str(results.ranks[key] or "-"),
            _parameters(row),
            _seconds(row.initialisation_seconds),
            f"{row.accuracy:.3f} {spread}",
            _steps(row, results),
            _seconds(row.step_seconds),
            _megabytes(row.bytes_kept),
        )
    return grid


def verdict(results: Results) -> str:
    """Who won and where ours lose, in words, from the measured numbers alone."""
    rows = {key: results.summary(key) for key in results.runs}
    winner = max(rows, key=lambda key: rows[key].accuracy)
    low = rows[winner].interval[0]
    near = [METHODS[key].label for key in rows if key != winner and rows[key].accuracy >= low]
    line = f"Best accuracy: {METHODS[winner].label}, {rows[winner].accuracy:.3f}"
    line += f"; within its interval: {', '.join(near)}." if near else "; no other is within its interval."
    if REFERENCE in rows:
        lost = [
            f"{METHODS[key].label}: {', '.join(_losses_to(rows[REFERENCE], row)) or 'nowhere'}"
            for key, row in rows.items()
            if METHODS[key].ours
        ]
        line += f" Where ours lose to {METHODS[REFERENCE].label}: {'; '.join(lost)}." if lost else ""
    return line


def updates(results: Results) -> str:
    """How many numbers each method updated over the training, against the reference's; empty without that."""
    rows = {key: results.summary(key) for key in results.runs}
    if REFERENCE not in rows:
        return ""
    reference = rows.pop(REFERENCE).updates
    others = [
        f"{METHODS[key].label} {reference / row.updates:.3g} times fewer"
        if row.updates <= reference
        else f"{METHODS[key].label} {row.updates / reference:.3g} times as many"
        for key, row in rows.items()
        if row.updates
    ]
    line = f"Numbers updated, summed over the steps: {METHODS[REFERENCE].label} {reference / 1e6:.1f} million"
    return "; ".join([line, *others]) + "."


def write_files(results: Results) -> list[Path]:
    """Write `results.json` and `loss-curves.png` into the output folder.

    Returns:
        The paths written.

    Raises:
        DemoError: if the folder can't be written.
    """
    image = io.BytesIO()
    draw_losses(results, image)
    text = json.dumps(_finite(_record(results)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    files = {"results.json": text.encode(), "loss-curves.png": image.getvalue()}
    with _writing(results.settings.out):
        return [write_atomically(results.settings.out / name, content) for name, content in files.items()]


def prepare_folder(folder: Path) -> None:
    """Make the output folder and see that it can be written, before the long part.

    Raises:
        DemoError: if it can't.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name beside it and rename it, so that it is whole or isn't there.

    Raises:
        OSError: if the folder can't be written; no temporary file is left.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DemoError(f"--out: {folder} can't be written ({error.strerror or error})") from error


def _losses_to(reference: Summary, row: Summary) -> list[str]:
    """The table's columns in which a method does worse than the reference."""
    lost = []
    if row.accuracy < reference.accuracy:
        lost.append(f"accuracy ({row.accuracy:.3f} against {reference.accuracy:.3f})")
    if row.steps_to_reference is None:
        lost.append("training loss (never reaches its final one)")
    figures: list[tuple[str, Callable[[Summary], float], Callable[[float], str]]] = [
        ("trainable parameters", lambda s: s.parameters_at_start, lambda n: f"{n:,.0f}"),
        ("init time", lambda s: s.initialisation_seconds, _seconds),
        ("step time", lambda s: s.step_seconds, _seconds),
        ("bytes kept", lambda s: s.bytes_kept, _megabytes),
    ]
    for name, figure, shown in figures:
        mine, theirs = shown(figure(row)), shown(figure(reference))
        if figure(row) > figure(reference) and mine != theirs:
            lost.append(f"{name} ({mine} against {theirs})")
    return lost


def _record(results: Results) -> dict[str, Any]:
    settings = dataclasses.asdict(results.settings)
    return {
        "schema": 1,
        "command": shlex.join(results.command),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verdict": verdict(results),
        "settings": settings | {"out": str(results.settings.out)},
        "training": f"AdamW, no weight decay, no dropout, linear warm-up and decay, head at {HEAD_LEARNING_RATE}",
        "definitions": {
            "steps_to_reference": "first of probe_steps at which the loss on a fixed sample of training texts is at "
            f"most {METHODS[REFERENCE].label}'s last one; null if never, or without that method",
            "interval": "95% Wilson interval with one seed, mean -+ one standard deviation with several",
            "bytes_kept": "unique storages saved for the backward on the widest batch, parameters and buffers left out",
        },
        "model": dataclasses.asdict(results.source),
        "data": {
            "texts": len(results.corpus.docstrings),
            "docstrings_found": results.corpus.found,
            "duplicates_removed": results.corpus.duplicates,
            "share_naming_their_package": results.corpus.naming_share,
            "train_and_test_of_first_seed": results.split.balance(),
        },
        "methods": {
            key: {
                "label": METHODS[key].label,
                "ours": METHODS[key].ours,
                "rank": results.ranks[key],
                "learning_rate": METHODS[key].learning_rate,
                "summary": dataclasses.asdict(results.summary(key)),
                "runs": [dataclasses.asdict(run) for run in runs],
            }
            for key, runs in results.runs.items()
        },
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    import torch

    import lowrank_swift

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "lowrank_swift_threads": lowrank_swift.get_num_threads(),
        "versions": {"lowrank_swift": lowrank_swift.__version__}
        | {name: metadata.version(name) for name in _LIBRARIES},
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _finite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON doesn't have, as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parameters(row: Summary) -> str:
    if row.parameters_at_end == row.parameters_at_start:
        return f"{row.parameters_at_start:,}"
    return f"{row.parameters_at_start:,} → {row.parameters_at_end:,}"


def _steps(row: Summary, results: Results) -> str:
    if REFERENCE not in results.runs:
        return "-"
    return "not reached" if row.steps_to_reference is None else f"{row.steps_to_reference:g}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
