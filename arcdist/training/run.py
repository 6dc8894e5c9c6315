"""A run, from its configuration to the table that it ends with."""

import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from arcdist.config import LoadedConfig, save_config
from arcdist.distributed import is_main
from arcdist.distributed.exchange import hear_from_first, part
from arcdist.errors import ArcdistError
from arcdist.tracking import discard_run_folder, epoch_table, log_table, make_run_folder, no_log, open_log
from arcdist.training.dry_run import dry_run
from arcdist.training.loop import Loop
from arcdist.training.memory_limit import explained_out_of_memory
from arcdist.training.session import Session, build_session

_logger = logging.getLogger(__name__)


def train(loaded: LoadedConfig) -> None:
    """Train as configured, or measure what training would take (`--dry_run`).

    Raises:
        ArcdistError: with the exit code of what went wrong.
        KeyboardInterrupt: after Ctrl-C; a whole checkpoint is on disk.
    """
    config = loaded.config
    if loaded.dry_run:
        with explained_out_of_memory(config.train.batch_size):
            dry_run(config)
        part()
        return
    # Process 0 owns the folder; the others learn its name once there is a way to tell them.
    folder = make_run_folder(config.output.dir) if is_main() else None
    session = _prepare(loaded, folder)
    shared = Path(hear_from_first(str(folder.resolve()) if folder else ""))
    with _log(folder), explained_out_of_memory(config.train.batch_size):
        loop = Loop(session, folder or shared)
        loop.run()
        if folder:
            _report(loop, folder)
    part()


def _prepare(loaded: LoadedConfig, folder: Path | None) -> Session:
    """Build the session, the last that can find a mistake of the user's; a run that it refuses leaves no folder."""
    config = loaded.config
    try:
        with _log(folder), explained_out_of_memory(config.train.batch_size):
            if folder:
                save_config(config, folder / "config.yaml")
            session = build_session(config)
            if folder and session.zero is not None:
                text = json.dumps(session.zero, indent=2)
                (folder / "deepspeed.json").write_text(text + "\n", encoding="utf-8")
                _logger.info("DeepSpeed runs Qwen with this configuration, saved in deepspeed.json:\n%s", text)
            _logger.info("Run folder %s, recipe %s.", folder, loaded.recipe or "none")
            return session
    except (ArcdistError, KeyboardInterrupt):
        if folder:
            discard_run_folder(folder)
        raise


def _log(folder: Path | None) -> AbstractContextManager[object]:
    return open_log(folder) if folder else no_log()


def _report(loop: Loop, folder: Path) -> None:
    outputs = {
        "plot": loop.tracker.plot_path,
        "metrics": loop.tracker.metrics_path,
        "steps": loop.tracker.steps_path,
        "best": folder / "best",
        "checkpoints": folder / "checkpoints",
    }
    log_table(epoch_table(loop.tracker.epochs[-1], loop.tracker.best, outputs))
