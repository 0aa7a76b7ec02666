# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift ranks`."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lowrank_swift import LinAlgError, RankAllocation
from lowrank_swift._allocation import LayerSpectrum, allocate_with_spectra
from lowrank_swift._atomic import replacing_files

__all__ = ["LayerRanks", "ranks"]

_WIDTH = 120  # of output that isn't a terminal's
_OPTIONS = {
    "mean_rank, parameters": "--mean-rank, --parameters",
    "mean_rank": "--mean-rank",
    "parameters": "--parameters",
    "rank_min": "--rank-min",
    "rank_max": "--rank-max",
    "targets": "--targets",
    "tol": "--tol",
    "cache": "--cache",
    "weights": "MODEL",
}


@dataclass(frozen=True, slots=True)
class LayerRanks:
    """One line of the table.

    Args:
        shape: Of the weight, (m, n).
        rank: What the layer got.
        share: Of the squared Frobenius norm, in that many singular values.
        share_at_mean_rank: In as many as all layers would have, were they to have the same rank.
    """

    shape: tuple[int, int]
    rank: int
    share: float
    share_at_mean_rank: float


def ranks(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Safetensors file, folder with them, or hub id in the local cache.")
    ],
    mean_rank: Annotated[float | None, typer.Option(help="Budget: this times the number of layers.")] = None,
    parameters: Annotated[int | None, typer.Option(help="Budget: numbers in all up and down factors.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="Names of layers, or their last parts: comma-separated or one an option; all if left out."),
    ] = None,
    rank_min: Annotated[int, typer.Option(help="Least rank of every layer.")] = 1,
    rank_max: Annotated[int | None, typer.Option(help="Largest rank of every layer.")] = None,
    tol: Annotated[float, typer.Option(help="Tolerance of singular values.")] = 1e-4,
    cache: Annotated[Path | None, typer.Option(help="File that keeps singular values for the next time.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to write: ranks by layer and the spectra.")] = None,
) -> None:
    """Distribute ranks over the layers of a model by the spectra of their weights (LaMDA++).

    Layers whose energy is spread out over many singular values get more, layers whose energy is concentrated get less.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        _stop('--plot needs matplotlib; install it with: pip install "lowrank_swift[demo]"', code=1)
    names = [name.strip() for names in targets for name in names.split(",") if name.strip()] if targets else None
    try:
        allocation, spectra = allocate_with_spectra(
            _locate(model),
            mean_rank,
            parameters=parameters,
            rank_min=rank_min,
            rank_max=rank_max,
            targets=names,
            tol=tol,
            cache=cache,
        )
        equal = _equal_rank(spectra, mean_rank, parameters)
        layers = _lines(allocation, spectra, equal)
        console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
        unit = "rank steps" if parameters is None else "parameters"
        console.print(_table(layers, allocation.unspent, equal, unit))
        for path, content in _files(as_json, plot, layers, spectra, allocation, equal).items():
            with replacing_files(path.parent, [path.name]) as (beside,):
                beside.write_bytes(content)
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
    except (ValueError, TypeError, BufferError) as error:
        _stop(_in_terms_of_options(str(error)), code=2)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), code=1)
    except (LinAlgError, MemoryError) as error:
        _stop(str(error) or "out of memory", code=1)


def _files(
    as_json: Path | None,
    plot: Path | None,
    layers: Mapping[str, LayerRanks],
    spectra: Mapping[str, LayerSpectrum],
    allocation: RankAllocation,
    equal: int,
) -> dict[Path, bytes]:
    """Return what is to be written, by path."""
    files = {}
    if as_json is not None:
        details = {name: asdict(layer) for name, layer in layers.items()}
        record = {"ranks": dict(allocation), "unspent": allocation.unspent, "mean_rank": equal, "layers": details}
        files[as_json.expanduser()] = (json.dumps(record, indent=2) + "\n").encode()
    if plot is not None:
        from lowrank_swift.cli.rank_plot import draw_ranks

        image = io.BytesIO()
        draw_ranks({name: layer.rank for name, layer in layers.items()}, spectra, image)
        files[plot.expanduser()] = image.getvalue()
    return files


def _locate(model: str) -> str:
    """Return the file or folder that a model's name stands for; nothing is downloaded."""
    if Path(model).expanduser().exists():
        return model
    if model.startswith((".", "~", "/")) or model.count("/") > 1 or not re.fullmatch(r"[\w./-]+", model):
        raise ValueError(f"weights: expected a file, a folder or a hub id such as org/name, got {model!r}")
    if importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import snapshot_download

        try:
            return str(snapshot_download(model, local_files_only=True, allow_patterns="*.safetensors*"))
        except Exception as error:  # Its own types differ from version to version.
            reason = type(error).__name__
    else:
        reason = "huggingface_hub is not installed"
    raise ValueError(f"weights: expected a file, a folder or a model in the local cache, got {model!r} ({reason})")


def _equal_rank(spectra: Mapping[str, LayerSpectrum], mean_rank: float | None, parameters: int | None) -> int:
    """Return the rank that all layers would have from the same budget, rounded down."""
    if parameters is None:
        return int(mean_rank or 0)
    return max(1, parameters // sum(sum(layer.shape) for layer in spectra.values()))


def _lines(allocation: RankAllocation, spectra: Mapping[str, LayerSpectrum], equal: int) -> dict[str, LayerRanks]:
    return {
        name: LayerRanks(spectra[name].shape, rank, spectra[name].share(rank), spectra[name].share(equal))
        for name, rank in allocation.items()
    }


def _table(layers: Mapping[str, LayerRanks], unspent: int, equal: int, unit: str) -> Table:
    total = sum(layer.rank for layer in layers.values())
    numbers = sum(layer.rank * sum(layer.shape) for layer in layers.values())
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("layer", footer=f"{len(layers)} layers, {numbers:,} parameters", overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column(f"energy at {equal}", justify="right", no_wrap=True)
    table.add_column("rank", footer=f"mean {total / len(layers):.1f}", justify="right", no_wrap=True)
    table.add_column("energy", justify="right", no_wrap=True)
    table.add_column("", footer=f"{unspent:,} {unit} unspent", no_wrap=True)
    most = max(layer.rank for layer in layers.values())
    for name, layer in layers.items():
        rows, columns = layer.shape
        bar = "▪" * max(1, round(20 * layer.rank / most))
        shares = f"{layer.share_at_mean_rank:.3f}", f"{layer.share:.3f}"
        table.add_row(name, f"{rows} x {columns}", shares[0], str(layer.rank), shares[1], bar)
    return table


def _in_terms_of_options(message: str) -> str:
    """Return an error of a function with the names that its arguments have here."""
    argument, colon, rest = message.partition(": ")
    words = rest.replace("rank_min", "--rank-min") if argument in _OPTIONS else rest
    return f"{_OPTIONS.get(argument, argument)}{colon}{words}"


def _stop(message: str, *, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
