"""What W&B is to do for a run."""

import logging
import os
from importlib.util import find_spec
from typing import Literal, TypeAlias

from arcdist.config import Config
from arcdist.errors import ConfigError, PlatformError
from arcdist.tracking.wandb_log import INSTALL

Mode: TypeAlias = Literal["offline", "online", "disabled"] | None
"""None means online where W&B finds a key, else offline."""

_OF_W_AND_B: dict[str | None, Mode] = {
    None: None,
    "": None,
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}

_logger = logging.getLogger(__name__)


def wandb_mode(config: Config) -> Mode:
    """What the configuration says; where it says nothing, what `WANDB_MODE` says.

    Raises:
        ConfigError: `WANDB_MODE` is none of W&B's modes.
        PlatformError: W&B is asked for by name, and not installed.
    """
    wanted = config.tracking.wandb
    if wanted != "disabled" and find_spec("wandb") is None:
        if wanted is not None:
            raise PlatformError(
                f"tracking.wandb is {wanted}, but wandb is not installed: {INSTALL}, or --tracking.wandb disabled."
            )
        _logger.info("The run is not kept in W&B, which is not installed: %s.", INSTALL)
        return "disabled"
    if wanted is not None:
        return wanted
    named = os.environ.get("WANDB_MODE")
    if named not in _OF_W_AND_B:
        raise ConfigError(f"WANDB_MODE is {named}: choose online, offline or disabled, or use --tracking.wandb.")
    return _OF_W_AND_B[named]
