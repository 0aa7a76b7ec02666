# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Builds the reference of the Swift library with DocC, offline, and fails over a warning or a symbol without a comment.

Usage: python build_docc.py [folder for the result, by default docs/_build/swift]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULE = "LowRank"
SCRATCH = ROOT / ".build" / "docs"


def symbol_graph() -> Path:
    """Compile the library, and return the file that lists all public symbols, those of re-exported modules included."""
    graphs = SCRATCH / "symbol-graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    command = ["swift", "build", "--package-path", str(ROOT), "--scratch-path", str(SCRATCH), "--target", MODULE]
    for option in ("-emit-symbol-graph", "-emit-symbol-graph-dir", str(graphs)):
        command += ["-Xswiftc", option]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stdout + result.stderr)
    return graphs / f"{MODULE}.symbols.json"


def undocumented(graph: dict[str, Any]) -> list[str]:
    """Return the public symbols without a documentation comment.

    What a type has because a protocol asks for it is documented with the protocol, here or in the standard library.
    """
    by_id = {symbol["identifier"]["precise"]: symbol for symbol in graph["symbols"]}
    conforming: dict[str, set[str]] = {}
    for relation in graph["relationships"]:
        if relation["kind"] == "conformsTo":
            conforming.setdefault(relation["source"], set()).add(relation["target"])
    members: dict[str, set[str]] = {}
    types: dict[str, str] = {}
    for relation in graph["relationships"]:
        if relation["kind"] in ("memberOf", "requirementOf") and relation["source"] in by_id:
            types[relation["source"]] = relation["target"]
            symbol = by_id[relation["source"]]
            if "docComment" in symbol:
                members.setdefault(relation["target"], set()).add(symbol["pathComponents"][-1])
    missing = []
    for identifier, symbol in by_id.items():
        name = symbol["pathComponents"][-1]
        protocols = conforming.get(types.get(identifier, ""), set())
        is_required = any(name in members.get(protocol, ()) for protocol in protocols) or name == "description"
        # Without a place in the sources: made by the compiler.
        if "docComment" not in symbol and "location" in symbol and not is_required:
            missing.append(".".join(symbol["pathComponents"]))
    return sorted(missing)


def main(arguments: list[str]) -> int:
    """Build the reference; 0 if it has no fault."""
    out = Path(arguments[0] if arguments else ROOT / "docs/_build/swift").resolve()
    for tool in ("swift", "docc"):
        if shutil.which(tool) is None:
            print(f"no `{tool}` was found: both come with the toolchain, from https://www.swift.org/install/linux")
            return 1
    graph = symbol_graph()
    missing = undocumented(json.loads(graph.read_text()))
    if missing:
        print("public symbols without a documentation comment:", *missing, sep="\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(graph, folder)
        command = ["docc", "convert", str(ROOT / f"Sources/{MODULE}/{MODULE}.docc"), "--warnings-as-errors"]
        command += ["--additional-symbol-graph-dir", folder, "--output-path", str(out)]
        command += ["--fallback-display-name", MODULE, "--fallback-bundle-identifier", "lowrank-swift.LowRank"]
        status = subprocess.run(command, check=False).returncode
    if status == 0:
        print(f"The reference of the Swift library is in {out}; `docc preview` or any web server shows it")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
