# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Work over many layers: the bar that shows it, and memory for one layer at a time."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
import torch
from lowrank_swift.torch import LoLDU, OLoRA, adapt, export_lora, load_adapter, merge, save_adapter, unadapt
from support import run_python
from torch import nn
from torch_support import blocks

CALLS = {
    "adapt": (lambda model, folder, progress: adapt(model, OLoRA(2), targets=["value"], progress=progress), "Factor"),
    "merge": (lambda model, folder, progress: merge(model, progress=progress), "Merging"),
    "merge for good": (lambda model, folder, progress: merge(model, keep_base=False, progress=progress), "Merging"),
    "unadapt": (lambda model, folder, progress: unadapt(model, progress=progress), "Restoring"),
    "export_lora": (lambda model, folder, progress: export_lora(model, folder, progress=progress), "Exporting"),
    "load_adapter": (lambda model, folder, progress: load_adapter(blocks(), folder, progress=progress), "Loading"),
}


@pytest.mark.parametrize("name", CALLS)
def test_progress(name, tmp_path, capfd, monkeypatch):
    call, description = CALLS[name]

    def model() -> nn.Module:
        return adapt(blocks(), OLoRA(2), targets=["query"], base="residual", progress=False)

    save_adapter(model(), tmp_path)
    call(model(), tmp_path, True)
    shown = capfd.readouterr().err
    assert description in shown
    assert "2/2" in shown
    for terminal in (False, True):
        # On a terminal only work that takes more than a second is shown, unless it is never to be.
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        for progress in (None, False):
            call(model(), tmp_path, progress)
            assert description not in capfd.readouterr().err


PEAKS = """
import resource, sys
import torch
from torch import nn
from lowrank_swift.torch import OLoRA, adapt, merge, unadapt

LAYERS, SIDE = 12, 1024
torch.set_num_threads(1)

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def growth(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    call()
    return (peak() - before) / (4 * SIDE * SIDE)

for base, call in (("intact", lambda model: merge(model, keep_base=False)), ("residual", unadapt)):
    for rehearsal in (True, False):
        layers = [nn.Linear(SIDE, SIDE, bias=False) for _ in range(1 if rehearsal else LAYERS)]
        model = adapt(nn.Sequential(*layers), OLoRA(2), targets=[str(i) for i in range(len(layers))], base=base)
        taken = growth(lambda: call(model))
    assert taken < LAYERS / 3, (base, taken)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak from /proc")
def test_weights_are_replaced_one_at_a_time():
    """In layers' worth of memory beyond what the model itself takes; all at once would be twelve."""
    # Else glibc keeps some of what is freed, and the peak depends on how it comes to lie.
    run_python(PEAKS, MALLOC_MMAP_THRESHOLD_="100000")


def test_files_are_written_and_read_without_a_copy_of_them(tmp_path):
    """What Python allocates beside tensors, which a whole file as bytes would be part of."""
    side = 512
    model = adapt(nn.Sequential(nn.Linear(side, side), nn.Linear(side, side)), LoLDU(side), targets=["0", "1"])
    fresh = nn.Sequential(nn.Linear(side, side), nn.Linear(side, side))
    load_adapter(fresh, _saved(model, tmp_path / "first"))  # What is imported on the way counts too.
    export_lora(model, tmp_path / "lora")
    fresh = nn.Sequential(nn.Linear(side, side), nn.Linear(side, side))
    calls = (
        lambda: _saved(model, tmp_path / "second"),
        lambda: load_adapter(fresh, tmp_path / "first"),
        lambda: export_lora(model, tmp_path / "lora"),
    )
    for call in calls:
        tracemalloc.start()
        try:
            call()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < (tmp_path / "first" / "lowrank_adapter.safetensors").stat().st_size / 3
    assert torch.equal(fresh[1].adapters["default"].up, model[1].adapters["default"].up)


def _saved(model: nn.Module, folder):
    save_adapter(model, folder)
    return folder
