"""Checkpoints on disk: the only code that writes and reads a run's state.

A checkpoint is a folder that is complete or does not exist: it is written under another name, its files are forced to
disk, and renaming it is the last thing that happens. `manifest.json` holds a checksum of every file, and nothing is
taken from a file that differs. It holds tensors (safetensors) and JSON, never pickled objects.
"""

import hashlib
import json
import logging
import operator
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from arcdist.config import OutputConfig
from arcdist.distributed.collectives import broadcast_text
from arcdist.errors import DataError, SaveError, reason
from arcdist.files import fill_folder, force_to_disk, unwritable

FORMAT = 1
"""Changes when older checkpoints can no longer be read."""
WEIGHTS, MOMENTS, PROMPTS, STATE = "weights.safetensors", "moments.safetensors", "prompts.safetensors", "state.json"
MANIFEST = "manifest.json"
FILES = (WEIGHTS, MOMENTS, PROMPTS, STATE)
"""What a checkpoint holds beside its manifest."""
BEST = "best"
"""Name of the checkpoint of the best epoch, in the run's folder."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A run's state in memory; nothing else changes what it holds."""

    weights: Mapping[str, Tensor]
    """All trained state and the averages of it."""
    moments: Mapping[str, Tensor]
    """The optimizers' state, by parameter."""
    prompts: Mapping[str, Tensor]
    """Prompts that are kept for later batches; empty if every batch reads its own."""
    state: Mapping[str, Any]
    """Numbers and names, for JSON."""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        parts = (self.weights, self.moments, self.prompts)
        return sum(value.numel() * value.element_size() for part in parts for value in part.values())


def manifest_entry(content: bytes) -> dict[str, Any]:
    """The size of a file in bytes and its SHA-256, as the manifest lists them."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The manifest of files by name, as JSON, with a checksum of itself."""
    listed = {"format": FORMAT, "files": {name: entries[name] for name in sorted(entries)}}
    digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    return json.dumps({**listed, "sha256": digest}, indent=2) + "\n"


def read_manifest(text: str) -> dict[str, dict[str, Any]]:
    """The entries of a manifest.

    Raises:
        DataError: a byte of it is not as `manifest_text` wrote it, or a later version of arcdist did.
    """
    try:
        content = json.loads(text)
        if content["format"] > FORMAT:
            raise DataError(f"format {content['format']} is that of a later version of arcdist: update arcdist")
        entries = {
            name: {"size": operator.index(entry["size"]), "sha256": entry["sha256"]}
            for name, entry in content["files"].items()
        }
        if manifest_text(entries) != text:
            raise DataError("its own checksum is wrong")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError("it is no list of checksums") from error
    return entries


def save_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint; one of the same name is replaced once the new one is whole.

    Raises:
        SaveError: it could not be written; the one that was there before is still there.
    """
    tensors = {WEIGHTS: snapshot.weights, MOMENTS: snapshot.moments, PROMPTS: snapshot.prompts}
    contents = {name: save(dict(values)) for name, values in tensors.items()}
    contents[STATE] = (json.dumps(snapshot.state, indent=2) + "\n").encode()
    manifest = manifest_text({name: manifest_entry(content) for name, content in contents.items()})
    partial, replaced = beside(folder, "partial"), beside(folder, "replaced")
    try:
        _clear(partial)
        fill_folder(partial, {**contents, MANIFEST: manifest.encode()})
        _clear(replaced)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        if replaced.exists():
            # A loss of power must not take the new one once the old one has gone.
            force_to_disk(folder.parent)
            _clear(replaced)
        force_to_disk(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            finish_replacement(folder)
        needed = sum(map(len, contents.values()))
        message = unwritable(f"The checkpoint {folder}", folder, error, needed, for_room="lower --output.keep_last")
        raise SaveError(message) from error


def lies_at(folder: Path) -> Path | None:
    """Where a checkpoint is to be read; None if there is no such checkpoint.

    That is its own folder, unless a process ended between the two renamings of a replacement: then it is the new one
    if that is whole, and otherwise the old one, until training puts it back.
    """
    if exists(folder):
        return folder
    partial, replaced = beside(folder, "partial"), beside(folder, "replaced")
    if exists(partial) and flaw(partial) is None:
        return partial
    return replaced if exists(replaced) else None


def finish_replacement(folder: Path) -> None:
    """Finish or take back a replacement of `folder` that was cut off between its two renamings."""
    place = lies_at(folder)
    if place is not None and place != folder and flaw(place) is None:
        place.rename(folder)


def clear_leftovers(root: Path) -> None:
    """Remove what was being written, replaced or removed when a process was killed."""
    for kind in ("partial", "replaced", "removed"):
        for folder in root.glob(f".*.{kind}"):
            if folder.is_dir():
                _clear(folder)


def load_checkpoint(folder: Path, needed: Mapping[str, type] | None = None) -> Snapshot:
    """Read a checkpoint, whose checksums must be right.

    Args:
        folder: of the checkpoint.
        needed: keys that its state must have, each with the type of its value.

    Raises:
        DataError: a file is missing, broken or, with the right checksum, not what its name says; the message names it.
    """
    contents = _read_files(folder)
    tensors = {}
    for name in (WEIGHTS, MOMENTS, PROMPTS):
        try:
            tensors[name] = load(contents[name])
        except (ValueError, SafetensorError) as error:
            raise DataError(f"{folder / name} is no safetensors file ({reason(error)}).") from error
    try:
        state = json.loads(contents[STATE])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / STATE} is no state of a run: it cannot be read as JSON ({error}).") from error
    if not isinstance(state, dict):
        raise DataError(f"{folder / STATE} is no state of a run: it is a {type(state).__name__}, not an object.")
    for name, kind in (needed or {}).items():
        if not isinstance(state.get(name), kind):
            raise DataError(f"{folder / STATE} is no state of a run: it lacks {name} ({kind.__name__}).")
    return Snapshot(weights=tensors[WEIGHTS], moments=tensors[MOMENTS], prompts=tensors[PROMPTS], state=state)


def flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; none if every byte is as it was written."""
    try:
        _read_files(folder)
    except DataError as error:
        return str(error)
    return None


def _read_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name, each with the right checksum."""
    text = _read(folder / MANIFEST).decode("latin-1")  # which takes any byte; `manifest_text` writes ASCII only
    try:
        entries = read_manifest(text)
    except DataError as error:
        raise DataError(f"{folder / MANIFEST}: {error}.") from error
    contents = {}
    for name in FILES:
        if name not in entries:
            raise DataError(f"{folder / MANIFEST} does not list {name}.")
        content = contents[name] = _read(folder / name)
        if len(content) != entries[name]["size"]:
            raise DataError(f"{folder / name} has {len(content):,} bytes in place of {entries[name]['size']:,}.")
        if manifest_entry(content) != entries[name]:
            raise DataError(f"{folder / name} is not what was saved: its checksum is wrong.")
    return contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error


def step_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint after so many steps."""
    return root / f"step_{step:08d}"


def exists(path: Path) -> bool:
    """Whether there is anything of that name, even a link to nothing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_numbered(folder: Path) -> bool:
    """Whether a checkpoint is one of a series, by its name."""
    return re.fullmatch(r"step_\d{8}", folder.name) is not None


def beside(folder: Path, what: str) -> Path:
    """The name of a checkpoint while it is "partial", "replaced" or "removed"."""
    return folder.with_name(f".{folder.name}.{what}")


def checkpoints(root: Path) -> list[Path]:
    """The numbered checkpoints under a folder, whole or not, the oldest first."""
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
            f"The old checkpoint {error.filename} could not be removed ({reason(error)}): see who may write there."
        ) from error


def _clear(folder: Path) -> None:
    """Remove a folder, which loses the name of a checkpoint before its files go."""
    if not folder.exists():
        return
    if not folder.name.startswith("."):
        removed = beside(folder, "removed")
        if removed.exists():  # since a process was killed
            shutil.rmtree(removed)
        folder = folder.rename(removed)
    shutil.rmtree(folder)


class Checkpointing:
    """Saves a run at its cadence, in a thread, one snapshot at a time, while training continues.

    Every process calls it at the same steps; one of them has a snapshot to write.

    Args:
        folder: of the run.
        output: how often, how many, and what a failure means.
        best_saved: called in the thread that writes, with the folder of a new best, once it is whole.
    """

    def __init__(self, folder: Path, output: OutputConfig, best_saved: Callable[[Path], None] | None = None) -> None:
        self.best_is_new = False
        """An epoch has become the best one, and its models are to be saved as such."""
        self.saved_step: int | None = None
        """The last step of which a checkpoint was begun, or resumed from."""
        self._folder = folder
        self._output = output
        self._best_saved = best_saved
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._writing: Future[None] | None = None
        self._failure = ""
        self._missed: dict[Path, Snapshot] = {}

    def folder_of(self, step: int) -> Path:
        """The folder of the checkpoint after so many steps."""
        return step_folder(self._folder / "checkpoints", step)

    def save(self, step: int, take: Callable[[], Snapshot | None], *, now: bool) -> None:
        """Begin to save if a checkpoint or a new best is due, or `now`; what is saved already is not saved again.

        Args:
            step: steps of the run so far.
            take: gathers the run's state from all processes; gives None on those that do not write.
            now: save a checkpoint at any step.

        Raises:
            SaveError: the snapshot before could not be written, and the configuration asks to stop in that case.
        """
        # The best first: who resumes from a checkpoint after that epoch does not write it again.
        folders = [self._folder / BEST] if self.best_is_new else []
        due = now or step % self._output.save_every == 0
        if due and self.saved_step != step:
            folders.append(self.folder_of(step))
        if not folders:
            return
        snapshot = take()
        self.wait()
        self.report_failure()
        if snapshot is not None:
            if self.saved_step is None:
                _logger.info("A checkpoint takes %.1f MB.", snapshot.size / 1e6)
            self.write(snapshot, folders)
        self.saved_step, self.best_is_new = step if due else self.saved_step, False

    def write(self, snapshot: Snapshot, folders: Sequence[Path]) -> None:
        """Begin to write a snapshot into folders, once the one before it has been written.

        What could not be written then is tried again, except numbered checkpoints: the new one is worth more.
        """
        self.wait()
        missed, self._missed = self._missed, {}
        self._writing = self._pool.submit(self._write, {**missed, **dict.fromkeys(folders, snapshot)})

    def _write(self, snapshots: Mapping[Path, Snapshot]) -> None:
        failures = []
        for folder, snapshot in snapshots.items():
            # A best that cannot be written costs no checkpoint, nor the other way round.
            try:
                save_checkpoint(folder, snapshot)
                if is_numbered(folder):
                    prune(folder.parent, self._output.keep_last)
                elif self._best_saved is not None:
                    self._best_saved(folder)
            except SaveError as error:
                failures.append(str(error))
                if not is_numbered(folder):
                    self._missed[folder] = snapshot
        if failures:
            raise SaveError(" ".join(failures))

    def wait(self) -> None:
        """Wait until nothing is being written."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except SaveError as error:
            self._failure = str(error)

    def failed(self) -> bool:
        """Whether this process could not write a snapshot, before `report_failure` has reported it. Does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return bool(self._failure)

    def report_failure(self, *, fatal: bool | None = None) -> None:
        """Report on every process, once, what could not be written.

        Args:
            fatal: whether the run ends with that; None for what the configuration says.

        Raises:
            SaveError: it could not, and the run ends.
        """
        failure, self._failure = broadcast_text(self._failure), ""
        if not failure:
            return
        stop = self._output.on_save_error == "stop" if fatal is None else fatal
        _logger.error("NOT SAVED: %s%s", failure, "" if stop else " Training continues.")
        if stop:
            raise SaveError(failure)

    def finish(self) -> None:
        """Wait until all is on disk; a run must not end as if it had its last checkpoint without it.

        Raises:
            SaveError: it is not.
        """
        self.wait()
        self.report_failure(fatal=True)
