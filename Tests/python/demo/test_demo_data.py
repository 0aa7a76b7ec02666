# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The demo's texts: what is read, what is left out, and that nothing leaks from training to test."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from lowrank_swift.demo.data import Corpus, Docstring, build_corpus, read_docstrings, split_corpus, standard_library


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    """The running Python's texts."""
    return read_docstrings(standard_library())


@pytest.fixture(scope="module")
def corpus(docstrings: list[Docstring]) -> Corpus:
    """What the demo keeps of them."""
    return build_corpus(docstrings)


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def test_standard_library_gives_twenty_capped_packages_without_duplicates(corpus: Corpus) -> None:
    sizes = Counter(d.package for d in corpus.docstrings)
    assert len(corpus.packages) == 20 and set(sizes) == set(corpus.packages)
    assert max(sizes.values()) <= 300
    assert max(Counter(normalised(d.text) for d in corpus.docstrings).values()) == 1
    assert not {"test", "idlelib", "tkinter"} & set(corpus.packages)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the number of texts is that of Python 3.11")
def test_python_3_11_gives_about_3400_texts(corpus: Corpus) -> None:
    assert 3300 <= len(corpus.docstrings) <= 3500


@pytest.mark.parametrize("seed", [0, 1])
def test_no_function_and_no_text_is_in_both_parts(corpus: Corpus, seed: int) -> None:
    split = split_corpus(corpus, seed=seed)
    assert not {d.name for d in split.train} & {d.name for d in split.test}
    assert not {normalised(d.text) for d in split.train} & {normalised(d.text) for d in split.test}
    assert sorted(split.train + split.test, key=id_of) == sorted(corpus.docstrings, key=id_of)


def id_of(docstring: Docstring) -> tuple[str, str]:
    return docstring.name, docstring.text


def test_a_fifth_of_each_package_is_held_out(corpus: Corpus) -> None:
    for package, (train, test) in split_corpus(corpus, seed=0).balance().items():
        # A function with several texts (a property's getter and setter) goes whole, so the share may miss by a few.
        assert abs(test - 0.2 * (train + test)) <= 3, package


def test_split_is_decided_by_the_seed_alone(docstrings: list[Docstring], corpus: Corpus) -> None:
    again = build_corpus(docstrings[::-1])
    assert again == corpus
    assert split_corpus(again, seed=0) == split_corpus(corpus, seed=0)
    assert split_corpus(corpus, seed=1) != split_corpus(corpus, seed=0)


def test_reading_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "pack.py").write_text('raise SystemExit\ndef f():\n    "Text."\n')
    assert read_docstrings(tmp_path) == [Docstring("pack", "pack.f", "Text.")]


def test_docstrings_carry_package_qualified_name_and_clean_text(tmp_path: Path) -> None:
    (tmp_path / "pack" / "test").mkdir(parents=True)
    (tmp_path / "pack" / "test" / "test_it.py").write_text('def f():\n    "hidden"\n')
    for skipped in ("site-packages", "idlelib", "config-3.11"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "module.py").write_text('def f():\n    "hidden"\n')
    (tmp_path / "pack" / "__init__.py").write_text(
        '"""Module."""\nasync def f():\n    """First.\n\n    Second.\n    """\n'
    )
    (tmp_path / "pack" / "part.py").write_text(
        'class C:\n    "A class."\n    def m(self):\n        "A method."\n    x = 1\n'
    )
    (tmp_path / "single.py").write_text('if True:\n    def g():\n        def inner():\n            "Inner."\n')
    assert read_docstrings(tmp_path) == [
        Docstring("pack", "pack.f", "First.\n\nSecond."),
        Docstring("pack", "pack.part.C", "A class."),
        Docstring("pack", "pack.part.C.m", "A method."),
        Docstring("single", "single.g.inner", "Inner."),
    ]


def test_duplicates_go_and_texts_of_several_packages_go_entirely() -> None:
    texts = {
        "a.f": "Same text.",
        "a.g": "same   TEXT.",
        "a.h": "Common.",
        "b.f": "Common.",
        "b.g": "Of b alone.",
    }
    corpus = build_corpus([Docstring(name[0], name, text) for name, text in texts.items()])
    assert [d.name for d in corpus.docstrings] == ["a.f", "b.g"]
    assert (corpus.found, corpus.duplicates) == (5, 3)


def test_texts_of_one_name_stay_together() -> None:
    docstrings = [Docstring(p, f"{p}.f{i // 2}", f"{p} {i}") for p in ("a", "b") for i in range(40)]
    split = split_corpus(build_corpus(docstrings), seed=3)
    assert split.balance() == {"a": (32, 8), "b": (32, 8)}
    assert not {d.name for d in split.train} & {d.name for d in split.test}


def test_naming_share_counts_whole_words() -> None:
    docstrings = [Docstring("xml", "xml.f", "Parse XML."), Docstring("http", "http.f", "See httplib.")]
    assert build_corpus(docstrings).naming_share == 0.5


def test_one_package_is_not_a_task() -> None:
    with pytest.raises(ValueError, match="docstrings: expected texts of at least 2 packages, got 1"):
        build_corpus([Docstring("a", "a.f", "Text.")])
