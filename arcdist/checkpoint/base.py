"""Which frozen base a run stands on: checkpoints name it and do not hold it."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in its __all__
from transformers import PreTrainedConfig

from arcdist.config import QwenConfig
from arcdist.errors import DataError, PlatformError
from arcdist.files import expanded
from arcdist.models.qwen_source import TINY

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 16 * 2**20

Kind = Literal["hub", "folder", "random", "unknown"]
"""Pretrained weights of the Hugging Face Hub or of a local folder, or random ones.

It is not known where a checkpoint is older than this record and the name may be both.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The base that a checkpoint belongs to."""

    kind: Kind
    name: str
    """What loads it: a name on the Hub, the path of a folder, or `embedded:tiny`."""
    sha256: str


def has_random_weights(qwen: QwenConfig) -> bool:
    """Whether the base's weights are drawn, and not those that are known by the model's name."""
    return qwen.init == "random" or qwen.model == TINY


def base_identity(config: PreTrainedConfig, model: str, *, random: bool, seed: int) -> dict[str, str]:
    """The base's `model` name and `kind`, its `folder` if it has one, and its `sha256`.

    The checksum is that of its weights' files or, where they are random, of what they are made of.

    Args:
        config: of the base, which knows the folder that it came from.
        model: its name in the run's configuration.
        random: whether its weights were drawn.
        seed: that they were drawn with.

    Raises:
        PlatformError: the files of its weights are not where it came from, or cannot be read.
    """
    source = Path(config.name_or_path) if config.name_or_path else None
    given = expanded(model)
    # What came from the Hub lies in its cache, under another name.
    folder = {"folder": str(given.absolute())} if source == given else {}
    kind: Kind = "random" if random else "folder" if folder else "hub"
    sha256 = _of_random(config, seed) if random else _of_weights(source, model)
    return {"model": model, "kind": kind, **folder, "sha256": sha256}


def read_base(identity: Mapping[str, str], qwen: QwenConfig) -> Base:
    """The base that `base_identity` named, perhaps an older one, which gave no kind and no folder.

    Raises:
        DataError: it names none.
    """
    if missing := {"model", "sha256"} - identity.keys():
        raise DataError(f"The checkpoint does not say what base it belongs to: it lacks {', '.join(sorted(missing))}.")
    model = identity["model"]
    kind = cast(Kind, identity.get("kind") or _kind_by_name(model, qwen))
    name = str(expanded(model)) if model.startswith("~") else model
    return Base(kind=kind, name=identity.get("folder", name), sha256=identity["sha256"])


def _kind_by_name(model: str, qwen: QwenConfig) -> Kind:
    """As far as a name tells. That a folder of that name is here now, or is not, says nothing of the run."""
    if has_random_weights(qwen):
        return "random"
    try:
        validate_repo_id(model)
    except HFValidationError:
        return "folder"
    return "unknown"


def _of_random(config: PreTrainedConfig, seed: int) -> str:
    shape = {name: value for name, value in config.to_dict().items() if isinstance(value, int | float | bool)}
    return hashlib.sha256(repr((sorted(shape.items()), seed)).encode()).hexdigest()


def _of_weights(folder: Path | None, model: str) -> str:
    digest = hashlib.sha256()
    try:
        files = sorted(folder.glob("*.safetensors")) if folder else []
        for file in files:
            digest.update(f"{file.name}\0{_of_file(file)}\0".encode())
    except OSError as error:
        raise PlatformError(
            f"qwen.model {model!r}: {error.filename} cannot be read ({error.strerror}), and a checkpoint has to name "
            f"the weights that it belongs to: see who may read them."
        ) from error
    if not files:
        raise PlatformError(
            f"qwen.model {model!r}: there are no weights as safetensors in {folder or 'any folder'}, where they were "
            f"read from, and a checkpoint has to name those that it belongs to: leave them there while a run goes on."
        )
    return digest.hexdigest()


def _of_file(file: Path) -> str:
    blob = file.resolve()
    if _is_in_hub_cache(file, blob):
        return blob.name
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return digest.hexdigest()


def _is_in_hub_cache(file: Path, blob: Path) -> bool:
    """Whether `blob` is named after its SHA-256, as the Hub's cache does with large files that it has downloaded.

    There, and in no other place, `models--NAME/snapshots/COMMIT/FILE` links to `models--NAME/blobs/SHA-256`. Small
    files have Git's shorter checksums for names.
    """
    snapshots, blobs = file.parent.resolve().parent, blob.parent
    return (
        file.is_symlink()
        and _SHA256.fullmatch(blob.name) is not None
        and (snapshots.name, blobs.name) == ("snapshots", "blobs")
        and snapshots.parent == blobs.parent
        and blobs.parent.name.startswith("models--")
    )


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            yield piece
