# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The demo's task: which package of the Python standard library does a docstring come from?

The texts are read with `ast` from the source files of the running Python's standard library; nothing is imported.
They are used as they are: a docstring that names its own package keeps the name (`Corpus.naming_share` says how many).
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Corpus", "Docstring", "Split", "build_corpus", "read_docstrings", "split_corpus", "standard_library"]

# Test suites and installed packages are not the library; idlelib, tkinter and turtledemo are left out because Linux
# distributions ship them apart, so that one Python version gives nearly the same texts wherever it was installed.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "idlelib", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring of a function, method or class.

    Args:
        package: Top-level package or module, the label (`asyncio`).
        name: Qualified name, the identity of the function (`asyncio.base_events.BaseEventLoop.run_forever`).
        text: The docstring with its indentation removed.
    """

    package: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """The labelled texts.

    Args:
        docstrings: Ordered by package, then by name.
        packages: The labels, largest package first (before the cap).
        found: Docstrings in the whole library, before anything was left out.
        duplicates: Texts left out because they occur more than once.
    """

    docstrings: tuple[Docstring, ...]
    packages: tuple[str, ...]
    found: int
    duplicates: int

    @property
    def naming_share(self) -> float:
        """Share of the texts that contain their own label as a word."""
        naming = sum(d.package.lower() in _words(d.text) for d in self.docstrings)
        return naming / len(self.docstrings)


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test texts; no function is in both.

    Args:
        train: Ordered by package, then by name.
        test: The held-out texts, ordered likewise.
    """

    train: tuple[Docstring, ...]
    test: tuple[Docstring, ...]

    def balance(self) -> dict[str, tuple[int, int]]:
        """Number of (training, test) texts of each package."""
        train, test = (Counter(d.package for d in part) for part in (self.train, self.test))
        return {package: (train[package], test[package]) for package in sorted(train | test)}


def standard_library() -> Path:
    """The folder that holds the sources of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_docstrings(root: Path) -> list[Docstring]:
    """Read the docstrings of every function, method and class under a folder, in the order of packages and names.

    Args:
        root: Folder of the standard library's sources.

    Raises:
        SyntaxError: if a source file can't be parsed.
    """
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not parts[0].startswith("config-"):
            module = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in the library's own sources
                tree = ast.parse(path.read_bytes(), filename=str(path))
            found += [Docstring(parts[0], name, text) for name, text in _documented(tree, ".".join(module))]
    return sorted(found, key=_order)


def build_corpus(docstrings: list[Docstring], *, packages: int = 20, per_package: int = 300) -> Corpus:
    """Keep the largest packages, remove duplicates and cap each package.

    Of texts that are equal up to case and white space one is kept within a package, and none that occurs in several
    packages, because its label would be arbitrary. A package above the cap keeps a fixed random sample.

    Args:
        docstrings: What `read_docstrings` found.
        packages: How many packages to keep.
        per_package: The most texts of one package.

    Raises:
        ValueError: if there are fewer than two packages with a text.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for docstring in docstrings:
        owners[_normalised(docstring.text)].add(docstring.package)
    seen: set[str] = set()
    by_package: dict[str, list[Docstring]] = defaultdict(list)
    for docstring in sorted(docstrings, key=_order):
        key = _normalised(docstring.text)
        if key and key not in seen and len(owners[key]) == 1:
            seen.add(key)
            by_package[docstring.package].append(docstring)
    largest = sorted(by_package, key=lambda package: (-len(by_package[package]), package))[:packages]
    if len(largest) < 2:
        raise ValueError(f"docstrings: expected texts of at least 2 packages, got {len(largest)}")
    kept: list[Docstring] = []
    for package in sorted(largest):
        texts = by_package[package]
        if len(texts) > per_package:
            texts = random.Random(package).sample(texts, per_package)
        kept += sorted(texts, key=_order)
    return Corpus(tuple(kept), tuple(largest), len(docstrings), len(docstrings) - sum(map(len, by_package.values())))


def split_corpus(corpus: Corpus, *, seed: int, held_out: float = 0.2) -> Split:
    """Hold out a share of each package's functions.

    The unit is the function, by its qualified name: texts that share a name (a property's getter and setter) stay
    together.

    Args:
        corpus: The labelled texts.
        seed: Decides which functions are held out.
        held_out: Share of the texts of each package, up to a text or two.
    """
    by_name: dict[str, list[Docstring]] = defaultdict(list)
    for docstring in corpus.docstrings:
        by_name[docstring.name].append(docstring)
    train: list[Docstring] = []
    test: list[Docstring] = []
    for package in sorted(corpus.packages):
        names = [name for name, texts in by_name.items() if texts[0].package == package]
        random.Random(f"{seed}:{package}").shuffle(names)
        wanted = len(test) + round(held_out * sum(len(by_name[name]) for name in names))
        for name in names:
            (test if len(test) < wanted else train).extend(by_name[name])
    return Split(*(tuple(sorted(part, key=_order)) for part in (train, test)))


def _order(docstring: Docstring) -> tuple[str, str, str]:
    return docstring.package, docstring.name, docstring.text


def _documented(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}.{child.name}"
            text = ast.get_docstring(child)
            if text:
                yield name, text
        yield from _documented(child, name)


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split())
