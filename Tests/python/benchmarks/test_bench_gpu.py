# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The benchmark on a GPU, as far as it runs without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lowrank_swift.benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_rows_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: needs a CUDA device, and torch finds none" for name in gpu.ROWS]
    assert not list(tmp_path.iterdir())


def test_rows_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    names = [name for name in gpu.ROWS if name != "memory"]
    assert gpu.main(["--quick", "--device", "cpu", "--rows", ",".join(names)]) == 0
    text = capsys.readouterr().out
    for row in ("olora_", "loldu", "loldu_", "lamda", "overhead, LoLDU intact"):
        assert f"{row}: " in text, row


def test_unknown_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--rows", "loldu,qr"])
    assert "got qr" in capsys.readouterr().err
