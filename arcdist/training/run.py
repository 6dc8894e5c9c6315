"""A run, from its configuration to the table that it ends with."""

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from arcdist.config import LoadedConfig, save_config
from arcdist.distributed import Heartbeat, is_main, rank
from arcdist.distributed.exchange import hear_from_first, part
from arcdist.engine.platform import Platform, start_platform
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
    # Process 0 owns the folder; the others learn its name as soon as there is a way to tell them.
    folder = make_run_folder(config.output.dir) if is_main() else None
    with _log(folder):
        with _gone_if_refused(folder):
            if folder:
                save_config(config, folder / "config.yaml")
            platform = start_platform(config)
            shared = Path(hear_from_first(str(folder.resolve()) if folder else ""))
        heartbeat = Heartbeat(shared, rank())
        with heartbeat.running():
            with _gone_if_refused(folder), explained_out_of_memory(config.train.batch_size):
                session = _build(loaded, platform, folder)
            loop = Loop(session, folder or shared, heartbeat)
            with explained_out_of_memory(config.train.batch_size):
                loop.run()
        if folder:
            _report(loop, folder)
    part()


@contextmanager
def _gone_if_refused(folder: Path | None) -> Iterator[None]:
    """Until the first step, a mistake of the user's is all that a run finds, and leaves no folder."""
    try:
        yield
    except (ArcdistError, KeyboardInterrupt):
        if folder:
            discard_run_folder(folder)
        raise


def _build(loaded: LoadedConfig, platform: Platform, folder: Path | None) -> Session:
    session = build_session(loaded.config, platform)
    if folder and session.zero is not None:
        text = json.dumps(session.zero, indent=2)
        (folder / "deepspeed.json").write_text(text + "\n", encoding="utf-8")
        _logger.info("DeepSpeed runs Qwen with this configuration, saved in deepspeed.json:\n%s", text)
    _logger.info("Run folder %s, recipe %s.", folder, loaded.recipe or "none")
    return session


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
