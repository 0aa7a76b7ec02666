# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Installs torch for the Python that runs this: with CUDA where there is an NVIDIA GPU, else without.

Usage: python install_torch.py [requirement]

A requirement, such as ``torch==2.6.0`` or the path of a wheel, is installed as it is and nothing else is tried.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CPU_BUILD = "torch==2.13.0+cpu"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pip_install(*arguments: str, quiet: bool = False) -> bool:
    """Run `pip install` and return whether it succeeded; its output is shown unless `quiet`."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, stdout=output, stderr=output, check=False).returncode == 0


def has_nvidia_gpu() -> bool:
    """Return whether the NVIDIA driver is installed."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def install(requirement: str | None) -> bool:
    """Install torch and return whether that succeeded."""
    if requirement:
        return pip_install(requirement)
    if has_nvidia_gpu():
        return pip_install("torch")
    print(f"Installing {CPU_BUILD} from the configured package sources", flush=True)
    if pip_install(CPU_BUILD, quiet=True):
        return True
    print(f"They do not have it; trying {CPU_INDEX}", flush=True)
    if pip_install("--retries", "1", "--timeout", "20", "--index-url", CPU_INDEX, "torch", quiet=True):
        return True
    print("That failed too; installing torch with CUDA, which is gigabytes, from the configured sources", flush=True)
    return pip_install("torch")


def main() -> int:
    """Install torch; the exit status is 0 after success."""
    if install(" ".join(sys.argv[1:])):
        return 0
    print("torch could not be installed; name another with `make TORCH=<pip requirement> ...`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
