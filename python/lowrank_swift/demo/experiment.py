# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The whole demo: data, model, one run for each method and seed, then the report."""

from __future__ import annotations

import copy
import gc
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from lowrank_swift.demo import data, report
from lowrank_swift.demo.methods import METHODS, Method, import_libraries
from lowrank_swift.demo.metrics import bytes_kept
from lowrank_swift.demo.model import Pretrained, load_model, locate_model
from lowrank_swift.demo.results import Results, Run
from lowrank_swift.demo.settings import DemoError, Settings
from lowrank_swift.demo.train import Batch, Classifier, batch_indices, collate, count_correct, train

__all__ = ["Task", "make_task", "run_demo"]

_INITIALISATIONS = 3  # each initialisation time is the median of so many
_PROBE_TEXTS = 64
_TEST_BATCH = 64


@dataclass(frozen=True, slots=True)
class Task:
    """What every method gets for one seed."""

    seed: int
    classes: int
    train: list[Batch]
    probe: list[Batch]
    test: list[Batch]


def run_demo(settings: Settings, console: Console, command: list[str]) -> Results:
    """Run every method with every seed, print the table and write the files.

    Args:
        settings: The options.
        console: For progress and the table.
        command: The command line, for the record.

    Raises:
        DemoError: if the model can't be used, the settings don't suit it or the results can't be written.
    """
    source = locate_model(settings.model)
    pretrained = load_model(source)
    import_libraries()
    ranks = {key: _rank(METHODS[key], settings.rank, pretrained.largest_rank) for key in settings.methods}
    report.prepare_folder(settings.out)
    corpus = data.build_corpus(data.read_docstrings(data.standard_library()))
    split = data.split_corpus(corpus, seed=0)
    console.print(report.introduction(source, corpus, split, len(pretrained.layers)))
    runs: dict[str, list[Run]] = {key: [] for key in settings.methods}
    with _progress(console) as progress:
        for seed in range(settings.seeds):
            task = make_task(seed, pretrained, corpus, settings)
            for key in settings.methods:
                run = _run(METHODS[key], ranks[key], pretrained, task, progress)
                runs[key].append(run)
                gc.collect()  # wrapped encoders hold themselves in cycles, and each is as large as the model
                if progress.disable:
                    console.print(f"{METHODS[key].label}, seed {seed}: {sum(run.step_seconds):.0f} s", highlight=False)
    results = Results(settings, source, corpus, split, ranks, runs, command)
    lines = [line for line in (report.updates(results), report.verdict(results)) if line]
    console.print(report.table(results), *lines, sep="\n")
    for path in report.write_files(results):
        console.print(f"wrote {path}", highlight=False)
    return results


def _rank(method: Method, wanted: int | None, largest: int) -> int | None:
    """The rank as asked for, else the method's own, or the largest that a smaller model allows."""
    if method.rank is None:
        return None
    if wanted is None:
        return min(method.rank, largest)
    if wanted > largest:
        raise DemoError(f"--rank: expected 1 <= rank <= {largest} (the smallest adapted layer), got {wanted}")
    return wanted


def make_task(seed: int, pretrained: Pretrained, corpus: data.Corpus, settings: Settings) -> Task:
    """Return the texts and batches of a seed.

    Raises:
        DemoError: if the batch is larger than the training set.
    """
    split = data.split_corpus(corpus, seed=seed)
    if settings.batch_size > len(split.train):
        raise DemoError(
            f"--batch-size: expected at most {len(split.train)} (the training texts), got {settings.batch_size}"
        )
    tokenizer = pretrained.tokenizer
    label = {package: index for index, package in enumerate(sorted(corpus.packages))}

    def encode(docstrings: tuple[data.Docstring, ...]) -> list[list[int]]:
        texts = [docstring.text for docstring in docstrings]
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=settings.max_length)["input_ids"]
        return ids

    def batch(docstrings: tuple[data.Docstring, ...], ids: list[list[int]], chosen: list[int]) -> Batch:
        labels = [label[docstrings[i].package] for i in chosen]
        return collate([ids[i] for i in chosen], labels, pad=tokenizer.pad_token_id)

    train_ids, test_ids = encode(split.train), encode(split.test)
    lengths = [len(ids) for ids in train_ids]
    order = batch_indices(lengths, batch_size=settings.batch_size, steps=settings.steps, seed=seed)
    probe = random.Random(seed).sample(range(len(lengths)), min(_PROBE_TEXTS, len(lengths)))
    return Task(
        seed=seed,
        classes=len(corpus.packages),
        train=[batch(split.train, train_ids, chosen) for chosen in order],
        probe=[batch(split.train, train_ids, chosen) for chosen in _by_length(probe, train_ids, settings.batch_size)],
        test=[
            batch(split.test, test_ids, chosen) for chosen in _by_length(range(len(test_ids)), test_ids, _TEST_BATCH)
        ],
    )


def _by_length(chosen: Iterable[int], ids: list[list[int]], size: int) -> list[list[int]]:
    """Cut the chosen texts into batches of similar length."""
    order = sorted(chosen, key=lambda i: len(ids[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _run(method: Method, rank: int | None, pretrained: Pretrained, task: Task, progress: Progress) -> Run:
    bar = progress.add_task(method.label, total=len(task.train), loss="", seed=task.seed)
    initialisation = []
    for _ in range(_INITIALISATIONS):
        fresh = copy.deepcopy(pretrained.encoder)
        start = time.perf_counter()
        encoder = method.prepare(fresh, list(pretrained.layers), rank or 0)
        initialisation.append(time.perf_counter() - start)
    width = pretrained.encoder.config.hidden_size
    classifier = Classifier(encoder, width=width, classes=task.classes, seed=task.seed)
    parameters_at_start = _trainable(encoder)
    widest = max(task.train, key=lambda batch: batch.input_ids.numel())
    kept = bytes_kept(classifier, lambda: classifier.loss(widest))

    def show(loss: float) -> None:
        progress.update(bar, advance=1, loss=f"{loss:.2f}")

    curve = train(classifier, method, task.train, task.probe, show)
    return Run(
        seed=task.seed,
        initialisation_seconds=statistics.median(initialisation),
        parameters_at_start=parameters_at_start,
        parameters_at_end=_trainable(encoder),
        updates=curve.updates,
        bytes_kept=kept,
        losses=curve.losses,
        step_seconds=curve.seconds,
        probe_steps=curve.probe_steps,
        probe_losses=curve.probe_losses,
        correct=count_correct(classifier, task.test),
        tested=sum(len(batch.labels) for batch in task.test),
    )


def _trainable(encoder: nn.Module) -> int:
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<17} seed {task.fields[seed]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:<5}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
