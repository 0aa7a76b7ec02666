# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Runs `swift test` and ends its output with one line: ``swift: N passed, N failed``.

Usage: python run_swift_tests.py [arguments of swift test]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter

# Swift Testing: `✔ Test name() passed after 0.001 seconds.` and `➜ Test name() skipped.`; not its cases, not the run.
# XCTest: `Test Case 'Class.name' passed (0.001 seconds)`.
RESULT = re.compile(
    r"^\S+ Test (?!case |run )(?:.+ (?P<testing>passed|failed) after [\d.]+ seconds|.+ (?P<left_out>skipped)\b)"
    r"|^Test Case '.+' (?P<xctest>passed|failed|skipped) \("
)


def main(arguments: list[str]) -> int:
    """Run the tests.

    Returns:
        The exit status of `swift test`, or 1 where that is 0 and yet a test failed or none ran.
    """
    if shutil.which("swift") is None:
        print("no `swift` was found: install it from https://www.swift.org/install/linux and put it on PATH")
        return 1
    counts: Counter[str] = Counter()
    command = ["swift", "test", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if match := RESULT.match(line):
                counts[match["testing"] or match["xctest"] or match["left_out"]] += 1
    status = process.returncode
    if status != 0 and counts["failed"] == 0:
        print(f"`swift test` ended with status {status} outside of a test")
    if status == 0 and counts["passed"] == 0:
        print("no Swift test ran")
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"swift: {counts['passed']} passed, {counts['failed']} failed{skipped}", flush=True)
    return status or int(counts["passed"] == 0 or counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
