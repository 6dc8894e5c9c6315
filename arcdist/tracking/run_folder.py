"""The folder that a run leaves its files in."""

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
        taken = [name for name in RUN_CONTENT if (folder / name).exists()]
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


def discard_run_folder(folder: Path) -> None:
    """Take back a run that never began, so that the mended one may have its folder; other files in there stay."""
    for name in ("config.yaml", "deepspeed.json", "training.log"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or somebody else's
        folder.rmdir()


def _fresh_folder(attempt: int = 1) -> Path:
    name = f"arcdist_{datetime.now():%Y%m%d_%H%M%S}" + (f"_{attempt}" if attempt > 1 else "")
    folder = Path("runs") / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return _fresh_folder(attempt + 1)
    return folder
