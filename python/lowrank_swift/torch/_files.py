# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Saving an adapter, and putting a saved one into a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_swift import Factors, _native

from ._adapter import Adapter, make_adapter
from ._atomic import write_files
from ._errors import errors_naming
from ._format import CONFIG_FILE, FORMAT_VERSION, TENSORS_FILE, AdapterRecord, LayerRecord, tensor_key
from ._install import install
from ._linear import AdaptedLinear
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
    from safetensors.torch import save

    layers: dict[str, LayerRecord] = {}
    tensors: dict[str, Tensor] = {}
    for site in adapted_sites(model):
        assert isinstance(site.module, AdaptedLinear)
        for own_name, adapter in site.module.named_adapters():
            if own_name == name:
                layers[site.name] = _record(site, adapter)
                state = adapter.state_dict()
                tensors |= {tensor_key(site.name, key): tensor.contiguous() for key, tensor in state.items()}
    if not layers:
        raise ValueError(f"name: expected the name of an adapter of the model, got {name!r}")
    content = save(tensors, {"format": "pt"})
    digest = hashlib.sha256(content).hexdigest()
    record = AdapterRecord(FORMAT_VERSION, name, digest, layers)
    write_files(Path(folder), {TENSORS_FILE: content, CONFIG_FILE: record.to_json()})


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], *, name: str | None = None) -> nn.Module:
    """Put a saved adapter into a model, as :func:`adapt` puts a new one.

    Over an intact base the model then computes what it did when the adapter was saved. An adapter in residual form
    subtracts its start from the base's weights first, which have to be the pretrained ones.

    Args:
        model (torch.nn.Module): the pretrained model, or one with other adapters. Modified; unchanged after an error,
            as :func:`adapt` leaves it.
        folder (str | os.PathLike): what :func:`save_adapter` wrote.
        name (str | None): the adapter's name in the model; None means the saved one.

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
    record, tensors = _read(Path(folder))
    name = record.name if name is None else name
    check_name(name)
    sites = sites_named(model, record.layers)
    for site in sites:
        layer = record.layers[site.name]
        check_site(site, name, layer.base == "intact")
        with errors_naming(site.name):
            _check_fit(site.weight, layer)
    check_unshared(model, [site for site in sites if record.layers[site.name].base == "residual"])
    adapters = []
    with _errors_in(Path(folder) / TENSORS_FILE):
        templates = {site.name: _template(record.layers[site.name]) for site in sites}
        _check_keys(templates, tensors)
        for layer_name, adapter in templates.items():
            state = {key: tensors[tensor_key(layer_name, key)] for key in adapter.state_dict()}
            with errors_naming(layer_name):
                _check_state(adapter, state, record.layers[layer_name])
                adapter.restore(state)
            adapters.append(adapter)
    install(model, sites, adapters, name)
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


def _read(folder: Path) -> tuple[AdapterRecord, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    config, path = folder / CONFIG_FILE, folder / TENSORS_FILE
    with _errors_in(config):
        record = AdapterRecord.from_json(config.read_bytes())
    content = path.read_bytes()
    with _errors_in(path):
        digest = hashlib.sha256(content).hexdigest()
        if digest != record.tensors_sha256:
            raise ValueError(
                f"expected the file that {CONFIG_FILE} was saved with (SHA-256 {record.tensors_sha256}), got {digest}"
            )
        try:
            return record, {key: tensor.clone() for key, tensor in load(content).items()}
        except SafetensorError as error:
            raise ValueError(f"expected a safetensors file, got {error}") from error


def _check_fit(weight: Tensor, record: LayerRecord) -> None:
    """Refuse a weight that is not of the shape and dtype of the one that the adapter was trained over."""
    for field, expected, got in (
        ("shape", record.shape, list(weight.shape)),
        ("dtype", record.dtype, _dtype_name(weight)),
    ):
        if expected != got:
            raise ValueError(f"weight: expected the saved adapter's {field} {expected}, got {got}")
    _native.check_weight(weight, record.rank)


def _template(record: LayerRecord) -> Adapter:
    """Return an adapter with the tensors that the record's has, all zero."""
    (rows, columns), rank = record.shape, record.rank
    frozen_dtype: torch.dtype = getattr(torch, record.dtype)
    dtype = working_dtype(frozen_dtype)
    core = torch.zeros([rank] * record.core_dimensions, dtype=dtype) if record.core_dimensions else None
    up, down = torch.zeros(rows, rank, dtype=dtype), torch.zeros(rank, columns, dtype=dtype)
    factors = Factors(record.method, up, core, down, record.scale)
    intact = record.base == "intact"
    adapter = make_adapter(factors, frozenset(record.trains), intact=intact, frozen_dtype=frozen_dtype)
    adapter.options = record.options
    return adapter


def _check_keys(templates: Mapping[str, Adapter], tensors: Mapping[str, Tensor]) -> None:
    expected = {tensor_key(layer, key) for layer, adapter in templates.items() for key in adapter.state_dict()}
    for key in sorted(expected - tensors.keys()):
        raise ValueError(f"expected a tensor {key!r}, got none")
    for key in sorted(tensors.keys() - expected):
        raise ValueError(f"expected only the tensors of the adapter, got {key!r}")


def _check_state(adapter: Adapter, state: Mapping[str, Tensor], record: LayerRecord) -> None:
    """Refuse tensors of other shapes or dtypes; a cast model has all of its factors in the base's dtype."""
    for key, expected in adapter.state_dict().items():
        got = state[key]
        if got.shape != expected.shape:
            raise ValueError(f"{key}: expected shape {list(expected.shape)}, got {list(got.shape)}")
        if got.dtype is not expected.dtype and not (expected.is_floating_point() and _dtype_name(got) == record.dtype):
            raise ValueError(f"{key}: expected dtype {_dtype_name(expected)}, got {_dtype_name(got)}")
