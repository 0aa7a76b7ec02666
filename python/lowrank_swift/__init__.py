# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with the factors of the pretrained weight itself.

Every adapter is ``delta W = scale * up @ core @ down`` beside a frozen weight ``W`` of shape ``(out, in)``; the methods
differ in the factorization of ``W`` that fills the three and in which of them train. This module knows no framework:
tensors are torch's, numpy's or any with ``__dlpack__``, on the CPU or a CUDA device, and what comes back is of the same
kind where that can be told, else a ``Tensor``. ``lowrank_swift.torch`` adapts models.
"""

from __future__ import annotations

try:
    from . import _native  # noqa: F401
except ImportError as error:
    import sys

    if sys.platform != "linux":
        problem = f"it runs on Linux only so far, and this is {sys.platform}"
    else:
        problem = f"the native library can't be loaded ({error}); `pip install .` in the source folder builds it"
    raise ImportError(f"lowrank_swift: {problem}") from None

from ._adapters import AdapterGradients, adapter_backward, adapter_forward, merge_, unmerge_
from ._config import show_config
from ._cuda import warmup
from ._factorizations import LDUResult, QRResult, SVDResult, ldu, qr, svd
from ._factors import Factors
from ._initializers import lamda, lamda_, loldu, loldu_, lora_xs, olora, olora_, pissa, pissa_
from ._native import BackendUnavailableError, InternalError, LinAlgError, Tensor, get_num_threads, set_num_threads
from ._rank_allocation import RankAllocation
from ._ranks import allocate_ranks
from ._spectrum import SpectrumResult, spectrum
from ._version import __version__

__all__ = [
    "AdapterGradients",
    "BackendUnavailableError",
    "Factors",
    "InternalError",
    "LDUResult",
    "LinAlgError",
    "QRResult",
    "RankAllocation",
    "SVDResult",
    "SpectrumResult",
    "Tensor",
    "__version__",
    "adapter_backward",
    "adapter_forward",
    "allocate_ranks",
    "get_num_threads",
    "lamda",
    "lamda_",
    "ldu",
    "loldu",
    "loldu_",
    "lora_xs",
    "merge_",
    "olora",
    "olora_",
    "pissa",
    "pissa_",
    "qr",
    "set_num_threads",
    "show_config",
    "spectrum",
    "svd",
    "unmerge_",
    "warmup",
]
