# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Saving and loading adapters: the same function, the same numbers, and clear errors for everything else."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_swift import LinAlgError
from lowrank_swift.torch import (
    GradualFreeze,
    LaMDA,
    LoLDU,
    LoRAXS,
    OLoRA,
    PiSSA,
    adapt,
    load_adapter,
    merge,
    named_adapters,
    print_trainable_parameters,
    save_adapter,
    trainable_parameters,
    unadapt,
)
from lowrank_swift.torch._layer import AdaptedLayer
from safetensors.torch import load_file, save
from torch import nn
from torch_support import NAMES, adapted_linear, blocks, every_base, every_method, train

CONFIG, TENSORS = "lowrank_adapter.json", "lowrank_adapter.safetensors"
X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
every_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)


def trained(method: Any, base: str = "intact", **options: Any) -> nn.Module:
    model = adapt(blocks(), method(3, alpha=5, **options), targets=["query", "value"], base=base)
    train(model)
    return model


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for key in mine:
        assert mine[key].dtype is other[key].dtype, key
        assert torch.equal(mine[key], other[key]), key
    flags = [(name, p.requires_grad) for name, p in ours.named_parameters()]
    assert flags == [(name, p.requires_grad) for name, p in theirs.named_parameters()]


@every_method
@every_base
def test_a_loaded_adapter_is_the_saved_one(method, base, tmp_path):
    model = trained(method, base)
    folder = tmp_path / "made" / "here"
    save_adapter(model, folder)
    assert sorted(os.listdir(folder)) == [CONFIG, TENSORS]
    loaded = blocks()
    assert load_adapter(loaded, folder) is loaded
    assert_same_state(loaded, model)
    assert torch.equal(loaded(X), model(X))
    assert repr(loaded) == repr(model)
    save_adapter(loaded, tmp_path / "again")
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    for (_, ours), (_, theirs) in zip(named_adapters(loaded), named_adapters(model), strict=True):
        assert (ours.method, ours.scale) == (theirs.method, theirs.scale)
    for each in (model, loaded):
        train(each, weight_decay=0.1)
    assert_same_state(loaded, model)


@every_method
@every_base
@every_dtype
def test_dtypes(method, base, dtype, tmp_path):
    layer, weight = adapted_linear(method, base, dtype=dtype)
    model = nn.Sequential(layer)
    save_adapter(model, tmp_path)
    fresh = nn.Sequential(nn.Linear(6, 7, dtype=dtype))
    fresh[0].weight.data.copy_(weight)
    fresh[0].bias.data.copy_(layer.bias)
    assert_same_state(load_adapter(fresh, tmp_path), model)


@every_method
def test_a_cast_model(method, tmp_path):
    """A cast makes the trained factors and the starts what adapt over the cast base would not make them."""
    model = trained(method).to(torch.bfloat16)
    save_adapter(model, tmp_path)
    assert_same_state(load_adapter(blocks().to(torch.bfloat16), tmp_path), model)


def test_the_base_is_not_saved_and_the_saved_model_not_changed(tmp_path):
    model = trained(OLoRA, "residual")
    before = copy.deepcopy(model)
    save_adapter(model, tmp_path)
    assert_same_state(model, before)
    tensors = load_file(tmp_path / TENSORS)
    assert set(tensors) == {
        f"{block}.{layer}.{tensor}"
        for block in "01"
        for layer in ("query", "value")
        for tensor in ("up", "down", "start_up", "start_down")
    }


@pytest.mark.parametrize(
    ("method", "base", "keys", "options"),
    (
        (OLoRA(2), "intact", {"up", "down", "start_up", "start_down"}, {}),
        (PiSSA(2), "residual", {"up", "down", "start_up", "start_down"}, {"tol": 1e-4, "seed": 0}),
        (LoLDU(2, diagonal="mean"), "intact", {"up", "core", "down", "start_core"}, {"diagonal": "mean", "seed": 0}),
        (
            LaMDA(2, seed=4),
            "residual",
            {"up", "core", "down", "start_product", "frozen_columns"},
            {"tol": 1e-4, "seed": 4, "core_only": False},
        ),
        (
            LaMDA(2, core_only=True),
            "intact",
            {"up", "core", "down", "start_core"},
            {"tol": 1e-4, "seed": 0, "core_only": True},
        ),
        (LoRAXS(2, tol=0.01), "residual", {"up", "core", "down", "start_core"}, {"tol": 0.01, "seed": 0}),
    ),
    ids=lambda value: type(value).__name__,
)
def test_the_format(method, base, keys, options, tmp_path):
    """Files that are out in the world have these keys."""
    save_adapter(adapt(nn.Sequential(nn.Linear(4, 3)), method, targets=["0"], base=base, name="a"), tmp_path, name="a")
    record = json.loads((tmp_path / CONFIG).read_text())
    assert record.pop("tensors_sha256") == hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest()
    core = {LoLDU: 1, LaMDA: 2, LoRAXS: 2}.get(type(method), 0)
    layer = {
        "method": NAMES[type(method)],
        "options": {"alpha": None, "rslora": False, **options},
        "base": base,
        "trains": sorted(method.trains),
        "rank": 2,
        "core_dimensions": core,
        "scale": 1.0,
        "layer": "Linear",
        "shape": [3, 4],
        "dtype": "float32",
    }
    assert record == {"format_version": 1, "name": "a", "layers": {"0": layer}}
    assert set(load_file(tmp_path / TENSORS)) == {f"0.{key}" for key in keys}


def test_numbers_of_numpy_as_options(tmp_path):
    method = LoLDU(2, alpha=np.float32(3))
    save_adapter(adapt(nn.Sequential(nn.Linear(4, 3)), method, targets=["0"]), tmp_path)
    layer = json.loads((tmp_path / CONFIG).read_text())["layers"]["0"]
    assert (layer["scale"], layer["options"]["alpha"]) == (1.5, 3.0)


def test_several_adapters(tmp_path):
    model = adapt(blocks(), LoLDU({"0.query": 2, "1.query": 5}), targets=["query"], name="first")
    adapt(model, OLoRA(3), targets=["0.query", "value"], name="second")
    train(model)
    for name in ("first", "second"):
        save_adapter(model, tmp_path / name, name=name)
    loaded = load_adapter(load_adapter(blocks(), tmp_path / "first"), tmp_path / "second")
    assert_same_state(loaded, model)
    assert torch.equal(loaded(X), model(X))
    alone = load_adapter(blocks(), tmp_path / "second", name="alone")
    assert [list(layer.adapters) for layer in alone.modules() if isinstance(layer, AdaptedLayer)] == [["alone"]] * 3
    with pytest.raises(ValueError, match=r"name: expected one that is free, got 'second', which '0\.query' has"):
        load_adapter(loaded, tmp_path / "second")
    with pytest.raises(ValueError, match="name: expected the name of an adapter of the model, got 'default'"):
        save_adapter(model, tmp_path)


def test_forms_of_the_base_can_differ_between_layers(tmp_path):
    model = adapt(blocks(), LoLDU(2), targets=["query"])
    adapt(model, LaMDA(2), targets=["value"], base="residual")
    train(model)
    save_adapter(model, tmp_path)
    assert_same_state(load_adapter(blocks(), tmp_path), model)


def test_a_merged_model_saves_the_same(tmp_path):
    model = trained(LaMDA)
    save_adapter(model, tmp_path / "before")
    save_adapter(merge(model), tmp_path / "after")
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_tensors_are_loaded_to_the_device_of_their_layer(tmp_path, monkeypatch):
    """Which may be another one than the file was saved from: there is one device here, so the copies are counted."""
    model = trained(OLoRA)
    save_adapter(model, tmp_path)
    moved, move = [], torch.Tensor.to

    def recorded(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if arguments == (model[0].query.weight.device,) and options == {"copy": True}:
            moved.append(tensor)
        return move(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    assert_same_state(load_adapter(blocks(), tmp_path), model)
    assert len(moved) == len(load_file(tmp_path / TENSORS))


def test_frozen_columns_stay_frozen(tmp_path):
    model = trained(LaMDA)
    freeze = GradualFreeze(model, total_steps=4, fraction=1.0)
    for _ in range(2):
        train(model, steps=1)
        freeze.step()
    save_adapter(model, tmp_path / "partly")
    loaded = load_adapter(blocks(), tmp_path / "partly")
    resumed = GradualFreeze(loaded, total_steps=4, fraction=1.0)
    resumed.load_state_dict(freeze.state_dict())
    assert_same_state(loaded, model)
    for _ in range(2):
        train(model, steps=1)
        freeze.step()
    save_adapter(model, tmp_path / "wholly")
    loaded = load_adapter(blocks(), tmp_path / "wholly")
    assert_same_state(loaded, model)
    assert len(trainable_parameters(loaded)) == 4


def test_training_mode_and_trained_head(tmp_path):
    save_adapter(trained(OLoRA), tmp_path)
    loaded = load_adapter(blocks().eval(), tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert not loaded[2].weight.requires_grad
    assert torch.equal(unadapt(loaded)(X), blocks()(X))


def test_old_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    model = trained(OLoRA)
    save_adapter(model, tmp_path)
    mask = os.umask(0)
    os.umask(mask)
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask for name in (CONFIG, TENSORS))
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(model)

    def full(_descriptor: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    save_adapter(model, tmp_path)
    assert set(os.listdir(tmp_path)) == set(first)
    assert torch.equal(load_adapter(blocks(), tmp_path)(X), model(X))
    # What a crash between the two renames would leave.
    (tmp_path / CONFIG).write_bytes(first[CONFIG])
    with pytest.raises(ValueError, match=rf"{TENSORS}: expected the file that {CONFIG} was saved with"):
        load_adapter(blocks(), tmp_path)


Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def rewrite(folder: Path, edit: Edit) -> None:
    """Changes the record and the tensors, and makes them fit each other again."""
    record, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
    edit(record, tensors)
    content = save(tensors)
    (folder / TENSORS).write_bytes(content)
    record.setdefault("tensors_sha256", hashlib.sha256(content).hexdigest())
    (folder / CONFIG).write_text(json.dumps(record))


def set_layer(**values: Any) -> Edit:
    return lambda record, _: record["layers"]["0.query"].update(values)


def set_tensor(key: str, tensor: torch.Tensor) -> Edit:
    return lambda _, tensors: tensors.update({key: tensor})


BAD_FILES: dict[str, tuple[Edit, str]] = {
    "version": (lambda r, _: r.update(format_version=2), "format_version: expected 1, got 2"),
    "version type": (lambda r, _: r.update(format_version="1"), "format_version: expected int, got '1'"),
    "no version": (lambda r, _: r.pop("format_version"), r"format_version: expected the entries \['format_version'"),
    "unknown entry": (lambda r, _: r.update(extra=1), r"extra: expected the entries"),
    "no layers": (lambda r, _: r.update(layers={}), "layers: expected at least one, got none"),
    "layers type": (lambda r, _: r.update(layers=[]), "layers: expected dict"),
    "layer type": (lambda r, _: r["layers"].update({"0.query": 3}), r"layers\.0\.query\.: expected a JSON object"),
    "name": (lambda r, _: r.update(name="a.b"), "name: expected a name without a dot"),
    "unknown layer": (lambda r, _: r["layers"].update(query=r["layers"]["0.query"]), "expected a module 'query', got"),
    "not a linear": (lambda r, _: r["layers"].update({"0.norm": r["layers"]["0.query"]}), "got LayerNorm at '0.norm'"),
    "unknown layer entry": (set_layer(extra=1), r"layers\.0\.query\.extra: expected the entries"),
    "base": (set_layer(base="copy"), r'layers\.0\.query\.base: expected "intact" or "residual", got \'copy\''),
    "rank type": (set_layer(rank=3.0), r"layers\.0\.query\.rank: expected int, got 3\.0"),
    "rank bool": (set_layer(rank=True), r"layers\.0\.query\.rank: expected int, got True"),
    "rank": (set_layer(rank=9), r"0\.query: rank: expected 1 <= rank <= min\(m, n\) = 8, got 9"),
    "huge rank": (set_layer(rank=2**62), r"0\.query: rank: expected 1 <= rank"),
    "other rank": (set_layer(rank=2), r"0\.query: .*: expected shape \[.*2.*\], got \[.*3.*\]"),
    "scale": (set_layer(scale=float("nan")), r"layers\.0\.query\.scale: expected a finite number, got nan"),
    "shape": (set_layer(shape=[8, 9]), r"0\.query: weight: expected the saved adapter's shape \[8, 9\], got \[8, 8\]"),
    "layer": (
        set_layer(layer="Conv1D"),
        r"0\.query: weight: expected the saved adapter's layer type Conv1D, got Linear",
    ),
    "shape items": (set_layer(shape=[8, True]), r"layers\.0\.query\.shape: expected list\[int\], got \[8, True\]"),
    "dtype": (set_layer(dtype="float16"), r"0\.query: weight: expected the saved adapter's dtype float16, got float32"),
    "trains": (set_layer(trains=["down"]), r"trains: expected \[.*got \['down'\]"),
    "trains items": (set_layer(trains=[1]), r"trains: expected list\[str\], got \[1\]"),
    "options": (set_layer(options={"seed": []}), r"options: expected dict\[str, Option\], got \{'seed': \[\]\}"),
    "core": (set_layer(core_dimensions=0), r"core_dimensions: expected 0, 1 or 2, and a core where it trains, got 0"),
    "core above": (set_layer(core_dimensions=3), r"core_dimensions: expected 0, 1 or 2, .* got 3"),
    "other core": (set_layer(core_dimensions=1), r"0\.query: core: expected shape \[3\], got \[3, 3\]"),
    "no tensor": (lambda _, t: t.pop("1.value.up"), r"safetensors: expected a tensor '1\.value\.up', got none"),
    "extra tensor": (set_tensor("2.up", torch.ones(1)), r"expected only the tensors of the adapter, got '2\.up'"),
    "tensor shape": (
        set_tensor("0.query.up", torch.ones(8, 2)),
        r"0\.query: up: expected shape \[8, 3\], got \[8, 2\]",
    ),
    "tensor dtype": (set_tensor("0.query.up", torch.ones(8, 3).half()), r"up: expected dtype float32, got float16"),
    "integers": (
        set_tensor("0.query.up", torch.ones(8, 3, dtype=torch.int32)),
        "up: expected dtype float32, got int32",
    ),
    "frozen columns": (set_tensor("0.query.frozen_columns", torch.tensor(4)), r"expected 0 <= frozen_columns <= rank"),
    "not whole": (lambda r, _: r.update(tensors_sha256="0" * 64), "expected the file that .* was saved with"),
    "digest type": (lambda r, _: r.update(tensors_sha256=0), "tensors_sha256: expected str, got 0"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@every_base
def test_bad_files(case, base, tmp_path):
    edit, message = BAD_FILES[case]
    model = trained(LaMDA, base)
    save_adapter(model, tmp_path)

    def edit_and_sign(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        record.pop("tensors_sha256")
        edit(record, tensors)

    rewrite(tmp_path, edit_and_sign)
    fresh = blocks()
    with pytest.raises(ValueError, match=message):
        load_adapter(fresh, tmp_path)
    assert_same_state(fresh, blocks())
    assert all(type(layer) is nn.Linear for layer in (fresh[0].query, fresh[1].value))


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG):
        load_adapter(blocks(), tmp_path)
    save_adapter(trained(OLoRA), tmp_path)
    (tmp_path / TENSORS).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=TENSORS):
        load_adapter(blocks(), tmp_path)
    record = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / TENSORS).write_bytes(b"no tensors")
    record["tensors_sha256"] = hashlib.sha256(b"no tensors").hexdigest()
    (tmp_path / CONFIG).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{TENSORS}: expected a safetensors file"):
        load_adapter(blocks(), tmp_path)
    for content in (b"{", b"\xff\xfe\x00", b""):
        (tmp_path / CONFIG).write_bytes(content)
        with pytest.raises(ValueError, match=f"{CONFIG}: expected JSON"):
            load_adapter(blocks(), tmp_path)
    (tmp_path / CONFIG).write_bytes(b"[]")
    with pytest.raises(ValueError, match=f"{CONFIG}: the file: expected a JSON object"):
        load_adapter(blocks(), tmp_path)


def test_models_that_do_not_fit(tmp_path):
    save_adapter(trained(OLoRA, "residual"), tmp_path / "residual")
    save_adapter(trained(OLoRA), tmp_path / "intact")
    with pytest.raises(ValueError, match=r'base: expected "intact" for several adapters of a layer'):
        load_adapter(adapt(blocks(), OLoRA(2), targets=["query"]), tmp_path / "residual", name="second")
    with pytest.raises(ValueError, match="expected layers that are not merged"):
        load_adapter(merge(adapt(blocks(), OLoRA(2), targets=["query"])), tmp_path / "intact", name="second")
    tied = blocks()
    tied[1].query.weight = tied[0].query.weight
    with pytest.raises(ValueError, match=r"for a shared weight, .* which shares its memory with"):
        load_adapter(tied, tmp_path / "residual")
    load_adapter(tied, tmp_path / "intact")
    twice = blocks()
    twice[1].query = twice[0].query
    with pytest.raises(ValueError, match=r"got one that is shared as 0\.query, 1\.query"):
        load_adapter(twice, tmp_path / "intact")
    with pytest.raises(ValueError, match="name: expected a name without a dot"):
        load_adapter(blocks(), tmp_path / "intact", name="")
    with pytest.raises(ValueError, match=r"0\.query: weight: expected the saved adapter's dtype float32, got float64"):
        load_adapter(blocks().double(), tmp_path / "intact")
    for call in (load_adapter, save_adapter):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got NoneType"):
            call(None, tmp_path)
    for model, message in ((blocks(), "expected adapted layers"), (tied[0].query, "got an adapted layer")):
        with pytest.raises(ValueError, match=message):
            save_adapter(model, tmp_path)


def test_a_residual_that_does_not_fit_the_base_dtype(tmp_path):
    model = adapt(nn.Sequential(nn.Linear(4, 4)).half(), OLoRA(2), targets=["0"], base="residual")
    save_adapter(model, tmp_path)

    def edit(record: dict[str, Any], _: Any) -> None:
        del record["tensors_sha256"]
        record["layers"]["0"]["scale"] = 1e7

    rewrite(tmp_path, edit)
    with pytest.raises(
        LinAlgError, match=r"^0: scale: expected entries W \+ scale \* B C A within the range of float16"
    ):
        load_adapter(nn.Sequential(nn.Linear(4, 4)).half(), tmp_path)


def test_print_trainable_parameters(capsys):
    model = adapt(nn.Sequential(nn.Linear(50, 40, bias=False), nn.Linear(40, 2)), LoLDU(10), targets=["0"])
    print_trainable_parameters(model)
    frozen = 40 * 10 + 10 * 50 + 10
    line = f"trainable: 10 of 2,092 parameters (0.4780%); frozen factors of the adapters: {frozen} numbers\n"
    assert capsys.readouterr().out == line
    model[1].requires_grad_()
    print_trainable_parameters(merge(model))
    assert capsys.readouterr().out.startswith("trainable: 92 of 2,092 parameters (4.3977%)")
    with pytest.raises(ValueError, match="expected adapted layers"):
        print_trainable_parameters(blocks())
    with pytest.raises(TypeError, match="model: expected"):
        print_trainable_parameters(None)
