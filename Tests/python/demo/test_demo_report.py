# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The demo's table, its line in words and its files."""

from __future__ import annotations

import json
import math
import os
import statistics
from pathlib import Path

import pytest
from lowrank_swift.demo import report
from lowrank_swift.demo.data import Docstring, build_corpus, split_corpus
from lowrank_swift.demo.metrics import wilson_interval
from lowrank_swift.demo.model import ModelSource
from lowrank_swift.demo.results import Results, Run
from lowrank_swift.demo.settings import DemoError, Settings
from rich.console import Console


def run(
    correct: int, *, seed: int = 0, speed: float = 0.1, loss: float = 1.0, at_end: int = 100, updates: int = 2_300_000
) -> Run:
    """A run whose loss falls from 3 to `loss` in a straight line of 20 steps."""
    losses = [3.0 + (loss - 3.0) * step / 20 for step in range(21)]
    probe_steps = [0, 5, 10, 15, 20]
    probe_losses = [losses[step] for step in probe_steps]
    return Run(
        seed=seed,
        initialisation_seconds=speed,
        parameters_at_start=100,
        parameters_at_end=at_end,
        updates=updates,
        bytes_kept=1_000_000,
        losses=losses[:20],
        step_seconds=[speed] * 20,
        probe_steps=probe_steps,
        probe_losses=probe_losses,
        correct=correct,
        tested=200,
    )


def results(out: Path, runs: dict[str, list[Run]]) -> Results:
    docstrings = [Docstring(p, f"{p}.f{i}", f"{p} {i}") for p in ("a", "b") for i in range(10)]
    corpus = build_corpus(docstrings)
    settings = Settings(steps=20, methods=tuple(runs), seeds=len(next(iter(runs.values()))), out=out)
    source = ModelSource("a model", "somewhere", local=True, sha256="00")
    ranks = {key: None if key == "full" else 16 for key in runs}
    command = ["lowrank-swift", "demo", "--out", "a b"]
    return Results(settings, source, corpus, split_corpus(corpus, seed=0), ranks, runs, command)


def shown(renderable: object, width: int = 120) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_files_hold_everything_and_nothing_else_is_left(tmp_path: Path) -> None:
    measured = results(tmp_path, {"lora": [run(150)], "loldu": [run(140, loss=1.5, at_end=90)]})
    paths = report.write_files(measured)
    assert sorted(os.listdir(tmp_path)) == ["loss-curves.png", "results.json"] == sorted(p.name for p in paths)
    assert (tmp_path / "loss-curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["command"] == "lowrank-swift demo --out 'a b'"
    loldu = record["methods"]["loldu"]
    assert loldu["runs"][0]["losses"] == measured.runs["loldu"][0].losses
    assert loldu["summary"]["steps_to_reference"] is None
    assert (loldu["summary"]["parameters_at_start"], loldu["summary"]["parameters_at_end"]) == (100, 90)
    assert {"torch", "peft", "transformers", "lowrank_swift"} <= set(record["machine"]["versions"])
    assert record["machine"]["cpu"] and record["machine"]["torch_threads"] >= 1
    assert record["data"]["train_and_test_of_first_seed"] == {"a": [8, 2], "b": [8, 2]}


def test_a_loss_that_is_no_number_becomes_null(tmp_path: Path) -> None:
    report.write_files(results(tmp_path, {"lora": [run(150)], "olora": [run(10, loss=math.nan)]}))
    record = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert record["methods"]["olora"]["runs"][0]["probe_losses"][-1] is None
    assert record["methods"]["olora"]["summary"]["steps_to_reference"] is None


def test_one_seed_shows_the_wilson_interval(tmp_path: Path) -> None:
    text = shown(report.table(results(tmp_path, {"lora": [run(150)], "full": [run(160)]})))
    low, high = wilson_interval(150, 200)
    assert f"0.750 [{low:.3f}, {high:.3f}]" in text
    assert "95% CI" in text and "LoRA (PEFT)" in text and "1.0 MB" in text


def test_several_seeds_show_mean_and_spread(tmp_path: Path) -> None:
    measured = results(tmp_path, {"lora": [run(150), run(160, seed=1), run(152, seed=2)]})
    spread = statistics.stdev([0.75, 0.80, 0.76])
    assert f"{(0.75 + 0.80 + 0.76) / 3:.3f} ± {spread:.3f}" in shown(report.table(measured))


def test_steps_to_the_references_loss(tmp_path: Path) -> None:
    measured = results(tmp_path, {"lora": [run(150)], "olora": [run(150, loss=0.0)], "loldu": [run(150, loss=2.0)]})
    assert measured.summary("lora").steps_to_reference == 20
    assert measured.summary("olora").steps_to_reference == 15
    assert measured.summary("loldu").steps_to_reference is None
    assert "not reached" in shown(report.table(measured))
    assert results(tmp_path, {"olora": [run(150)]}).summary("olora").steps_to_reference is None


def test_lamda_shows_both_counts(tmp_path: Path) -> None:
    assert "100 → 40" in shown(report.table(results(tmp_path, {"lamda": [run(150, at_end=40)]})))


def test_table_loses_nothing_on_a_narrow_terminal(tmp_path: Path) -> None:
    text = shown(report.table(results(tmp_path, {"lora": [run(150)], "full": [run(160)]})), width=80)
    assert "…" not in text and "full fine-tuning" in text


def test_verdict_says_who_won_and_where_ours_lose(tmp_path: Path) -> None:
    runs = {"lora": [run(150, speed=0.1)], "olora": [run(158, speed=0.2)], "loldu": [run(100, speed=0.05, loss=2.0)]}
    line = report.verdict(results(tmp_path, runs))
    assert line.startswith("Best accuracy: OLoRA, 0.790; within its interval: LoRA (PEFT).")
    assert "OLoRA: init time (200 ms against 100 ms), step time (200 ms against 100 ms);" in line
    assert "LoLDU: accuracy (0.500 against 0.750), training loss (never reaches its final one)." in line


def test_updates_are_compared_with_the_reference(tmp_path: Path) -> None:
    runs = {"lora": [run(150)], "lamda": [run(150, updates=500_000)], "full": [run(150, updates=6_900_000)]}
    line = report.updates(results(tmp_path, runs | {"head": [run(150, updates=0)]}))
    assert line == (
        "Numbers updated, summed over the steps: LoRA (PEFT) 2.3 million; LaMDA 4.6 times fewer; "
        "full fine-tuning 3 times as many."
    )
    assert report.updates(results(tmp_path, {"lamda": [run(150)]})) == ""


def test_verdict_admits_a_defeat_and_needs_no_reference(tmp_path: Path) -> None:
    line = report.verdict(results(tmp_path, {"olora": [run(100)], "full": [run(190)]}))
    assert line == "Best accuracy: full fine-tuning, 0.950; no other is within its interval."


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report.write_atomically(tmp_path / "file", b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.write_atomically(path, b"new")
    assert os.listdir(tmp_path) == ["file"] and path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"^--out: .*file.folder can't be written \("):
        report.prepare_folder(tmp_path / "file" / "folder")
