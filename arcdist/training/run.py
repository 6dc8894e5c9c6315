"""A run, from its configuration to the table that it ends with."""

import logging
from pathlib import Path

from arcdist.config import LoadedConfig, save_config
from arcdist.tracking import epoch_table, log_table, make_run_folder, open_log
from arcdist.training.dry_run import dry_run
from arcdist.training.loop import Loop
from arcdist.training.memory_limit import explained_out_of_memory
from arcdist.training.session import build_session

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
    with open_log(folder), explained_out_of_memory(config.train.batch_size):
        save_config(config, folder / "config.yaml")
        _logger.info("Run folder %s, recipe %s.", folder, loaded.recipe or "none")
        session = build_session(config)
        loop = Loop(session, folder)
        loop.run()
        _report(loop, folder)


def _report(loop: Loop, folder: Path) -> None:
    outputs = {
        "plot": loop.tracker.plot_path,
        "metrics": loop.tracker.metrics_path,
        "steps": loop.tracker.steps_path,
        "best": folder / "best",
        "checkpoints": folder / "checkpoints",
    }
    log_table(epoch_table(loop.tracker.epochs[-1], loop.tracker.best, outputs))
