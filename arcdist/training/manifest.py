"""The list of a folder's files with their checksums, and of the list itself."""

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from arcdist.errors import DataError

FORMAT = 1
"""Changes where older checkpoints can no longer be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file has to be."""

    size: int
    """In bytes."""
    sha256: str

    @staticmethod
    def of(content: bytes) -> "Entry":
        """The entry of a file with this content."""
        return Entry(len(content), hashlib.sha256(content).hexdigest())


def manifest_text(files: Mapping[str, Entry]) -> str:
    """The manifest of files by name, as JSON."""
    listed = {"format": FORMAT, "files": {name: asdict(files[name]) for name in sorted(files)}}
    return json.dumps({**listed, "sha256": _digest(listed)}, indent=2) + "\n"


def read_manifest(text: str) -> dict[str, Entry]:
    """The entries of a manifest.

    Raises:
        DataError: a byte of it is not as `manifest_text` wrote it, or a later version of arcdist did.
    """
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.get("format", FORMAT) > FORMAT:
            raise DataError(f"format {content['format']} is that of a later version of arcdist: update arcdist")
        # A size of another type would be met where it is told.
        files = {
            name: Entry(operator.index(entry["size"]), entry["sha256"]) for name, entry in content["files"].items()
        }
        if manifest_text(files) != text:
            raise DataError("its own checksum is wrong")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError("it is no list of checksums") from error
    return files


def _digest(listed: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
