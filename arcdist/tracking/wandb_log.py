"""The files that W&B writes a run into, `run-ID.wandb`: a log in LevelDB's format, a protocol buffer a record.

W&B itself reads them in its own program only, to upload them.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arcdist.errors import DataError, PlatformError

INSTALL = "pip install 'arcdist[wandb]'"
"""What a machine without wandb lacks."""

_MAGIC = b":W&B"
_FILE_HEADER = 7  # the magic, two bytes more and the version
_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(kw_only=True, slots=True)
class WandbLog:
    """What one such file holds."""

    id: str | None = None
    """The run's; none where the file ends before it says so."""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The history, in its order; `_step` is W&B's own step."""


def read_log(path: Path) -> WandbLog:
    """Read a file as far as it goes: one that was cut off, or that W&B still writes, lacks its end.

    Raises:
        DataError: it cannot be read, or is no such file.
        PlatformError: wandb is not installed.
    """
    require_wandb(str(path))
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    log = WandbLog()
    for content in _records(path):
        record = Record()
        record.ParseFromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                log.id = record.run.run_id
                _update(log.config, record.run.config.update)
            case "config":
                _update(log.config, record.config.update)
            case "history":
                row: dict[str, Any] = {}
                _update(row, record.history.item)
                log.rows.append(row)
    return log


def require_wandb(place: str) -> None:
    """See that what `place` names can be read.

    Raises:
        PlatformError: wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise PlatformError(f"{place} cannot be read without wandb: {INSTALL}.")


def _records(path: Path) -> Iterator[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): see who may read there.") from error
    if not _MAGIC.startswith(content[: len(_MAGIC)]):  # Less than the magic is a run that was killed at once.
        raise DataError(f"{path} is no file of a W&B run: give the folder as W&B wrote it.")
    position, parts = _FILE_HEADER, b""
    while True:
        if _BLOCK - position % _BLOCK < _HEADER.size:
            position += _BLOCK - position % _BLOCK  # Too short for a header: padded.
        if position + _HEADER.size > len(content):
            return
        checksum, length, kind = _HEADER.unpack_from(content, position)
        part = content[position + _HEADER.size : position + _HEADER.size + length]
        if len(part) < length or checksum != zlib.crc32(part, zlib.crc32(bytes([kind]))):
            return
        position += _HEADER.size + length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts


def _update(values: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *parents, name = item.nested_key or [item.key]
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = json.loads(item.value_json)
