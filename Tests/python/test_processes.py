# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Results are the same from any thread, in a forked process, and for any number and kind of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import lowrank_swift as lrs
import numpy as np
import pytest
import torch
from support import run_python

# Large enough that the parallel paths run; every method, product and in-place form.
WORK = """
import hashlib, sys, torch, lowrank_swift as lrs
from lowrank_swift import Factors, _native

def arrays(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(300, 260, generator=generator, dtype=torch.float64) * 0.05).to(dtype)
    x = torch.randn(180, 260, generator=generator, dtype=torch.float64).to(dtype)
    results = []
    for function in (lrs.olora_, lrs.loldu_, lrs.lamda_, lrs.pissa_):
        residual = weight.clone()
        factors = function(residual, 24)
        out = torch.zeros(180, 300, dtype=dtype)
        h = lrs.adapter_forward(x, factors, out)
        gradients = lrs.adapter_backward(out, x, h, factors)
        merged = lrs.merge_(residual.clone(), factors)
        results += [residual, factors.up, factors.down, h, out, *gradients, merged]
    if dtype is torch.float32:
        results.append(torch.empty(180, 300))
        _native.base_product(x, weight, None, results[-1])
    return [r for r in [*results, *lrs.svd(weight, 24)[:3], *lrs.qr(weight, 24), *lrs.ldu(weight, 24)] if r is not None]

def digest(seed, dtype=torch.float32):
    state = hashlib.sha256()
    for result in arrays(seed, dtype):
        state.update(result.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
"""
DIGESTS = f"{WORK}\nprint(*[digest(3, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)])"


@pytest.fixture(scope="module")
def work() -> dict[str, Callable[..., str]]:
    namespace: dict[str, Callable[..., str]] = {}
    exec(WORK, namespace)
    return namespace


def test_eight_threads_at_once(work: dict[str, Callable[..., str]]) -> None:
    seeds = range(8)
    expected = [work["digest"](seed) for seed in seeds]
    assert len(set(expected)) == 8
    barrier = threading.Barrier(8)
    found: list[str | None] = [None] * 8

    def run(seed: int) -> None:
        barrier.wait()
        for _ in range(3):
            found[seed] = work["digest"](seed)
            with pytest.raises(ValueError, match=f"got {100 + seed}$"):  # messages belong to their thread
                lrs.qr(torch.ones(4, 4), 100 + seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_bits_do_not_depend_on_the_number_of_threads(work: dict[str, Callable[..., str]], threads: None) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        digests = set()
        for count in (1, 2, 3):
            lrs.set_num_threads(count)
            digests.add(work["digest"](1, dtype))
        assert len(digests) == 1, dtype


def test_bits_do_not_depend_on_the_kind_of_threads() -> None:
    outputs = {kind: run_python(DIGESTS, LOWRANK_THREADS=kind) for kind in ("openmp", "pool", "serial")}
    assert len(set(outputs.values())) == 1, outputs
    assert len(set(outputs["pool"].split())) == 3


def test_instruction_sets_agree_to_rounding() -> None:
    code = f"""{WORK}
import json
sums = [[float(r.double().norm()), float(r.double().flatten() @ torch.linspace(-1, 1, r.numel(), dtype=torch.float64))]
        for r in arrays(2)]
print(lrs.show_config("dicts")["instruction_set"], json.dumps(sums))
"""
    found = {}
    names = lrs.show_config("dicts")["instruction_sets"]
    for name in ("", *names):
        used, numbers = run_python(code, LOWRANK_ISA=name).split(" ", 1)
        assert used == name or not name
        found[name] = np.array(eval(numbers))
    for name in names:
        # Sums of up to 300 * 260 entries, each with the rounding of a product over 300 terms.
        scale = found[""][:, :1] * 300 * float(np.finfo(np.float32).eps)
        assert (np.abs(found[name] - found[""]) <= 30 * scale * np.sqrt(300 * 260)).all(), name


FORK = f"""{WORK}
import os, signal
SETUP
def check():
    signal.alarm(60)  # a child that waits for threads it hasn't got
    torch.set_num_threads(1)  # or torch itself would wait for its own
    same = digest(5) == expected
    os._exit(0 if same else 3)
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        check()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
    assert digest(5) == expected
print("forked")
"""


@pytest.mark.parametrize("kind", ["openmp", "pool"])
def test_fork_after_use(kind: str) -> None:
    code = FORK.replace("SETUP", "expected = digest(5)")
    assert run_python(code, LOWRANK_THREADS=kind).strip() == "forked"


def test_fork_while_other_threads_compute() -> None:
    setup = """
import threading
expected = digest(5)
stop = threading.Event()
def busy():
    while not stop.is_set(): lrs.lamda(torch.randn(300, 300), 40)
threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
"""
    code = FORK.replace("SETUP", setup).replace(
        'print("forked")', 'stop.set(); [t.join() for t in threads]; print("forked")'
    )
    assert run_python(code, LOWRANK_THREADS="pool").strip() == "forked"


def test_data_loader_workers() -> None:
    code = f"""{WORK}
class Residuals(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, index): return digest(index)
here = [digest(index) for index in range(6)]
for _ in range(2):
    loader = torch.utils.data.DataLoader(Residuals(), batch_size=1, num_workers=2, timeout=60)
    assert [batch[0] for batch in loader] == here
print("same")
"""
    assert run_python(code).strip() == "same"
