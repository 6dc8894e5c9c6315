"""Where a run's numbers, lines and pictures go. Nothing flows back from here into training."""

from importlib.util import find_spec
from pathlib import Path

from arcdist.config import Config
from arcdist.errors import PlatformError
from arcdist.tracking.console import MovingPace, PhaseLines, ProgressBar, epoch_table, log_table, no_log, open_log
from arcdist.tracking.metrics import Record, TrainingMetricsTracker
from arcdist.tracking.mirror import Mirror, Mirrors
from arcdist.tracking.run_folder import Identity, discard_run_folder, make_run_folder
from arcdist.tracking.tensorboard import TensorBoardMirror
from arcdist.tracking.wandb import WandbMirror, wandb_mode

__all__ = [
    "Mirrors",
    "MovingPace",
    "PhaseLines",
    "ProgressBar",
    "Record",
    "TrainingMetricsTracker",
    "check_mirrors",
    "discard_run_folder",
    "epoch_table",
    "log_table",
    "make_run_folder",
    "no_log",
    "open_log",
    "open_mirrors",
]


def check_mirrors(config: Config) -> None:
    """Check that what the configuration asks for by name is installed, before a run begins.

    Raises:
        ConfigError: `WANDB_MODE` in the environment is not one of W&B's modes.
        PlatformError: a package is not installed.
    """
    if config.tracking.tensorboard and find_spec("tensorboard") is None:
        raise PlatformError(
            "tracking.tensorboard is true, but tensorboard is not installed: "
            "pip install 'arcdist[tensorboard]', or --tracking.tensorboard false."
        )
    wandb_mode(config)


def open_mirrors(folder: Path, identity: Identity, config: Config, *, best_metric: str) -> Mirrors:
    """Open the mirrors that `config.tracking` asks for, which `check_mirrors` has checked, of the run in `folder`.

    `best_metric` is what the best epoch is chosen by.
    """
    mirrors: list[Mirror] = []
    if config.tracking.tensorboard:
        mirrors.append(TensorBoardMirror(folder, identity))
    mode = wandb_mode(config)
    if mode != "disabled":
        mirrors.append(WandbMirror(folder, identity, config, mode, best_metric=best_metric))
    return Mirrors(mirrors)
