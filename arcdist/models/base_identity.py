"""Which frozen base a run stands on: checkpoints name it and do not hold it."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 16 * 2**20


def base_identity(config: PreTrainedConfig, model: str, *, random: bool, seed: int) -> dict[str, str]:
    """The base's `model` name and its `sha256`: of its weights' files or, where they are random, of what they are of.

    Args:
        config: of the base, which knows the folder that it came from.
        model: its name in the run's configuration.
        random: whether its weights were drawn.
        seed: that they were drawn with.
    """
    digest = hashlib.sha256()
    files = sorted(Path(config.name_or_path).glob("*.safetensors")) if config.name_or_path and not random else []
    if files:
        for file in files:
            digest.update(f"{file.name}\0{_of_file(file)}\0".encode())
    else:
        shape = {name: value for name, value in config.to_dict().items() if isinstance(value, int | float | bool)}
        digest.update(repr((sorted(shape.items()), seed)).encode())
    return {"model": model, "sha256": digest.hexdigest()}


def _of_file(file: Path) -> str:
    # The Hugging Face cache links to files that are named after their checksums.
    name = file.resolve().name
    if file.is_symlink() and _SHA256.fullmatch(name):
        return name
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            yield piece
