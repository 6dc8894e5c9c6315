"""A run, from its configuration to the table that it ends with."""

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from arcdist.checkpoint.resume import Start, check_configuration, find_start, set_aside_later_ones
from arcdist.checkpoint.store import BEST, Snapshot
from arcdist.cli import standard_error
from arcdist.config import LoadedConfig, save_config
from arcdist.config.keys import flatten
from arcdist.distributed import FailureWatch, Heartbeat, is_main, rank
from arcdist.distributed.collectives import broadcast_tensors, broadcast_text, shutdown
from arcdist.engine.platform import device_name, start_platform
from arcdist.errors import ArcdistError, ConfigError, DataError, SaveError, reason
from arcdist.host import git_commit, versions
from arcdist.tracking import (
    Mirrors,
    PhaseLines,
    check_mirrors,
    discard_run_folder,
    epoch_table,
    log_table,
    no_log,
    open_log,
    open_mirrors,
    wandb_variables,
)
from arcdist.tracking.run_folder import Identity, group_of, held, read_identity, write_identity
from arcdist.training.loop import Loop
from arcdist.training.out_of_memory import explained_out_of_memory
from arcdist.training.session import Session, build_session
from arcdist.training.trial import dry_run

_logger = logging.getLogger(__name__)

_SECONDS_TO_LEAVE = 10.0


def train(loaded: LoadedConfig, watch: FailureWatch) -> int:
    """Train as configured, or measure what training would take (`--dry_run`); the exit code of a run that ended well.

    Args:
        loaded: what the command line asks for.
        watch: entered; it is kept informed of what this process is doing.

    Raises:
        ArcdistError: with the exit code of what went wrong.
        KeyboardInterrupt: after Ctrl-C; a whole checkpoint is on disk.
    """
    config = loaded.config
    if is_main():
        check_mirrors(loaded)
    if "dry_run" not in loaded.switches:
        if "dollars_per_hour" in loaded.options:
            raise ConfigError(
                "--dollars_per_hour is for --dry_run, which says what a run costs: give both, or neither."
            )
        # What libraries print is no result of training, and no reader of it that has gone may end a run.
        with redirect_stdout(standard_error) if is_main() else nullcontext():
            return _train(loaded, watch)
    if "resume" in loaded.options:
        raise ConfigError("--dry_run measures what a run takes, and resumes none: leave out --resume.")
    if "profile" in loaded.options:
        raise ConfigError("--profile writes into a run folder, and --dry_run has none: give one of them.")
    with explained_out_of_memory(config):
        price = loaded.options.get("dollars_per_hour")
        dry_run(config, dollars_per_hour=None if price is None else float(price))
    shutdown()
    return 0


def _train(loaded: LoadedConfig, watch: FailureWatch) -> int:
    config = loaded.config
    # Process 0 owns the folder and reads the checkpoint; the others learn of them once processes can communicate.
    start = find_start(config.output.dir, loaded.options.get("resume")) if is_main() else None
    folder = start.folder if start else None
    with held(start.lock) if start else nullcontext(), open_log(folder) if folder else no_log():
        with _gone_if_refused(start):
            for warning in start.warnings if start else ():
                _logger.warning(warning)
            if start and start.checkpoint is None:
                with _writable(start.folder):
                    save_config(config, start.folder / "config.yaml")
            platform = start_platform(config)
            shared = Path(broadcast_text(str(folder.resolve()) if folder else ""))
            snapshot = _share_snapshot(start)
        heartbeat = Heartbeat(shared, rank())
        watch.mind_silence(heartbeat.life, float(config.distributed.silence))
        if folder:
            heartbeat.observer = PhaseLines()
        with heartbeat.running():
            with _gone_if_refused(start), explained_out_of_memory(config):
                session = build_session(config, platform, heartbeat.doing)
                before = _identity_before(folder)
                own_id = before.id if before else ""
                if start and snapshot and not before and not start.is_new:
                    own_id = snapshot.state.get("run_id", "")  # The run has lost its `run.json`.
                told = wandb_variables(loaded, before.wandb if before else {}, own_id) if folder else {}
                run_id = broadcast_text(own_id or told.get("WANDB_RUN_ID") or secrets.token_hex(4))
                profiled = int(loaded.options.get("profile", "0"))
                with _writable(folder or shared):
                    if folder:
                        _announce(session, folder, loaded.recipe)
                    loop = Loop(session, folder or shared, heartbeat, run_id, profiled_steps=profiled)
                    if snapshot is not None:
                        _resume(loop, snapshot, start)
                        # Its tensors are not kept in memory while the run trains.
                        start, snapshot = start and replace(start, snapshot=None), None
                mirrors = Mirrors(())
                if folder:
                    identity = _identity(loaded, session, loop, before, told)
                    with _writable(folder):
                        write_identity(folder, identity)
                    mirrors = open_mirrors(folder, identity, config, best_metric=config.output.best_metric)
            with explained_out_of_memory(config, folder or shared):
                whole = _run(loop, mirrors)
        if folder and whole:
            _report(loop, folder)
    shutdown()
    return 0 if whole else config.output.preempted_exit_code


def _share_snapshot(start: Start | None) -> Snapshot | None:
    """The checkpoint that process 0 has read, on every process."""
    read = start.snapshot if start else None
    state = json.loads(broadcast_text(json.dumps(read.state if read else None)))
    if state is None:
        return None
    return Snapshot(
        weights=broadcast_tensors(read.weights if read else {}),
        moments=broadcast_tensors(read.moments if read else {}),
        prompts=broadcast_tensors(read.prompts if read else {}),
        state=state,
    )


def _resume(loop: Loop, snapshot: Snapshot, start: Start | None) -> None:
    base = json.loads(broadcast_text(json.dumps(loop.base)))
    check_configuration(loop.config, snapshot.state, base, loop.session.data)
    # Before the numbers after that step go: whenever this is killed, no checkpoint is later than the numbers.
    leaves_a_path = set_aside_later_ones(start.folder, snapshot.state["step"]) if start else False
    loop.resume(snapshot)
    if start:
        save_config(loop.config, start.folder / "config.yaml")
        _logger.info(
            "Resumed from %s: step %d, epoch %d, batch %d of %d.",
            *(start.checkpoint, loop.state.step, loop.state.epoch, loop.state.batch, loop.state.steps_per_epoch),
        )
        if loop.state.is_complete:
            minutes, epochs = loop.config.train.budget_minutes, loop.state.epoch
            if minutes is None:
                _logger.info("All its %d epochs were trained already; a larger --epochs makes it longer.", epochs)
            else:
                longer = "a larger --budget_minutes makes it longer"
                _logger.info("All its time was used already (%g min, %d epochs); %s.", minutes, epochs, longer)
    # What W&B has of a path that is left cannot be taken back: from here on the run is another one there.
    loop.run_id = broadcast_text(secrets.token_hex(4) if leaves_a_path else "") or loop.run_id


def _identity_before(folder: Path | None) -> Identity | None:
    """What `run.json` says of a run that is resumed in its own folder."""
    try:
        return read_identity(folder) if folder else None
    except DataError:
        return None


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Before the first step, a folder that takes nothing is an error of one message."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"The run folder {folder} cannot be written ({reason(error)}: {error.filename or folder}): make room "
            f"there, see who may write there, or choose another with --output_dir FOLDER."
        ) from error


def _run(loop: Loop, mirrors: Mirrors) -> bool:
    """Train, and close the mirrors in whichever way that ends; whether the run came to its end."""
    exit_code, whole = 1, False
    try:
        whole = loop.run(mirrors)
        exit_code = 0
    except ArcdistError as error:
        exit_code = error.exit_code
        raise
    finally:
        # Whoever makes room, or gives up, has no half minute for a server that does not answer.
        loop.heartbeat.doing("closing W&B and TensorBoard")
        mirrors.close(exit_code, seconds=None if whole else _SECONDS_TO_LEAVE)
    if not whole:
        # The launcher stops all processes as soon as one has ended with the exit code of a preempted run.
        broadcast_text("closed")
    return whole


def _identity(
    loaded: LoadedConfig, session: Session, loop: Loop, before: Identity | None, told: Mapping[str, str]
) -> Identity:
    return Identity(
        id=loop.run_id,
        name=loop.folder.resolve().name,
        group=group_of(flatten(loaded.config), session.data),
        recipe=before.recipe if before else loaded.recipe,
        source=loaded.config.data.source,
        data=session.data,
        task_counts=session.task_counts,
        device=device_name(session.device),
        processes=session.accelerator.num_processes,
        zero_stage=session.zero["zero_optimization"]["stage"] if session.zero else None,
        started=before.started if before else datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        versions=versions(),
        wandb={name: value for name, value in told.items() if name != "WANDB_RUN_ID" or value == loop.run_id},
    )


@contextmanager
def _gone_if_refused(start: Start | None) -> Iterator[None]:
    """Until the first step, a run can only find a mistake of the user's, and leaves no folder."""
    try:
        yield
    except (ArcdistError, KeyboardInterrupt):
        if start and start.is_new:
            discard_run_folder(start.folder)
            start.lock.release()
        raise


def _announce(session: Session, folder: Path, recipe: str | None) -> None:
    if session.zero is not None:
        text = json.dumps(session.zero, indent=2)
        (folder / "deepspeed.json").write_text(text + "\n", encoding="utf-8")
        _logger.info("DeepSpeed runs Qwen with this configuration, saved in deepspeed.json:\n%s", text)
    _logger.info("Run folder %s%s.", folder, f", recipe {recipe}" if recipe else "")


def _report(loop: Loop, folder: Path) -> None:
    tracker = loop.metrics_logger.tracker
    outputs = {
        "plot": tracker.plot_path,
        "metrics": tracker.metrics_path,
        "steps": tracker.steps_path,
        **({"profile": folder / "profile"} if (folder / "profile").exists() else {}),
        "best": folder / BEST,
        "checkpoints": folder / "checkpoints",
    }
    log_table(epoch_table(tracker.epochs[-1], tracker.best, outputs))
