# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift ranks`: the table, the files, and one clear sentence for each error."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift.cli import rank_plot
from lowrank_swift.cli import ranks as command
from lowrank_swift.cli.app import app
from support import run_python, weight
from typer.testing import CliRunner, Result

safetensors = pytest.importorskip("safetensors.torch")
TARGETS = ["query", "value"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {
        f"layers.{i}.{name}.weight": weight(10, 8, dtype, seed=10 * i + j)
        for i in range(12)
        for j, (name, dtype) in enumerate(zip(TARGETS, (torch.bfloat16, torch.float32), strict=True))
    }
    (tmp_path / "model").mkdir()
    safetensors.save_file({**tensors, "embed.weight": weight(40, 8)}, tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ranks", *map(str, arguments)])


def assert_fails(result: Result, code: int, *parts: str) -> None:
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr
    assert result.stdout == ""


def test_targets_may_be_given_one_by_one(folder: Path, tmp_path: Path) -> None:
    for arguments in (["--targets", "query", "--targets", TARGETS[1]], ["--targets", ",".join(TARGETS)]):
        result = invoke(folder, "--mean-rank", 3, *arguments, "--json", tmp_path / "ranks.json")
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / "ranks.json").read_text())
        assert record["ranks"] == lrs.allocate_ranks(folder, 3, targets=TARGETS)


def test_table_and_json(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "ranks.json"
    result = invoke(folder, "--mean-rank", 3, "--targets", "query, value", "--json", out)
    assert result.exit_code == 0, result.output
    expected = lrs.allocate_ranks(folder, 3, targets=TARGETS)
    record = json.loads(out.read_text())
    assert record["ranks"] == expected
    assert list(record["ranks"]) == [f"layers.{i}.{name}" for i in range(12) for name in TARGETS]
    assert (record["unspent"], record["mean_rank"]) == (0, 3)
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.startswith("layers.")}
    assert list(lines) == list(expected)
    for name, (_, rows, _, columns, at_mean, rank, share, bar) in lines.items():
        layer = record["layers"][name]
        matrix = weight(
            10,
            8,
            torch.bfloat16 if "query" in name else torch.float32,
            seed=int(name.split(".")[1]) * 10 + ("value" in name),
        )
        squares = torch.linalg.svdvals(matrix.double()) ** 2
        assert ([int(rows), int(columns)], int(rank)) == (layer["shape"], expected[name]) == ([10, 8], layer["rank"])
        assert layer["share"] == pytest.approx(float(squares[: int(rank)].sum() / squares.sum()))
        assert layer["share_at_mean_rank"] == pytest.approx(float(squares[:3].sum() / squares.sum()))
        assert (at_mean, share) == (f"{layer['share_at_mean_rank']:.3f}", f"{layer['share']:.3f}")
        assert set(bar) == {"▪"}
    assert "24 layers, 1,296 parameters" in result.stdout
    assert "mean 3.0" in result.stdout
    assert "0 rank steps unspent" in result.stdout
    assert f"wrote {out}" in result.stdout.replace("\n", "")


def test_parameters_limits_and_what_is_unspent(folder: Path) -> None:
    result = invoke(folder, "--parameters", 100_000, "--rank-min", 2, "--rank-max", 4)
    assert result.exit_code == 0, result.output
    unspent = 100_000 - 4 * (24 * 18 + 48)
    assert f"{unspent:,} parameters unspent" in result.stdout
    assert "embed" in result.stdout
    assert "mean 4.0" in result.stdout


def test_a_file_and_the_cache(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "spectra.json"
    arguments = (folder / "model.safetensors", "--mean-rank", 3, "--targets", "query", "--cache", cache)
    first = invoke(*arguments)
    written = cache.read_bytes()
    second = invoke(*arguments)
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout
    assert cache.read_bytes() == written


def test_a_model_in_the_local_cache(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    home = tmp_path / "home"
    snapshot = home / "hub/models--org--small/snapshots/0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    refs = home / "hub/models--org--small/refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    arguments = ["", "ranks", "org/small", "--mean-rank", "3"]
    code = f"import sys; from lowrank_swift.cli import main; sys.argv = {arguments}; main()"
    assert "layers.11.value" in run_python(code, HF_HOME=str(home), HF_HUB_CACHE=str(home / "hub"))


def test_plot(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    out = tmp_path / "ranks.png"
    result = invoke(folder, "--mean-rank", 3, "--plot", out)
    assert result.exit_code == 0, result.output
    image = imread(out)
    assert image.shape[0] > 400
    assert image.shape[1] > 800
    assert len({tuple(pixel) for row in image[::7] for pixel in row[::7]}) > 10, "more than a blank picture"


def test_plot_of_zero_and_one_layer() -> None:
    pytest.importorskip("matplotlib")
    from lowrank_swift._allocation import allocate_with_spectra

    for weights in ({"only": weight(8, 6)}, {"a.0.x": torch.zeros(8, 6), "b.0.x": weight(8, 6), "head": weight(6, 8)}):
        ranks, spectra = allocate_with_spectra(weights, 2)
        file = io.BytesIO()
        rank_plot.draw_ranks(ranks, spectra, file)
        assert file.getvalue().startswith(b"\x89PNG")


def test_the_plots_ticks_are_whole_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    from lowrank_swift._allocation import allocate_with_spectra

    drawn: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: drawn.append(self))
    weights = {"a.0.x": weight(8, 6), "a.1.x": torch.zeros(8, 6), "a.2.x": torch.eye(8)}
    ranks, spectra = allocate_with_spectra(weights, 2)
    assert len(set(ranks.values())) > 1
    rank_plot.draw_ranks(ranks, spectra, io.BytesIO())
    [(_, decay, colours)] = [figure.axes for figure in drawn]
    for ticks in (decay.get_xticks(), colours.get_yticks()):
        assert len(ticks) > 1
        assert all(tick == round(tick) for tick in ticks), ticks


def test_grid_of_names() -> None:
    names = ["encoder.layer.0.self.query", "encoder.layer.0.dense", "encoder.layer.10.self.query", "pooler.dense"]
    rows, columns, cells = rank_plot.grid_of(names)
    assert rows == ["0", "10", ""]
    assert columns == ["self.query", "dense", "pooler.dense"]
    assert list(cells.values()) == [(0, 0), (0, 1), (1, 0), (2, 2)]
    rows, columns, cells = rank_plot.grid_of(["encoder.0.q", "decoder.0.q", "decoder.1", "0.q.1.k"])
    assert rows == ["encoder.0", "decoder.0", "decoder.1", ".0"]
    assert columns == ["q", "", "q.1.k"]
    assert list(cells.values()) == [(0, 0), (1, 0), (2, 1), (3, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--mean-rank, --parameters: expected exactly one of the two, got neither"),
        (["--mean-rank", 3, "--parameters", 9], "--mean-rank, --parameters: expected exactly one of the two, got both"),
        (["--mean-rank", 0], "--mean-rank: expected a finite number of at least --rank-min = 1, got 0.0"),
        (["--mean-rank", "nan"], "--mean-rank: expected"),
        (["--parameters", 5], "--parameters: expected 480 <= parameters"),
        (["--mean-rank", 3, "--rank-min", 0], "--rank-min: expected at least 1, got 0"),
        (["--mean-rank", 30, "--rank-min", 9], "--rank-min: expected at most min(m, n) = 8"),
        (["--mean-rank", 3, "--rank-max", 0], "--rank-max: expected at least 1, got 0"),
        (["--mean-rank", 3, "--targets", "key"], "--targets: expected names of weight matrices, got 'key'"),
        (["--mean-rank", 3, "--targets", ","], "--targets: expected at least one name"),
        (["--mean-rank", 3, "--tol", 2], "tol: expected 0 < tol < 1, got 2"),
    ],
)
def test_bad_options_are_one_sentence_and_status_2(folder: Path, arguments: list[object], message: str) -> None:
    assert_fails(invoke(folder, *arguments), 2, message)


def test_models_that_are_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in ("/no/where", "./nothing", "a/b/c", "org/none", "what is this"):
        assert_fails(invoke(model, "--mean-rank", 3), 2, "MODEL: expected a file, a folder or a", repr(model))
    (folder / "model.safetensors").write_bytes(b"no")
    assert_fails(invoke(folder, "--mean-rank", 3), 2, "model.safetensors: expected a safetensors file, got")
    (folder / "model.safetensors").unlink()
    assert_fails(invoke(folder, "--mean-rank", 3), 2, "MODEL: expected safetensors files in the folder")


def test_weights_that_are_not_finite(folder: Path) -> None:
    safetensors.save_file({"a.weight": torch.full((3, 3), torch.nan)}, folder / "model.safetensors")
    assert_fails(invoke(folder, "--mean-rank", 2), 2, "a: weight: expected finite values")


def test_files_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke(folder, "--mean-rank", 3, "--json", tmp_path / "file" / "x.json")
    assert result.exit_code == 1
    assert str(tmp_path / "file") in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_plot_without_matplotlib_says_so_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert_fails(invoke(folder, "--mean-rank", 3, "--plot", "x.png"), 1, "--plot needs matplotlib", "pip install")
    assert_fails(invoke("org/none", "--mean-rank", 3), 2, "huggingface_hub is not installed")


def test_no_framework_is_imported(folder: Path) -> None:
    code = f"""
import sys
from lowrank_swift.cli import main
sys.argv = ["", "ranks", {str(folder)!r}, "--mean-rank", "3"]
try: main()
except SystemExit: pass
print([name for name in ("torch", "numpy", "transformers", "matplotlib", "safetensors") if name in sys.modules])
"""
    assert run_python(code).splitlines()[-1] == "[]"
