"""Checkpoints: the only code that writes and reads a run's state.

A checkpoint is a folder that is complete or does not exist: it is written under another name, its files are forced to
disk, and renaming it is the last thing that happens. `manifest.json` holds a checksum of every file, and nothing is
taken from a file that differs. It holds tensors (safetensors) and JSON, never pickled objects.
"""

import hashlib
import json
import operator
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from arcdist.errors import DataError, SaveError
from arcdist.files import force_to_disk, unwritable


def read_state(content: bytes, path: Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The state of a run.

    Args:
        content: of the file.
        path: of the file, for messages.
        needed: keys that it must have, each with the type of its value.

    Raises:
        DataError: it is no object in JSON, or lacks what is needed. A right checksum does not exclude that.
    """
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no state of a run: it cannot be read as JSON ({error}).") from error
    if not isinstance(state, dict):
        raise DataError(f"{path} is no state of a run: it is a {type(state).__name__}, not an object.")
    for name, kind in (needed or {}).items():
        if name not in state:
            raise DataError(f"{path} is no state of a run: it lacks {name}.")
        if not isinstance(state[name], kind):
            raise DataError(f"{path} is no state of a run: its {name} is a {type(state[name]).__name__}.")
    return state


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


WEIGHTS, MOMENTS, PROMPTS, STATE = "weights.safetensors", "moments.safetensors", "prompts.safetensors", "state.json"
MANIFEST = "manifest.json"
FILES = (WEIGHTS, MOMENTS, PROMPTS, STATE)
"""What a checkpoint holds beside its manifest."""
BEST = "best"
"""What the checkpoint of the best epoch is called, in the run's folder."""

_PIECE = 16 * 2**20
"""Bytes that are written at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A run's state in memory; nothing else changes what it holds."""

    weights: Mapping[str, Tensor]
    """All trained state and the averages of it."""
    moments: Mapping[str, Tensor]
    """The optimizers' state, by parameter."""
    prompts: Mapping[str, Tensor]
    """Prompts that are kept for later batches; none where every batch reads its own."""
    state: Mapping[str, Any]
    """Numbers and names, for JSON."""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        parts = (self.weights, self.moments, self.prompts)
        return sum(value.numel() * value.element_size() for part in parts for value in part.values())


def save_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint; one of the same name is replaced once the new one is whole.

    Raises:
        SaveError: it could not be written; what stood there before still does.
    """
    save_files(folder, _contents(snapshot))


def save_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """The same for a checkpoint that was read: its files by name, as `read_files` gives them."""
    partial = beside(folder, "partial")
    try:
        _clear(partial)
        partial.mkdir(parents=True)
        entries = {}
        for name, content in contents.items():
            entries[name] = Entry.of(content)
            _write(partial / name, content)
        _write(partial / MANIFEST, manifest_text(entries).encode())
        force_to_disk(partial)
        _put_in_place(partial, folder)
        force_to_disk(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            mend(folder)
        needed = sum(map(len, contents.values()))
        told = unwritable(f"The checkpoint {folder}", folder, error, needed, for_room="lower --output.keep_last")
        raise SaveError(told) from error


def _contents(snapshot: Snapshot) -> dict[str, bytes]:
    tensors = {WEIGHTS: snapshot.weights, MOMENTS: snapshot.moments, PROMPTS: snapshot.prompts}
    text = json.dumps(snapshot.state, indent=2) + "\n"
    return {**{name: save(dict(values)) for name, values in tensors.items()}, STATE: text.encode()}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        whole = memoryview(content)
        written = 0
        while written < len(whole):
            written += file.write(whole[written : written + _PIECE])
        os.fsync(file.fileno())


def _put_in_place(partial: Path, folder: Path) -> None:
    replaced = beside(folder, "replaced")
    _clear(replaced)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    if replaced.exists():
        # The new one must not be lost with the power once the old one has gone.
        force_to_disk(folder.parent)
        _clear(replaced)


def mend(folder: Path) -> None:
    """Finish or take back a replacement of `folder` that was cut off between its two renamings."""
    for other in (beside(folder, "partial"), beside(folder, "replaced")):
        if not folder.exists() and other.exists() and flaw(other) is None:
            other.rename(folder)


def clear_leftovers(root: Path) -> None:
    """Remove what was being written, replaced or removed when a process was killed."""
    for kind in ("partial", "replaced", "removed"):
        for folder in root.glob(f".*.{kind}"):
            if folder.is_dir():
                _clear(folder)


def flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; none where every byte is as it was written."""
    try:
        read_files(folder)
    except DataError as error:
        return str(error)
    return None


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name, every one as its checksum says.

    Raises:
        DataError: a file is missing or differs; the message names it.
    """
    text = _read(folder / MANIFEST)
    try:
        entries = read_manifest(text.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{folder / MANIFEST}: it is no list of checksums.") from error
    except DataError as error:
        raise DataError(f"{folder / MANIFEST}: {error}.") from error
    missing = sorted(set(FILES) - entries.keys())
    if missing:
        raise DataError(f"{folder / MANIFEST} does not list {missing[0]}.")
    contents = {}
    for name in FILES:
        content = _read(folder / name)
        if len(content) != entries[name].size:
            raise DataError(f"{folder / name} has {len(content):,} bytes in place of {entries[name].size:,}.")
        if Entry.of(content) != entries[name]:
            raise DataError(f"{folder / name} is not what was saved: its checksum is wrong.")
        contents[name] = content
    return contents


def parse_files(contents: Mapping[str, bytes], folder: Path) -> Snapshot:
    """A snapshot from what `read_files` gave; `folder` is for messages.

    Raises:
        DataError: a file is not what its name says.
    """
    tensors = {}
    for name in (WEIGHTS, MOMENTS, PROMPTS):
        try:
            tensors[name] = load(contents[name])
        except (ValueError, SafetensorError) as error:
            raise DataError(f"{folder / name} is no safetensors file ({error}): choose another checkpoint.") from error
    state = read_state(contents[STATE], folder / STATE)
    return Snapshot(weights=tensors[WEIGHTS], moments=tensors[MOMENTS], prompts=tensors[PROMPTS], state=state)


def load_checkpoint(folder: Path) -> Snapshot:
    """Read a checkpoint, whose checksums must be right.

    Raises:
        DataError: a file is missing or broken; the message names it.
    """
    return parse_files(read_files(folder), folder)


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after so many steps belongs."""
    return root / f"step_{step:08d}"


def beside(folder: Path, what: str) -> Path:
    """What a checkpoint is called while it is "partial", "replaced" or "removed"."""
    return folder.with_name(f".{folder.name}.{what}")


def is_numbered(folder: Path) -> bool:
    """Whether a checkpoint is one of a series, by its name."""
    return re.fullmatch(r"step_\d{8}", folder.name) is not None


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints under a folder, whole or not, the oldest first."""
    return sorted(filter(is_numbered, root.glob("step_*")))


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the newest checkpoints.

    Raises:
        SaveError: one could not be removed.
    """
    try:
        for folder in checkpoints(root)[:-keep_last]:
            _clear(folder)
    except OSError as error:
        raise SaveError(
            f"The old checkpoint {error.filename} could not be removed ({error.strerror}): see who may write there."
        ) from error


def set_aside(folder: Path, root: Path) -> Path:
    """Rename a checkpoint to a name under `root` that no run goes on from by itself; the new place."""
    aside = (root / f"aside_{number}_{folder.name}" for number in range(1, 10**6))
    return folder.rename(next(place for place in aside if not place.exists()))


def _clear(folder: Path) -> None:
    """Remove a folder, which is no longer called a checkpoint while its files go."""
    if folder.exists():
        if not folder.name.startswith("."):
            removed = beside(folder, "removed")
            if removed.exists():  # since a process was killed
                shutil.rmtree(removed)
            folder = folder.rename(removed)
        shutil.rmtree(folder)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
