"""Checkpoints written while training goes on."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from arcdist.errors import SaveError
from arcdist.training.checkpoint import Snapshot, is_numbered, prune, save_checkpoint


class Saver:
    """Writes snapshots in a thread, one at a time; only the process that writes files has work for it.

    Args:
        keep_last: checkpoints kept of a folder with several.
        best_saved: is told each folder that is not one of several, once it is whole, in the thread that writes.
    """

    def __init__(self, keep_last: int, best_saved: Callable[[Path], None] | None = None) -> None:
        self._keep_last = keep_last
        self._best_saved = best_saved
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._writing: Future[None] | None = None
        self._failure = ""
        self._missed: dict[Path, Snapshot] = {}

    def save(self, snapshot: Snapshot, folders: Sequence[Path]) -> None:
        """Begin to write a snapshot into folders, once the one before it has been written.

        What could not be written then is tried again, but for the numbered checkpoints: the new one is worth more.
        """
        self.wait()
        missed, self._missed = self._missed, {}
        self._writing = self._pool.submit(self._write, {**missed, **dict.fromkeys(folders, snapshot)})

    def failed(self) -> bool:
        """Whether a snapshot could not be written, of which `take_failure` has not told yet. Does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return bool(self._failure)

    def take_failure(self) -> str:
        """What went wrong since this was asked last; empty if nothing did."""
        failure, self._failure = self._failure, ""
        return failure

    def wait(self) -> None:
        """Wait until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except SaveError as error:
            self._failure = str(error)

    def _write(self, snapshots: Mapping[Path, Snapshot]) -> None:
        failures = []
        for folder, snapshot in snapshots.items():
            # A best that cannot be written costs no checkpoint, nor the other way round.
            try:
                save_checkpoint(folder, snapshot)
                if is_numbered(folder):
                    prune(folder.parent, self._keep_last)
                elif self._best_saved is not None:
                    self._best_saved(folder)
            except SaveError as error:
                failures.append(str(error))
                if not is_numbered(folder):
                    self._missed[folder] = snapshot
        if failures:
            raise SaveError(" ".join(failures))
