# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Random calls in processes of their own: a small sample always, the whole campaign by ``make test-fuzz``.

A failure shows its seed; ``python Tests/python/fuzz/campaign.py EXAMPLES SEED FUNCTION`` repeats it.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import lowrank_swift as lrs
import pytest
from lowrank_swift import _native
from support import python_environment

CAMPAIGN = Path(__file__).with_name("campaign.py")
# Above this the campaign's processes find nothing that the first two do not.
PROCESSES = 2
METHODS = ("olora", "loldu", "lamda", "pissa")


def run_campaigns(examples: int, seeds: list[int], folder: Path) -> int:
    """Run campaigns at once, and return how many calls they made in all."""
    started = []
    for seed in seeds:
        log = folder / f"{seed}.log"
        with log.open("w") as file:
            command = [sys.executable, str(CAMPAIGN), str(examples), str(seed)]
            process = subprocess.Popen(
                command, env=python_environment(), stdout=subprocess.PIPE, stderr=file, text=True
            )
        started.append((seed, process, log))
    calls = 0
    outputs = [process.communicate()[0] for _, process, _ in started]
    for (seed, process, log), output in zip(started, outputs, strict=True):
        print(output)
        last = "\n".join(log.read_text().splitlines()[-40:])
        assert process.returncode in (0, 1), (
            f"seed {seed}: the process died ({process.returncode}); its last call:\n{last}"
        )
        failures = [line for line in output.splitlines() if line.startswith("FAILED")]
        assert process.returncode == 0, "\n".join([f"seed {seed}", *failures])
        calls += int(re.findall(r"^calls: (\d+)", output, re.MULTILINE)[0])
    return calls


# Getters, and what raises on request.
LEFT_OUT = {"get_num_threads", "_native.get_num_threads", "_native._test_status", "_native.set_num_threads"}


def test_every_function_is_called() -> None:
    """A new one has to be added to the campaign, or to those left out with a reason."""
    text = CAMPAIGN.read_text() + CAMPAIGN.with_name("fuzz_calls.py").read_text()
    names = {f"_native.{name}" for name in vars(_native) if not name.startswith("__")}
    names |= set(lrs.__all__)
    functions = {
        name
        for name in names
        if inspect.isroutine(getattr(_native if "_native." in name else lrs, name.split(".")[-1]))
    }
    assert functions >= LEFT_OUT
    # The methods' names are put together there, each with and without an underscore.
    called = {*re.findall(r'"((?:_native\.)?\w+)": ', text), *METHODS, *(f"{method}_" for method in METHODS)}
    assert functions - called == LEFT_OUT


def test_sample(tmp_path: Path) -> None:
    assert run_campaigns(12, [1], tmp_path) >= 300


@pytest.mark.slow
def test_campaign(tmp_path: Path) -> None:
    seeds = [time.time_ns() % 2**32 + 1000 * index for index in range(PROCESSES)]
    assert run_campaigns(1000, seeds, tmp_path) >= 50_000
