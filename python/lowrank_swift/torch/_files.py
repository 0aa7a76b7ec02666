# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Saving an adapter, and putting a saved one into a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_swift import Factors, _native
from lowrank_swift._atomic import replacing_files
from lowrank_swift._progress import progress_bar

from ._adapter import Adapter, make_adapter
from ._base_product import BaseProduct, check_base_product
from ._errors import errors_naming
from ._format import CONFIG_FILE, FORMAT_VERSION, TENSORS_FILE, AdapterRecord, LayerRecord, tensor_key
from ._install import install
from ._layer import AdaptedLayer
from ._precision import working_dtype
from ._targets import Site, adapted_sites, check_name, check_site, check_unshared, sites_named

__all__ = ["load_adapter", "save_adapter"]


def save_adapter(model: nn.Module, folder: str | os.PathLike[str], *, name: str = "default") -> None:
    """Save one adapter of a model as safetensors and JSON, with all that it takes to reload or export it anywhere.

    The factors are saved as they are and as they started; the base's weights are not, nor are other Parameters that
    train, such as a new head. The files are complete before those of an earlier adapter are replaced.

    Args:
        model (torch.nn.Module): an adapted model. Not modified.
        folder (str | os.PathLike): where the files go; made if need be.
        name (str): the adapter's name.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it has no adapted layer, is one itself, or has no adapter of this name.
        OSError: if the files can't be written.
    """
    from safetensors.torch import save_file

    layers: dict[str, LayerRecord] = {}
    tensors: dict[str, Tensor] = {}
    for site in adapted_sites(model):
        assert isinstance(site.module, AdaptedLayer)
        for own_name, adapter in site.module.named_adapters():
            if own_name == name:
                layers[site.name] = _record(site, adapter)
                state = adapter.state_dict()
                tensors |= {tensor_key(site.name, key): tensor.contiguous() for key, tensor in state.items()}
    if not layers:
        raise ValueError(f"name: expected the name of an adapter of the model, got {name!r}")
    with replacing_files(Path(folder), (TENSORS_FILE, CONFIG_FILE)) as (tensors_path, config_path):
        save_file(tensors, tensors_path, {"format": "pt"})
        config_path.write_bytes(AdapterRecord(FORMAT_VERSION, name, _digest(tensors_path), layers).to_json())


def load_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    base_product: BaseProduct = "torch",
    name: str | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Put a saved adapter into a model, as :func:`adapt` puts a new one.

    Over an intact base the model then computes what it did when the adapter was saved. An adapter in residual form
    subtracts its start from the base's weights first, which have to be the pretrained ones.

    Args:
        model (torch.nn.Module): the pretrained model, or one with other adapters. Modified; unchanged after an error,
            as :func:`adapt` leaves it.
        folder (str | os.PathLike): what :func:`save_adapter` wrote.
        base_product (str): "torch", "openblas" or "auto", as :func:`adapt` takes it.
        name (str | None): the adapter's name in the model; None means the saved one.
        progress (bool | None): a bar on stderr: always, never, or (None) on a terminal if it takes over a second.

    Returns:
        torch.nn.Module: ``model``, the same object.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if the files are not what :func:`save_adapter` writes, or do not fit the model's layers; if the name
            is taken; where :func:`adapt` would raise it.
        LinAlgError: if a residual does not fit the base's dtype.
        OSError: if the files can't be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    record = _read(Path(folder))
    name = record.name if name is None else name
    check_name(name)
    sites = sites_named(model, record.layers)
    for site in sites:
        layer = record.layers[site.name]
        check_site(site, name, layer.base == "intact")
        with errors_naming(site.name):
            _check_fit(site, layer)
    check_base_product(base_product, sites)
    check_unshared(model, [site for site in sites if record.layers[site.name].base == "residual"])
    adapters, unread = [], set[str]()
    with _opened(Path(folder) / TENSORS_FILE) as file, progress_bar("Loading", len(sites), progress) as advance:
        unread.update(file.keys())
        for site in sites:
            with errors_naming(site.name):
                adapter = _template(site, record.layers[site.name])
            keys = {key: tensor_key(site.name, key) for key in adapter.state_dict()}
            for key in sorted(set(keys.values()) - unread):
                raise ValueError(f"expected a tensor {key!r}, got none")
            unread.difference_update(keys.values())
            # Copied, since what the file maps into memory changes with it.
            state = {key: file.get_tensor(each).to(site.weight.device, copy=True) for key, each in keys.items()}
            with errors_naming(site.name):
                _check_state(adapter, state, record.layers[site.name])
                adapter.restore(state)
            adapters.append(adapter)
            advance()
        for key in sorted(unread):
            raise ValueError(f"expected only the tensors of the adapter, got {key!r}")
    install(model, sites, adapters, name, base_product)
    return model


def _record(site: Site, adapter: Adapter) -> LayerRecord:
    return LayerRecord(
        method=adapter.method,
        options=adapter.options,
        base="intact" if adapter.intact else "residual",
        trains=sorted(adapter.trains),
        rank=adapter.down.shape[0],
        core_dimensions=0 if adapter.core is None else adapter.core.dim(),
        scale=float(adapter.scale),
        layer=site.layer_type.name,
        shape=list(site.weight.shape),
        dtype=_dtype_name(site.weight),
    )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@contextmanager
def _errors_in(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors, which are read one at a time; errors name it."""
    from safetensors import SafetensorError, safe_open

    with _errors_in(path):
        try:
            file = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(f"expected a safetensors file, got {error}") from error
        with file as opened:
            yield opened


def _read(folder: Path) -> AdapterRecord:
    """Return the record of two files that belong together."""
    config, path = folder / CONFIG_FILE, folder / TENSORS_FILE
    with _errors_in(config):
        record = AdapterRecord.from_json(config.read_bytes())
    digest = _digest(path)
    if digest != record.tensors_sha256:
        raise ValueError(
            f"{path}: expected the file that {CONFIG_FILE} was saved with (SHA-256 {record.tensors_sha256}), "
            f"got {digest}"
        )
    return record


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, which is read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 18):
            digest.update(piece)
    return digest.hexdigest()


def _check_fit(site: Site, record: LayerRecord) -> None:
    """Refuse a layer that is not of the type, shape and dtype of the one that the adapter was trained over."""
    for field, expected, got in (
        ("layer type", record.layer, site.layer_type.name),
        ("shape", record.shape, list(site.weight.shape)),
        ("dtype", record.dtype, _dtype_name(site.weight)),
    ):
        if expected != got:
            raise ValueError(f"weight: expected the saved adapter's {field} {expected}, got {got}")
    _native.check_weight(site.matrix, record.rank)


def _template(site: Site, record: LayerRecord) -> Adapter:
    """Return an adapter with the tensors that the record's has, all zero."""
    (rows, columns), rank = site.matrix.shape, record.rank
    frozen_dtype: torch.dtype = getattr(torch, record.dtype)
    dtype = working_dtype(frozen_dtype)
    core = torch.zeros([rank] * record.core_dimensions, dtype=dtype) if record.core_dimensions else None
    up, down = torch.zeros(rows, rank, dtype=dtype), torch.zeros(rank, columns, dtype=dtype)
    factors = Factors(record.method, up, core, down, record.scale)
    intact = record.base == "intact"
    adapter = make_adapter(factors, frozenset(record.trains), intact=intact, frozen_dtype=frozen_dtype)
    adapter.options = record.options
    return adapter


def _check_state(adapter: Adapter, state: Mapping[str, Tensor], record: LayerRecord) -> None:
    """Refuse tensors of other shapes or dtypes; a cast model has all of its factors in the base's dtype."""
    for key, expected in adapter.state_dict().items():
        got = state[key]
        if got.shape != expected.shape:
            raise ValueError(f"{key}: expected shape {list(expected.shape)}, got {list(got.shape)}")
        if got.dtype is not expected.dtype and not (expected.is_floating_point() and _dtype_name(got) == record.dtype):
            raise ValueError(f"{key}: expected dtype {_dtype_name(expected)}, got {_dtype_name(got)}")
