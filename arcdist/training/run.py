"""A run, from its configuration to the table that it ends with."""

import logging
from pathlib import Path

from arcdist.config import LoadedConfig, save_config
from arcdist.errors import ArcdistError
from arcdist.tracking import discard_run_folder, epoch_table, log_table, make_run_folder, open_log
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
        return
    folder = make_run_folder(config.output.dir)
    session = _prepare(loaded, folder)
    with open_log(folder), explained_out_of_memory(config.train.batch_size):
        loop = Loop(session, folder)
        loop.run()
        _report(loop, folder)


def _prepare(loaded: LoadedConfig, folder: Path) -> Session:
    """Build the session, the last that can find a mistake of the user's; a run that it refuses leaves no folder."""
    config = loaded.config
    try:
        with open_log(folder), explained_out_of_memory(config.train.batch_size):
            save_config(config, folder / "config.yaml")
            session = build_session(config)
            _logger.info("Run folder %s, recipe %s.", folder, loaded.recipe or "none")
            return session
    except (ArcdistError, KeyboardInterrupt):
        discard_run_folder(folder)
        raise


def _report(loop: Loop, folder: Path) -> None:
    outputs = {
        "plot": loop.tracker.plot_path,
        "metrics": loop.tracker.metrics_path,
        "steps": loop.tracker.steps_path,
        "best": folder / "best",
        "checkpoints": folder / "checkpoints",
    }
    log_table(epoch_table(loop.tracker.epochs[-1], loop.tracker.best, outputs))
