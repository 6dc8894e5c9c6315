"""A run, from its configuration to the table that it ends with."""

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from arcdist.config import LoadedConfig, save_config
from arcdist.distributed import FailureWatch, Heartbeat, is_main, rank
from arcdist.distributed.exchange import bytes_from_first, hear_from_first, part
from arcdist.engine.platform import Platform, start_platform
from arcdist.errors import ArcdistError
from arcdist.tracking import discard_run_folder, epoch_table, log_table, no_log, open_log
from arcdist.tracking.run_folder import held
from arcdist.training.checkpoint import FILES, Snapshot, parse_files
from arcdist.training.dry_run import dry_run
from arcdist.training.loop import Loop
from arcdist.training.memory_limit import explained_out_of_memory
from arcdist.training.resume import Start, check_configuration, find_start, set_aside_later_ones
from arcdist.training.session import Session, build_session

_logger = logging.getLogger(__name__)


def train(loaded: LoadedConfig, watch: FailureWatch) -> int:
    """Train as configured, or measure what training would take (`--dry_run`); the exit code of a run that ended well.

    Args:
        loaded: what the command line asks for.
        watch: entered; it is told what this process is doing.

    Raises:
        ArcdistError: with the exit code of what went wrong.
        KeyboardInterrupt: after Ctrl-C; a whole checkpoint is on disk.
    """
    config = loaded.config
    if loaded.dry_run:
        with explained_out_of_memory(config.train.batch_size):
            dry_run(config)
        part()
        return 0
    # Process 0 owns the folder and reads the checkpoint; the others are told as soon as there is a way to.
    start = find_start(config.output.dir, loaded.options.get("resume")) if is_main() else None
    folder = start.folder if start else None
    with held(start.lock) if start else nullcontext(), _log(folder):
        with _gone_if_refused(start):
            for warning in start.warnings if start else ():
                _logger.warning(warning)
            if start and start.checkpoint is None:
                save_config(config, start.folder / "config.yaml")
            platform = start_platform(config)
            shared = Path(hear_from_first(str(folder.resolve()) if folder else ""))
            snapshot = _share_snapshot(start)
        heartbeat = Heartbeat(shared, rank())
        watch.mind_silence(heartbeat.life, float(config.distributed.silence))
        with heartbeat.running():
            with _gone_if_refused(start), explained_out_of_memory(config.train.batch_size):
                session = _build(loaded, platform, folder)
                loop = Loop(session, folder or shared, heartbeat)
                if snapshot is not None:
                    _resume(loop, snapshot, start)
            with explained_out_of_memory(config.train.batch_size):
                whole = loop.run()
        if folder and whole:
            _report(loop, folder)
    part()
    return 0 if whole else config.output.preempted_exit_code


def _share_snapshot(start: Start | None) -> Snapshot | None:
    """The checkpoint that process 0 goes on from, on every process."""
    place = hear_from_first(str(start.checkpoint or "") if start else "")
    if not place:
        return None
    contents = {name: bytes_from_first(start.files[name] if start else b"") for name in FILES}
    return parse_files(contents, Path(place))


def _resume(loop: Loop, snapshot: Snapshot, start: Start | None) -> None:
    base = json.loads(hear_from_first(json.dumps(loop.base)))
    check_configuration(loop.config, snapshot.state, base, loop.session.data)
    loop.resume(snapshot)
    if start:
        set_aside_later_ones(start.folder, loop.step)
        save_config(loop.config, start.folder / "config.yaml")
        _logger.info(
            "Resumed from %s: step %d, epoch %d, batch %d of %d.",
            *(start.checkpoint, loop.step, loop.epoch, loop.batch, loop.session.steps_per_epoch),
        )


@contextmanager
def _gone_if_refused(start: Start | None) -> Iterator[None]:
    """Until the first step, a mistake of the user's is all that a run finds, and leaves no folder."""
    try:
        yield
    except (ArcdistError, KeyboardInterrupt):
        if start and start.is_new:
            discard_run_folder(start.folder)
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
