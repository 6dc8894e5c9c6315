"""Where a run's numbers, lines and pictures go. Nothing flows back from here into training."""

import logging
from importlib.util import find_spec
from pathlib import Path

from arcdist.config import Config, LoadedConfig
from arcdist.errors import PlatformError
from arcdist.tracking.console import MovingPace, PhaseLines, ProgressBar, epoch_table, log_table, no_log, open_log
from arcdist.tracking.metrics import Record, TrainingMetricsTracker
from arcdist.tracking.mirror import Mirror, Mirrors
from arcdist.tracking.run_folder import Identity, discard_run_folder, make_run_folder
from arcdist.tracking.tensorboard import TensorBoardMirror
from arcdist.tracking.wandb import WandbMirror, wandb_mode, wandb_variables

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
    "wandb_variables",
]

_logger = logging.getLogger(__name__)


def check_mirrors(loaded: LoadedConfig) -> None:
    """Check that what the configuration asks for by name is installed, before a run begins.

    Raises:
        ConfigError: W&B would not take a variable of the environment.
        PlatformError: a package is not installed.
    """
    if loaded.config.tracking.tensorboard and find_spec("tensorboard") is None:
        raise PlatformError(
            "tracking.tensorboard is true, but tensorboard is not installed: "
            "pip install 'arcdist[tensorboard]', or --tracking.tensorboard false."
        )
    wandb_variables(loaded)


def open_mirrors(folder: Path, identity: Identity, config: Config, *, best_metric: str) -> Mirrors:
    """Open the mirrors that `config.tracking` asks for, which `check_mirrors` has checked, of the run in `folder`.

    `best_metric` is what the best epoch is chosen by.
    """
    mirrors: list[Mirror] = []
    if config.tracking.tensorboard:
        mirrors.append(TensorBoardMirror(folder, identity))
    mode, where = wandb_mode(config)
    if mode == "disabled" and where:
        _logger.info("The run is not kept in W&B: %s.", where)
    if mode != "disabled":
        if identity.wandb:
            given = ", ".join(f"{name} = {value!r}" for name, value in identity.wandb.items())
            _logger.info("W&B is told by the environment, as run.json has it: %s.", given)
        mirrors.append(WandbMirror(folder, identity, config, mode, best_metric=best_metric))
    return Mirrors(mirrors)
