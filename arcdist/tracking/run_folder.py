"""The folder that a run leaves its files in."""

import shutil
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from arcdist.errors import ConfigError

RUN_CONTENT = (
    *("config.yaml", "deepspeed.json", "training.log", "steps.jsonl", "metrics.json", "metrics_plot.png"),
    *("heartbeats", "checkpoints", "best"),
)
"""What a run writes: a folder that holds any of it belongs to a run."""

_BEFORE_THE_FIRST_STEP = ("config.yaml", "deepspeed.json", "training.log", "heartbeats")


def make_run_folder(directory: str | Path | None) -> Path:
    """Create the run folder, or `runs/arcdist_<timestamp>` for None, and prove that it can be written.

    Raises:
        ConfigError: the folder cannot be created or written, or holds another run.
    """
    try:
        folder = _fresh_folder() if directory is None else Path(directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"arcdist")
        taken = taken_by(folder)
        if not taken:
            _clear(folder)
    except OSError as error:
        where = "runs" if directory is None else directory
        raise ConfigError(
            f"The output folder {where} cannot be written ({error.strerror}: {error.filename}): "
            f"choose another with --output_dir FOLDER."
        ) from error
    if taken:
        raise ConfigError(
            f"The output folder {folder} holds another run ({', '.join(taken)}): "
            f"choose another with --output_dir FOLDER, or move that run away."
        )
    return folder


def taken_by(folder: Path) -> list[str]:
    """What of another run lies in a folder; nothing where that run ended, or was ended, before its first step."""
    found = [name for name in RUN_CONTENT if (folder / name).exists()]
    # All that a start writes, and nothing else: a file of one of these names may be somebody else's.
    never_began = {"config.yaml", "training.log", "heartbeats"} <= set(found) <= set(_BEFORE_THE_FIRST_STEP)
    return [] if never_began else found


def discard_run_folder(folder: Path) -> None:
    """Take back a run that never began, so that the mended one may have its folder; other files in there stay."""
    _clear(folder)
    with suppress(OSError):  # not empty, or somebody else's
        folder.rmdir()


def _clear(folder: Path) -> None:
    for name in _BEFORE_THE_FIRST_STEP:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)


def _fresh_folder(attempt: int = 1) -> Path:
    name = f"arcdist_{datetime.now():%Y%m%d_%H%M%S}" + (f"_{attempt}" if attempt > 1 else "")
    folder = Path("runs") / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return _fresh_folder(attempt + 1)
    return folder
