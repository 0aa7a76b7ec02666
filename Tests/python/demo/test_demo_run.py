# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The whole demo on a tiny model: every method, offline, from one start."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lowrank_swift.cli.app import app
from lowrank_swift.demo import data, experiment
from lowrank_swift.demo.train import batch_indices, collate
from typer.testing import CliRunner, Result

HIDDEN, INTERMEDIATE, LAYERS = 32, 48, 2
METHODS = ("head", "lora", "olora", "loldu", "lamda", "lamda++", "full")
SHAPES = [(HIDDEN, HIDDEN)] * 4 + [(INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
WORDS = ("read", "write", "parse", "close", "socket", "header", "tree", "queue", "lock", "colour", "date", "random")


@pytest.fixture(scope="session")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of four packages, with what is to be skipped beside them."""
    root = tmp_path_factory.mktemp("library")
    for p, package in enumerate(("alpha", "beta", "gamma", "delta")):
        (root / package).mkdir()
        functions = [
            f'def f{i}():\n    """{WORDS[(i + p) % 12]} the {WORDS[(3 * p + i * i) % 12]} of {package} number {i}."""\n'
            for i in range(20 + p)
        ]
        (root / package / "__init__.py").write_text("\n".join(functions))
    for skipped in ("alpha/test", "site-packages", "idlelib", "config-3.11"):
        (root / skipped).mkdir()
        (root / skipped / "hidden.py").write_text('def g():\n    """not to be read."""\n')
    return root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, "the", "of", "number", *WORDS, *map(str, range(10)), "."]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def offline(small_library: Path) -> Iterator[None]:
    """Any connection fails, the texts are those of the small library, and one thread suffices for so small a model."""

    def refuse(*_: object) -> None:
        raise AssertionError("the demo opened a network connection")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(data, "standard_library", lambda: small_library)
        yield
    torch.set_num_threads(threads)


def demo(model: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", "--model", str(model), "--out", str(out), "--batch-size", "8", *arguments])


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "results.json").read_text())
    return record


@pytest.fixture(scope="module")
def record(offline: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of every method wrote."""
    out = tmp_path_factory.mktemp("out")
    result = demo(tiny_model, out, "--steps", "12", "--rank", "4", "--methods", ",".join(METHODS))
    assert result.exit_code == 0, result.output
    return record_of(out)


def test_every_method_runs_from_one_start_and_learns(record: dict[str, Any]) -> None:
    assert tuple(record["methods"]) == METHODS
    losses = {key: method["runs"][0]["losses"] for key, method in record["methods"].items()}
    for method in METHODS[1:]:
        # Head, batches and pretrained function are the same, so the first loss is too, up to rounding in the adapters.
        difference = abs(losses[method][0] - losses["head"][0])
        ratio = difference / (INTERMEDIATE * torch.finfo(torch.float32).eps * losses["head"][0])
        assert ratio < 30, (method, ratio)
        assert losses[method][1] != losses["head"][1], f"{method} does not train the encoder"
        probe = record["methods"][method]["runs"][0]
        assert probe["probe_steps"] == list(range(13))
        assert probe["probe_losses"][-1] < probe["probe_losses"][0], f"{method} does not learn"


def test_parameter_counts(record: dict[str, Any]) -> None:
    counts = {
        key: (method["summary"]["parameters_at_start"], method["summary"]["parameters_at_end"])
        for key, method in record["methods"].items()
    }
    both = LAYERS * sum(4 * (m + n) for m, n in SHAPES)
    assert counts["head"] == (0, 0)
    assert counts["lora"] == counts["olora"] == (both, both)
    assert counts["loldu"] == (LAYERS * len(SHAPES) * 4,) * 2
    cores = LAYERS * len(SHAPES) * 4 * 4
    assert counts["lamda"] == (LAYERS * sum(4 * m for m, _ in SHAPES) + cores, cores)
    # Ranks of the same mean: their squares can only be more, as many as what LaMDA keeps if they are all the same.
    assert counts["lamda++"][0] > counts["lamda++"][1] >= cores
    assert counts["full"][0] > both


def test_updates_are_the_numbers_that_have_a_gradient(record: dict[str, Any]) -> None:
    updates = {key: method["summary"]["updates"] for key, method in record["methods"].items()}
    rows, cores = LAYERS * sum(m for m, _ in SHAPES), LAYERS * len(SHAPES) * 4 * 4
    columns = 4 + 3 + 2 + 1  # Of 4, frozen one after each of round(0.3 * 12) steps.
    assert updates["head"] == 0
    assert updates["lamda"] == 12 * cores + columns * rows
    # LoRA's down-projection has no gradient while its up-projection is zero.
    assert updates["lora"] == 12 * 4 * rows + 11 * 4 * LAYERS * sum(n for _, n in SHAPES)


def test_only_a_trained_encoder_keeps_its_activations(record: dict[str, Any]) -> None:
    kept = {key: method["summary"]["bytes_kept"] for key, method in record["methods"].items()}
    assert 0 < kept["head"] < min(kept[method] for method in METHODS[1:])
    assert kept["loldu"] < kept["lora"]


def test_files_table_and_verdict(tiny_model: Path, tmp_path: Path) -> None:
    result = demo(tiny_model, tmp_path / "a" / "b", "--steps", "1", "--methods", "lora,loldu")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["loss-curves.png", "results.json"]
    for part in ("4 standard library packages", "alpha 16/4", "Best accuracy:", "Where ours lose to LoRA (PEFT)"):
        assert part in result.stdout
    assert record_of(tmp_path / "a" / "b")["model"]["sha256"]


def test_runs_with_one_seed_are_equal_and_seeds_differ(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("--steps", "3", "--methods", "olora", "--seeds", "2")
    records = []
    for name in ("first", "second"):
        assert demo(tiny_model, tmp_path / name, *arguments).exit_code == 0
        records.append(record_of(tmp_path / name)["methods"]["olora"]["runs"])
    assert [run["losses"] for run in records[0]] == [run["losses"] for run in records[1]]
    assert records[0][0]["losses"] != records[0][1]["losses"]


def test_a_methods_own_rank_shrinks_to_the_model(tiny_model: Path, tmp_path: Path) -> None:
    assert demo(tiny_model, tmp_path, "--steps", "1", "--methods", "loldu,full").exit_code == 0
    methods = record_of(tmp_path)["methods"]
    assert (methods["loldu"]["rank"], methods["full"]["rank"]) == (HIDDEN, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", str(HIDDEN + 1)], f"--rank: expected 1 <= rank <= {HIDDEN} (the smallest adapted layer), got 33"),
        (["--batch-size", "1000"], "--batch-size: expected at most 69 (the training texts), got 1000"),
    ],
)
def test_options_that_do_not_suit_the_model(
    tiny_model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = demo(tiny_model, tmp_path, "--methods", "lora", *arguments)
    assert result.exit_code == 2
    assert result.stderr.strip() == message
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_no_file(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupt)
    result = demo(tiny_model, tmp_path, "--methods", "lora")
    assert result.exit_code not in (0, 2)
    assert not list(tmp_path.iterdir())


def test_batches_are_whole_seeded_and_cover_an_epoch() -> None:
    lengths = [3 + i % 17 for i in range(100)]
    batches = batch_indices(lengths, batch_size=10, steps=10, seed=0)
    assert all(len(batch) == 10 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    assert batches == batch_indices(lengths, batch_size=10, steps=10, seed=0)
    assert batches != batch_indices(lengths, batch_size=10, steps=10, seed=1)


def test_batches_of_similar_length_save_padding() -> None:
    lengths = [3 + i % 61 for i in range(2000)]
    batches = batch_indices(lengths, batch_size=10, steps=200, seed=0)
    assert 10 * sum(max(lengths[i] for i in batch) for batch in batches) < 1.25 * sum(lengths)


def test_collate_pads_and_masks() -> None:
    batch = collate([[5, 6, 7], [8]], [1, 0], pad=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [1, 0]
