"""Checkpoints written while training goes on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from arcdist.checkpoint.store import BEST, Snapshot, is_numbered, prune, save_checkpoint, step_folder
from arcdist.config import OutputConfig
from arcdist.distributed.collectives import broadcast_text
from arcdist.errors import SaveError


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


_logger = logging.getLogger(__name__)


class Checkpointing:
    """Saves a run at its cadence. Every process calls it at the same steps; one of them writes.

    Args:
        folder: of the run.
        output: how often, how many, and what a failure means.
        writes: whether this process is the one.
        best_saved: is told the folder of a new best once it is whole, in the thread that has written it.
    """

    def __init__(
        self,
        folder: Path,
        output: OutputConfig,
        *,
        writes: bool,
        best_saved: Callable[[Path], None] | None = None,
    ) -> None:
        self.best_is_new = False
        """An epoch has become the best one, and its models are to be saved as such."""
        self.saved_step: int | None = None
        """The last step of which a checkpoint was begun, or resumed from."""
        self._folder = folder
        self._output = output
        self._writes = writes
        self._saver = Saver(output.keep_last, best_saved)

    def folder_of(self, step: int) -> Path:
        """Where the checkpoint after so many steps lies."""
        return step_folder(self._folder / "checkpoints", step)

    def failed(self) -> bool:
        """Whether this process could not write what it should have, which `tell` has not told yet."""
        return self._saver.failed()

    def save(self, step: int, take: Callable[[], Snapshot], *, now: bool) -> None:
        """Begin to save where a checkpoint or a new best is due, or `now`; what is saved already is not again.

        Args:
            step: steps of the run so far.
            take: gathers the run's state from all processes.
            now: whatever the cadence says.

        Raises:
            SaveError: what was saved before could not be written, and the configuration asks to stop for it.
        """
        # The best first: who resumes from a checkpoint after that epoch does not write it again.
        folders = [self._folder / BEST] if self.best_is_new else []
        due = now or step % self._output.save_every == 0
        if due and self.saved_step != step:
            folders.append(self.folder_of(step))
        if not folders:
            return
        # Every process has a part in what is gathered; the first one writes it, while training goes on.
        snapshot = take()
        self._saver.wait()
        self.tell()
        if self._writes:
            if self.saved_step is None:
                _logger.info("A checkpoint takes %.1f MB.", snapshot.size / 1e6)
            self._saver.save(snapshot, folders)
        self.saved_step, self.best_is_new = step if due else self.saved_step, False

    def finish(self) -> None:
        """Wait until all is on disk; a run must not end without its last checkpoint as if it had one.

        Raises:
            SaveError: it is not.
        """
        self._saver.wait()
        self.tell(fatal=True)

    def tell(self, *, fatal: bool | None = None) -> None:
        """Say on every process what could not be written.

        Args:
            fatal: whether the run ends with that; none leaves it to the configuration.

        Raises:
            SaveError: it could not, and it does.
        """
        fatal = self._output.on_save_error == "stop" if fatal is None else fatal
        failure = broadcast_text(self._saver.take_failure())
        if failure:
            _logger.error("NOT SAVED: %s%s", failure, "" if fatal else " Training goes on.")
        if failure and fatal:
            raise SaveError(failure)
